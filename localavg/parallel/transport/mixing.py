"""Rows mixed by a matrix, w_j ← Σ_i W_ji w_i: only the rows of neighbours travel.

A place is a rank with memory of its own, or a node whose ranks share the rows. A row goes once to
every place where a learner takes it. It is cut into pieces: while the next pieces travel, a piece
is mixed in cache. Each sum has the order of the learners, so the bits do not depend on how learners
lie over ranks and nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from mpi4py import MPI

from localavg.parallel.layout import Layout
from localavg.parallel.transport.lanes import CHUNK, DEPTH, SENT, lane

CACHED = 1 << 18  # elements of all rows together that are mixed at a time: in a core's cache
LEAST = 1 << 10  # elements of one row at a time


@dataclass(frozen=True)
class Route:
    """What one place has to do in a mix; its rows are those of its learners, in order."""

    gives: Mapping[int, tuple[int, ...]]
    """place → its neighbours here, by their rows, which go there"""
    takes: Mapping[int, tuple[int, ...]]
    """place → its learners that are neighbours here, whose rows come from there"""
    sums: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    """(row, (source, weight), …) for each row that changes; a source is a row of this place or,
    from the number of its rows on, a row that has come, in the order of `takes`"""
    come: int
    """rows that come"""


def route(W: np.ndarray, place_of: Sequence[int], place: int) -> Route:
    """Return what `place` has to do in the mix by W [P, P]; place_of [P]: of each learner."""
    P = len(W)
    held: dict[int, list[int]] = {}
    for j in range(P):
        held.setdefault(place_of[j], []).append(j)
    mine = held[place]
    gives, takes = {}, {}
    for other, theirs in held.items():
        if other != place:
            gives[other] = tuple(row for row, i in enumerate(mine) if W[theirs, i].any())
            takes[other] = tuple(i for i in theirs if W[mine, i].any())
    come = [i for learners in takes.values() for i in learners]
    source = {i: number for number, i in enumerate([*mine, *come])}
    sums = []
    for row, j in enumerate(mine):
        own = tuple((source[i], float(W[j, i])) for i in np.flatnonzero(W[j]).tolist())
        terms = own or ((row, 0.0),)
        if terms != ((row, 1.0),):
            sums.append((row, terms))
    gives = {other: rows for other, rows in gives.items() if rows}
    takes = {other: learners for other, learners in takes.items() if learners}
    return Route(gives, takes, tuple(sums), len(come))


class Lane(NamedTuple):
    """A part of the columns, and the rank that mixes it at each place."""

    columns: slice
    rank_of: Mapping[int, int]
    number: int


def lanes(layout: Layout, rank: int, n: int) -> list[Lane]:
    """Return the lanes of `rank` for rows [learners of its node, n] that its node shares."""
    handlers = layout.handlers(range(layout.P))
    return [
        Lane(lane(n, i, len(handlers)), {layout.node_of[r]: r for r in ranks}, i)
        for i, ranks in enumerate(handlers)
        if rank in ranks
    ]


class Mixing(Protocol):
    """A mix of certain rows by a certain matrix."""

    def mix_(self) -> None:
        """Mix the rows in place. Collective over all ranks."""


class Mix:
    """One mix of the rows [R, n] of a place, by its route.

    here: the ranks of the place, if there are several. mine: the lanes of this rank. comm: all
    ranks, for these messages alone.
    """

    def __init__(
        self,
        rows: np.ndarray,
        route: Route,
        here: MPI.Comm | None,
        mine: Sequence[Lane],
        comm: MPI.Comm,
    ) -> None:
        self.rows, self.here, self.comm, self.route = rows, here, comm, route
        R = len(rows)
        self.travels = bool(route.gives or route.takes)
        size = SENT // rows.itemsize if self.travels else CHUNK
        weight = rows.dtype.type
        self.sums = [
            (row, [(source, weight(each)) for source, each in terms]) for row, terms in route.sums
        ]
        cut = [
            [(each, slice(a, min(a + size, each.columns.stop))) for a in _starts(each, size)]
            for each in mine
        ]
        # Everyone posts piece k of lane i in the order of (k, i) and waits for the oldest, so
        # nobody waits in a ring.
        turns = range(max(map(len, cut), default=0))
        self.pieces = [lane[k] for k in turns for lane in cut if k < len(lane)]
        width = max((p.stop - p.start for _, p in self.pieces), default=0)
        self.width = min(max(LEAST, CACHED // (2 * R + route.come + 1)), max(width, 1))
        self.new = np.empty((len(self.sums) + 1, self.width), rows.dtype)  # the last: a term
        self.come = np.empty((DEPTH if route.come else 0, route.come, width), rows.dtype)

    def mix_(self) -> None:
        """Mix the rows in place. Collective over all ranks."""
        flying: deque[tuple[slice, np.ndarray, list[MPI.Request]]] = deque()
        if self.here is not None:
            self.here.Barrier()  # everyone's rows are ready
        for k, (each, piece) in enumerate(self.pieces):
            if len(flying) == DEPTH:
                self._finish(*flying.popleft())
            flying.append(self._post(each, piece, k % DEPTH))
        while flying:
            self._finish(*flying.popleft())
        if self.here is not None:
            self.here.Barrier()  # nobody goes on before all lanes are written

    def _post(
        self, each: Lane, piece: slice, turn: int
    ) -> tuple[slice, np.ndarray, list[MPI.Request]]:
        """Send this piece of the rows that others take, and receive that of theirs."""
        come = (
            self.come[turn % len(self.come), :, : piece.stop - piece.start]
            if len(self.come)
            else _NONE
        )
        requests, number = [], 0
        for place, learners in self.route.takes.items():
            for _ in learners:
                rank = each.rank_of[place]
                requests.append(self.comm.Irecv(come[number], rank, each.number))
                number += 1
        for place, rows in self.route.gives.items():
            for row in rows:
                sent = self.rows[row, piece]
                requests.append(self.comm.Isend(sent, each.rank_of[place], each.number))
        return piece, come, requests

    def _finish(self, piece: slice, come: np.ndarray, requests: list[MPI.Request]) -> None:
        """Wait for a piece, which is then neither read nor written by MPI, and mix it."""
        if requests:
            MPI.Request.Waitall(requests)
        rows = self.rows[:, piece]
        for a in range(0, rows.shape[1], self.width):
            columns = slice(a, a + self.width)
            mix_(self.sums, [*rows[:, columns], *come[:, columns]], self.new)


_NONE = np.empty((0, 0), np.float32)


def mix_(
    sums: Sequence[tuple[int, Sequence[tuple[int, np.floating]]]],
    sources: Sequence[np.ndarray],
    memory: np.ndarray,
) -> None:
    """Set sources [m] to their sums: (number of the source, its terms (source, weight)).

    memory [≥ sums + 1, ≥ m] is overwritten. No source changes before the last sum is made.
    """
    m = len(sources[0]) if sources else 0
    *made, term = memory[: len(sums) + 1, :m]
    for total, (_, ((first, weight), *others)) in zip(made, sums, strict=True):
        np.multiply(sources[first], weight, total)
        for source, weight in others:
            total += np.multiply(sources[source], weight, term)
    for total, (row, _) in zip(made, sums, strict=True):
        sources[row][...] = total


def _starts(each: Lane, size: int) -> range:
    return range(each.columns.start, each.columns.stop, size)
