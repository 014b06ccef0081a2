"""8 bits an entry: buckets of entries, each scaled by its largest, rounded to nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localavg.interfaces import Array

LEVELS = 127  # above 0, and as many below
SMALLEST = 1e-36  # largest entry of a bucket whose inverse float32 holds; smaller ones become 0
SCALE_BYTES = 4  # float32
TOGETHER = 64  # buckets coded at a time: they stay in a core's cache


@dataclass(frozen=True)
class Scaled8:
    """Every bucket of entries as its scale in float32, and one int8 an entry.

    Entry x_i becomes the whole number nearest to x_i/s, with the scale s = max |x_i| / 127. In the
    bytes all scales come before all entries. A bucket with an entry that is not finite has such a
    scale, and its entries are not finite either.
    """

    bucket: int = 512

    def nbytes(self, n: int) -> int:
        """Return the bytes of n entries, which begin with a bucket."""
        return n + SCALE_BYTES * self._buckets(n)

    def encode_(self, x: Array, out: Array) -> None:
        """Code x [n], float32, into the bytes `out`, uint8."""
        scales, codes = self._parts(out, len(x))
        with np.errstate(over="ignore", invalid="ignore"):
            for first, a, b, shape in self._pieces(len(x)):
                rows = x[a:b].reshape(shape)  # [buckets, entries]
                scaled = np.abs(rows)
                largest = scaled.max(axis=1)
                scales[first : first + len(rows)] = largest / np.float32(LEVELS)
                inverse = np.zeros_like(largest)
                np.divide(np.float32(LEVELS), largest, out=inverse, where=largest > SMALLEST)
                np.multiply(rows, inverse[:, None], scaled)
                codes[a:b] = np.rint(scaled, scaled).ravel()

    def decode_(self, coded: Array, out: Array) -> None:
        """Write the entries that the bytes `coded` stand for into out [n], float32."""
        scales, codes = self._parts(coded, len(out))
        with np.errstate(invalid="ignore"):
            for first, a, b, shape in self._pieces(len(out)):
                rows = codes[a:b].reshape(shape)
                np.multiply(rows, scales[first : first + len(rows), None], out[a:b].reshape(shape))

    def _buckets(self, n: int) -> int:
        return -(-n // self.bucket)

    def _parts(self, coded: Array, n: int) -> tuple[Array, Array]:
        """Return the scales [buckets] float32 and the codes [n] int8, as views of the bytes."""
        end = SCALE_BYTES * self._buckets(n)
        return coded[:end].view(np.float32), coded[end : end + n].view(np.int8)

    def _pieces(self, n: int) -> list[tuple[int, int, int, tuple[int, int]]]:
        """Return pieces of n entries: first bucket, entries a … b − 1, [buckets, entries]."""
        whole, step = n - n % self.bucket, TOGETHER * self.bucket
        cuts = [(a, min(a + step, whole), self.bucket) for a in range(0, whole, step)]
        cuts += [(whole, n, n - whole)] if whole < n else []
        return [(a // self.bucket, a, b, ((b - a) // size, size)) for a, b, size in cuts]
