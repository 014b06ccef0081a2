"""Sweeps: what a TOML file expands to, what is told of run files, and which runs are done, kept,
resumed or left alone.
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from drive import parser
from mpi import ROOT, alone, need

from localavg.cli import status
from localavg.cli.sweep import file, launch, plan, state
from localavg.errors import UserError
from localavg.files import process, record
from localavg.files.record import Record, load
from localavg.training import resume
from localavg.training.checks import difference

SWEEPS = sorted((ROOT / "jobs" / "sweeps").glob("*.toml"))
FIGURES = {  # the papers' figures and tables, by the file that has their runs, and ours
    "kavg-fig1-2",
    "kavg-fig3-4",
    "kavg-fig5-6",
    "kavg-fig7",
    "lupa-fig1",
    "lupa-fig2",
    "lupa-fig3",
    "lupa-fig4",
    "adpsgd-fig1-2",
    "adpsgd-fig3",
    "adpsgd-fig4-5",
    "adpsgd-fig6",
    "adpsgd-table1",
    "adpsgd-fig7-8",
    "adpsgd-strategies",
    "mavg-fig1-6",
    "mavg-fig7-8",
    "mavg-fig9-12",
    "hieravg-fig1-2",
    "hieravg-fig3-4",
    "hieravg-table1",
    "hieravg-fig5",
    "methods",
    "bandwidth",
    "headline",
    "many-learners",
}
MS = {
    ("nin", 16): 2.8,
    ("mlp", 16): 0.9,
    ("mlp", 32): 0.65,
    (None, 128): 0.12,
    (None, 1): 0.02,
    (None, 16384): 1.0,
}
# ms of processor time of a learner's step by model and B, on a machine that was not alone
ROWS = {
    "digits": 1437,
    "data/fashion-mnist/upper-body.h5": 60000,
    "data/digits/even-odd.h5": 1437,
    "fashion-mnist": 60000,
    "data/fashion-mnist/fashion-mnist-8.h5": 60000,
}
SMALL = """
[sweep]
title = "small"
[grid]
learners = [2, 4]
[[runs]]
algorithm = "kavg"
grid.K = [1, 3]
[[runs]]
algorithm = "sgd"
learners = 1
[laptop]
data = "epsilon-like:200x10"
batch-size = 10
steps = 12
ranks = 2
[paper]
data = "epsilon.h5"
seeds = 3
ranks = "learners"
"""


def train_parser():
    top = parser()
    return next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices[
        "train"
    ]


def read(path, scale="laptop", **how):
    return plan.read(path, scale, train_parser(), **how)


def sweep_of(folder, text, scale="laptop", **how):
    path = folder / "some.toml"
    path.write_text(text)
    return read(path, scale, **how)


# --------------------------------------------------------------------------------------------------


def test_a_grid_is_a_product_and_names_say_what_varies(tmp_path):
    runs = sweep_of(tmp_path, SMALL).runs
    assert [run.name for run in runs] == [
        "kavg-K1-P2-s0",
        "kavg-K3-P2-s0",
        "kavg-K1-P4-s0",
        "kavg-K3-P4-s0",
        "sgd-s0",
    ]
    assert " ".join(runs[1].words) == (
        "train kavg --learners 2 --data epsilon-like:200x10 --batch-size 10 --steps 12 --K 3 "
        "--seed 0"
    )
    assert [run.ranks for run in runs] == [2, 2, 2, 2, 1]


def test_the_paper_scale_has_its_own_settings_seeds_and_a_rank_a_learner(tmp_path):
    runs = sweep_of(tmp_path, SMALL, "paper").runs
    assert len(runs) == 15 and {run.given["data"] for run in runs} == {"epsilon.h5"}
    assert [run.ranks for run in runs] == [2] * 6 + [4] * 6 + [1] * 3
    assert [run.name for run in runs][-3:] == ["sgd-s0", "sgd-s1", "sgd-s2"]


def test_asynchronous_and_simulated_runs_have_servers_or_one_rank(tmp_path):
    text = """
[[runs]]
algorithm = "downpour"
learners = 4
servers = 2
grid.simulate = [false, true]
[[runs]]
algorithm = "kavg"
learners = 4
grid.simulate = [false, true]
[laptop]
ranks = 2
"""
    assert [run.ranks for run in sweep_of(tmp_path, text).runs] == [4, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[common]\ngrid = 3\n[[runs]]\nalgorithm = "kavg"\n', "grid = 3: must be a section"),
        ('[[runs]]\nalgorithm = "kavg"\ngrid = [1]\n', "grid = [1]: must be a section"),
        ('[[runs]]\nalgorithm = "kavg"\nlaptop = 3\n', "laptop = 3: must be a section"),
        ("[[runs]]\nalgorithm = 3\n", "algorithm = 3: must be a name in quotes"),
        ('[common]\nhelp = true\n[[runs]]\nalgorithm = "kavg"\n', "the sweep sets this itself"),
    ],
)
def test_a_file_of_another_shape_is_told_in_one_line(text, told, tmp_path):
    with pytest.raises(UserError, match=re.escape(told)):
        sweep_of(tmp_path, text)


def test_an_unknown_network_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"`model = resnet9`: must be one of mlp"):
        sweep_of(tmp_path, '[[runs]]\nalgorithm = "kavg"\nmodel = "resnet9"\n')


def test_an_option_that_does_nothing_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(
        UserError, match=r"sgd at scale laptop: `momentum = 0.5` means nothing to `optimizer = sgd`"
    ):
        sweep_of(tmp_path, '[[runs]]\nalgorithm = "sgd"\nmomentum = 0.5\n')


def test_seeds_ranks_and_set_replace_the_files(tmp_path):
    runs = sweep_of(
        tmp_path, SMALL, seeds=2, ranks=3, changes={"data": "my.h5", "grad-norm": True}
    ).runs
    assert len(runs) == 10
    assert {run.ranks for run in runs if run.given["learners"] == 4} == {2}  # a third would wait
    assert all(run.given["data"] == "my.h5" and run.given["grad_norm"] for run in runs)


@pytest.mark.parametrize(
    ("P", "most", "ranks"), [(5, 2, 2), (7, 2, 2), (7, 4, 4), (6, 4, 3), (3, 8, 3), (8, 4, 4)]
)
def test_any_number_of_learners_takes_as_many_ranks_as_make_it_faster(P, most, ranks, tmp_path):
    text = f'[[runs]]\nalgorithm = "kavg"\nlearners = {P}\n[[runs]]\nalgorithm = "downpour"\nlearners = {P}\n'
    assert [run.ranks for run in sweep_of(tmp_path, text, ranks=most).runs] == [ranks, ranks + 1]


def test_later_sections_replace_earlier_ones_and_false_takes_an_option_away(tmp_path):
    text = """
