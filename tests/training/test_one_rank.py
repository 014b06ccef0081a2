"""What one rank alone finds wrong ends the command on all of them: status 2, said once, and nobody
waits for the others.
"""

import contextlib
import io
import shutil
import sys
from unittest import mock

import h5py
import numpy as np
import pytest
from mpi import call, run, train
from run_files import run_file
from samples import write

from localavg import __main__
from localavg.errors import UserError
from localavg.files import record
from localavg.problems import logistic

TRAIN = "train kavg --batch-size 4 --steps 4 --learners 6"
DOWNPOUR = "downpour --batch-size 4 --steps 4 --learners 2 --data epsilon-like:60x5"
LINES = {  # what the odd rank lacks or has otherwise: (command line, what is said)
    "no file": (f"{TRAIN} --data data.h5", "data.h5: no such file"),
    "a damaged file": (f"{TRAIN} --data damaged.h5", "damaged.h5 is not an HDF5 file"),
    "a file cut short": (f"{TRAIN} --data cut.h5", "cut.h5 is damaged or cut short"),
    "a row that is not finite": (f"{TRAIN} --data nan.h5", "nan.h5: row"),
    "no measured machine": (
        f"{TRAIN} --data data.h5 --simulate --timing-from measured.h5",
        "measured.h5: cannot read this run",
    ),
    "no torch": (
        f"{TRAIN} --data cifar10-like:24 --model mlp",
        "--model mlp: networks need torch (none here)",
    ),
    "no memory": (f"{TRAIN} --data epsilon-like:60x5", "rank ODD: no room"),
    "no file, asynchronous": (
        "train downpour --batch-size 4 --steps 4 --data data.h5",
        "data.h5: no such file",
    ),
    "no order to follow": (f"train {DOWNPOUR} --replay order.h5", "order.h5: cannot read this run"),
}
GOOD = f"{TRAIN} --data epsilon-like:60x5"


class Left(Exception):
    """`main` is through, with this status."""


def fill(folder, order=None):
    """Folders `here` and `elsewhere`, which stand for the disks of two nodes; order: the file of a
    run to be followed.
    """
    here, elsewhere = folder / "here", folder / "elsewhere"
    for place in (here, elsewhere):
        place.mkdir(exist_ok=True)
        for name in ("damaged", "cut", "nan"):
            write(place / f"{name}.h5", noise=0.0)
    write(here / "data.h5", noise=0.0)
    run_file(here / "measured.h5")
    if order:
        shutil.copy(order, here / "order.h5")
    (elsewhere / "damaged.h5").write_bytes(b"no HDF5")
    (elsewhere / "cut.h5").write_bytes((here / "cut.h5").read_bytes()[:-900])
    with h5py.File(elsewhere / "nan.h5", "r+") as file:
        file["train/x"][:] = np.nan
    return here, elsewhere


