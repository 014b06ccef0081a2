"""The mixes of rows by matrices, for transports: made once for the same rows and matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mpi4py import MPI

from localavg.parallel.device import address
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mixing import Lane, Mix, Mixing, Route, route

KEPT = 64  # mixes that are kept, most often the same ones again


class Mixes:
    """Mixes of learners' rows in memory of each rank's own, as `interfaces.Transport` defines them.

    The base of all transports.
    """

    dtype: np.dtype

    def __init__(self, fleet: Fleet) -> None:
        self.world, self.layout, self.rank, self.P = fleet.world, fleet.layout, fleet.rank, fleet.P
        self._everyone = fleet.everyone
        self._between: MPI.Intracomm | None = None  # all ranks, for the messages of mixes
        # (address, n, id of W) → W, which so keeps its id, and the mix by it
        self._mixes: dict[tuple[int, int, int], tuple[np.ndarray, Mixing]] = {}

    def mix_(self, w: np.ndarray, W: np.ndarray) -> None:
        """Set row j of all rows w [L, n] to Σ_i W_ji w_i, in place; see `Transport.mix_`."""
        self._check(w)
        key = address(w), w.shape[1], id(W)
        if key not in self._mixes:
            if len(self._mixes) >= KEPT:
                self._mixes.clear()
            self._mixes[key] = W, self._mix(w, W)
        self._mixes[key][1].mix_()

    def _mix(self, w: np.ndarray, W: np.ndarray) -> Mixing:
        n = w.shape[1]
        everyone = {rank: rank for rank in range(self.world.size)}
        return Mix(w, self._route(W), None, [Lane(slice(0, n), everyone, 0)], self._messages())

    def _route(self, W: np.ndarray) -> Route:
        """Return what this rank has to do in a mix of rows in memory of its own."""
        rank_of = [self.layout.rank_of(j) for j in range(self.P)]
        return route(W, rank_of, self.world.rank)

    def _messages(self) -> MPI.Intracomm:
        """Return a communicator where no message of others can be mistaken. Collective at first."""
        if self._between is None:
            self._between = self._everyone()
        return self._between

    def mix_bytes(self, nbytes: int, W: np.ndarray) -> np.ndarray:
        """Return each rank's bytes [R, 2] in one mix by W: a row goes to every rank that takes it.

        See `Transport.mix_bytes`.
        """
        sent = np.zeros((self.layout.ranks, 2), np.int64)
        for own, takers in self._takers(W):
            for rank in takers:
                sent[own, int(self.layout.node_of[rank] != self.layout.node_of[own])] += nbytes
        return sent

    def _takers(self, W: np.ndarray) -> Iterator[tuple[int, set[int]]]:
        """Yield, for each learner, its rank and the other ranks whose learners take its row."""
        rank_of = [self.layout.rank_of(j) for j in range(self.P)]
        for i, own in enumerate(rank_of):
            yield own, {rank_of[j] for j in np.flatnonzero(W[:, i]).tolist()} - {own}

    def _check(self, w: np.ndarray) -> None:
        """Raise TypeError for rows of another type: MPI sums some types as bytes, silently."""
        if w.dtype != self.dtype:
            raise TypeError(f"rows of {w.dtype}: {self.dtype} travels, nothing else")
