"""Rows mixed by a matrix: the same bits on every transport and layout, and only neighbours' rows
travel.
"""

from collections import Counter

import numpy as np
import pytest
from mpi import call
from mpi4py import MPI
from rows import mixed, values

from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import mixing
from localavg.parallel.transport.lanes import CHUNK
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.shared import SharedMemory

HOW = {"mpi": HostMPI, "shared": SharedMemory}
LENGTHS = (1, 1001, CHUNK + 5)
LAYOUTS = [(P, near) for P in ("R", "3R", 5, 7) for near in (None, 2, 1)]  # on R ranks


def matrices(P):
    """Matrices [P, P] by name: sparse ones, a full one, one that changes few rows and none."""
    draw = np.random.default_rng(P)
    ring = np.eye(P) / 2 + np.roll(np.eye(P), 1, axis=1) / 2
    to = draw.integers(P, size=P)
    push = np.eye(P) / 2
    push[to, np.arange(P)] += 0.5
    few = np.eye(P)
    few[0, [0, -1]] = 0.25, 0.75
    return {
        "ring": ring,
        "push": push,
        "full": draw.normal(size=(P, P)),
        "few": few,
        "none": np.eye(P),
    }


class Wire:
    """A communicator that counts the bytes which it is given to send."""

    def __init__(self, comm):
        self.comm, self.sent = comm, Counter()

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Isend(self, x, to, tag=0):
        self.sent[to] += x.nbytes
        return self.comm.Isend(x, to, tag)


def mixes(world):
    """What is wrong, in words, over transports, types, layouts, lengths and matrices."""
    wrong, (sent, mixing.SENT) = [], (mixing.SENT, 1 << 14)  # so that several pieces travel
    for name, how in HOW.items():
        for P, near in LAYOUTS:
            fleet = Fleet(world, {"R": world.size, "3R": 3 * world.size}.get(P, P), near)
            mine = slice(fleet.learners.start, fleet.learners.stop)
            for dtype in (np.float32, np.float64)[: 2 if (P, near) == (7, None) else 1]:
                transport = how(fleet, dtype=dtype)
                transport._between = wire = Wire(transport._messages())
                for n in LENGTHS:
                    rows = values(fleet.P, n + 5, whole=False, dtype=dtype)
                    w = transport.zeros((fleet.L, n + 5))
                    for which, W in matrices(fleet.P).items():
                        w[...] = rows[mine]
                        wire.sent.clear()
                        transport.mix_(w[:, 2 : n + 2], W)  # some columns of the rows
                        expected = rows.copy()
                        expected[:, 2 : n + 2] = mixed(rows[:, 2 : n + 2], W)
                        said = transport.mix_bytes(n * w.itemsize, W)
                        way = name, P, near, dtype.__name__, n, which
                        if not np.array_equal(w, expected[mine]):
                            wrong.append(way)
                        across = {r: b for r, b in wire.sent.items() if b and crosses(fleet, r)}
                        totals = world.allreduce([sum(across.values())])
                        if sum(totals) != said[:, 1].sum() or said.shape != (world.size, 2):
                            wrong.append((*way, "bytes", totals, said.tolist()))
    mixing.SENT = sent
    return wrong


def crosses(fleet, other):
    return fleet.node_of[other] != fleet.node_of[fleet.rank]


@pytest.mark.parametrize(
    ("ranks", "mpi"), [(1, "openmpi"), (2, "openmpi"), (3, "openmpi"), (4, "openmpi"), (3, "mpich")]
)
def test_rows_are_mixed_to_the_same_bits_everywhere_and_the_bytes_are_those_that_travel(ranks, mpi):
    assert call(ranks, mixes, mpi=mpi) == [[]] * ranks


def test_a_row_goes_once_to_a_node_whatever_takes_it_there():
    """Six learners, two a rank; ranks 0 and 1 are a node, rank 2 is another."""
    W = np.zeros((6, 6))
    W[[4, 5, 4, 1], [0, 0, 1, 2]] = 1  # 4 and 5 take 0; 4 takes 1; 1 takes 2
    node_of = [0, 0, 0, 0, 1, 1]
    assert mixing.route(W + np.eye(6), node_of, 0).gives == {1: (0, 1)}
    assert mixing.route(W + np.eye(6), node_of, 1).takes == {0: (0, 1)}
    assert mixing.route(W + np.eye(6), node_of, 0).sums == ((1, ((1, 1.0), (2, 1.0))),)
    assert mixing.route(np.eye(6), node_of, 0).sums == ()


def test_mixes_of_many_matrices_do_not_pile_up():
    """And a new matrix is not taken for an old one at the same address."""
    fleet = Fleet(MPI.COMM_SELF, 3)
    transport, rows = HostMPI(fleet), values(3, 11, whole=False)
    w = rows.copy()
    for k in range(200):
        W = np.eye(3) * k
        w[...] = rows
        transport.mix_(w, W)
        assert np.array_equal(w, rows * np.float32(k))
    assert len(transport._mixes) <= 64


def test_rows_of_another_type_are_refused():
    with pytest.raises(TypeError, match="float64"):
        HostMPI(Fleet(MPI.COMM_SELF, 2)).mix_(np.zeros((2, 3)), np.eye(2))
