"""ℓ2-regularised logistic regression, F(w) = (1/n) Σ log(1 + exp(−y_i x_i·w)) + (λ/2) ‖w‖², y_i =
±1.

One code for NumPy and CuPy: `xp` is the array module that `data` lives in. With the margins m_i =
y_i x_i·w and b_i = log(1 + exp(−m_i)), computed without overflow, the slope is σ(−m_i) = 1 −
exp(−b_i): exact at both ends, |m| = 1e4 too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.learner.sampling import Batch, Sampler
from localavg.parallel.device import on_host
from localavg.problems import Problem

Array = Any
ROWS = 4096  # rows a step of an evaluation


class Logistic(Problem):
    """Logistic regression on a feature matrix with two classes.

    data: the Dataset, arrays of `xp`; l2: λ. d is the number of features; there is no intercept, as
    in lupa §6.
    """

    def __init__(self, data: Dataset, l2: float, xp: Any = np) -> None:
        if data.kind != "features":
            raise UserError(
                f"`data = {data.name}`: logistic regression needs a feature matrix with two "
                f"classes, not {data.kind}"
            )
        self.data, self.l2, self.xp = data, l2, xp
        self.x, self.y = data.train.x, data.train.y  # [n, d], [n]
        self.n, self.d = self.x.shape
        self.shapes = {"weights": (self.d,)}
        self._gathered: tuple[Array, Array] | None = None  # [B, d], [B]

    def initial_(self, w: Array) -> None:
        """The starting point: zero weights."""
        w[...] = 0

    def feed(
        self, sampler: Sampler, learners: range, T: int
    ) -> Callable[[int, int], tuple[Array, Array]]:
        """(j, t) → the examples of learner j for update t, as `fetch` gives them."""
        return lambda j, t: self.fetch(sampler.batch(j, t))

    def fetch(self, batch: Batch) -> tuple[Array, Array]:
        """The examples x [B, d], y [B] of a batch: a view of consecutive rows, else a gather, valid
        until the next call.
        """
        if isinstance(batch, slice):
            return self.x[batch], self.y[batch]
        if self._gathered is None or len(self._gathered[1]) != len(batch):
            self._gathered = (
                self.xp.empty((len(batch), self.d), self.x.dtype),
                self.xp.empty(len(batch), self.y.dtype),
            )
        x, y = self._gathered
        xp, how = (
            self.xp,
            {"mode": "clip"} if self.xp is np else {},
        )  # NumPy buffers `out` unless told; CuPy has no modes
        if xp is not np and isinstance(batch, np.ndarray):
            batch = xp.asarray(batch)
        return xp.take(self.x, batch, axis=0, out=x, **how), xp.take(self.y, batch, out=y, **how)

    def gradient_(self, w: Array, batch: tuple[Array, Array], out: Array) -> Array:
        """The gradient of the mini-batch objective at w [d] into `out` [d]; returns that objective,
        a scalar.
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
        """(λ/2) ‖w‖²."""
        return 0.5 * self.l2 * float(w @ w)

    def sums(
        self, w: Array, split: Split, lo: int, hi: int, gradient: bool = False
    ) -> tuple[float, int, Array | None]:
        """Over rows lo … hi − 1 of a split: the sum of the losses, the number classified right, the
        sum of the gradients [d].

        Regularisation is left out; sums are kept in float64.
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
        """(1/n) Σ ‖∇f_i(w) − ∇F(w)‖² at w [d], the variance of a single example's gradient."""
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
        """The Lipschitz constant of ∇F, λ_max(XᵀX) / (4n) + λ, to a relative `tolerance`, by
        Lanczos iteration.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        def product(u: Array) -> Array:  # XᵀX u
            u, v = self.xp.asarray(u.ravel().astype(np.float32)), self.xp.zeros(self.d)
            for i in range(0, self.n, ROWS):
                x = self.x[i : i + ROWS]
                v += (x @ u) @ x
            return on_host(v)

        if self.d == 1:  # which Lanczos iteration refuses
            return float(product(np.ones(1))[0]) / (4 * self.n) + self.l2
        square = LinearOperator((self.d, self.d), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(self.d)
        top = float(eigsh(square, k=1, tol=tolerance, v0=start, return_eigenvectors=False)[0])
        return top / (4 * self.n) + self.l2
