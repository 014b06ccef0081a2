"""Nothing is lost: a run that was stopped, killed or hit by a full disk goes on to the bits of one
that was not.
"""

import contextlib
import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import h5py
import numpy as np
import psutil
import pytest
from drive import command_lines, told_of
from mpi import MARK, ROOT, call, kill, marked, need, run
from mpi4py import MPI
from samples import write

from localavg.__main__ import parser
from localavg.cli import age_s
from localavg.cli.sweep import state
from localavg.cli.train import given
from localavg.config import TrainConfig, seconds
from localavg.errors import UserError
from localavg.files import checkpoint
from localavg.files.record import load
from localavg.training import checks

DATA = "--data epsilon-like:60x9 --sampling shuffle --batch-size 3 --lr 0.3 --lr-schedule steps --milestones 3 --factor 0.5"
NETWORK = "--data digits --model nin --sampling shuffle --batch-size 8 --lr 0.02 --steps 14"
COMMON = "--learners 4 --save-weights --seed 3 --log-every 6 --eval-every 9 --optimizer momentum"
LINES = {
    "sync": f"sync {DATA} --steps 40",
    "qsgd": f"qsgd {DATA} --steps 40",
    "kavg": f"kavg --K 7 {DATA} --steps 40",
    "oneshot": f"oneshot {DATA} --steps 40",
    "mavg": f"mavg --K 6 --mu 0.6 --nesterov {DATA} --steps 40",
    "diloco": f"diloco --K 7 {DATA} --steps 40",
    "outer adam": f"kavg --K 5 --outer adam {DATA} --steps 40",
    "outer yogi": f"hieravg --K1 3 --K2 7 --S 2 --outer yogi {DATA} --steps 40",
    "slowmo": f"slowmo --K 6 {DATA} --steps 40 --state reset",
    "fedavg": f"fedavg --K 7 --participants 2 {DATA} --steps 40",
    "weights": f"fedavg --K 5 --participants 3 --state keep {DATA} --steps 40 "
    "--sampling dirichlet-class:1",
    "hieravg": f"hieravg --K1 3 --K2 7 --S 2 {DATA} --steps 40",
    "delay": f"hieravg --K1 4 --K2 7 --S 2 --outer nesterov --delay 3 {DATA} --steps 40",
    "wire": f"kavg --K 5 --outer momentum --mu 0.4 --wire int8 --ranks-per-node 1 {DATA} --steps 40",
    "wire delay": f"hieravg --K1 4 --K2 7 --S 2 --wire bf16 --delay 3 --ranks-per-node 1 {DATA} "
    "--steps 40 --variance averages",
    "fragments": f"diloco --K 8 --fragments 3 --delay 2 --wire bf16 --ranks-per-node 1 {DATA} "
    "--data epsilon-like:60x200 --steps 40",
    "low rank": f"kavg --K 3 --wire lowrank:2 --ranks-per-node 1 {NETWORK}",
    "anchor": f"kavg --K 4 --delay 4 --merge lerp --anchor-mu 0.5 {DATA} --steps 40",
    "adpsgd": f"adpsgd --p-init 2 --Ks 12 --warmup 0.2 {DATA} --steps 40",
    "adalupa": f"adalupa --tau0 3 --alpha 0.5 {DATA} --steps 40",
    "loss": f"adalupa --tau0 3 --rule loss {DATA} --steps 40",
    "adacomm": f"adacomm --tau0 16 --block 9 {DATA} --steps 40 --warmup-epochs 6 --warmup-from 0.02",
    "gossip": f"gossip --K 2 --graph matching --variance averages {DATA} --steps 40",
    "push": f"gossip --graph push --state average {DATA} --steps 40",
    "one-peer": f"gossip --K 3 --graph one-peer-exp --mix first --switch 1 {DATA} --steps 40",
    "piecewise": f"piecewise --pieces 0:3,2:5 {DATA} --steps 40",
    "V": f"kavg --K 7 {DATA} --steps 40 --variance steps",
    "iid": f"kavg --K 7 {DATA} --steps 40 --sampling iid",
    "average": f"mavg --K 7 {DATA} --steps 40 --state average",
    "reset": f"kavg --K 7 {DATA} --steps 40 --state reset",
    "network": f"kavg --K 3 {NETWORK}",
    "kept": f"hieravg --K1 2 --K2 5 --S 2 {NETWORK} --statistics keep",
}
ADAM = {"adam": f"kavg --K 7 {DATA} --steps 40 --state average --optimizer adam"}
STOPS = (1, 12, 13)  # the first update, at a row of /train, within periods
TIMES = ["seconds", "wall_s", "compute_s", "communicate_s", "wait_s", "data_s", "hidden_s"]


