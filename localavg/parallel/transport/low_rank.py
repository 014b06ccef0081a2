"""The mean of rows whose matrices cross nodes as products of low rank; see `algorithms/wire.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from mpi4py import MPI

from localavg.interfaces import Step
from localavg.parallel.transport.coded_lanes import Feedback, Group, Mine
from localavg.parallel.transport.deltas import add_deltas, divisor, land_
from localavg.parallel.transport.lanes import CHUNK, Weights
from localavg.parallel.wires.factors import Tensor, coded, nbytes, sides
from localavg.streams import Stream, generator


def sent_bytes(tensors: Sequence[Tensor], lanes: int, mine: Mine, r: int) -> int:
    """Return the bytes that a rank hands over in one mean."""
    dealt = _dealt(tensors, lanes)
    return sum(nbytes([tensor for _, tensor in dealt[i]], r) for i, _ in mine)


class Matrix:
    """A tensor u [m, k] of this node, which is e until the changes are added, and the factors."""

    def __init__(self, columns: slice, u: np.ndarray, A: np.ndarray, B: np.ndarray) -> None:
        self.columns, self.u, self.A, self.B = columns, u, A, B


class Share:
    """The tensors of lane i: what the ranks of `comm`, one a node, send for them.

    owner: the one of them that orthonormalises A for all. LAPACK's bits depend on the processor.
    e [floats of the tensors]: u of all tensors, one after the other; after a mean the feedback.
    left: the A of all matrices, then all tensors that are not coded. Q: the B of all matrices.
    """

    def __init__(
        self, i: int, comm: MPI.Comm, tensors: Sequence[tuple[int, Tensor]], r: int, seed: int
    ) -> None:
        self.comm, self.owner = comm, i % comm.size
        tensors = sorted(tensors, key=lambda each: not coded(each[1][1], r))  # matrices first
        shapes = [(*sides(shape), coded(shape, r)) for _, (_, shape) in tensors]
        self.e = np.zeros(sum(m * k for m, k, _ in shapes), np.float32)
        self.Q = np.empty(sum(r * k for _, k, small in shapes if small), np.float32)
        left = sum(r * m if small else m * k for m, k, small in shapes)
        self.left = np.empty(left, np.float32)
        self.matrices: list[Matrix] = []
        self.whole: list[Matrix] = []  # not coded: their A is the tensor
        at = a = b = 0
        for (number, (columns, _)), (m, k, small) in zip(tensors, shapes, strict=True):
            u = self.e[at : at + m * k].reshape(m, k)
            rank = r if small else k
            A = self.left[a : a + m * rank].reshape(m, rank)
            B = self.Q[b : b + k * r].reshape(k, r) if small else A
            if small:
                random = generator(seed, number, 0, Stream.LOW_RANK)
                B[...] = random.standard_normal(B.shape, np.float32)
                b += k * r
            (self.matrices if small else self.whole).append(Matrix(columns, u, A, B))
            at, a = at + m * k, a + m * rank


class LowRank:
    """This rank's share of a group's rows, in lanes of whole tensors.

    tensors: of a row, in order. r: the rank. seed: of the first Q.
    """

    def __init__(self, group: Group, tensors: Sequence[Tensor], r: int, seed: int) -> None:
        self.rows, self.here, _, _, self.P, self.spread, self.base, self.everyone = group
        dealt = _dealt(tensors, group.lanes)
        self.shares = [Share(i, comms[0], dealt[i], r, seed) for i, comms in group.mine]
        most = max((c.stop - c.start for c, _ in tensors), default=0)
        self._scratch = np.empty(most, np.float32)  # of a tensor

    @property
    def feedback(self) -> tuple[np.ndarray, ...]:
        """What the lanes keep from one mean to the next."""
        return tuple(x for share in self.shares for x in (share.e, share.Q))

    @property
    def by_column(self) -> Iterator[Feedback]:
        """The feedback by the columns of the rows; Q has as many numbers as matrices, or fewer."""
        for share in self.shares:
            for each in (*share.matrices, *share.whole):
                yield "e", each.columns, each.u.reshape(-1)
            for each in share.matrices:
                start = each.columns.start
                yield "Q", slice(start, start + each.B.size), each.B.reshape(-1)

    def mean_(
        self,
        variance: bool = False,
        step: Step | None = None,
        weights: Weights | None = None,
        plain: bool = False,
    ) -> float:
        """Set every row to the mean, or to what the step makes of it; as `CodedLanes.mean_`."""
        if self.here is not None:
            self.here.Barrier()  # everyone's rows are ready
        total = np.float32(divisor(self.P, weights))
        for share in self.shares:
            for each in (*share.matrices, *share.whole):
                u = each.u.reshape(-1)  # e before
                rows, w_tilde = self.rows[:, each.columns], self.base[each.columns]
                add_deltas(list(rows), w_tilde, u, self._scratch, weights)
        (self._sum_whole if plain else self._sum_factors)()
        spread = 0.0 if variance else np.nan
        for share in self.shares:
            for each in (*share.matrices, *share.whole):
                whole = plain or each.B is each.A
                mean = self._scratch[: each.u.size]
                if whole:
                    mean[...] = (each.u if plain else each.A).reshape(-1)
                else:
                    product_(each.A, each.B, mean.reshape(each.u.shape))
                mean /= total
                mean += self.base[each.columns]
                if whole:
                    each.u[...] = 0  # all of it arrived
                base = self.base[each.columns] if self.everyone else None
                found = self.spread if variance else None
                rows = self.rows[:, each.columns]
                spread += land_(rows, each.columns, base, mean, found, step, weights)
        if self.here is not None:
            self.here.Barrier()  # nobody goes on before all lanes are written
        return spread

    def _sum_whole(self) -> None:
        """Sum u over the nodes."""
        for share in self.shares:
            share.comm.Allreduce(MPI.IN_PLACE, share.e)

    def _sum_factors(self) -> None:
        """Sum the factors over the nodes, and keep in e what they leave out."""
        for share in self.shares:
            for each in share.matrices:
                np.matmul(each.u, each.B, each.A)  # u Q
            for each in share.whole:
                each.A[...] = each.u
        _wait([_to_owner(share) for share in self.shares])
        for share in self.shares:
            for each in share.matrices if share.comm.rank == share.owner else ():
                each.A[...] = np.linalg.qr(each.A)[0]
        _wait([share.comm.Ibcast(share.left, share.owner) for share in self.shares])
        for share in self.shares:
            for each in share.matrices:
                np.matmul(each.u.T, each.A, each.B)
                each.u -= each.A @ each.B.T  # e ← u − A Bᵀ
        for share in self.shares:
            share.comm.Allreduce(MPI.IN_PLACE, share.Q)


def _to_owner(share: Share) -> MPI.Request:
    """Sum `left` over the nodes, on the owner alone."""
    if share.comm.rank == share.owner:
        return share.comm.Ireduce(MPI.IN_PLACE, share.left, root=share.owner)
    return share.comm.Ireduce(share.left, None, root=share.owner)


def product_(A: np.ndarray, B: np.ndarray, out: np.ndarray) -> None:
    """Write A Bᵀ to out [m, k], summed in the order of the r columns.

    By single products and sums, which have the same bits on every processor; those of BLAS do not.
    """
    columns = np.ascontiguousarray(B.T)
    rows = max(1, CHUNK // out.shape[1])
    for a in range(0, len(out), rows):
        some, part = A[a : a + rows], out[a : a + rows]
        np.multiply(some[:, :1], columns[0], part)
        for j in range(1, len(columns)):
            part += some[:, j : j + 1] * columns[j]


def _wait(requests: Sequence[MPI.Request]) -> None:
    for request in requests:
        request.Wait()


def _dealt(tensors: Sequence[Tensor], lanes: int) -> list[list[tuple[int, Tensor]]]:
    """Deal numbered tensors, the largest first, each to the lane with the fewest floats."""
    dealt: list[list[tuple[int, Tensor]]] = [[] for _ in range(lanes)]
    floats = [0] * lanes
    order = sorted(enumerate(tensors), key=lambda each: each[1][0].start - each[1][0].stop)
    for number, tensor in order:
        i = floats.index(min(floats))
        dealt[i].append((number, tensor))
        floats[i] += tensor[0].stop - tensor[0].start
    return dealt