[common]
lr = 0.5
momentum = 0.8
optimizer = "momentum"
[grid]
K = [1, 2]
[laptop]
lr = 0.25
[[runs]]
algorithm = "kavg"
[runs.laptop]
grid.K = [5, 6]
[[runs]]
algorithm = "kavg"
K = 7
lr = 0.125
momentum = false
optimizer = false
[[runs]]
algorithm = "sync"
only = "paper"
K = false
"""
    a, b, c = sweep_of(tmp_path, text).runs
    assert (a.given["K"], a.given["lr"], b.given["K"], c.given["K"], c.given["lr"]) == (
        5,
        0.25,
        6,
        7,
        0.125,
    )
    assert "momentum" in a.given and "momentum" not in c.given
    assert [run.given["algorithm"] for run in sweep_of(tmp_path, text, "paper").runs] == [
        "kavg",
        "kavg",
        "kavg",
        "sync",
    ]


def test_models_data_and_lists_make_readable_names(tmp_path):
    text = """
[[runs]]
algorithm = "piecewise"
grid.pieces = ["0:4,8:2", "0:2"]
grid.data = ["sets/a.h5", "epsilon-like:20x5"]
mu = 0.5
grid.outer = ["nesterov", "momentum"]
[laptop]
schedule = "steps"
grid.milestones = [[1, 2], [3]]
"""
    names = [run.name for run in sweep_of(tmp_path, text).runs]
    assert len(names) == 16 and "piecewise-a-pieces0_4_8_2-outernesterov-milestones1_2-s0" in names
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in names)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[[runs]]\nalgorithm = 'kavg'\nwings = 2",
            ["[runs 1 kavg]", "wings = 2", "no option --wings"],
        ),
        (
            "[[runs]]\nalgorithm = 'kavg'\n[laptop]\nbatch_size = 2",
            ["[laptop]", "batch_size", "write it batch-size"],
        ),
        ("[[runs]]\nalgorithm = 'kavg'\nlerners = 2", ["lerners", "write it learners"]),
        (
            "[[runs]]\nalgorithm = 'kavg'\nK = 3\ngrid.K = [1, 2]",
            ["[runs 1 kavg]", "grid.K = [1, 2]", "also has K"],
        ),
        (
            "[[runs]]\nalgorithm = 'kavg'\n[laptop]\nK = 3\ntau = 2",
            ["[laptop]", "tau = 2", "also has K"],
        ),
        ("[sweep]\ntitel = 'x'\n[[runs]]\nalgorithm = 'kavg'", ["[sweep]", "titel", "title"]),
        ("[sweep]\ntitle = 3\n[[runs]]\nalgorithm = 'kavg'", ["[sweep]", "title = 3", "quotes"]),
        (
            "[[runs]]\nalgorithm = 'kavg'\n[grid]\nK = [1, 'many']",
            ["[grid]", "K = 'many'", "must be a whole number"],
        ),
        ("[[runs]]\nalgorithm = 'kavg'\n[grid]\nK = 4", ["[grid]", "K = 4", "needs a list"]),
        ("[[runs]]\nalgorithm = 'kavg'\nout = 'a.h5'", ["out", "sets this itself"]),
        ("[[runs]]\nalgorithm = 'kavg'\nseed = 3", ["seed = 3", "seeds = HOW_MANY"]),
        ("[[runs]]\nalgorithm = 'kavg'\nK = 0", ["kavg at scale laptop", "`K = 0`"]),
        ("[[runs]]\nalgorithm = 'kavg'\nK1 = 5", ["`K1` means nothing to kavg"]),
        ("[[runs]]\nalgorithm = 'fly'", ["algorithm fly"]),
        ("[[runs]]\nalgorithm = 'kavg'\n[[runs]]\nalgorithm = 'kavg'", ["two runs", "kavg-s0"]),
        ("[[runs]]\nalgorithm = 'kavg'\nonly = 'paper'", ["no runs at scale laptop"]),
        ("[[runs]]\nalgorithm = 'kavg'\nonly = 'moon'", ["only = 'moon'"]),
        ("[[runs]]\nalgorithm = 'kavg'\n[laptop]\nranks = 0", ["[laptop]", "ranks = 0"]),
        ("[[runs]]\nalgorithm = 'kavg'\n[laptop]\nseeds = 'some'", ["[laptop]", "seeds = 'some'"]),
        ("[[runs]]\nalgorithm = 'kavg'\n[moon]\nlr = 1", ["[moon]", "no section"]),
        ("[runs]\nalgorithm = 'kavg'", ["[[runs]]"]),
        ("common = 3\n[[runs]]\nalgorithm = 'kavg'", ["common = 3"]),
        ("[[runs]", ["no TOML"]),
    ],
)
def test_a_mistake_is_one_line_that_names_file_section_and_option(text, told, tmp_path):
    with pytest.raises(UserError) as e:
        sweep_of(tmp_path, text)
    assert all(
        word in str(e.value) for word in [str(tmp_path / "some.toml"), *told]
    ) and "\n" not in str(e.value)


def test_a_byte_order_mark_is_skipped(tmp_path):
    runs = sweep_of(tmp_path, "\ufeff[[runs]]\nalgorithm = 'kavg'\ngrid.K = [1, 2]").runs
    assert len(runs) == 2


# ------------------------------------------------------------------------------------------- the sw


def test_every_figure_and_table_has_its_sweep():
    assert {path.stem for path in SWEEPS} == FIGURES


@pytest.mark.parametrize("scale", file.SCALES)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_parses_on_the_real_command_line(path, scale):
    runs = read(path, scale).runs
    assert len({run.name for run in runs}) == len(runs)
    assert all(run.given.get("steps") or run.given.get("epochs") for run in runs)


def test_the_launch_lines_in_a_sweep_are_commands_that_start_it():
    for path in SWEEPS:
        lines = [
            line.strip("# ").split()
            for line in path.read_text().splitlines()
            if line.startswith("#   .venv/bin/localavg sweep ")
        ]
        assert lines and {str(parser().parse_args(words[1:]).file) for words in lines} == {
            f"jobs/sweeps/{path.name}"
        }


@pytest.mark.parametrize("scale", ["laptop", "digits"])
def test_all_laptop_sweeps_together_take_under_an_hour_on_two_cores(scale):
    seconds = 0.0  # of one core
    for path in SWEEPS:
        for run in read(path, scale).runs:
            g, model = run.given, run.given.get("model")
            n, P = (
                ROWS.get(g["data"]) or int(re.search(r":(\d+)x", g["data"])[1]),
                g.get("learners", 1),
            )
            steps = g.get("steps") or g["epochs"] * n / (P * g["batch_size"])
            step_ms = MS[model, g["batch_size"]] * (1.8 if g.get("variance") == "steps" else 1)
            if model is None and P >= 64:  # many learners of logistic regression at once
                step_ms = 0.004
            seconds += 3.5 * run.ranks + steps * P * step_ms / 1000
    assert seconds / 2 < 52 * 60, seconds / 2 / 60


# ---------------------------------------------------------------------------------------- what beca


def run_file(path, status, config=None, rows=1):
    file = Record.create(path, {"steps": 12, **(config or {})}, {})
    for t in range(rows):
        file.append("train", t=t + 1, samples=1)
    file.flush(force=True)
    if status != "running":
        file.finish(status, failure="no luck")
    return path


def lock(path, mtime=None, **by):
    where = path.with_name(path.name + ".lock")
    where.write_text(
        json.dumps({"host": socket.gethostname(), "pids": [os.getpid()], "job": None, **by})
    )
    if mtime:
        os.utime(where, (mtime, mtime))
    return where


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


@pytest.fixture
def other():
    """A living process that says localavg in its command line."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "localavg"])
    yield sleeper.pid
    sleeper.kill()
    sleeper.wait()


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_a_run_that_ended_says_how(status, tmp_path):
    found = state.look(run_file(tmp_path / "a.h5", status, rows=5))
    assert (found.kind, found.t, found.T, found.why) == (status, 5, 12, "no luck")