def words(line, out, *more):
    return [
        "train",
        *f"{line} {COMMON}".split(),
        *(ADAM_WORDS if "optimizer adam" in line else ()),
        "--out",
        str(out),
        *more,
    ]


ADAM_WORDS = ("--optimizer", "adam")  # the last one given counts


def same(a, b):
    """Whether two run files tell of the same run, bit for bit, but for the times."""
    assert a.status == b.status == "finished"
    assert np.array_equal(a.weights, b.weights) and np.array_equal(
        a.initial_weights, b.initial_weights
    )
    for group in ("train", "averages", "eval"):
        x, y = (getattr(r, group).drop(columns=TIMES, errors="ignore") for r in (a, b))
        assert x.equals(y), group


def stopped_and_resumed(world, folder, lines, stops):
    """Run every line to the end, and again with a stop after each of the updates; exit statuses of
    the latter.
    """
    from localavg.training.keeper import Interrupted, Keeper

    wanted, statuses = [None], []

    def stopping(self, t):
        if wanted and t == wanted[0]:
            wanted.pop(0)
            self.save(t)
            raise Interrupted(f"stopped after {t}")
        self.due = t + 1

    with mock.patch.object(Keeper, "visit", stopping):
        for name, line in lines.items():
            wanted[:] = []
            command_lines(world, [words(line, f"{folder}/{name}-whole.h5")])
            wanted[:] = stops
            again = words(line, f"{folder}/{name}.h5", "--resume")
            statuses.append(command_lines(world, [again] * (len(stops) + 2)))
    return statuses


SOME = ("mavg", "adpsgd", "network")
WORLDS = {
    ("openmpi", 1): SOME,
    ("openmpi", 2): (*LINES, *ADAM),
    ("openmpi", 3): ("qsgd", "mavg", "hieravg", "adpsgd", "V", "kept"),  # 1, 1 and 2 learners
    ("openmpi", 4): (*LINES, *ADAM),
    ("mpich", 2): SOME,
}


def later(mpi, ranks, name):
    """Whether it is left to the long tests: four ranks, and networks but on two of Open MPI."""
    return ranks == 4 or (
        name in ("network", "kept", "low rank") and (mpi, ranks) != ("openmpi", 2)
    )


@pytest.fixture
def stopped(request, once, tmp_path_factory):
    """The folder of all runs of a world, and their exit statuses by name: one launch."""
    mpi, ranks, wait = request.param
    names = [name for name in WORLDS[mpi, ranks] if later(mpi, ranks, name) == wait]
    lines = {name: (LINES | ADAM)[name] for name in names}
    folder = once(("folder", *request.param), tmp_path_factory.mktemp, "stopped")
    statuses = once(
        request.param, call, ranks, stopped_and_resumed, str(folder), lines, STOPS, mpi=mpi
    )[0]
    return folder, dict(zip(lines, statuses, strict=True))


@pytest.mark.parametrize(
    ("stopped", "name"),
    [
        pytest.param(
            (mpi, ranks, later(mpi, ranks, name)),
            name,
            id=f"{mpi}-{ranks}-{name}",
            marks=[pytest.mark.long] * later(mpi, ranks, name),
        )
        for (mpi, ranks), names in WORLDS.items()
        for name in names
    ],
    indirect=["stopped"],
)
def test_a_run_stopped_at_any_step_of_a_period_goes_on_to_the_same_bits(stopped, name):
    folder, statuses = stopped
    assert statuses[name] == [75] * len(STOPS) + [0, 0]
    whole, parts = load(folder / f"{name}-whole.h5"), load(folder / f"{name}.h5")
    same(whole, parts)
    assert parts.provenance["resumes"] == len(STOPS) and "failure" not in parts.attrs
    assert (
        parts.train.wall_s.is_monotonic_increasing
        and (parts.train.compute_s.diff().dropna() >= 0).all()
    )
    assert not checkpoint.folder_of(folder / f"{name}.h5").exists()  # finished


