"""Means over ranks: exactly the sum in the learners' order divided once, for every transport,
without leaks or leftovers.
"""

import os
import signal
import time
import tracemalloc
import uuid
from functools import cache

import numpy as np
import pytest
from mpi import call, marked, run
from mpi4py import MPI
from rows import ordered, values

from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import lanes
from localavg.parallel.transport.lanes import CHUNK, Weights, add_up, counted
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.shared import SharedMemory
from localavg.parallel.transport.slots import Slots
from localavg.scope import Scope

HOW = {"mpi": HostMPI, "shared": SharedMemory}
LENGTHS = (
    1,
    2,
    3,
    17,
    1001,
    8193,
    2 * CHUNK + 5,
)  # below the ranks, odd, short rows and lanes, columns that straddle chunks
LAYOUTS = [
    (P, ranks_per_node) for P in ("R", "3R", 5, 7, 9) for ranks_per_node in (None, 2)
]  # on R ranks
CASES = [
    (dtype, layout, n)
    for dtype, lengths in ((np.float32, LENGTHS), (np.float64, (2, 1001, 2 * CHUNK + 5)))
    for layout in LAYOUTS
    for n in lengths
]


@cache
def expected(P, n, whole, dtype, S):
    """Rows [P, n], and what they become: (scopes one after the other, [P, n]) of each kind."""
    rows = values(P, n, whole, dtype)
    everyone = np.broadcast_to(ordered(rows), (P, n))
    clusters = np.repeat([ordered(rows[c : c + S]) for c in range(0, P, S)], S, axis=0)
    both = np.broadcast_to(ordered(clusters), (P, n))
    W, C = Scope.WORLD, Scope.CLUSTER
    return rows, (((W,), everyone), ((C,), clusters), ((C, W), both), ((W, C, W), everyone))


def means(world):
    """What is wrong, in words, over all transports, types, layouts, lengths and scopes."""
    wrong = []
    sent, lanes.SENT = lanes.SENT, 1 << 14  # so that several chunks travel between nodes
    for name, how in HOW.items():
        transports = {}
        for dtype, layout, n in CASES:
            P, ranks_per_node = layout
            if (dtype, layout) not in transports:
                P = {"R": world.size, "3R": 3 * world.size}.get(P, P)
                fleet = Fleet(world, P, ranks_per_node)
                S = next(S for S in (3, 2, 5, 1) if fleet.P % S == 0)
                transports[dtype, layout] = fleet, S, how(fleet, (S,), dtype=dtype)
            fleet, S, transport = transports[dtype, layout]
            P, mine, near = (
                fleet.P,
                slice(fleet.learners.start, fleet.learners.stop),
                16 * np.finfo(dtype).eps,
            )
            w = transport.zeros((fleet.L, n))
            for whole in (True, False):
                rows, ends = expected(P, n, whole, dtype, S)
                for scopes, end in ends:
                    w[...] = rows[mine]
                    for scope in scopes:
                        transport.mean_(w, scope)
                    ours = name == "shared" and fleet.nodes == 1  # the order is ours: to the bit
                    exact = len(scopes) == 1 and (whole or ours or P <= 2)
                    same = (
                        np.array_equal(w, end[mine])
                        if exact
                        else np.allclose(w, end[mine], near, near)
                    )
                    if not same or w.dtype != dtype:
                        wrong.append(
                            (
                                name,
                                dtype.__name__,
                                *layout,
                                n,
                                whole,
                                scopes,
                                float(abs(w - end[mine]).max()),
                            )
                        )
    lanes.SENT = sent
    return wrong


@pytest.mark.parametrize(
    ("ranks", "mpi"),
    [
        *((ranks, "openmpi") for ranks in (1, 2, 3, 4)),
        (2, "mpich"),
        pytest.param(5, "openmpi", marks=pytest.mark.long),
        pytest.param(3, "mpich", marks=pytest.mark.long),
    ],
)
def test_every_mean_is_the_sum_in_order_divided_once(ranks, mpi):
    assert call(ranks, means, mpi=mpi) == [[]] * ranks