def test_no_file_is_missing_and_a_damaged_one_failed(tmp_path):
    assert state.look(tmp_path / "a.h5").kind == "missing"
    (tmp_path / "a.h5").write_bytes(b"junk")
    assert state.look(tmp_path / "a.h5").kind == "failed"


def test_a_running_file_runs_while_the_process_that_wrote_it_lives(tmp_path):
    path = run_file(tmp_path / "a.h5", "running")
    os.utime(path, (time.time() - 2 * state.UNLOCKED_STALE_S,) * 2)
    assert state.look(path).kind == "running"  # this process lives, however long it is silent
    path = tmp_path / "b.h5"
    code = f"from localavg.files.record import Record; Record.create({str(path)!r}, {{}}, {{}})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert state.look(path).kind == "stale" and "its process is gone" in state.look(path).why
    resumed = Record.reopen(path, {}, {})
    assert state.look(path).kind == "running"
    resumed.finish("finished")
    assert state.look(path).kind == "finished"


def test_a_process_is_known_by_more_than_its_number(gone):
    mine = process.identity()
    host, space, pid, start = mine.split()
    assert process.gone(mine) is False
    assert process.gone(f"{host} {space} {pid} {int(start) - 1}") is True  # its number was reused
    assert process.gone(f"{host} {space} {gone} {start}") is True
    assert process.gone(f"elsewhere {space} {gone} {start}") is None
    assert process.gone(f"{host} pid:[0] {gone} {start}") is None
    assert process.gone("") is None and process.gone(None) is None
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert process.gone(f"{host} {space} {zombie.pid} {start}") is True
    zombie.wait()


def test_a_running_file_of_another_host_counts_as_running_while_it_is_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "identity", lambda: "")
    path = run_file(tmp_path / "a.h5", "running")
    assert state.look(path).kind == "running"
    os.utime(path, (time.time() - 2 * state.UNLOCKED_STALE_S,) * 2)
    assert state.look(path).kind == "stale"
    (tmp_path / "b.h5").touch()
    assert state.look(tmp_path / "b.h5").kind == "running"


def test_a_lock_holds_while_its_process_lives(tmp_path, gone, other):
    path = run_file(tmp_path / "a.h5", "running")
    lock(path, pids=[gone, other])  # the sweep was killed, its run was not
    assert state.look(path).kind == "running" and socket.gethostname() in state.look(path).why
    lock(path, pids=[gone])
    assert state.look(path).kind == "stale"  # whatever the age of the file