ANY = {  # name: P learners and what they do
    "kavg": (5, f"kavg --K 7 {DATA} --steps 40 --state average"),
    "qsgd": (5, LINES["qsgd"]),
    "mavg": (7, LINES["mavg"]),
    "outer adam": (7, LINES["outer adam"]),
    "adpsgd": (7, LINES["adpsgd"]),
    "loss": (7, LINES["loss"]),
    "hieravg": (10, f"hieravg --K1 3 --K2 7 --S 5 {DATA} --steps 40"),
    # clusters of clusters average at the update of the stop
    "levels": (8, f"hieravg --levels 4:2,13:4,20:P {DATA} --steps 40 --state average"),
    "network": (5, LINES["network"]),
}


def any_of(folder, *more, names=tuple(ANY)):
    """The command lines of these of ANY whose run files are in a folder."""
    return [
        [
            "train",
            *f"{line} {COMMON.replace('--learners 4', f'--learners {P}')}".split(),
            *("--out", f"{folder}/{name}.h5", *more),
        ]
        for name in names
        for P, line in [ANY[name]]
    ]


def on_three_and_one(make_folder, names):
    """The folders of runs that were stopped in the midst of a period on 3 ranks; on one rank, in
    one launch, of whole ones and of those resumed.
    """
    three, whole, again = (make_folder(name) for name in ("three", "whole", "again"))
    assert call(3, stopped_at, any_of(three, names=names), 13)[0] == [75] * len(names)
    shutil.copytree(three, again, dirs_exist_ok=True)
    lines = any_of(whole, names=names) + any_of(again, "--resume", names=names)
    assert call(1, command_lines, lines)[0] == [0] * len(lines)
    return three, whole, again


SOON = tuple(name for name in ANY if name != "network")


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        pytest.param(1, SOON, id="1"),
        pytest.param(4, SOON, id="4"),
        pytest.param(2, SOON, id="2", marks=pytest.mark.long),
        *(
            pytest.param(ranks, ("network",), id=f"{ranks}-network", marks=pytest.mark.long)
            for ranks in (1, 2, 4)
        ),
    ],
)
def test_a_run_of_any_number_of_learners_is_resumed_on_any_number_of_ranks(
    ranks, names, once, tmp_path_factory, tmp_path
):
    """To the weights of one that was not stopped."""
    three, whole, folder = once(names, on_three_and_one, tmp_path_factory.mktemp, names)
    if "outer adam" in names:  # its state is there once
        saved = (three / f"outer adam.h5.ckpt/t000000013/rank{r:05d}.h5" for r in range(3))
        assert ["combine" in h5py.File(path) for path in saved] == [True, False, False]
    if ranks > 1:
        folder = shutil.copytree(three, tmp_path / "again")
        lines = any_of(folder, "--resume", names=names)
        assert call(ranks, command_lines, lines)[0] == [0] * len(names)
    for name in names:
        again, reference = load(folder / f"{name}.h5"), load(whole / f"{name}.h5")
        assert again.provenance["resumes"] == 1 and np.array_equal(
            again.weights, reference.weights
        ), name
        columns = ["t", "scope", "level", "period"]
        assert again.averages[columns].equals(reference.averages[columns])
        np.testing.assert_allclose(again.train.loss, reference.train.loss, rtol=1e-6)


def stopped_at(world, lines, t):
    """The exit statuses of command lines that are stopped after update t."""
    from localavg.training.keeper import Interrupted, Keeper

    def stop(self, now):
        if now == t:
            self.save(t)
            raise Interrupted(f"stopped after {t}")
        self.due = now + 1

    visit, Keeper.visit = Keeper.visit, stop
    try:
        return command_lines(world, lines)
    finally:
        Keeper.visit = visit


def alone(folder, line, stops=(13,)):
    """A run on one rank in this process to its end, and one stopped after each of the updates."""
    statuses = stopped_and_resumed(MPI.COMM_WORLD, str(folder), {"run": line}, stops)
    assert statuses == [[75] * len(stops) + [0, 0]]
    return load(folder / "run-whole.h5"), load(folder / "run.h5")


HELD = {  # what a run must remember: a run whose bits depend on it
    "momentum": LINES["kavg"],
    "block momentum": LINES["mavg"],
    "outer nesterov": LINES["diloco"],
    "outer adam": LINES["outer adam"],
    "outer yogi": LINES["outer yogi"],
    "slow momentum": LINES["slowmo"],
    "Adam": ADAM["adam"],
    "the steered period": LINES["adpsgd"],
    "the losses that steer it": LINES["adacomm"],
    "learners that differ": f"{LINES['oneshot']} --sampling shard",
}


