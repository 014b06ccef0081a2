"""bfloat16: the upper half of a float32, rounded to nearest even."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localavg.interfaces import Array

PIECE = 1 << 15  # entries coded at a time: they stay in a core's cache
NOT_A_NUMBER = 0x7FC0


@dataclass(frozen=True)
class Bf16:
    """Every entry in 2 bytes: sign, 8 bits of exponent, 7 of mantissa."""

    bucket: int = 16

    def nbytes(self, n: int) -> int:
        """Return the bytes of n entries."""
        return 2 * n

    def encode_(self, x: Array, out: Array) -> None:
        """Code x [n], float32, into the bytes `out`, uint8."""
        codes = out.view(np.uint16)
        for i in range(0, len(x), PIECE):
            piece = x[i : i + PIECE]
            bits = piece.view(np.uint32)
            rounded = bits >> 16
            rounded &= 1  # ties to even
            rounded += 0x7FFF
            rounded += bits
            rounded >>= 16
            codes[i : i + PIECE] = rounded
            if np.isnan(piece).any():  # adding may have made another number of it
                codes[i : i + PIECE][np.isnan(piece)] = NOT_A_NUMBER

    def decode_(self, coded: Array, out: Array) -> None:
        """Write the entries that the bytes `coded` stand for into out [n], float32."""
        np.left_shift(coded.view(np.uint16), 16, out.view(np.uint32), dtype=np.uint32)