def test_the_number_of_another_program_does_not_hold_a_run(tmp_path):
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        path = run_file(tmp_path / "a.h5", "running")
        lock(path, pids=[sleeper.pid])
        assert state.look(path).kind == "stale"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_lock_of_another_machine_holds_while_it_is_fresh(tmp_path, monkeypatch):
    path = run_file(tmp_path / "a.h5", "running")
    lock(path, host="elsewhere", job="Slurm job 7")
    assert state.look(path).kind == "running"
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # this job, on another of its nodes
    assert state.look(path).kind == "running"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # this job itself, before it was requeued
    assert state.look(path).kind == "stale"
    monkeypatch.delenv("SLURM_JOB_ID")
    lock(path, host="elsewhere", mtime=time.time() - 2 * state.STALE_S)
    assert state.look(path).kind == "stale"


def test_only_one_sweep_holds_a_run_and_a_stale_lock_is_taken_over(tmp_path, gone):
    path = tmp_path / "a.h5"
    with state.held(path) as mine:
        assert mine is not None and mine.exists()
        with state.held(path) as second:
            assert second is None
    assert not mine.exists()
    lock(path, pids=[gone])
    with state.held(path) as mine:
        assert mine is not None and json.loads(mine.read_text())["pids"] == [os.getpid()]
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_find_a_lock_stale_one_takes_it(tmp_path, gone, monkeypatch):
    path, holder, other = tmp_path / "a.h5", state._holder, []
    lock(path, pids=[gone])

    def meanwhile(path):
        answer = holder(path)
        if not other:
            other.append(None)
            other.append(state.held(path))
            other.append(other[1].__enter__())
        return answer

    monkeypatch.setattr(state, "_holder", meanwhile)
    with state.held(path) as mine:
        assert mine is None and other[2] is not None and other[2].exists()
    assert other[2].exists()
    other[1].__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_died_without_a_word_can_be_resumed_at_once(tmp_path):
    path = run_file(tmp_path / "a.h5", "running")
    with state.held(path):
        assert state.look(path).kind == "running"
    assert state.look(path).kind == "stale"
    with state.held(path) as mine:
        assert mine is not None


def test_settings_are_compared_by_what_decides_the_result(tmp_path, monkeypatch):
    asked = sweep_of(tmp_path, SMALL).runs[0].asked
    recorded = {**asked, "learners": 2, "steps": 12, "d": 10, "transport": "mpi", "out": "x"}
    assert difference(asked, recorded) is None
    assert "`lr` is 9.0 there and 0.01 here" in difference(asked, {**recorded, "lr": 9.0})
    assert "`K` is 5 there and 1 here" in difference(asked, {**recorded, "K": 5})
    monkeypatch.chdir(tmp_path)
    common = {"algorithm": "kavg"}
    assert difference({**common, "data": "a.h5"}, {"data": str(tmp_path / "a.h5")}) is None
    assert difference({**common, "milestones": (1.0, 2.0)}, {"milestones": [1.0, 2.0]}) is None
    assert difference({**common, "learners": None}, {"learners": 4}) is None
    assert "`shift` is 368 there and None here" in difference(
        {**common, "shift": None}, {"shift": 368}
    )
    assert "`state` is keep there" in difference(
        {**common, "optimizer": "adam", "state": "v=reset"}, {"optimizer": "adam", "state": "keep"}
    )
    elastic = {"algorithm": "eamsgd", "alpha": None}
    assert difference(elastic, {"alpha": 0.9 / 4, "learners": 4}) is None
    assert "`alpha` is 0.9 there" in difference(elastic, {"alpha": 0.9, "learners": 4})


SAME = {  # setting: (algorithm, what else is set, two texts that mean the same, another one)
    "levels": ("hieravg", {"learners": 4}, "2:2,4:P", "2:2, 4:4", "2:2,8:P"),
    "state": ("kavg", {"optimizer": "adam"}, "m=reset,v=average", "v=average, m=reset", "m=reset"),
    "pieces": ("piecewise", {}, "0:4,2:8", "0.0:4, 2:8", "0:4,2:9"),
    "block": ("adacomm", {}, "60s", "1min", "60"),
    "sampling": ("kavg", {}, "dirichlet:1", "dirichlet:1.0", "dirichlet:2"),
    "replay": ("adacomm", {}, "a.h5", "{here}/b/../a.h5", "b.h5"),
}


@pytest.mark.parametrize("name", SAME)
def test_texts_that_mean_the_same_are_the_same_setting(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    algorithm, beside, *texts = SAME[name]
    settings = {"algorithm": algorithm, **beside}
    text, like, other = (
        {**settings, name: x.format(here=os.path.realpath(tmp_path))} for x in texts
    )
    assert difference(text, like) is None and difference(like, text) is None
    assert difference(text, other) and difference(other, text)
    resume._check_settings("run.h5", SimpleNamespace(config=text), like)
    with pytest.raises(UserError, match=f"was made with {name} = "):
        resume._check_settings("run.h5", SimpleNamespace(config=text), other)


# ------------------------------------------------------------------------------------------------ c


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


@pytest.fixture
def fake(tmp_path):
    """A launcher that stands in for mpirun: fake(lines) writes it, a shell script that knows $out,
    and gives --mpirun.
    """

    def make(lines):
        where = tmp_path / "launcher"
        where.write_text(
            '#!/bin/sh\nfor w; do [ "$p" = --out ] && out=$w; p=$w; done\n'
            f"echo $out >>{tmp_path}/started\n{lines}\n"
        )
        where.chmod(0o755)
        return str(where)

    def started():
        with suppress(FileNotFoundError):
            return [line.rpartition("/")[2] for line in (tmp_path / "started").read_text().split()]
        return []

    make.started = started
    return make


@pytest.mark.parametrize("launcher", ["local", "slurm", "lsf", "jsrun"])
def test_a_dry_run_tells_the_runs_and_starts_none(launcher, small, tmp_path):
    done = alone(
        "sweep", small, "--launcher", launcher, "--dry-run", "--out", tmp_path / "runs", "--jobs", 3
    )
    assert done.returncode == 0, done.stderr
    assert "5 runs: 0 done, 0 running, 5 to do, 0 interrupted, 0 failed" in done.stdout
    assert not (tmp_path / "runs").exists()
    if launcher == "local":
        assert len(re.findall(r"-m localavg train .* --resume$", done.stdout, re.M)) == 5
    else:
        for ranks, jobs in ((1, 1), (2, 2)):  # of two ranks two runs go at once
            name = f"small-laptop-{ranks}"
            word = {"slurm": f"{name} --array=1-{jobs} "}.get(launcher, f"{name}[1-{jobs}]")
            assert word in done.stdout
        assert "gpus-per-node=0" in done.stdout or "-gpu" not in done.stdout


@pytest.mark.parametrize(
    "words", ["sweep FILE --dry-run", "sweep FILE --dry-run --launcher slurm", "status DIR"]
)
def test_dry_runs_and_status_load_no_mpi_and_no_torch(words, small, tmp_path):
    run_file(tmp_path / "a.h5", "finished")
    words = words.replace("FILE", str(small)).replace("DIR", str(tmp_path)).split()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "localavg", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if "import time:" in line
    }
    assert "localavg" in found and not found & {"mpi4py", "torch", "cupy"}