@pytest.mark.parametrize("what", HELD)
def test_a_run_on_one_rank_goes_on_to_the_same_bits(what, tmp_path, hooks):
    same(*alone(tmp_path, HELD[what]))


def test_a_chosen_period_goes_on_to_the_same_bits(tmp_path, hooks, monkeypatch):
    """With times that repeat; and by a replay, with times as they are."""
    line = f"kavg --K auto --outer nesterov {DATA} --steps 60"
    whole, _ = alone(tmp_path, line)
    folder = tmp_path / "replayed"
    folder.mkdir()
    same(*alone(folder, f"{line} --replay {whole.path}"))
    monkeypatch.setattr(
        "localavg.training.pace.Pace._times",
        lambda self, t: (0.005 + 0.001 * t, 0.05 + 0.01 * (t % 2)),
    )
    folder = tmp_path / "repeating"
    folder.mkdir()
    whole, parts = alone(folder, line, stops=(13, 18, 37))
    same(whole, parts)
    assert whole.periods.equals(parts.periods) and len({*whole.periods.K}) > 2


def test_the_clock_goes_on_where_it_was(tmp_path, hooks, monkeypatch):
    """By a clock that moves on a second whenever somebody looks, as also when a stop is saved."""
    looks = itertools.count()
    monkeypatch.setattr("localavg.training.stopwatch.perf_counter", lambda: float(next(looks)))
    whole, parts = alone(tmp_path, LINES["kavg"], stops=(13, 20))
    for group in ("train", "eval"):
        later = getattr(parts, group).wall_s - getattr(whole, group).wall_s
        assert later.isin([0, 1, 2]).all() and later.is_monotonic_increasing


# ---------------------------------------------------------------------------------------------- one

LONG = (
    "mavg --K 7 --mu 0.4 --data epsilon-like:2000x50 --learners 4 --batch-size 8 --lr 0.1 "
    "--optimizer momentum "
    "--save-weights --seed 1 --eval-every 2000 --log-every 500"
)
STEPS = 8_000  # about a second


