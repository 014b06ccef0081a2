"""The mean of rows whose sums cross nodes in code, with error feedback; see `algorithms/wire.py`.

As in `lanes.py` each rank has lanes of the columns. A lane is cut into pieces, and a piece into a
slice for each node. The pieces' codes are on their way while the next pieces are coded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from localavg.interfaces import Rounding, Rows, Step
from localavg.parallel.transport.deltas import add_deltas, divisor, land_
from localavg.parallel.transport.lanes import Weights, lane
from localavg.parallel.wires.float32 import Float32

# Elements of a piece. All pieces of a row are on their way at once, and MPI asks after each again
# and again: 25 million in bf16 take twice as long in pieces of 60 kB.
PIECE = 1 << 17

Mine = Sequence[tuple[int, Sequence[MPI.Comm]]]
"""the numbers of a rank's lanes, each with the communicators of its ranks on all nodes"""


Feedback = tuple[str, slice, np.ndarray]
"""what a rank keeps from one mean to the next: e of its node, r, or Q of all; columns; numbers"""


class Group(NamedTuple):
    """A group of learners whose sums cross nodes, as a rank sees it."""

    rows: np.ndarray
    """those of the group's learners on this node [l, n]"""
    here: MPI.Comm | None
    """the group's ranks on this node, if there are several"""
    lanes: int
    """into how many lanes the columns are cut"""
    mine: Mine
    """this rank's lanes"""
    P: int
    """the group's learners on all nodes"""
    spread: Callable[[Rows, np.ndarray], float]
    """(rows, mean) → Σ ‖w̄ − w_j‖²"""
    base: np.ndarray
    """w̃ [n], which the node shares"""
    everyone: bool
    """whether the group is everyone, whose mean is the next w̃"""


@dataclass
class Piece:
    """Some columns of a lane, which the ranks of `comm`, one a node, average.

    rows [l, m]: those of this node. base [m]: w̃. e [m], r [own slice]: the feedback. ends: where
    the nodes' slices begin, and m.
    """

    comm: MPI.Comm
    columns: slice
    rows: np.ndarray
    base: np.ndarray
    e: np.ndarray
    r: np.ndarray
    ends: list[int]

    def sizes(self, code: Rounding) -> list[int]:
        """Return the bytes of each node's slice."""
        return _sizes(self.ends, code)