def test_a_sweep_trains_for_real_and_a_second_one_keeps_it(small, tmp_path):
    need("openmpi")
    out = tmp_path / "runs"
    words = ("sweep", small, "--out", out, "--share", "1/2")
    done = alone(*words)
    assert done.returncode == 0, (
        done.stdout + done.stderr + "".join(p.read_text() for p in out.glob("*.log"))
    )
    paths = [out / f"{name}.h5" for name in ("kavg-K1-P2-s0", "kavg-K1-P4-s0", "sgd-s0")]
    assert sorted(out.glob("*.h5")) == sorted(paths) and list(out.glob("*.lock")) == []
    assert [load(path).provenance["ranks"] for path in paths] == [2, 2, 1]
    before = [path.stat().st_mtime_ns for path in paths]
    done = alone(*words)
    assert done.returncode == 0 and "3 runs: 3 done" in done.stdout
    assert [path.stat().st_mtime_ns for path in paths] == before
    done = alone("status", out)  # it knows of the other share
    assert done.returncode == 1 and "5 runs: 3 done, 0 running, 2 to do" in done.stdout
    done = alone(*words, "--set", "lr=0.5")
    assert done.returncode == 2 and "kavg-K1-P2-s0.h5 holds another run, finished" in done.stderr
    assert (
        "--lr is 0.01 there and 0.5 here" in done.stderr
        and [path.stat().st_mtime_ns for path in paths] == before
    )


def test_a_failed_run_does_not_stop_the_others_and_the_status_tells(small, fake, tmp_path):
    mpirun = fake("echo localavg: it broke >&2; exit 1")
    done = alone("sweep", small, "--out", tmp_path / "runs", "--mpirun", mpirun)
    assert done.returncode == 1 and len(fake.started()) == 5
    assert "failed with status 1: it broke" in done.stdout


def test_a_users_mistake_stops_the_sweep_unless_told_to_keep_going(small, fake, tmp_path):
    mpirun = fake("echo localavg: no such data >&2; exit 2")
    done = alone("sweep", small, "--out", tmp_path / "runs", "--mpirun", mpirun)
    assert done.returncode == 1 and len(fake.started()) == 1 and "no such data" in done.stdout
    done = alone("sweep", small, "--out", tmp_path / "runs", "--mpirun", mpirun, "--keep-going")
    assert done.returncode == 1 and len(fake.started()) == 6


def test_status_75_ends_the_sweep_with_75(small, fake, tmp_path):
    done = alone("sweep", small, "--out", tmp_path / "runs", "--mpirun", fake("exit 75"))
    assert done.returncode == 75 and len(fake.started()) == 1


def asked_of(small, name):
    return next(run for run in read(small).runs if run.name == name).asked


def test_failed_runs_wait_for_retry_failed_and_interrupted_ones_are_resumed(small, fake, tmp_path):
    out = tmp_path / "runs"
    out.mkdir()
    run_file(out / "kavg-K1-P2-s0.h5", "failed", asked_of(small, "kavg-K1-P2-s0"))
    run_file(out / "kavg-K3-P2-s0.h5", "interrupted", asked_of(small, "kavg-K3-P2-s0"))
    run_file(out / "kavg-K1-P4-s0.h5", "finished", asked_of(small, "kavg-K1-P4-s0"))
    words = ("sweep", small, "--out", out, "--mpirun", fake("exit 1"))
    done = alone(*words)
    assert (
        "5 runs: 1 done, 0 running, 2 to do, 1 interrupted, 1 failed" in done.stdout
        and "no luck" in done.stdout
    )
    assert fake.started() == ["kavg-K3-P2-s0.h5", "kavg-K3-P4-s0.h5", "sgd-s0.h5"]
    alone(*words, "--retry-failed")
    assert "kavg-K1-P2-s0.h5" in fake.started()[3:]


def test_a_run_of_another_living_process_is_not_touched(small, fake, tmp_path, other):
    out = tmp_path / "runs"
    out.mkdir()
    lock(
        run_file(out / "kavg-K1-P2-s0.h5", "running", asked_of(small, "kavg-K1-P2-s0")),
        pids=[other],
    )
    done = alone("sweep", small, "--out", out, "--mpirun", fake("exit 1"), "--share", "1/5")
    assert done.returncode == 1 and "1 running" in done.stdout and fake.started() == []


@pytest.mark.parametrize("at_once, started", [(1, 1), (4, 2)])  # of two ranks each
def test_a_signal_reaches_the_runs_at_work_and_no_other_starts(
    at_once, started, small, fake, tmp_path
):
    """USR1, as batch systems send it ahead of a time limit; the fake run ends as a saved one
    does.
    """
    mpirun = fake("trap 'exit 75' USR1\nwhile :; do sleep 0.1; done")
    sweep = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "localavg",
            "sweep",
            small,
            "--out",
            tmp_path / "runs",
            "--mpirun",
            mpirun,
            "--at-once",
            str(at_once),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while len(fake.started()) < started and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # until the shells have set their traps
        sweep.send_signal(signal.SIGUSR1)
        assert sweep.wait(timeout=30) == 75 and len(fake.started()) == started
    finally:
        sweep.kill()