def launch(out, *more, line=LONG, steps=STEPS, ranks=2, **how):
    return run(
        ranks,
        "-m",
        "localavg",
        "train",
        *line.split(),
        "--steps",
        str(steps),
        "--out",
        out,
        *more,
        **how,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run.h5"
    launch(out, check=True)
    return load(out)


def limited(world, words):
    """The exit status of a run whose time limit is up once it has two checkpoints."""
    from localavg.training.keeper import Keeper

    save = Keeper.save

    def saving(keeper, t):
        save(keeper, t)
        if t >= 80:
            keeper.limit_s = 0.0

    with mock.patch.object(Keeper, "save", saving):
        return asked(world, words, 0.0)


def asked(world, words, age):
    from localavg.training.run import run

    config = checks.read(given(parser().parse_args(words)))
    return run(config, world, age_s=age).status


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run file that its time limit stopped, with two checkpoints."""
    out = tmp_path_factory.mktemp("half") / "run.h5"
    limit = f"--time-limit 1h --checkpoint-every 40 --out {out}"
    words = f"train {LONG} --steps {STEPS} {limit}".split()
    assert call(2, limited, words) == [75, 75]
    assert load(out).status == "interrupted"
    return out.parent


def copied(half, folder):
    """The run file of a copy of that folder."""
    return Path(shutil.copytree(half, folder, dirs_exist_ok=True)) / "run.h5"


@pytest.fixture
def halfway(half, tmp_path):
    return copied(half, tmp_path)


def told(done):
    return [line for line in done.stderr.splitlines() if line.startswith("localavg: ")]


def test_a_time_limit_saves_stops_and_the_same_command_goes_on(halfway, whole):
    found = load(halfway)
    assert re.search(
        r"stopped by the time limit after step \d+, saved in .*run.h5.ckpt; .*`resume`",
        found.attrs["failure"],
    )
    again = launch(halfway, "--resume")
    assert again.returncode == 0 and any("resumes after step" in line for line in told(again))
    same(load(halfway), whole)
    after = launch(halfway, "--resume")
    assert after.returncode == 0 and "is finished already" in after.stderr
    other = launch(halfway, "--resume", "--lr", "0.2")
    assert (
        other.returncode == 2
        and f"{halfway} is finished, but --lr is 0.1 there and 0.2 here" in other.stderr
    )
    assert load(halfway).provenance["resumes"] == 1


def test_a_requeued_job_resumes_by_itself(halfway, whole):
    assert launch(halfway, env={"SLURM_RESTART_COUNT": "1"}).returncode == 0
    same(load(halfway), whole)


@pytest.mark.parametrize("name", ["USR1", "USR2", "TERM"])
def test_a_signal_to_one_rank_saves_and_stops_all(tmp_path, whole, name):
    out, mark = tmp_path / "run.h5", uuid.uuid4().hex
    process = background(out, mark, "--checkpoint-every", "100")
    ranks = training(mark, out)
    ranks[-1].send_signal(getattr(signal, f"SIG{name}"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert f"stopped by SIG{name}" in load(out).attrs["failure"]
    if name == "USR1":
        assert launch(out, "--resume").returncode == 0
        same(load(out), whole)


def test_sigterm_to_the_launcher_ends_it_and_the_run_can_be_resumed(tmp_path, whole):
    out, mark = tmp_path / "run.h5", uuid.uuid4().hex
    process = background(out, mark, "--checkpoint-every", "100")
    training(mark, out)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode != 0
    kill(mark)
    assert load(out).status in ("died", "interrupted")
    assert launch(out, "--resume").returncode == 0
    same(load(out), whole)


def background(out, mark, *more, line=LONG, steps=STEPS, ranks=2):
    need("openmpi")
    command = [
        "jobs/local/mpirun",
        "-n",
        str(ranks),
        "python",
        "-m",
        "mpi4py",
        "-m",
        "localavg",
        "train",
        *line.split(),
        "--steps",
        str(steps),
        "--out",
        str(out),
        *more,
    ]
    env = {**os.environ, MARK: mark, "PYTHONPATH": f"{ROOT}"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(mark):
    """The processes of the ranks, in their order; not the launcher's, nor what a rank runs beside
    (git).
    """
    found = {}
    for p in marked(mark):
        with contextlib.suppress(psutil.Error, IndexError):
            if (rank := p.environ().get("OMPI_COMM_WORLD_RANK")) and p.cmdline()[0].endswith(
                "python"
            ):
                found[int(rank)] = p
    return [found[rank] for rank in sorted(found)]


def training(mark, out, ranks=2, wait_s=60):
    """The processes of the ranks, once the run has saved a checkpoint."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        with contextlib.suppress(UserError):
            if (
                checkpoint.found(checkpoint.folder_of(out))
                and len(found := ranks_of(mark)) == ranks
            ):
                return found
        time.sleep(0.02)
    pytest.fail("did not start to train")


KILLED = {
    "kavg": LONG.replace("mavg --K 7 --mu 0.4", "kavg --K 5"),
    "mavg": LONG,
    "hieravg": LONG.replace("mavg --K 7 --mu 0.4", "hieravg --K1 3 --K2 7 --S 2"),
    "adpsgd": LONG.replace("mavg --K 7 --mu 0.4", "adpsgd"),
    "sync": LONG.replace("mavg --K 7 --mu 0.4", "sync"),
    "loss": LONG.replace("mavg --K 7 --mu 0.4", "adalupa --tau0 40 --rule loss"),
    "network": "kavg --K 3 --data digits --model nin --learners 4 --batch-size 8 --lr 0.02 "
    "--optimizer momentum --save-weights "
    "--eval-every 100",
}


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.long)])
def test_random_kills_lose_nothing(kills, tmp_path):
    """−9 to any rank at any moment: the run file is readable, and every run goes on to the bits of
    an unharmed one.
    """
    seed = int(os.environ.get("LOCALAVG_TEST_SEED", random.randrange(10**6)))
    draw, names = random.Random(seed), list(KILLED)
    killed = []
    for k in range(kills):
        name = names[k % len(names)]
        out, mark = tmp_path / f"{k}-{name}.h5", uuid.uuid4().hex
        steps = 100 if name == "network" else STEPS // 2
        every = "23" if name == "network" else "300"
        process = background(out, mark, "--checkpoint-every", every, line=KILLED[name], steps=steps)
        if k % 2:  # while it trains; else at any moment, its start among them
            while process.poll() is None and not checkpoint.found(checkpoint.folder_of(out)):
                time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3) if k % 2 else draw.uniform(0.3, 2.0))
        victims = []
        while process.poll() is None and not (victims := ranks_of(mark)):
            time.sleep(0.01)
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it may have finished
            draw.choice(victims).kill()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"seed {seed}, kill {k}: the others still run after 60 s")
        finally:
            kill(mark)
        if out.exists() and out.stat().st_size:
            load(out)
        killed.append((out, name, steps))
    lines = [
        ["train", *KILLED[name].split(), "--steps", str(steps), "--out", str(out), "--resume"]
        for out, name, steps in killed
    ]
    refs = [
        [
            "train",
            *KILLED[name].split(),
            "--steps",
            str(steps),
            "--out",
            str(tmp_path / f"whole-{name}.h5"),
        ]
        for name, steps in {name: steps for _, name, steps in killed}.items()
    ]
    statuses = call(2, command_lines, refs + lines)[0]
    assert statuses == [0] * len(statuses), f"seed {seed}"
    for out, name, _ in killed:
        same(load(out), load(tmp_path / f"whole-{name}.h5"))
    assert sum(load(out).provenance.get("resumes", 0) for out, _, _ in killed) >= max(
        1, kills // 5
    )  # enough of them hit a run