class CodedLanes:
    """This rank's lanes of a group's rows.

    e [columns of my lanes], r [columns of my slices]: the feedback.
    """

    def __init__(self, group: Group, code: Rounding) -> None:
        rows, self.here, lanes, mine, self.P, self.spread, base, self.everyone = group
        self.code, n = code, rows.shape[1]
        cuts = [
            [(comms[0], *piece) for piece in _pieces(lane(n, i, lanes), comms[0].size, code.bucket)]
            for i, comms in mine
        ]
        # piece k of every lane in turn, so that all lanes travel at once
        turns = [each for turn in zip_longest(*cuts) for each in turn if each is not None]
        own = [ends[comm.rank + 1] - ends[comm.rank] for comm, _, ends in turns]
        self.e = np.zeros(sum(ends[-1] for *_, ends in turns), np.float32)
        self.r = np.zeros(sum(own), np.float32)
        self.pieces: list[Piece] = []
        at = start = 0
        for (comm, columns, ends), n in zip(turns, own, strict=True):
            e, r = self.e[at : at + ends[-1]], self.r[start : start + n]
            piece = Piece(comm, columns, rows[:, columns], base[columns], e, r, ends)
            self.pieces.append(piece)
            at, start = at + ends[-1], start + n
        most = max((ends[-1] for *_, ends in turns), default=0)
        self._u, self._other = np.empty((2, most), np.float32)

    @property
    def feedback(self) -> tuple[np.ndarray, ...]:
        """What the lanes keep from one mean to the next."""
        return self.e, self.r

    @property
    def by_column(self) -> Iterator[Feedback]:
        """The feedback by the columns of the rows."""
        for piece in self.pieces:
            yield "e", piece.columns, piece.e
            start = piece.columns.start + piece.ends[piece.comm.rank]
            yield "r", slice(start, start + len(piece.r)), piece.r

    def mean_(
        self,
        variance: bool = False,
        step: Step | None = None,
        weights: Weights | None = None,
        plain: bool = False,
    ) -> float:
        """Set every row to the mean, or to what the step makes of it. Collective.

        plain: in float32, with all feedback. Return Σ ‖w̄ − w_j‖² of the rows that count over this
        rank's lanes if `variance`, else NaN; it is about the mean that arrives.
        """
        code = Float32() if plain else self.code
        if self.here is not None:
            self.here.Barrier()  # everyone's rows are ready
        sent = [self._send(piece, code, weights) for piece in self.pieces]
        replies = [
            self._reply(*each, code, weights) for each in zip(self.pieces, sent, strict=True)
        ]
        spread = 0.0 if variance else np.nan
        for piece, reply in zip(self.pieces, replies, strict=True):
            spread += self._land(piece, reply, code, variance, step, weights)
        if self.here is not None:
            self.here.Barrier()  # nobody goes on before all lanes are written
        return spread

    def _send(
        self, piece: Piece, code: Rounding, weights: Weights | None
    ) -> tuple[np.ndarray, MPI.Request, object]:
        """Code this node's sum u, keep in e what the code loses, and let it go to the slices."""
        u = self._u[: piece.ends[-1]]
        u[...] = piece.e
        add_deltas(list(piece.rows), piece.base, u, self._other, weights)
        sizes = piece.sizes(code)
        codes = np.empty(sum(sizes), np.uint8)
        self._encode_(u, piece, code, codes)
        self._decode_(codes, piece, code, piece.e)
        np.subtract(u, piece.e, piece.e)  # e ← u − decode(C)
        comm, size = piece.comm, sizes[piece.comm.rank]
        got = np.empty(size * comm.size, np.uint8)
        request = comm.Ialltoallv([codes, sizes], [got, [size] * comm.size])
        return got, request, codes  # the request needs them until it is done

    def _reply(
        self,
        piece: Piece,
        sent: tuple[np.ndarray, MPI.Request, object],
        code: Rounding,
        weights: Weights | None,
    ) -> tuple[np.ndarray, MPI.Request, object]:
        """Add up my slice over the nodes, code its mean, and let it go to everyone."""
        got, request, _ = sent
        request.Wait()
        sizes = piece.sizes(code)
        size, n = sizes[piece.comm.rank], len(piece.r)
        v, one = self._u[:n], self._other[:n]
        v[...] = 0
        for k in range(piece.comm.size):  # in the order of the nodes
            code.decode_(got[k * size : (k + 1) * size], one)
            v += one
        v /= np.float32(divisor(self.P, weights))
        v += piece.r
        codes = np.empty(size, np.uint8)
        code.encode_(v, codes)
        code.decode_(codes, one)
        np.subtract(v, one, piece.r)  # r ← v − decode(C')
        everyone = np.empty(sum(sizes), np.uint8)
        return everyone, piece.comm.Iallgatherv(codes, [everyone, sizes]), codes

    def _land(
        self,
        piece: Piece,
        reply: tuple[np.ndarray, MPI.Request, object],
        code: Rounding,
        variance: bool,
        step: Step | None,
        weights: Weights | None,
    ) -> float:
        """Write w̃ + decode(C') to every row. Return Σ ‖w̄ − w_j‖² if `variance`."""
        everyone, request, _ = reply
        request.Wait()
        mean = self._u[: piece.ends[-1]]
        self._decode_(everyone, piece, code, mean)
        mean += piece.base
        return land_(piece.rows, piece.columns, piece.base if self.everyone else None, mean,
                     self.spread if variance else None, step, weights)  # fmt: skip

    def _encode_(self, x: np.ndarray, piece: Piece, code: Rounding, out: np.ndarray) -> None:
        place = 0
        for a, b, size in zip(piece.ends, piece.ends[1:], piece.sizes(code), strict=False):
            code.encode_(x[a:b], out[place : place + size])
            place += size

    def _decode_(self, codes: np.ndarray, piece: Piece, code: Rounding, out: np.ndarray) -> None:
        place = 0
        for a, b, size in zip(piece.ends, piece.ends[1:], piece.sizes(code), strict=False):
            code.decode_(codes[place : place + size], out[a:b])
            place += size


def sent_bytes(n: int, lanes: int, mine: Mine, code: Rounding) -> int:
    """Return the bytes that a rank hands over in one mean of n columns.

    They are the others' slices of u, and its own slice of the reply, once.
    """
    return sum(
        sum(_sizes(ends, code))
        for i, comms in mine
        for _, ends in _pieces(lane(n, i, lanes), comms[0].size, code.bucket)
    )


def _pieces(columns: slice, nodes: int, bucket: int) -> list[tuple[slice, list[int]]]:
    """Cut a lane's columns into pieces, of at least 8 buckets for each node if there are so many.

    Return each with where the nodes' slices of it begin, and its length; all begin with a bucket.
    """
    made = []
    size = max(PIECE, 8 * nodes * bucket)
    for a in range(columns.start, columns.stop, size):
        n = min(size, columns.stop - a)
        buckets = -(-n // bucket)
        ends = [min(n, buckets * k // nodes * bucket) for k in range(nodes + 1)]
        made.append((slice(a, a + n), ends))
    return made


def _sizes(ends: list[int], code: Rounding) -> list[int]:
    return [code.nbytes(b - a) for a, b in zip(ends, ends[1:], strict=False)]
