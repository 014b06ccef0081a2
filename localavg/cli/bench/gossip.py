"""Time a gossip, and what its neighbours' rows take over the link between nodes."""

from __future__ import annotations

import numpy as np

from localavg.algorithms.gossip import gossip
from localavg.interfaces import Array, Transport
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mixing import Route, route

ROUNDS = 8  # gossips of a turn, which are other ones in some graphs


class Gossips:
    """ROUNDS gossips of rows w [L, n] on a graph."""

    def __init__(self, fleet: Fleet, ours: Transport, w: Array, graph: str) -> None:
        average = gossip(graph=graph).average
        average.lay_out(fleet.learners, fleet.P, seed=0)
        self.fleet, self.ours, self.w = fleet, ours, w
        self.matrices = [average.matrix(t) for t in range(1, ROUNDS + 1)]

    def __call__(self) -> None:
        for W in self.matrices:
            self.ours.mix_(self.w, W)

    def floor_s(self, copy_s: float, bytes_per_s: float | None) -> float:
        """Return what one gossip must take, a mean over the ROUNDS.

        That is the time of a copy of the rank's rows, copy_s. Between nodes it is the time of the
        rows that the busiest node sends or gets over a link of bytes_per_s, if that is longer.
        """
        if bytes_per_s is None:
            return copy_s
        row_s = 4 * self.w.shape[1] / bytes_per_s
        return float(np.mean([max(copy_s, row_s * self._rows(W)) for W in self.matrices]))

    def _rows(self, W: np.ndarray) -> int:
        """Return how many rows the busiest node sends, or gets: its link is full duplex."""
        layout = self.fleet.layout
        node_of = [layout.node_of[layout.rank_of(j)] for j in range(layout.P)]
        ways: list[Route] = [route(W, node_of, node) for node in range(layout.nodes)]
        return max(max(way.come, sum(map(len, way.gives.values()))) for way in ways)
