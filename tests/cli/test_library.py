"""localavg.train: the command line's run from Python, alone, again and again, and under MPI."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from types import FunctionType
from typing import Unpack

import numpy as np
import pytest
from drive import command_lines
from mpi import call, run
from mpi4py import MPI
from threadpoolctl import threadpool_info, threadpool_limits

import localavg
from localavg import algorithms, library
from localavg.__main__ import parser
from localavg.algorithms.base import Algorithm, Schedule
from localavg.algorithms.common import Common, composed
from localavg.cli import in_flags
from localavg.errors import GO_ON
from localavg.files.record import load
from localavg.parallel import probe
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope

SMALL = {"data": "epsilon-like:400x20", "batch_size": 10, "steps": 12, "eval_every": 12}
LINE = "--data epsilon-like:400x20 --batch-size 10 --steps 12 --eval-every 12"


def left():
    """What a run may change in a process, and must give back."""
    torch = sys.modules.get("torch")
    return (
        [signal.getsignal(number) for number in (2, 10, 12, 15)],
        sys.excepthook,
        threading.excepthook,
        [pool["num_threads"] for pool in threadpool_info()],
        torch and (torch.get_num_threads(), torch.get_deterministic_debug_mode()),
        dict(os.environ),
    )


@pytest.fixture
def no_children(monkeypatch):
    """A process that starts another one fails."""

    def refuse(*args, **more):
        raise AssertionError("a process was started")

    for module, name in ((subprocess, "Popen"), (os, "fork"), (os, "posix_spawn")):
        monkeypatch.setattr(module, name, refuse)


def test_a_call_is_the_command_and_leaves_nothing_behind(
    tmp_path, no_children, monkeypatch, hooks, capsys
):
    """Twice in a process, with other learners, and to the bits of the command line."""
    import torch  # so that its modes must be restored

    fleets = []

    class Seen(Fleet):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            fleets.append(self)

    torch.set_num_threads(2)
    threadpool_limits(2)
    before = left()
    monkeypatch.setattr("localavg.training.run.Fleet", Seen)
    first = localavg.train("kavg", K=5, learners=4, save_weights=True, **SMALL)
    net = {"data": "digits", "model": "mlp", "batch_size": 8, "steps": 4}
    second = localavg.train("mavg", tau=2, learners=2, out=tmp_path / "b.h5", **net)
    assert left() == before
    assert len(fleets) == 2 and all(len(fleet.made) == 1 for fleet in fleets)
    assert capsys.readouterr().out == ""
    torch.set_num_threads(1)
    threadpool_limits(1)
    assert (first.status, second.status, second.path) == ("finished",) * 2 + (tmp_path / "b.h5",)
    assert second.config["K"] == 2 and len(second.averages) == 2
    monkeypatch.undo()
    words = f"train kavg --K 5 --learners 4 --save-weights {LINE} --out {tmp_path / 'c.h5'}"
    assert command_lines(MPI.COMM_WORLD, [words.split()]) == [0]
    theirs = load(tmp_path / "c.h5")
    assert np.array_equal(first.weights, theirs.weights)
    assert {**first.config, "out": ""} == {**theirs.config, "out": ""}
    assert first.provenance.keys() == theirs.provenance.keys()
    assert first.provenance["git_commit"] == theirs.provenance["git_commit"]
    first.path.unlink()
    first.path.parent.rmdir()  # nothing else lies in the temporary folder


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"K": 0}, "--K 0"),
        ({"K1": 4}, "--K1 4"),
        ({"lr": -1}, "--lr -1"),
        ({"transport": "air"}, None),
        ({"milestones": [1, 2]}, "--milestones 1 2"),
        ({"data": "nowhere.h5"}, "--data nowhere.h5"),
    ],
)
def test_a_mistake_is_the_error_of_the_command_line(settings, line, tmp_path, capsys):
    out = tmp_path / "run.h5"
    given = {**{k: v for k, v in SMALL.items() if k != "data"}, **settings}
    with pytest.raises(localavg.UserError) as error:
        localavg.train("kavg", out=out, **given)
    if line is not None:
        words = f"train kavg --batch-size 10 --steps 12 --eval-every 12 {line} --out {out}"
        capsys.readouterr()
        assert command_lines(MPI.COMM_WORLD, [words.split()]) == [2]
        said = capsys.readouterr().err
        assert in_flags(str(error.value)) in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learner": 4}, "`learner`: no setting .* did you mean `learners`"),
        ({"learning_rate": 4}, "`learning_rate`: no setting .* did you mean `lr`"),
        ({"K": 2.5}, "`K = 2.5`: must be a whole number"),
        ({"K": "4"}, "`K = '4'`: must be a whole number"),
        ({"lr": "0.1"}, "`lr = '0.1'`: must be a number"),
        ({"simulate": 1}, "`simulate = 1`: must be True or False"),
        ({"milestones": 3}, "`milestones = 3`: must be a list"),
        ({"model": ""}, "`model = ''`: must be a text"),
        ({"resume": True}, "`resume` needs `out`"),
        ({"on_failure": "continue"}, "`on_failure = continue`: .* use the command line"),
    ],
)
def test_what_only_python_can_ask_is_refused_by_its_name(settings, told):
    with pytest.raises(localavg.UserError, match=told):
        localavg.train("kavg", **{**SMALL, **settings})


def doubling(first: int = 1, **common: Unpack[Common]) -> Algorithm:
    """Everyone averages after updates first, 2 first, 4 first, …"""

    class Doubling(Schedule):
        def after(self, t):
            return Scope.WORLD if t in (first << i for i in range(20)) else Scope.NONE

    return composed(Doubling(), **common)


@pytest.fixture
def table():
    """The tables of algorithms, without the test's own afterwards."""
    tables = algorithms.ALGORITHMS, algorithms.BOTH
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


