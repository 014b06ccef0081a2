"""What is told of a user's mistakes and of runs that fail: which line, once, and what is left
behind.
"""

import contextlib
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from drive import parser, told_of
from mpi import alone, call, run

from localavg.cli import in_flags
from localavg.files.record import load

SMALL = "--data epsilon-like:64x8 --batch-size 4 --steps 8 --out run.h5"


def launched(folder, ranks, line, **how):
    """`localavg LINE` under mpirun, relative file names standing for those in the folder."""
    words = [
        str(folder / word) if word.endswith((".h5", ".txt", ".xz")) else word
        for word in line.split()
    ]
    return run(ranks, "-m", "localavg", *words, **how)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def told(done):
    """The lines of localavg on stderr."""
    return [line for line in done.stderr.splitlines() if line.startswith("localavg:")]


def write(path, x, y):
    """A prepared dataset with these rows, not shuffled."""
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {
                "schema": 1,
                "kind": "features",
                "name": path.stem,
                "source": "made up",
                "classes": [-1.0, 1.0],
                "shuffled": False,
            }
        )
        file["train/x"], file["train/y"] = x.astype(np.float32), y.astype(np.float32)


def fill(folder):
    """Files of every kind that a user might point to."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 8)), np.where(rng.random(400) < 0.5, -1, 1)
    write(folder / "good.h5", x, y)
    whole = (folder / "good.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[:-900])
    (folder / "empty.h5").write_bytes(b"")
    (folder / "old.h5").write_bytes(whole)
    x[321, 5] = np.nan
    write(folder / "nan.h5", x, y)
    (folder / "text.h5").write_text("no HDF5")
    (folder / "file").write_text("a regular file")
    (folder / "three.txt").write_text("1 1:0.5 3:1\n2 2:1\n3 1:1\n")
    (folder / "one.txt").write_text("1 1:0.5\n1 2:1\n")
    (folder / "two.txt").write_text("1 1:0.5\n-1 2:1\n")
    (folder / "cut.xz").write_bytes(b"\xfd7zXZ\x00\x00\x04")


TRAIN = {  # what is wrong: (command line, words of the value, the rule and the remedy)
    "K below 1": (f"kavg --K 0 {SMALL}", ["--K 0", "at least 1"]),
    "K1 above K2": (f"hieravg --K1 9 --K2 4 {SMALL}", ["--K1 9", "--K2 4", "K1 <= K2"]),
    "S divides nothing": (f"hieravg --S 3 --learners 4 {SMALL}", ["--S 3", "4 learners", "divide"]),
    "levels in other words": (f"hieravg --levels 4,8 {SMALL}", ["--levels 4,8", "K:S,K:S"]),
    "levels that do not nest": (
        f"hieravg --levels 2:2,4:3,8:6 --learners 6 {SMALL}",
        ["--levels 2:2,4:3,8:6", "each S must divide the next one", "3 follows 2"],
    ),
    "levels that do not grow": (
        f"hieravg --levels 4:2,4:P --learners 4 {SMALL}",
        ["--levels 4:2,4:P", "K must grow", "4 follows 4"],
    ),
    "levels of other learners": (
        f"hieravg --levels 2:2,4:4 --learners 8 --data none.h5 {SMALL}",
        ["--levels has 4 learners", "the run has 8", "letter P"],
    ),
    "levels that do not divide": (
        f"hieravg --levels 2:4,4:P --learners 6 --data none.h5 {SMALL}",
        ["clusters of 4 (--levels)", "6 learners", "divide"],
    ),
    "levels and K1": (
        f"hieravg --levels 2:2,4:P --K1 3 {SMALL}",
        ["--K1 3", "means nothing beside --levels", "leave --K1 out"],
    ),
    "a torus of a prime": (
        f"gossip --graph torus --learners 7 {SMALL}",
        ["--graph torus", "7 learners", "prime", "--graph ring"],
    ),
    "lr nan": (f"kavg --lr nan {SMALL}", ["--lr nan", "finite", "above 0"]),
    "lr inf": (f"kavg --lr inf {SMALL}", ["--lr inf", "finite", "above 0"]),
    "lr 0": (f"kavg --lr 0 {SMALL}", ["--lr 0", "finite", "above 0"]),
    "lr negative": (f"kavg --lr -0.1 {SMALL}", ["--lr -0.1", "finite", "above 0"]),
    "NaN in the data": (
        f"kavg {SMALL} --data nan.h5",
        ["nan.h5", "row 321", "not finite", "prepare it again"],
    ),
    "no such file": (f"kavg {SMALL} --data none.h5", ["none.h5", "no such file", "prepare"]),
    "no such set": (f"kavg {SMALL} --data mnist", ["--data mnist", "no file", "epsilon-like"]),
    "a truncated file": (
        f"kavg {SMALL} --data cut.h5",
        ["cut.h5", "cut short", "prepare it again"],
    ),
    "an empty file": (f"kavg {SMALL} --data empty.h5", ["empty.h5", "prepare"]),
    "a file of another kind": (
        f"kavg {SMALL} --data text.h5",
        ["text.h5", "not an HDF5 file", "prepare"],
    ),
    "a run file that exists": (
        f"kavg {SMALL} --out old.h5",
        ["old.h5 exists", "never overwritten", "another name"],
    ),
    "a folder that is a file": (
        f"kavg {SMALL} --out file/run.h5",
        ["file/run.h5", "cannot write", "another folder"],
    ),
    "a batch above the data": (f"kavg {SMALL} --batch-size 65", ["--batch-size 65", "64 rows"]),
    "a batch above a shard": (
        f"kavg {SMALL} --batch-size 17 --sampling shard --learners 4",
        ["--batch-size 17", "4 shards", "at most 16"],
    ),
    "a batch above a part": (
        f"kavg {SMALL} --batch-size 17 --sampling shuffle --learners 4",
        ["--batch-size 17", "4 learners", "at most 16"],
    ),
    "a sampling without its number": (
        f"kavg {SMALL} --sampling dirichlet",
        ["--sampling dirichlet", "dirichlet:A", "above 0", "dirichlet:0.3"],
    ),
    "more classes than there are": (
        f"kavg {SMALL} --sampling labels:3 --learners 4",
        ["--sampling labels:3", "2 classes", "labels:2"],
    ),
    "more blocks than rows": (
        f"kavg {SMALL} --sampling shards:17 --learners 4",
        ["--sampling shards:17", "68 blocks", "64 rows"],
    ),
    "too few rows by class": (
        f"kavg {SMALL} --batch-size 17 --sampling dirichlet:1 --learners 4",
        ["--sampling dirichlet:1", "4 learners", "17 rows", "64 rows", "lower --batch-size"],
    ),
    "more participants than learners": (
        f"fedavg {SMALL} --participants 5 --learners 4",
        ["--participants 5", "4 learners", "at most all"],
    ),
    "weights without rows": (
        f"kavg {SMALL} --weights rows --learners 4",
        ["--weights rows", "no learner has training rows", "--weights equal", "--sampling shard"],
    ),
    "a wire within a node": (
        f"kavg {SMALL} --wire int8 --learners 4",
        ["--wire", "one node", "--ranks-per-node"],
    ),
    "a wire for gradients": (f"sync {SMALL} --wire int8 --learners 4", ["--wire", "sync"]),
    "participants in clusters": (
        f"hieravg {SMALL} --participants 2 --learners 4",
        ["--participants", "clusters", "leave it out"],
    ),
    "an engine that lets nobody rest": (
        f"fedavg {SMALL} --participants 2 --learners 4 --engine batch",
        ["--engine batch", "--participants 2", "--engine loop"],
    ),
    "moments of learners that rest": (
        f"kavg {SMALL} --participants 2 --learners 4 --optimizer adam",
        ["--optimizer adam", "--participants 2", "--state reset"],
    ),
    "statistics of learners that rest": (
        "fedavg --data digits --model nin --steps 2 --batch-size 4 --participants 2 --learners 4 "
        "--statistics keep",
        ["--statistics keep", "--participants 2", "--statistics average"],
    ),
    "an unknown algorithm": (
        f"flyavg {SMALL}",
        ["flyavg", "sgd, sync, qsgd, kavg, oneshot, mavg, "],
    ),
    "an option of another": (f"sync --K 4 {SMALL}", ["--K", "sync", "no options"]),
    "blocks in file order": (
        f"kavg {SMALL} --data good.h5 --sampling block",
        ["--sampling block", "good.h5", "--shuffle", "--force-block"],
    ),
    "sgd of two learners": (f"sgd --learners 2 {SMALL}", ["sgd", "2 learners", "--learners 1"]),
    "steps and epochs": (f"kavg --epochs 2 {SMALL}", ["--steps 8", "--epochs 2", "one of them"]),
    "too short for ADPSGD": (
        f"adpsgd {SMALL} --warmup 0",
        ["--Ks", "p_init = 4", "number of steps"],
    ),
    "a launcher that ends the job": (
        f"kavg {SMALL} --on-failure continue",
        ["--on-failure continue", "mpirun --with-ft ulfm -n N localavg train"],
    ),
    "a delay that leaves no recovery": (
        f"kavg {SMALL} --on-failure continue --delay 2",
        ["--on-failure continue", "--delay 2", "not equal", "add --recovery-state all"],
    ),
    "pieces that leave no recovery": (
        f"kavg {SMALL} --on-failure continue --fragments 2",
        ["--on-failure continue", "--fragments 2", "not equal", "add --recovery-state all"],
    ),
    "a recovery of gossip": (
        f"gossip {SMALL} --on-failure continue",
        ["--on-failure continue", "gossip", "not equal", "add --recovery-state all"],
    ),
    "a recovery of moments around a center": (
        f"downpour {SMALL} --on-failure continue --recovery-state all",
        ["--recovery-state all", "downpour", "go on from the center", "leave it out"],
    ),
    "a recovery on a GPU": (
        f"downpour {SMALL} --on-failure continue --device cuda",
        ["--on-failure continue", "--device cpu"],
    ),
    "moments that nobody keeps": (
        f"kavg {SMALL} --recovery-state all",
        ["--recovery-state all", "--on-failure continue"],
    ),
    "an unknown option": (f"kavg --wings 2 {SMALL}", ["--wings", "--help"]),
    "data beyond all memory": (
        f"kavg {SMALL} --data epsilon-like:100000000000x2000",
        ["100000000000"],
    ),
}


PREPARE = {
    "three labels": (
        "libsvm three.txt --out new.h5",
        ["three.txt", "more than two labels", "1, 2, 3", "two classes"],
    ),
    "one label": ("libsvm one.txt --out new.h5", ["one.txt", "one label", "two classes"]),
    "a truncated archive": (
        "libsvm cut.xz --out new.h5",
        ["cut.xz", "damaged or cut short", "again"],
    ),
    "a file that exists": (
        "libsvm two.txt --out old.h5",
        ["old.h5 exists", "never overwritten", "--out"],
    ),
    "a folder that is a file": (
        "libsvm two.txt --out file/new.h5",
        ["file/new.h5", "folder", "file"],
    ),
    "generated onto a file": (
        "epsilon-like --rows 8 --features 2 --out old.h5",
        ["old.h5 exists", "--out"],
    ),
}

LAUNCHED = {  # the same on two ranks
    "fewer learners than ranks": (
        f"train kavg --learners 1 {SMALL}",
        ["1 learner on 2 ranks", "use 2 learners", "mpirun -n 1"],
    ),
    "S divides nothing": (
        f"train hieravg --S 3 --learners 4 {SMALL}",
        ["--S 3", "4 learners", "divide"],
    ),
    "a setting": (f"train kavg --K 0 {SMALL}", ["--K 0", "at least 1"]),
    "NaN in the part of the second rank": (
        f"train kavg {SMALL} --data nan.h5",
        ["nan.h5", "row 321", "not finite"],
    ),
    "a run file that exists": (
        f"train kavg {SMALL} --out old.h5",
        ["old.h5 exists", "never overwritten"],
    ),
    "three labels": (
        "prepare libsvm three.txt --out new.h5",
        ["three.txt", "more than two labels"],
    ),
}
VARIABLES = [
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """The mistakes of launches, each in a folder of its own, a few at a time: {(kind, name): what
    came of it}.
    """
    model = tmp_path_factory.mktemp("model")
    fill(model)
    do = {
        "launched": lambda at, name: launched(at, 2, LAUNCHED[name][0]),
        "variable": lambda at, name: alone(*f"train kavg {SMALL}".split(), cwd=at, **{name: "4"}),
    }
    names = {"launched": LAUNCHED, "variable": VARIABLES}

    def attempt(kind, name):
        at = model.parent / f"{model.name} {kind} {name}"
        shutil.copytree(model, at)
        done = do[kind](at, name)
        after = contents(at)
        shutil.rmtree(at)
        return SimpleNamespace(done=done, after=after)

    with ThreadPoolExecutor(6) as pool:
        futures = {
            (kind, name): pool.submit(attempt, kind, name) for kind in names for name in names[kind]
        }
    before = contents(model)
    return SimpleNamespace(outcome=lambda kind, name: (before, futures[kind, name].result()))


def refused(before, attempt, words):
    """Exactly one line, with all of these words; status 2; the folder as it was."""
    lines = told(attempt.done)
    assert attempt.done.returncode == 2, attempt.done.stderr
    assert len(lines) == 1, attempt.done.stderr
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert "Traceback" not in attempt.done.stderr and attempt.done.stdout == ""
    assert [
        name
        for name in before.keys() | attempt.after.keys()
        if before.get(name) != attempt.after.get(name)
    ] == []


ALIKE = {"train": TRAIN, "prepare": PREPARE}


def in_folders(world, lines):
    """Exit status, stderr and stdout of every command line in its folder."""
    ends = []
    for folder, line in lines:
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            (end,) = told_of(world, [line.split()])
        ends.append((*end, out.getvalue()))
    return ends


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """By command and mistake: what came of it in one process after the other, and the files before
    and after it.
    """
    model = tmp_path_factory.mktemp("alike")
    fill(model)
    lines = {
        (command, wrong): line
        for command, rows in ALIKE.items()
        for wrong, (line, _) in rows.items()
    }
    at = {
        key: shutil.copytree(model, model.parent / f"{model.name} {' '.join(key)}") for key in lines
    }
    ends = call(1, in_folders, [(str(at[key]), f"{key[0]} {line}") for key, line in lines.items()])[
        0
    ]
    return {
        key: (end, contents(model), contents(at[key])) for key, end in zip(lines, ends, strict=True)
    }


@pytest.mark.parametrize(
    ("command", "wrong"), [(command, wrong) for command, rows in ALIKE.items() for wrong in rows]
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(alike, command, wrong):
    (status, said, out), before, after = alike[command, wrong]
    assert (status, out) == (2, "") and said.count("\n") == 1, said  # no warning beside it
    words = ALIKE[command][wrong][1]
    assert [word for word in words if word not in said.partition(": ")[2]] == [], said
    assert before == after


@pytest.mark.parametrize("wrong", LAUNCHED)
def test_under_two_ranks_the_line_appears_once(attempts, wrong):
    refused(*attempts.outcome("launched", wrong), LAUNCHED[wrong][1])


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_launcher_that_started_another_number_of_ranks_is_told_at_once(attempts, variable):
    """As where srun without PMIx starts N processes that each are alone."""
    words = ["started 4 ranks", variable, "MPI sees 1", "srun --mpi=pmix", "unset"]
    refused(*attempts.outcome("variable", variable), words)


def test_of_the_ranks_that_are_all_alone_only_the_first_speaks(tmp_path):
    done = alone(*f"train kavg {SMALL}".split(), cwd=tmp_path, SLURM_NTASKS="4", SLURM_PROCID="2")
    assert (done.returncode, done.stderr, done.stdout) == (2, "", "") and contents(tmp_path) == {}


def test_under_mpich_too(tmp_path):
    done = launched(tmp_path, 2, f"train kavg --learners 1 {SMALL}", mpi="mpich")
    refused({}, SimpleNamespace(done=done, after=contents(tmp_path)), ["1 learner on 2 ranks"])


def test_mpirun_within_a_larger_job_is_right(tmp_path):
    """The innermost launcher counts: mpirun -n 2 in an allocation of 16 tasks."""
    done = launched(tmp_path, 2, f"train kavg {SMALL}", env={"SLURM_NTASKS": "16"})
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "run.h5").status == "finished"


def test_the_same_text_without_its_mistake_is_prepared(tmp_path):
    fill(tmp_path)
    done = alone(*["prepare", "libsvm", "two.txt", "--out", "new.h5"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "new.h5\n") and told(done) == []


# --------------------------------------------------------------------------------------- failures i


def statuses(world, folder, lines):
    """What each of these training command lines returns."""
    os.chdir(folder)
    from localavg.errors import UserError

    found = []
    for line in lines:
        args = parser().parse_args(["train", *line.split()])
        try:
            found.append(args.call(args))
        except UserError as e:
            found.append(str(e))
    return found


@pytest.mark.parametrize(
    ("steps", "remedy"),
    [
        ("--lr 1e30", "now 1e+30); lower --lr"),
        (
            "--lr-schedule inverse --pl-constant 4e-30 --shift 0",
            "); raise --shift or --pl-constant",
        ),
    ],
)
def test_divergence_is_a_failed_run_with_status_1(steps, remedy, tmp_path):
    done = alone(*f"train kavg {steps} {SMALL} --log-every 1".split(), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "run.h5\n"
    lines = [line for line in done.stderr.splitlines() if "not finite" in line]
    assert len(lines) == 1 and "step 2 of learner 0" in lines[0] and remedy in lines[0]
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    found = load(tmp_path / "run.h5")
    assert found.status == "failed" and in_flags(found.attrs["failure"]) == lines[0]
    assert found.train.t.tolist() == [1] and found.train.loss[0] == pytest.approx(
        np.log(2), rel=1e-6
    )
    assert found.eval.t.tolist()[0] == 0


def test_rows_from_before_a_late_divergence_are_kept(tmp_path):
    # 16 updates an epoch; the step size explodes from update 33 on, and the loss of update 34 shows
    # it
    words = "--data epsilon-like:64x8 --batch-size 4 --lr-schedule steps --milestones 2 --factor 1e30 --lr 0.1 --epochs 4"
    done = alone(
        *f"train kavg --K 4 {words} --log-every 4 --eval-every 8 --out run.h5".split(), cwd=tmp_path
    )
    assert done.returncode == 1 and "step 34 of learner 0" in done.stderr
    found = load(tmp_path / "run.h5")
    assert found.status == "failed"
    assert (
        found.train.t.tolist() == [4, 8, 12, 16, 20, 24, 28, 32]
        and np.isfinite(found.train.loss).all()
    )
    assert found.eval.t.tolist() == [0, 8, 16, 24, 32] and np.isfinite(found.eval.train_loss).all()
    assert found.averages.t.tolist()[:8] == [4, 8, 12, 16, 20, 24, 28, 32]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_learner_that_diverged_is_named(tmp_path, ranks):
    """Learner 2 of 4 owns rows that are 1e25 times too large; the others would go on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8))
    x[32:48] *= 1e25
    write(tmp_path / "large.h5", x, np.where(rng.random(64) < 0.5, -1, 1))
    line = "train kavg --K 8 --data large.h5 --sampling shard --learners 4 --batch-size 4 --steps 8 --out run.h5"
    done = alone(*line.split(), cwd=tmp_path) if ranks == 1 else launched(tmp_path, ranks, line)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "not finite" in line]
    assert len(lines) == 1 and "step 2 of learner 2" in lines[0]
    assert "Traceback" not in done.stderr
    found = load(tmp_path / "run.h5")
    assert found.status == "failed" and "step 2 of learner 2" in found.attrs["failure"]


