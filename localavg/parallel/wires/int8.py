"""QSGD's code: unbiased stochastic rounding to levels of a bucket's norm (Alistarh et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localavg.interfaces import Array

NORM_BYTES = 4  # float32


@dataclass(frozen=True)
class Int8:
    """Every bucket of entries as its 2-norm in float32, and one int8 an entry: a sign and a level.

    s: the number of levels above 0, at most 127. In the bytes all norms come before all entries.
    """

    s: int = 127
    bucket: int = 512

    def nbytes(self, n: int) -> int:
        """Return the bytes of n coded entries."""
        return n + NORM_BYTES * self._buckets(n)

    def encode_(self, x: Array, u: Array, out: Array) -> None:
        """Code x [n] with the uniform draws u [n] in [0, 1) into the bytes `out`, uint8.

        The level is ⌊s |x_i| / ‖x‖ + u_i⌋, so the mean over u of the decoded value is x_i. A bucket
        with an entry that is not finite has such a norm, and all its entries become NaN.
        """
        norms, codes = self._parts(out, len(x))
        starts = np.arange(0, len(x), self.bucket)
        with np.errstate(over="ignore", invalid="ignore"):
            norms[:] = np.sqrt(np.add.reduceat(np.square(x, dtype=np.float64), starts))
            scale = np.divide(self.s, norms, out=np.zeros_like(norms), where=norms > 1e-36)
            levels = np.floor(np.abs(x) * self._spread(scale, len(x)) + u)
            codes[:] = np.sign(x) * np.minimum(levels, self.s)

    def decode(self, coded: Array, n: int) -> Array:
        """Return the n entries, float32, that the bytes `coded` stand for."""
        norms, codes = self._parts(coded, n)
        with np.errstate(invalid="ignore"):
            return codes * self._spread(norms / np.float32(self.s), n)

    def _buckets(self, n: int) -> int:
        return -(-n // self.bucket)

    def _parts(self, coded: Array, n: int) -> tuple[Array, Array]:
        """Return the norms [buckets] float32 and the codes [n] int8, as views of the bytes."""
        end = NORM_BYTES * self._buckets(n)
        return coded[:end].view(np.float32), coded[end : end + n].view(np.int8)

    def _spread(self, per_bucket: Array, n: int) -> Array:
        return np.repeat(per_bucket, self.bucket)[:n]