# ---------------------------------------------------------------------------------------------- dam


def damage(out, how):
    """Damage the latest checkpoint of a run."""
    latest = sorted(checkpoint.folder_of(out).iterdir())[-1]
    file = latest / "rank00001.h5"
    if how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "missing":
        file.unlink()
    else:
        with h5py.File(file, "r+") as f:
            f["weights/w"][0, 0] += 1
    return latest


CHANGES = {
    "--lr 0.2": r"lr = 0\.1, not 0\.2",
    "--learners 6": r"learners = 4, not 6",
    "--K 8": r"K = 7, not 8",
    "--seed 2": r"seed = 1, not 2",
    "--steps 90": r"steps = 8000, not 90",
    "--data epsilon-like:2000x51": r"data = ",
}
DAMAGES = ("truncated", "missing", "changed")


class Attempts(NamedTuple):
    """What became of command lines by name, and the run files they are about."""

    outs: dict[str, Path]
    before: dict[str, bytes]  # the run files as they were
    damaged: dict[str, str]  # names of checkpoints
    ends: dict[str, tuple]  # (exit status, what rank 0 said)


@pytest.fixture(scope="module")
def attempts(half, tmp_path_factory):
    """Command lines about copies of a run that stopped half-way, in one launch."""
    names = [*CHANGES, *DAMAGES, "lost", "no resume", "no run file", "no run file, resume"]
    outs = {name: copied(half, tmp_path_factory.mktemp("attempt")) for name in names}
    damaged = {how: damage(outs[how], how).name for how in DAMAGES}
    shutil.rmtree(checkpoint.folder_of(outs["lost"]))
    before = {name: out.read_bytes() for name, out in outs.items()}
    for name in ("no run file", "no run file, resume"):
        outs[name].unlink()
    lines = {
        name: f"train {LONG} --steps {STEPS} --out {out}"
        + " --resume" * (name not in ("no resume", "no run file"))
        for name, out in outs.items()
    }
    lines |= {change: f"{lines[change]} {change}" for change in CHANGES}
    ends = call(2, told_of, [line.split() for line in lines.values()])[0]
    return Attempts(outs, before, damaged, dict(zip(lines, ends, strict=True)))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(attempts, half, whole, how):
    assert len(checkpoint.found(checkpoint.folder_of(half / "run.h5"))) == checkpoint.KEPT
    status, said = attempts.ends[how]
    assert status == 0, said
    assert re.search(f"{attempts.damaged[how]}.* is damaged.*going back to the one before", said)
    same(load(attempts.outs[how]), whole)


def test_without_a_sound_checkpoint_it_starts_again_and_keeps_the_file(attempts, whole):
    status, said = attempts.ends["lost"]
    assert status == 0 and re.search("no checkpoint.*starting from the beginning", said)
    same(load(attempts.outs["lost"]), whole)
    assert load(f"{attempts.outs['lost']}.unfinished1").status == "interrupted"


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_is_named_and_refused(attempts, change):
    status, said = attempts.ends[change]
    assert status == 2 and re.search(CHANGES[change], said), said
    out = attempts.outs[change]
    assert out.read_bytes() == attempts.before[change] and checkpoint.found(
        checkpoint.folder_of(out)
    )


def test_without_resume_an_unfinished_run_is_not_touched(attempts):
    status, said = attempts.ends["no resume"]
    assert status == 2 and "exists" in said
    assert attempts.outs["no resume"].read_bytes() == attempts.before["no resume"]


