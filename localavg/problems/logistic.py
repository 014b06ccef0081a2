"""ℓ2-regularised logistic regression, F(w) = (1/n) Σ log(1 + exp(−y_i x_i·w)) + (λ/2) ‖w‖².

The labels are y_i = ±1. The code is the same for NumPy and CuPy: `xp` is the array module that
`data` lives in. With the margins m_i = y_i x_i·w and b_i = log(1 + exp(−m_i)), computed without
overflow, the slope is σ(−m_i) = 1 − exp(−b_i): exact at both ends, at |m| = 1e4 too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.interfaces import Array, Engine, Feed, Problem
from localavg.learner.sampling import Batch, Sampler
from localavg.parallel.device import on_host
from localavg.problems.engines.stacked import Examples, Stacked
from localavg.problems.row_numbers import DeviceRows, HostRows

ROWS = 4096
"""rows in one step of an evaluation"""


class Batches:
    """(j, t) → the examples of learner j for update t = 1 … T, as `Logistic.fetch` returns them."""

    def __init__(
        self,
        fetch: Callable[[Batch], tuple[Array, Array]],
        xp: ModuleType,
        sampler: Sampler,
        T: int,
    ) -> None:
        self.fetch, self.xp, self.sampler, self.T = fetch, xp, sampler, T
        self._rows: HostRows | DeviceRows | None = None

    def __call__(self, j: int, t: int) -> tuple[Array, Array]:
        """Return the examples x [B, d], y [B], valid until the next call."""
        return self.fetch(self.sampler.batch(j, t))

    def rows(self, learners: range) -> HostRows | DeviceRows:
        """Make what gives the row numbers of all learners' mini-batches at once."""
        self.close()
        host = self.xp is np
        self._rows = (
            HostRows(self.sampler, learners)
            if host
            else DeviceRows(self.sampler, learners, self.T, self.xp)
        )
        return self._rows

    def close(self) -> None:
        """End the thread that draws row numbers, if there is one."""
        if self._rows is not None:
            self._rows.close()