class NoTorch:
    """A finder of modules that has no torch."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ImportError("none here")


@contextlib.contextmanager
def lacking(name, folder):
    """This rank works in `folder`, without torch or room for a problem where that is what is
    wrong.
    """

    def no_room(*_):
        raise MemoryError("no room")

    with contextlib.chdir(folder), contextlib.ExitStack() as stack:
        if name == "no torch":
            stack.enter_context(mock.patch.object(sys, "meta_path", [NoTorch, *sys.meta_path]))
        if name == "no memory":
            stack.enter_context(mock.patch.object(logistic.Logistic, "__init__", no_room))
        yield


def ends(world, here, elsewhere, odd):
    """{what the odd rank lacks: (the status of this rank, what it said)} one command after the
    other, GOOD at the end.
    """

    def leave(status, mistake):
        raise Left(status)

    __main__._leave, found = leave, {}
    for name, line in {**{name: line for name, (line, _) in LINES.items()}, "": GOOD}.items():
        words = [*line.split(), "--out", f"{here}/{odd}{name}-run.h5"]
        how = lacking(name, elsewhere) if name and world.rank == odd else lacking("", here)
        with how, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                __main__.main(words)
            except Left as e:
                found[name] = e.args[0], err.getvalue()
    return found


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    return train(tmp_path_factory.mktemp("order"), 1, f"{DOWNPOUR} --simulate").path


def ended_on(ranks, odd, folder, order):
    """What became of LINES on each of so many ranks, which of them is odd, and where the run files
    would be.
    """
    here, elsewhere = fill(folder, order)
    return call(ranks, ends, str(here), str(elsewhere), odd), odd, here


@pytest.fixture(
    scope="module",
    params=[(2, 1), *(pytest.param(at, marks=pytest.mark.long) for at in ((3, 2), (3, 0)))],
    ids=lambda at: f"rank{at[1]}of{at[0]}",
)
def ended(request, order, tmp_path_factory):
    return ended_on(*request.param, tmp_path_factory.mktemp("ranks"), order)


@pytest.mark.long
def test_nothing_is_wrong_where_no_rank_is_odd(order, tmp_path):
    found, _, here = ended_on(2, None, tmp_path, order)
    assert [{name: status for name, (status, _) in each.items()} for each in found] == [
        dict.fromkeys([*LINES, ""], 0)
    ] * 2
    assert {record.load(here / f"None{name}-run.h5").status for name in LINES} == {"finished"}


@pytest.mark.parametrize("name", LINES)
def test_all_ranks_end_with_status_2_and_the_first_says_why(name, ended):
    found, odd, here = ended
    assert [status for status, _ in (each[name] for each in found)] == [2] * len(found)
    first, *others = (said for _, said in (each[name] for each in found))
    assert first.startswith("localavg: ") and first.count("\n") == 1
    assert LINES[name][1].replace("ODD", str(odd)) in first
    assert others == [""] * len(others)
    assert not (here / f"{odd}{name}-run.h5").exists()


def test_ranks_that_heard_of_a_mistake_can_go_on_together(ended):
    found, odd, here = ended
    assert [each[""][0] for each in found] == [0] * len(found)
    assert record.load(here / f"{odd}-run.h5").status == "finished"


DRIVER = """\
import os
import sys

from mpi4py import MPI

from localavg.__main__ import main

os.chdir(sys.argv[2] if MPI.COMM_WORLD.rank == int(sys.argv[1]) else sys.argv[3])
main(sys.argv[4:])
"""


def at_odds(folder, ranks, line):
    """The command line in processes of their own, the last of which works in another folder."""
    (folder / "driver.py").write_text(DRIVER)
    here, elsewhere = fill(folder)
    done = run(ranks, folder / "driver.py", str(ranks - 1), elsewhere, here, *line.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stdout == ""
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("localavg: "))
    return said


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_launcher_sees_status_2_and_one_line(ranks, tmp_path):
    said = at_odds(tmp_path, ranks, f"{TRAIN} --data data.h5 --out {tmp_path}/run.h5")
    assert "data.h5: no such file" in said and not (tmp_path / "run.h5").exists()


def test_a_file_of_any_name_may_lie_on_one_node_only(tmp_path):
    line = f"{TRAIN} --data folder/data --out {tmp_path}/run.h5"
    (tmp_path / "here" / "folder").mkdir(parents=True)
    write(tmp_path / "here" / "folder" / "data", noise=0.0)
    assert "folder/data is no file" in at_odds(tmp_path, 2, line)


def test_the_folder_of_bench_checkpoint_may_lie_on_one_node_only(tmp_path):
    (tmp_path / "here" / "disk").mkdir(parents=True)
    line = "bench checkpoint --folder disk --floats 10 --repeats 1 --learners 2"
    assert "No such file or directory" in at_odds(tmp_path, 2, line)


def memory_where_rank_0_has_a_disk_of_its_own(world):
    """What bench_memory returns or says on this rank."""
    from localavg.cli.bench import memory

    def load(path):
        if world.rank:
            raise UserError(f"{path}: cannot read this run file")
        return record.load(path)

    memory.load = load
    try:
        return memory.bench_memory(world, "epsilon-like:200x5", 2)
    except UserError as e:
        return str(e)


def test_bench_memory_needs_no_temporary_folder_that_nodes_share():
    rows = call(2, memory_where_rank_0_has_a_disk_of_its_own)
    assert rows[0] == rows[1] and rows[0][0]["ranks"] == 2