def test_checkpoints_without_their_run_file_are_not_taken_over(attempts):
    for name in ("no run file", "no run file, resume"):
        status, said = attempts.ends[name]
        assert status == 2 and "their run file" in said and not attempts.outs[name].exists()


def test_a_damaged_checkpoint_is_not_taken_for_a_newer_one(halfway, whole):
    """What a run saves after it went back stays, though the damaged ones were further on."""
    folder = checkpoint.folder_of(halfway)
    for t in checkpoint.found(folder):
        (folder / f"t{t:09d}" / "rank00000.h5").write_bytes(b"damaged")
    again = launch(halfway, "--resume", "--time-limit", "0.6s", "--checkpoint-every", "40")
    assert again.returncode == 75 and len(checkpoint.found(folder)) >= 1
    assert len(list(folder.glob("*.damaged*"))) >= 1
    after = launch(halfway, "--resume")
    assert after.returncode == 0 and any("resumes after step" in line for line in told(after))
    same(load(halfway), whole)


def test_two_runs_never_write_into_one_file(tmp_path):
    """The later one starts afresh under that name; the earlier one finds out and ends."""
    out, marks = tmp_path / "run.h5", [uuid.uuid4().hex, uuid.uuid4().hex]
    line = LONG.replace("--save-weights", "")
    first = background(out, marks[0], line=line, steps=10**8)
    try:
        until = time.monotonic() + 60
        while not (out.exists() and out.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        background(out, marks[1], "--resume", line=line, steps=10**8)
        err = first.communicate(timeout=90)[1]
        assert first.returncode != 0 and "another run has put its own file there, or moved" in err
        assert load(f"{out}.unfinished1").status == "died"
        until = time.monotonic() + 60
        while not len(load(out).train) and time.monotonic() < until:  # the other goes on
            time.sleep(0.1)
    finally:
        for mark in marks:
            kill(mark)
    found = load(out)
    assert found.status in ("died", "interrupted") and len(found.train)
    assert found.train.t.is_monotonic_increasing and found.train.t.is_unique


def test_runs_whose_names_end_alike_keep_their_own_checkpoints():
    names = ["lr0.1", "lr0.9", "a.h5", "a.hdf5", "a"]
    assert len({checkpoint.folder_of(name) for name in names}) == len(names)


def test_ctrl_c_saves_the_run_and_the_same_command_goes_on(tmp_path):
    out, line = tmp_path / "run.h5", LONG.replace("--learners 4", "--learners 2")
    # which the test may not have
    terminal = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = [
        sys.executable,
        "-c",
        terminal + "from localavg.__main__ import main; main()",
        "train",
        *line.split(),
        "--steps",
        str(STEPS),
        "--out",
        str(out),
        "--checkpoint-every",
        "300",
    ]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not checkpoint.found(checkpoint.folder_of(out)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    if process.returncode != 0:  # it may just have finished
        assert (
            process.returncode == 75
            and "stopped by SIGINT" in err
            and load(out).status == "interrupted"
        )
        assert launch(out, "--resume", line=line, ranks=1).returncode == 0
    assert load(out).status == "finished"


@pytest.mark.parametrize("ranks", [1, 4])
def test_another_number_of_ranks_goes_on_and_says_so(halfway, whole, ranks):
    done = launch(halfway, "--resume", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert any(f"saved by 2 ranks, resumed by {ranks}" in line for line in told(done))
    found = load(halfway)
    np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.train.loss, whole.train.loss, rtol=1e-4)


def stopped_limited_and_free(world, folder, line):
    """A whole run; one stopped after update 25; resumed where no file may grow beyond
    0.45 MB; and where any may.

    (Exit status, what this rank says) of each, and the checkpoints of the latter before and after
    it met the limit.
    """
    from localavg.training.keeper import Interrupted, Keeper

    out, visit = f"{folder}/run.h5", Keeper.visit
    whole, part = (["train", *line.split(), "--out", path] for path in (f"{folder}/whole.h5", out))

    def stopping(self, t):
        visit(self, t)
        if t == 25:
            self.save(t)
            raise Interrupted("stopped")
        self.due = t + 1

    ends = told_of(world, [whole])
    Keeper.visit = stopping
    ends += told_of(world, [part])
    Keeper.visit = visit
    before = checkpoint.found(checkpoint.folder_of(out))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (450_000, hard))
    ends += told_of(world, [[*part, "--resume"]])
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    world.Barrier()
    after = checkpoint.found(checkpoint.folder_of(out))
    return ends + told_of(world, [[*part, "--resume"]]), before, after


def test_a_checkpoint_that_cannot_be_written_stops_the_run_and_leaves_the_one_before(tmp_path):
    write(tmp_path / "data.h5", noise=0.0, n=40, d=50_000)
    # a checkpoint of a rank takes 0.6 MB, the run file 0.3
    line = (
        f"kavg --K 5 --data {tmp_path}/data.h5 --learners 2 --batch-size 4 --steps 40 --lr 0.02 "
        "--optimizer adam --checkpoint-every 10 --ranks-per-node 1"
    )
    (first, before, after), (second, *_) = call(2, stopped_limited_and_free, str(tmp_path), line)
    assert [status for status, _ in first] == [status for status, _ in second] == [0, 75, 1, 0]
    (_, told), (_, silent) = first[2], second[2]
    assert "resumes after step 25" in told and "cannot write this checkpoint" in told
    assert silent == ""
    assert before == after and before[0] == 25
    same(load(tmp_path / "run.h5"), load(tmp_path / "whole.h5"))


def fails_on_one_rank(world, out, line):
    from localavg.problems.logistic import Logistic

    gradient_, count = Logistic.gradient_, [0]

    def failing(self, w, batch, out):
        count[0] += 1
        if world.rank == 1 and count[0] == 3000:
            raise RuntimeError("a broken learner")
        return gradient_(self, w, batch, out)

    Logistic.gradient_ = failing
    from localavg.parallel.abort import abort_on_exception

    abort_on_exception(world)
    command_lines(world, [["train", *line.split(), "--out", out]])


def test_a_rank_that_raises_ends_the_job_and_the_run_goes_on_from_its_checkpoint(tmp_path, whole):
    out = tmp_path / "run.h5"
    line = f"{LONG} --steps {STEPS} --checkpoint-every 400"
    with pytest.raises(pytest.fail.Exception) as failure:
        call(2, fails_on_one_rank, str(out), line)
    assert "a broken learner" in str(failure.value)
    load(out)
    assert checkpoint.found(checkpoint.folder_of(out))
    assert launch(out, "--resume").returncode == 0
    same(load(out), whole)


def test_a_time_limit_counts_from_the_start_of_the_process(tmp_path):
    """This process is older than half its age; a run in it is not, if it says so."""
    line = f"{LONG} --steps 40 --time-limit {max(age_s() / 2, 0.01):.2f}s"
    words = ["train", *line.split(), "--out", str(tmp_path / "old.h5")]
    assert command_lines(MPI.COMM_WORLD, [words]) == [75]
    slow = [word if word != "40" else "4" for word in words[:-1]]
    assert asked(MPI.COMM_WORLD, [*slow, str(tmp_path / "young.h5")], -1e6) == 0


# ---------------------------------------------------------------------------------------------- the


@pytest.mark.parametrize(
    "text, expected",
    [("90s", 90), ("50min", 3000), ("1.5h", 5400), ("1:30:00", 5400), ("0:0:5", 5)],
)
def test_times_are_read(text, expected):
    assert seconds("time_limit", text) == expected


@pytest.mark.parametrize("text", ["", "10", "0s", "-5min", "1:90:00", "5 days", "nan s", "1:00"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="`time_limit"):
        TrainConfig(algorithm="kavg", time_limit=text)


@pytest.mark.parametrize("text", ["0", "-3", "x", "1.5"])
def test_other_checkpoint_intervals_are_refused(text):
    with pytest.raises(UserError, match="`checkpoint_every"):
        TrainConfig(algorithm="kavg", checkpoint_every=text)


def test_checkpoints_by_time(tmp_path):
    out = tmp_path / "run.h5"
    limit = f"--checkpoint-every 0.1s --time-limit 1.2s --out {out}"
    words = f"train {LONG} --steps 200000 {limit}".split()
    assert call(2, limited, words) == [75, 75]
    saved = checkpoint.found(checkpoint.folder_of(out))
    assert len(saved) == checkpoint.KEPT
    run = load(out)  # rows come rarely in a run of so many updates
    assert run.attrs["stopped_after"] > run.train.t.max()
    assert state.look(out).t == run.attrs["stopped_after"]
    assert f"after step {state.look(out).t}," in run.attrs["failure"]


if sys.platform != "linux":
    pytest.skip("signals and limits are those of Linux", allow_module_level=True)
