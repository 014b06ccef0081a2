"""Which communicators the pieces of a row use between two nodes, and how: links in both directions
at once.
"""

from collections import Counter

import numpy as np
import pytest
from mpi4py import MPI

from localavg.parallel.transport.lanes import CHUNK, DEPTH, SENT, Lanes

PIECE = SENT // 4  # float32
BESIDE = "goes on beside others"


class First:
    """A communicator of two nodes whose first rank is on node `first`; it notes its sums."""

    def __init__(self, first, sums):
        self.first, self.sums = first, sums

    def Iallreduce(self, _place, total):
        self.sums.append((self.first, BESIDE, len(total)))
        return MPI.REQUEST_NULL

    def Allreduce(self, _place, total):
        self.sums.append((self.first, "alone", len(total)))


def sums(n, lanes, mine):
    """What the lanes `mine` of a row of n send: (first node, how, elements)."""
    found = []
    comms = tuple(First(node, found) for node in range(2))
    rows, scratch = np.zeros((1, n), np.float32), np.empty((DEPTH, CHUNK), np.float32)
    Lanes(rows, None, lanes, [(i, comms) for i in mine], 2, scratch, None).mean_()
    return found


@pytest.mark.parametrize(("lanes", "pieces"), [(2, 1), (2, 3), (3, 2), (4, 1)])
def test_as_many_pieces_begin_at_one_node_as_at_the_other(lanes, pieces):
    """Where MPI reduces to the first rank and broadcasts from it, a link is busy one way at a time
    for one piece; pieces that begin at different nodes fill both ways.
    """
    n = lanes * pieces * PIECE
    firsts = Counter(first for i in range(lanes) for first, *_ in sums(n, lanes, [i]))
    assert abs(firsts[0] - firsts[1]) <= 1


@pytest.mark.parametrize(("n", "alone"), [(48, [True, True]), (2 * PIECE + 16, [True, False])])
def test_a_lane_of_one_piece_is_summed_by_mpis_best_way(n, alone):
    """That is a blocking sum, which every rank of the lane must take: the lane decides, whichever
    others a rank has.
    """
    for i in range(2):
        found = sums(n, 2, [i])
        assert [how for _, how, _ in found] == ["alone"] * alone[i] + [BESIDE] * 2 * (not alone[i])
        assert all(piece in sums(n, 2, [0, 1]) for piece in found)