@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("variance", [False, True])
def test_a_sum_is_divided_by_the_learners_not_by_the_ranks(name, variance):
    """Four learners on one rank: all of them, and clusters of two."""
    fleet = Fleet(MPI.COMM_SELF, 4)
    transport, rows = HOW[name](fleet, (2,)), values(4, 1001, whole=True)
    pairs = np.repeat([ordered(rows[:2]), ordered(rows[2:])], 2, axis=0)
    everyone = np.tile(ordered(rows), (4, 1))
    for scope, expected in ((Scope.WORLD, everyone), (Scope.CLUSTER, pairs)):
        w = transport.zeros((4, 1001))
        w[...] = rows
        transport.mean_(w, scope, variance)
        assert np.array_equal(w, expected)
        assert np.array_equal(transport.mean(rows), ordered(rows))


@pytest.mark.parametrize("P", [2, 3, 5])
def test_slots_divide_by_the_learners_not_by_the_ranks(P):
    rows = values(P, 1001, whole=True)
    w = rows.copy()
    copies = np.zeros((2, P, 1001), np.float32)
    Slots(MPI.COMM_SELF, copies, slice(0, P), lambda rows, mean: 0.0).way(w)()
    assert np.array_equal(w, np.tile(ordered(rows), (P, 1)))


@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("how", ["mean_", "variance"])
def test_S_of_many_equal_deviations_is_exact(name, how):
    """8 M squares of one number, whose sum in float32 would stop growing: (2 · 2^-13)² / 4 each."""
    n = 1 << 23
    transport = HOW[name](Fleet(MPI.COMM_SELF, 2))
    w = transport.zeros((2, n))
    w[0], w[1] = 1 + 2**-13, 1 - 2**-13
    S = transport.variance(w) if how == "variance" else transport.mean_(w, Scope.WORLD, True)
    assert S == pytest.approx(n * 2**-26, rel=1e-12)
    assert transport.take_spread_s() > 0 and transport.take_spread_s() == 0