class Logistic(Problem):
    """Logistic regression on a feature matrix with two classes.

    data: the Dataset, with arrays of `xp`; l2: λ. d is the number of features. There is no
    intercept, as in lupa §6.
    """

    def __init__(self, data: Dataset, l2: float, xp: ModuleType = np) -> None:
        if data.kind != "features":
            raise UserError(
                f"`data = {data.name}`: logistic regression needs a feature matrix with two "
                f"classes, not {data.kind}"
            )
        self.data, self.l2, self.xp = data, l2, xp
        self.x, self.y = data.train.x, data.train.y  # [n, d], [n]
        self.n, self.d = self.x.shape
        self.shapes = {"weights": (self.d,)}
        self._batches: Batches | None = None
        self._gathered: tuple[Array, Array] | None = None  # [B, d], [B]

    def initial_(self, w: Array) -> None:
        """Write the starting point into w [d]: zero weights."""
        w[...] = 0

    def feed(self, sampler: Sampler, learners: range, T: int, in_step: bool = True) -> Batches:
        self.close()
        self._batches = Batches(self.fetch, self.xp, sampler, T)
        return self._batches

    def engines(self) -> Mapping[str, Callable[[Feed, range], Engine]]:
        return {Stacked.name: self._stacked}

    def _stacked(self, feed: Feed, learners: range) -> Engine:
        assert isinstance(feed, Batches)
        examples = Examples(self.x, self.y, self.l2, self.xp)
        B = feed.sampler.B
        return Stacked(examples, feed.rows(learners), len(learners), B)

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()

    def fetch(self, batch: Batch) -> tuple[Array, Array]:
        """Return the examples x [B, d], y [B] of a batch.

        They are a view of consecutive rows, or else a gather that is valid until the next call.
        """
        if isinstance(batch, slice):
            return self.x[batch], self.y[batch]
        if self._gathered is None or len(self._gathered[1]) != len(batch):
            self._gathered = (
                self.xp.empty((len(batch), self.d), self.x.dtype),
                self.xp.empty(len(batch), self.y.dtype),
            )
        xp, (x, y) = self.xp, self._gathered
        how = {"mode": "clip"} if xp is np else {}  # else NumPy buffers `out`; CuPy has no modes
        if xp is not np and isinstance(batch, np.ndarray):
            batch = xp.asarray(batch)
        return xp.take(self.x, batch, axis=0, out=x, **how), xp.take(self.y, batch, out=y, **how)

    def gradient_(self, w: Array, batch: tuple[Array, Array], out: Array) -> float | Array:
        """Write the gradient of the mini-batch objective at w [d] into `out` [d].

        Return that objective, a scalar of the host or of the device.
        """
        xp, (x, y) = self.xp, batch
        m = x @ w  # [B]
        m *= y
        xp.negative(m, out=m)
        b = xp.logaddexp(m, 0)  # [B] losses
        xp.negative(b, out=m)
        slope = xp.expm1(m, out=m)  # [B] −σ(−m)
        slope *= y
        slope /= len(y)
        xp.dot(slope, x, out=out)
        ridge = self.l2 * w  # [d]
        out += ridge
        return b.sum() / len(y) + 0.5 * (ridge @ w)

    def regulariser(self, w: Array) -> float:
        """Return (λ/2) ‖w‖²."""
        return 0.5 * self.l2 * float(w @ w)

    def sums(
        self, w: Array, split: Split, lo: int, hi: int, gradient: bool = False
    ) -> tuple[float, int, Array | None]:
        """Sum over rows lo … hi − 1 of a split.

        Return the sum of the losses, the number classified right, and the sum of the gradients [d]
        (None unless `gradient`). Regularisation is left out. Sums are kept in float64.
        """
        xp, loss, right = self.xp, 0.0, 0
        total = xp.zeros(self.d) if gradient else None  # [d] float64
        for i in range(lo, hi, ROWS):
            x, y = split.x[i : min(i + ROWS, hi)], split.y[i : min(i + ROWS, hi)]
            z = x @ w  # [rows]
            b = xp.logaddexp(-z * y, 0)  # [rows] losses
            loss += float(b.sum(dtype=np.float64))
            right += int(((z >= 0) == (y > 0)).sum())
            if total is not None:
                total += (xp.expm1(-b) * y) @ x
        return loss, right, total

    def gradient_variance(self, w: Array) -> float:
        """Return (1/n) Σ ‖∇f_i(w) − ∇F(w)‖² at w [d], the variance of one example's gradient."""
        xp, w = self.xp, self.xp.asarray(w, np.float32)
        square, total = 0.0, xp.zeros(self.d)  # [d] float64
        for i in range(0, self.n, ROWS):
            x, y = self.x[i : i + ROWS], self.y[i : i + ROWS]
            slope = xp.expm1(-xp.logaddexp(-(x @ w) * y, 0)) * y  # [rows]
            square += float((slope * slope) @ xp.einsum("ij,ij->i", x, x))
            total += slope @ x
        total /= self.n
        return square / self.n - float(total @ total)

    def smoothness(self, tolerance: float = 1e-4) -> float:
        """Return the Lipschitz constant of ∇F, λ_max(XᵀX) / (4n) + λ.

        λ_max comes from Lanczos iteration, to a relative `tolerance`.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        def product(u: Array) -> Array:  # XᵀX u
            u, v = self.xp.asarray(u.ravel().astype(np.float32)), self.xp.zeros(self.d)
            for i in range(0, self.n, ROWS):
                x = self.x[i : i + ROWS]
                v += (x @ u) @ x
            return on_host(v)

        if self.d == 1:  # Lanczos iteration does not take it
            return float(product(np.ones(1))[0]) / (4 * self.n) + self.l2
        square = LinearOperator((self.d, self.d), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(self.d)
        top = float(eigsh(square, k=1, tol=tolerance, v0=start, return_eigenvectors=False)[0])
        return top / (4 * self.n) + self.l2