def test_every_algorithm_diverges_in_the_same_way(tmp_path):
    names = [
        "sync",
        "qsgd",
        "oneshot",
        "mavg",
        "hieravg --K1 1 --K2 2 --S 2",
        "adpsgd --p-init 1 --warmup 0",
        "adalupa --tau0 2",
        "adalupa --rule loss --tau0 2",
        "piecewise",
        "adacomm --tau0 2 --block 2",
        "qsr --alpha 1e30",
        "postlocal --switch 0.1",
        "gossip",
        "kavg --optimizer momentum",
    ]
    words = "--data epsilon-like:64x8 --batch-size 4 --steps 8 --learners 4 --lr 1e30"
    lines = [f"{name} {words} --out {i}.h5" for i, name in enumerate(names)]
    found = call(1, statuses, str(tmp_path), lines)[0]
    assert dict(zip(names, found, strict=True)) == dict.fromkeys(names, 1)
    runs = {name: load(tmp_path / f"{i}.h5") for i, name in enumerate(names)}
    assert {run.status for run in runs.values()} == {"failed"}
    assert all("not finite" in run.attrs["failure"] for run in runs.values())


FAILING = """\
import sys

from mpi4py import MPI

from localavg.__main__ import main
from localavg.problems.logistic import Logistic

rank, step, gradient_ = int(sys.argv[1]), 0, Logistic.gradient_


def failing_(*args, **kwargs):
    global step
    step += 1
    if MPI.COMM_WORLD.rank == rank and step == 30:
        raise RuntimeError("made to fail")
    return gradient_(*args, **kwargs)


Logistic.gradient_ = failing_
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("rank", "mpi"), [(1, "openmpi"), (0, "openmpi"), (1, "mpich")])
def test_an_exception_on_one_rank_ends_the_job(tmp_path, rank, mpi):
    (tmp_path / "driver.py").write_text(FAILING)
    words = "kavg --K 1 --data epsilon-like:64x8 --batch-size 4 --steps 1000000 --log-every 1 --eval-every 1000000"
    words = ["train", *words.split(), "--out", tmp_path / "run.h5"]
    done = run(2, tmp_path / "driver.py", str(rank), *words, mpi=mpi)
    assert done.returncode != 0
    assert "RuntimeError: made to fail" in done.stderr and f"rank {rank} failed" in done.stderr
    assert done.stdout == ""
    found = load(tmp_path / "run.h5")
    assert found.config["steps"] == 1000000 and found.provenance["ranks"] == 2
    assert (found.train.t == np.arange(1, len(found.train) + 1)).all() and len(found.train) < 30
    if rank == 0:  # the one that writes
        assert (found.status, found.attrs["failure"]) == ("failed", "RuntimeError: made to fail")
        assert len(found.train) == 29
