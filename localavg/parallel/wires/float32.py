"""No code: float32 as it is, for an average that travels whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localavg.interfaces import Array


@dataclass(frozen=True)
class Float32:
    """Every entry as it is."""

    bucket: int = 16

    def nbytes(self, n: int) -> int:
        """Return the bytes of n entries."""
        return 4 * n

    def encode_(self, x: Array, out: Array) -> None:
        """Copy x [n] into the bytes `out`, uint8."""
        out.view(np.float32)[:] = x

    def decode_(self, coded: Array, out: Array) -> None:
        """Write the entries that the bytes `coded` stand for into out [n], float32."""
        out[:] = coded.view(np.float32)