def test_srun_ending_ranks_that_were_slow_to_leave_does_not_hide_that_a_run_is_saved(
    small, fake, tmp_path
):
    """--kill-on-bad-exit ends the ranks that leave after the first one's 75, and srun then tells
    143.
    """
    planned = read(small).runs[0]
    (tmp_path / "runs").mkdir()
    run_file(tmp_path / "runs" / f"{planned.name}.h5", "interrupted", planned.asked)
    said = []
    assert (
        launch.Queue(tmp_path / "runs", fake("exit 143"), False, said.append).work([planned]) == 75
    )
    assert launch.Queue(tmp_path / "runs", fake("exit 2"), False, said.append).work([planned]) == 1


def test_words_of_launchers(small, monkeypatch, tmp_path):
    run, out = read(small).runs[2], tmp_path / "a.h5"
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert launch.command(run, out, "srun --mpi=pmix")[:5] == [
        "srun",
        "--mpi=pmix",
        "-n",
        "2",
        "--nodes=1",
    ]
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    step = launch.command(run, out, "srun", at_once=4)
    assert step[:6] == ["srun", "-n", "2", "--nodes=1", "--exact", "--gpus-per-node=2"]
    jsrun = launch.command(run, out, "jsrun --smpiargs='-gpu' --np {ranks} -a 4")
    assert jsrun[:7] == ["jsrun", "--smpiargs=-gpu", "--np", "2", "-a", "4", sys.executable]
    assert (
        launch.command(run, out)[0].endswith("mpirun")
        and launch.command(read(small).runs[4], out)[0] == sys.executable
    )
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert launch.command(read(small).runs[4], out)[0].endswith("mpirun")


def submitted(folder, capsys, launcher, text, *words):
    """The words of sbatch or bsub that a sweep would be submitted with, a list for each array, and
    all that is printed.
    """
    (folder / "some.toml").write_text(text)
    out = str(folder / "runs")
    given = ["sweep", str(folder / "some.toml"), "--launcher", launcher, "--dry-run", "--out", out]
    args = parser().parse_args([*given, *words])
    assert args.call(args) == 0
    printed, tool = capsys.readouterr().out, "sbatch" if launcher == "slurm" else "bsub"
    lines = [shlex.split(line) for line in printed.splitlines() if f" {tool} " in line]
    return [line[line.index(tool) :] for line in lines], printed


def size_of(words):
    """Ranks, ranks a node and GPUs a node that bsub -n or sbatch is told on the command line."""
    text = " ".join(words)
    patterns = (
        r"-n (\d+)|--ntasks=(\d+)",
        r"ptile=(\d+)|-per-node=(\d+)",
        r"num=(\d+)|gpus-\S+=(\d+)",
    )
    found = [re.search(pattern, text) for pattern in patterns]
    return tuple(int(m[1] or m[2]) if m else 0 for m in found)


LEARNERS = '[[runs]]\nalgorithm = "kavg"\nranks = "learners"\n'
ON_GPUS = LEARNERS + 'model = "nin"\ndata = "digits"\ndevice = "cuda"\n'


@pytest.mark.parametrize("launcher", ["lsf", "slurm"])
def test_every_number_of_ranks_is_an_array_with_the_nodes_that_it_needs(launcher, tmp_path, capsys):
    text = f"{LEARNERS}grid.learners = [3, 4, 5, 6, 8, 9, 128]\n"
    arrays, _ = submitted(tmp_path, capsys, launcher, text)
    # ranks, ranks a node: nodes as full as can be, and as even; none asks for a GPU
    nodes = [(3, 3, 0), (4, 4, 0), (5, 3, 0), (6, 3, 0), (8, 4, 0), (9, 3, 0), (128, 4, 0)]
    assert [size_of(words) for words in arrays] == nodes
    arrays, _ = submitted(tmp_path, capsys, launcher, f"{ON_GPUS}grid.learners = [3, 6, 8]\n")
    assert [size_of(words) for words in arrays] == [(3, 3, 3), (6, 3, 3), (8, 4, 4)]
    if launcher == "slurm":
        assert [w for words in arrays for w in words if "--nodes" in w] == [
            "--nodes=1", "--nodes=2", "--nodes=2",
        ]  # fmt: skip


def test_small_runs_go_several_at_once_on_one_node(tmp_path, capsys):
    text = f"{ON_GPUS}learners = 1\ngrid.lr = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]\n"
    ((*words,),), printed = submitted(tmp_path, capsys, "slurm", text)
    assert "--array=1-2" in words and size_of(words) == (3, 3, 3)  # 3 + 3, not 4 + 2
    assert words[-4:] == ["--only-ranks", "1", "--at-once", "3"]
    assert "0.0 % of the GPU hours are idle" in printed
    ((*words,),), printed = submitted(tmp_path, capsys, "jsrun", text)
    assert "25.0 % of the GPU hours are idle" in printed  # it gets whole nodes, of 4 GPUs


def test_the_papers_sweep_leaves_no_gpu_idle(capsys):
    words = f"sweep {ROOT}/jobs/sweeps/kavg-fig5-6.toml --scale paper --launcher slurm --dry-run"
    args = parser().parse_args(words.split())
    assert args.call(args) == 0
    idle = re.search(r"([\d.]+) % of the GPU hours are idle", capsys.readouterr().out)
    assert float(idle[1]) <= 10