def test_an_algorithm_of_ones_own_is_an_algorithm(tmp_path, table):
    """Its options and the common ones work, a later one of its name takes its place, and its run
    resumes.
    """
    whole = localavg.train(doubling, first=3, mu=0.5, learners=4, save_weights=True, **SMALL)
    assert whole.averages.t.tolist() == [3, 6, 12] and whole.config["algorithm"] == "doubling"
    assert (whole.config["first"], whole.config["outer"]) == (3, "momentum")
    more = {"first": 3, "mu": 0.5, "learners": 4, "save_weights": True, "out": tmp_path / "a.h5"}
    localavg.train(doubling, time_limit="1s", **{**SMALL, **more, "steps": 10**8})
    with pytest.raises(localavg.UserError, match="was made with steps = 100000000, not 12"):
        localavg.train("doubling", resume=True, **SMALL, **more)
    again = FunctionType(doubling.__code__, globals(), "doubling", (2,), doubling.__closure__)
    again.__annotations__ = doubling.__annotations__
    assert localavg.train(again, learners=2, **SMALL).averages.t.tolist() == [2, 4, 8, 12]
    with pytest.raises(localavg.UserError, match="`second`: no setting of a run has this name"):
        localavg.train(doubling, second=3, **SMALL)


def kavg(K: int = 4) -> Algorithm:
    """Another function of the name of a row."""
    return localavg.kavg(K)


def with_lr(lr: float = 0.1) -> Algorithm:
    return localavg.kavg()


def with_every(every: int = 4) -> Algorithm:
    return localavg.kavg(every)


def without_default(K: int) -> Algorithm:
    return localavg.kavg(K)


def undeclared(K=4):
    return localavg.kavg(K)


def unpacked(**common):
    return localavg.kavg()


def nothing(K: int = 4) -> Algorithm:
    """Forgets to return."""


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (localavg.kavg(K=4), r"^algorithm kavg\(K=4\): must be a name, or a function: def mine"),
        (lambda: localavg.kavg(), "must be a name, or a function"),
        (kavg, "^algorithm kavg: localavg has one of this name; give yours another one"),
        (with_lr, "^algorithm with_lr: `lr` is a setting of every run"),
        (with_every, "^algorithm with_every: `every` is a setting of every run"),
        (without_default, "^algorithm without_default: `K` needs a default"),
        (undeclared, "^`K` of an algorithm: declare it as bool, int, float or str"),
        (unpacked, r"^`\*\*common` of an algorithm: declare it as Unpack\[Common\]"),
        (nothing, "^algorithm nothing: its function returned None, and not an Algorithm"),
    ],
)
def test_a_function_that_makes_no_algorithm_is_refused(function, told, table):
    with pytest.raises(localavg.UserError, match=told):
        localavg.train(function, **SMALL)


@pytest.mark.parametrize("function", [with_lr, with_every])
def test_a_row_whose_option_is_a_setting_of_every_run_is_refused(function, table):
    algorithms.BOTH[function.__name__] = function
    with pytest.raises(localavg.UserError, match=f"^algorithm {function.__name__}: `.*` is a set"):
        parser()


def failing(K: int = 0) -> Algorithm:
    """Divides by K at its first update."""
    return composed(Failing(K))


class Failing(Schedule):
    def __init__(self, K):
        self.K = K

    def after(self, t):
        return Scope.NONE if t % self.K else Scope.WORLD


@pytest.mark.parametrize("P", [1, 2])
def test_a_schedule_that_fails_at_once_leaves_no_file(P, tmp_path, table):
    with pytest.raises(ZeroDivisionError):
        localavg.train(failing, learners=P, out=tmp_path / "a.h5", **SMALL)
    assert not list(tmp_path.iterdir())
    run = localavg.train(failing, K=6, learners=P, out=tmp_path / "a.h5", **SMALL)
    assert run.status == "finished"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"k": 8}, r"^kavg takes K, .*, not k; did you mean K\?$"),
        ({"K": 8, "partcipants": 2}, r"not partcipants; did you mean participants\?$"),
        ({"zebra": 8}, r"not zebra$"),
    ],
)
def test_a_misspelt_argument_of_an_algorithm_names_the_nearest(given, told):
    with pytest.raises(localavg.UserError, match=told):
        localavg.kavg(**given)