def long_run(world):
    """1000 averages over both scopes, long and short rows: what changed meanwhile."""
    fleet = Fleet(world, 2 * world.size)
    transport = SharedMemory(fleet, (2,))
    sizes = (64, 2 * CHUNK)
    matrices = [transport.zeros((2, n)) for n in sizes]
    wrong, made = [], []
    for w in matrices:
        for scope in (Scope.CLUSTER, Scope.WORLD):
            transport.mean_(w, scope)
    world.Barrier()
    transport._communicator = lambda ranks: made.append(ranks)
    before = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd")), _resident()
    j = np.array(fleet.learners, np.float32)[:, None]  # [L, 1]
    for turn in range(1000):
        w, add = matrices[turn % 2], (turn * 7) % 13
        w[...] = 2 * j + add + np.arange(w.shape[1], dtype=np.float32) % 5
        scope = Scope.CLUSTER if turn % 3 == 0 else Scope.WORLD
        transport.mean_(w, scope)
        mean = (
            2 * (j // 2 * 2) + 1 if scope is Scope.CLUSTER else fleet.P - 1
        ) + add  # of 2j over the group, and `add`
        if not np.array_equal(
            w, np.broadcast_to(mean + np.arange(w.shape[1], dtype=np.float32) % 5, w.shape)
        ):
            wrong.append(turn)
    after = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd")), _resident()
    world.Barrier()
    tracemalloc.start()
    for w in matrices:
        transport.mean_(w, Scope.WORLD)
    tracemalloc.reset_peak()
    start = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        for w in matrices:
            transport.mean_(w, Scope.WORLD)
            transport.mean_(w, Scope.CLUSTER)
    peak = tracemalloc.get_traced_memory()[1] - start
    tracemalloc.stop()
    new_files = left_since(before[0], after[0])
    own = (
        transport._scratch.nbytes + 4 * len(transport.parts) * 2 * fleet.L * transport.width
    )  # sums, and copies of my rows
    return {
        "wrong": wrong,
        "made": made,
        "files": new_files,
        "handles": after[1] - before[1],
        "grown_bytes": after[2] - before[2],
        "peak_bytes": peak,
        "own_bytes": own,
    }


def left_since(before, seen=None):
    """Our files in /dev/shm that were not there before, are there now, and were `seen` meanwhile:
    others run tests too.
    """
    now = [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("localavg-")]
    return [name for name in now if seen is None or name in seen]


def _resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def after_many():
    return call(3, long_run)


def test_a_thousand_averages_are_all_exact_and_leave_nothing(after_many):
    for rank in after_many:
        assert (
            rank["wrong"] == []
            and rank["made"] == []
            and rank["files"] == []
            and rank["handles"] <= 0
        )
        assert rank["grown_bytes"] < 2 << 20


def test_an_average_allocates_nothing_after_the_first(after_many):
    for rank in after_many:
        assert rank["peak_bytes"] < 4096


def test_the_shared_path_keeps_sums_of_a_chunk_and_copies_of_a_chunk_a_rank(after_many):
    for rank in after_many:
        assert rank["own_bytes"] <= 4 * 2 * CHUNK


def refused(world):
    """How each transport answers rows that are not float32."""
    fleet, errors = Fleet(world), []
    for how in HOW.values():
        transport = how(fleet)
        for dtype in (np.float64, np.float16, np.int32):
            try:
                transport.mean_(np.ones((1, 8), dtype), Scope.WORLD)
                errors.append("")
            except TypeError as e:
                errors.append(str(e))
    return errors


def test_rows_of_another_type_are_refused():
    for errors in call(2, refused):
        assert all("float32" in error for error in errors) and len(errors) == 6


KILLED = """
import os, signal, sys, time
import numpy as np
from mpi4py import MPI
from localavg.parallel.fleet import Fleet, abort_on_exception
from localavg.scope import Scope
from localavg.parallel.transport.shared import SharedMemory
from localavg.parallel.transport.mpi import HostMPI
world = MPI.COMM_WORLD
abort_on_exception(world)
transport = {"shared": SharedMemory, "mpi": HostMPI}[sys.argv[1]](Fleet(world))
w = transport.zeros((1, 100_003))
for turn in range(10**9):
    if turn == 50 and world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    transport.mean_(w, Scope.WORLD)
"""


@pytest.mark.parametrize("name", HOW)
def test_the_death_of_a_rank_ends_the_others_and_leaves_nothing(name, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    mark, before, start = uuid.uuid4().hex, set(os.listdir("/dev/shm")), time.monotonic()
    done = run(3, script, name, env={"TEST_KILLED": mark})
    assert done.returncode != 0 and time.monotonic() - start < 30
    assert str(int(signal.SIGKILL)) in done.stderr + str(done.returncode)
    soon = left_since(before)
    time.sleep(1)
    assert marked(mark, "TEST_KILLED") == []
    assert left_since(before, soon) == []


def test_rows_are_added_up_by_weight_and_those_of_weight_0_are_not_read():
    rows = np.array([[1, 2], [np.nan, np.inf], [5, 7]], np.float32)
    weights, total = Weights.of([3, 0, 1], Scope.WORLD, range(3)), np.empty(2, np.float32)
    add_up(rows, total, weights)
    assert total.tolist() == [8, 13]
    assert [row.tolist() for row in counted(rows, weights)] == [[1, 2], [5, 7]]
    add_up(rows[1:2], total, Weights.of([3, 0, 1], Scope.WORLD, [1]))
    assert total.tolist() == [0, 0]
    assert (weights.total, weights.learners) == (4, 2)
    assert Weights.of([3, 0, 1], Scope.CLUSTER, range(3)) is None