def test_hours_are_work_by_the_rate_of_a_rank(tmp_path, capsys):
    """Two runs of 5 ranks in one job: 5 learners on 2 nodes of 3 GPUs, so a sixth is idle."""
    text = f"{ON_GPUS}learners = 5\nbatch-size = 9\nsteps = 1000\ngrid.lr = [0.1, 0.2]\n"
    _, printed = submitted(tmp_path, capsys, "slurm", text, "--jobs", "1", "--rate", "2.5")
    each = 1000 * 9 / 2.5 / 3600  # hours
    assert f"{2 * each * 6:,.2f} GPU hours, 16.7 % of them idle, and {2 * each:.2f}" in printed


def test_rates_of_runs_that_have_begun_count(tmp_path, capsys):
    text = f'{LEARNERS}learners = 4\ndata = "epsilon-like:200x10"\nepochs = 9\nbatch-size = 10\n'
    _, printed = submitted(tmp_path, capsys, "slurm", text)
    assert "how many they are is not known: no run like kavg-s0" in printed
    (tmp_path / "runs").mkdir()
    args = parser().parse_args(["sweep", str(tmp_path / "some.toml"), "--out", "x"])
    asked = plan.read(args.file, "laptop", train_parser()).runs[0].asked
    chosen = {"problem": "logistic", "device": "cpu", "rows": 200}  # by the run
    made = Record.create(tmp_path / "runs/other.h5", {**asked, **chosen}, {"ranks": 2})
    made.append("train", t=1, samples=50, wall_s=0.5)
    made.finish("finished")
    _, printed = submitted(tmp_path, capsys, "slurm", text)
    assert f"{9 * 200 / 50 / 3600:,.2f} hours of ranks" in printed  # 50 a second and rank


def test_servers_need_places_too_and_simulated_runs_one(tmp_path, capsys):
    text = '[[runs]]\nalgorithm = "downpour"\nlearners = 8\nservers = 1\nranks = "learners"\n'
    for words, size in (
        ((), (9, 3, 0)),
        (("--ranks", "4"), (5, 3, 0)),
        (("--set", "simulate=true"), (1, 1, 0)),
    ):
        ((*found,),), _ = submitted(tmp_path, capsys, "lsf", text, *words)
        assert size_of(found) == size


def test_what_the_user_asks_for_stands_last(tmp_path, capsys):
    text = f"{LEARNERS}learners = 8\n"
    ((*words,),), _ = submitted(tmp_path, capsys, "jsrun", text, "--submit=-nnodes 7 -W 1:00")
    assert words.count("-nnodes") == 1 and words[3:7] == ["-nnodes", "7", "-W", "1:00"]
    ((*words,),), _ = submitted(
        tmp_path, capsys, "slurm", text, "--submit=--ntasks-per-node=8 --gpus-per-node=4"
    )
    assert "--nodes=1" in words and words.index("--gpus-per-node=4") > words.index("--ntasks=8")


@pytest.mark.parametrize(
    ("launcher", "name", "said"),
    [
        ("lsf", "lsf/sweep.lsf", '#BSUB -R "span[ptile=6]"'),
        ("jsrun", "lsf/sweep.jsrun", "tasks=${TASKS:-6} gpus=${GPUS:-6}"),
        ("slurm", "slurm/sweep.sbatch", "#SBATCH --ntasks-per-node=6"),
    ],
)
def test_the_template_says_how_many_ranks_a_node_takes(
    launcher, name, said, tmp_path, capsys, monkeypatch
):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"#!/bin/bash\n{said}\n")
    monkeypatch.setattr("localavg.cli.sweep.submit.JOBS", tmp_path)
    _, printed = submitted(
        tmp_path, capsys, launcher, f"{LEARNERS}grid.learners = [6, 7, 12, 13]\n"
    )
    table = [line.split() for line in printed.splitlines() if re.match(r" +\d", line)]
    assert {int(row[0]): int(row[4]) for row in table} == {6: 1, 7: 2, 12: 2, 13: 3}