def test_the_packages_own_functions_may_be_given_too():
    assert localavg.train(localavg.kavg, K=6, learners=2, **SMALL).averages.t.tolist() == [6, 12]


def test_a_run_that_diverges_is_returned(tmp_path, capsys):
    found = localavg.train("kavg", lr=1e30, out=tmp_path / "a.h5", **SMALL)
    assert found.status == "failed" and "not finite" in found.attrs["failure"]
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_the_run_and_ends_the_program(number, raised, tmp_path, hooks):
    out, handler = tmp_path / "a.h5", signal.default_int_handler
    before = signal.signal(number, handler)  # a shell's job in the background ignores some

    def tell():
        while not out.exists() or signal.getsignal(number) == handler:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell, daemon=True).start()
    long = {**SMALL, "steps": 10**8, "eval_every": 10**8}
    try:
        with pytest.raises(raised) as end:
            localavg.train("kavg", out=out, **long)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)
    assert raised is KeyboardInterrupt or end.value.code == GO_ON
    assert load(out).status == "interrupted"


def test_a_time_limit_returns_the_run_that_can_go_on(tmp_path):
    settings = {**SMALL, "steps": 10**8, "eval_every": 10**8, "out": tmp_path / "a.h5"}
    found = localavg.train("kavg", time_limit="1s", **settings)
    assert found.status == "interrupted" and found.attrs["stopped_by"] == "the time limit"


def test_whether_mpi_takes_gpu_memory_is_read_and_not_tried(no_children, monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "_case", lambda gpus: (tmp_path / "none.json", "here", []))
    monkeypatch.setattr(probe, "find_gpus", lambda: ([("a GPU", "0")], ""))
    seen = []
    monkeypatch.setattr(library, "start", lambda c, w, o, aware, age_s: seen.append(aware))

    class Two:
        rank, size = 0, 2

    for settings in ({"model": "mlp", "data": "digits"}, {"device": "cpu"}):
        config = library.checks.read({"algorithm": "kavg", **settings})
        library._run(config, Two())
    assert seen[0].works is None and "not tried yet" in seen[0].why and seen[1] is None


def together(world, folder):
    """What each rank gets: of a run, of settings that differ, of a mistake on one rank."""
    out = f"{folder}/both.h5"
    found = localavg.train("kavg", K=5, learners=4, out=out, **SMALL)
    said = [found.status, found.provenance["ranks"], len(found.train), float(found.eval.t.iloc[-1])]
    found = localavg.train("hieravg", K1=2, K2=4, S=2, learners=4, **SMALL)  # in a folder of rank 0
    said.append(str(found.path))
    wrong = ({"K": 4 + world.rank}, {"K": 4 if world.rank else 0}, {"learners": 1}, {"out": out})
    for settings in wrong:
        try:
            said.append(localavg.train("kavg", **{**SMALL, **settings}).status)
        except localavg.UserError as e:
            said.append(str(e))
    alone = localavg.train("kavg", learners=2, world=MPI.COMM_SELF, **SMALL)
    library.WARN_AFTER_S = 0.5
    if world.rank:
        time.sleep(2)  # the other rank waits for this one, and says so
    with contextlib.redirect_stderr(io.StringIO()) as told:
        localavg.train("kavg", **SMALL)
    open_ = [os.readlink(fd.path) for fd in os.scandir("/proc/self/fd") if os.path.islink(fd.path)]
    assert not [path for path in open_ if "/dev/shm/localavg" in path]  # what the ranks shared
    return [*said, alone.provenance["ranks"]], told.getvalue()


def test_ranks_call_it_together_and_fail_together(tmp_path):
    (first, told), (second, _) = call(2, together, str(tmp_path))
    assert first == second and first[:4] == ["finished", 2, 12, 12.0] and first[-1] == 1
    differ, wrong, few, there = first[5:-1]
    assert "`K = 5` on rank 1 and `K = 4` on rank 0" in differ
    assert wrong == "`K = 0`: a period must be at least 1"
    assert "every rank must hold one" in few and "never overwritten" in there
    assert "rank 0 has been waiting for" in told and "which every rank must call" in told


def test_an_error_that_nobody_catches_ends_the_job_with_one_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import localavg\nfrom mpi4py import MPI\n"
        "localavg.train('kavg', K=4 if MPI.COMM_WORLD.rank else 0)\n"
    )
    done = run(2, program, program=["python"], timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("localavg: `K = 0`: a period must be at least 1") == 1