@pytest.mark.parametrize("launcher", ["slurm", "lsf", "jsrun"])
def test_nothing_is_submitted_before_data_account_and_partition_are_there(
    launcher, tmp_path, monkeypatch
):
    (tmp_path / "some.toml").write_text(f'{LEARNERS}learners = 2\ndata = "gone.h5"\n')
    tool = tmp_path / ("sbatch" if launcher == "slurm" else "bsub")
    tool.write_text(f"#!/bin/sh\necho $* >>{tmp_path}/submitted\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    words = "sweep", tmp_path / "some.toml", "--launcher", launcher, "--out", tmp_path / "runs"
    done = alone(*words, cwd=tmp_path, PATH=path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    names = ["ACCOUNT", "PARTITION"] if launcher == "slurm" else ["PROJECT", "QUEUE"]
    assert all(word in done.stderr for word in ("gone.h5", "localavg prepare", *names))
    given = "-A me --partition=gpu" if launcher == "slurm" else "-P me -q gpu"
    done = alone(*words, "--submit", given, cwd=tmp_path, PATH=path)
    assert done.returncode == 2 and "gone.h5" in done.stderr and names[0] not in done.stderr
    assert not (tmp_path / "submitted").exists() and not (tmp_path / "runs").exists()
    done = alone(*words, "--submit", given, "--set", "data=digits", cwd=tmp_path, PATH=path)
    assert done.returncode == 0 and given in (tmp_path / "submitted").read_text()


def test_a_plan_names_each_missing_data_set_once_and_says_what_its_columns_mean(
    tmp_path, capsys, monkeypatch
):
    """Two runs of each of five sets, of which one needs no file and one is copied to the nodes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localavg.datasets.where.CHECKOUT", tmp_path)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "imagenet.h5").write_text("")
    monkeypatch.setenv("STAGE", f"{tmp_path}/gone.h5 {tmp_path}/scratch/imagenet.h5")
    sets = ["cifar10.h5", "fashion-mnist", "digits", "gone.h5", "imagenet.h5"]
    text = f'{LEARNERS}learners = 2\nmodel = "nin"\ngrid.lr = [0.1, 0.2]\ngrid.data = {sets}\n'
    for launcher in ("slurm", "lsf"):
        _, printed = submitted(tmp_path, capsys, launcher, text)
        needed = dict(re.findall(r": data (\S+): 2 runs need it, .* run (.*), or give", printed))
        assert needed == {
            "cifar10.h5": "make cifar10",
            "fashion-mnist": "make fashion-mnist",
            "gone.h5": "localavg prepare (see its --help)",
        }
        above, table, below = printed.partition("job arrays, one for each number of ranks")
        assert table and "kavg-" not in above and "10 runs: 0 done" in above
        assert "\nruns at once: " in below and "\nidle: " in below


def test_several_runs_at_once_share_the_gpus(small, fake, tmp_path, monkeypatch):
    """Each run has two of four ranks: it writes its GPUs and waits for the other run."""
    gpus = tuple((f"GPU {i}", f"GPU-{i}") for i in range(5))
    monkeypatch.setattr("localavg.cli.sweep.launch.find_gpus", lambda: (gpus, ""))
    mpirun = fake(
        f"echo $CUDA_VISIBLE_DEVICES >>{tmp_path}/gpus\n"
        f"while [ $(wc -l <{tmp_path}/gpus) -lt 2 ]; do sleep 0.05; done; exit 75"
    )
    (tmp_path / "runs").mkdir()
    said = []
    queue = launch.Queue(tmp_path / "runs", mpirun, False, said.append, at_once=4)
    assert queue.work(read(small).runs) == 75
    assert len(fake.started()) == 2 and sum("interrupted" in line for line in said) == 2
    assert sorted((tmp_path / "gpus").read_text().split()) == ["GPU-0,GPU-1", "GPU-2,GPU-3"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("status nowhere", "nowhere"),
        ("sweep nowhere.toml", "nowhere.toml"),
        ("sweep FILE --share 3", "--share 3"),
        ("sweep FILE --share 3/2", "--share 3/2"),
        ("sweep FILE --set lr", "--set lr"),
        ("sweep FILE --mpirun '", "--mpirun ': No closing quotation"),
        ("sweep FILE --mpirun nowhere", "nowhere: cannot start this launcher"),
        ("sweep FILE --out FILE", "cannot write into this folder"),
        ("sweep FILE --launcher slurm --submit '", "--submit ': No closing quotation"),
        ("sweep FILE --set wings=1", "wings"),
        ("sweep FILE --launcher slurm --share 1/2", "--share 1/2"),
        ("sweep FILE --launcher slurm --at-once 2", "--at-once 2: only with --launcher local"),
        ("sweep FILE --only-ranks 7", "--only-ranks 7: the runs have 1, 2 ranks"),
        ("status .", "no run files"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_status_2(words, told, small, tmp_path):
    done = alone(*words.replace("FILE", str(small)).split(), cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["finished"], 0),
        (["finished", "interrupted"], 75),
        (["finished", "failed"], 1),
        (["running"], 1),
    ],
)
def test_status_tells_by_its_exit_status(kinds, code, tmp_path):
    paths = [run_file(tmp_path / f"{kind}.h5", kind) for kind in kinds]
    done = alone("status", tmp_path if len(paths) > 1 else paths[0])
    assert done.returncode == code and all(
        kind in done.stdout.replace("done", "finished") for kind in kinds
    )


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '{"file": "a", "scale": "b", "runs": 3}'])
def test_a_list_of_runs_that_is_none_is_told_in_one_line(text, tmp_path):
    (tmp_path / "sweep.json").write_text(text)
    done = alone("status", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "sweep.json: cannot read this list of runs" in done.stderr


def test_a_folder_that_cannot_be_read_is_told_in_one_line(tmp_path, monkeypatch):
    def stat(*_, **__):
        raise PermissionError(13, "Permission denied")  # which root would not meet

    monkeypatch.setattr("localavg.cli.status._planned", stat)
    with pytest.raises(UserError, match=f"^{tmp_path}: cannot look into it .Permission denied"):
        status._status(argparse.Namespace(where=str(tmp_path), watch=False))


def slow(tmp_path, seconds):
    """A launcher whose runs end, as finished, after so many seconds; it writes when they began."""
    path = tmp_path / "launcher"
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$(date +%s.%N) $2 $OMP_NUM_THREADS" >> {tmp_path}/began\nsleep {seconds}\n'
        f'echo "$(date +%s.%N)" >> {tmp_path}/ended\n'
    )
    path.chmod(0o755)
    return str(path)


def test_so_many_ranks_are_at_work_at_once_and_a_run_of_more_is_alone(small, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runs = [
        dataclasses.replace(run, ranks=n)
        for run, n in zip(read(small).runs, (1, 3, 1, 1), strict=False)
    ]
    (tmp_path / "runs").mkdir()
    queue = launch.Queue(tmp_path / "runs", slow(tmp_path, 0.6), False, [].append, at_once=2)
    queue.work(runs)
    began = [line.split() for line in (tmp_path / "began").read_text().splitlines()]
    start = [float(words[0]) for words in began]
    assert [words[1] for words in began] == ["1", "3", "1", "1"]
    assert {words[2] for words in began} == {"1"}  # a thread a rank
    assert start[1] - start[0] >= 0.5 and start[2] - start[1] >= 0.5  # alone
    assert start[3] - start[2] < 0.5  # at the same time


def test_the_scale_of_the_digits_is_the_laptops_with_its_own_on_top(tmp_path):
    text = SMALL + '[digits]\ndata = "digits"\nmodel = "mlp"\n'
    (first, *_), (ours, *_) = (
        sweep_of(tmp_path, text, scale).runs for scale in ("laptop", "digits")
    )
    assert (first.given["data"], ours.given["data"]) == ("epsilon-like:200x10", "digits")
    assert ours.given["steps"] == 12 and ours.ranks == first.ranks == 2
