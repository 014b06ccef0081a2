"""The gradients of logistic regression of many learners at once, each operation for all of them.

A mini-batch of logistic regression has little arithmetic, so that `loop` spends most of its time in
starting operations, a dozen for each learner. Here they are started once for a chunk of learners.
Every mini-batch is gathered, blocks of consecutive rows too, which `loop` does not copy.

When it pays on a CPU, as measured with one thread, d = 20 to 2000, 8 to 4096 learners and batches
of B = 1 to 128: with 64 learners it was 18 to 32 times as fast as `loop` at d·B ≤ 200, 4 to 9 times
at d·B = 3200, 1.6 to 1.8 times at 26 000 to 32 000. With 8 learners it was 1.1 to 4.5 times as
fast up to there. At d·B = 256 000 it was as fast as `loop` with gathered rows, and a quarter slower
with blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from localavg.interfaces import Array, Book, Engine, unbooked
from localavg.parallel import kernels
from localavg.problems.engines import memory

CACHE_BYTES = 4 << 20
"""what the rows of a chunk take at most on a CPU: of more, little is in a cache when it is read

Of 0.25 to 16 MB this was fastest or near it, for every d and B of the measurement above.
"""


class Examples(NamedTuple):
    """What the engine needs of a problem."""

    x: Array
    """[n, d]"""
    y: Array
    """[n], ±1"""
    l2: float
    xp: ModuleType


class RowNumbers(Protocol):
    """Where the row numbers of mini-batches come from."""

    def take(self, t: int) -> Array:
        """Return those of all learners for update t, [L, B], valid until the next call."""


class Scratch(NamedTuple):
    """Memory for the mini-batches of a chunk of learners."""

    x: Array
    """[L, B, d]"""
    y: Array
    """[L, B]; of no use on a GPU, whose kernel reads the labels where they are"""
    z: Array
    """[L, B] x·w, then the losses"""
    slope: Array
    """[L, B] the derivative of the mean loss by x·w"""

    def part(self, L: int) -> Scratch:
        """Return the memory of the first L learners."""
        return self if L == len(self.x) else Scratch(*(a[:L] for a in self))


class Stacked(Engine):
    """Computes gradients chunk by chunk.

    rows: the row numbers. L, B: learners and the size of a mini-batch. size: the learners of a
    chunk (None: as many as a cache holds on a CPU, and as the memory holds on a GPU).
    """

    name = "batch"

    def __init__(
        self, examples: Examples, rows: RowNumbers, L: int, B: int, size: int | None = None
    ) -> None:
        self.examples, self.rows, self.L, self.B = examples, rows, L, B
        self.book: Book = unbooked
        self.host = examples.xp is np
        x = examples.x
        self._each = B * x.shape[1] * x.dtype.itemsize  # bytes of one learner's rows
        self.size = size or self._size()
        self._scratch: Scratch | None = None

    def gradients_(self, w: Array, t: int, out: Array, rows: Sequence[int] | None = None) -> Any:
        """Compute the gradients as `interfaces.Engine` describes."""
        assert rows is None, "choose loop where some learners rest"
        try:
            return self._gradients_(w, t, out)
        except MemoryError as e:
            raise memory.shortage(self.size, self._each, self._free(), self.B) from e

    def _gradients_(self, w: Array, t: int, out: Array) -> Any:
        start = perf_counter()
        rows = self.rows.take(t)  # [L, B]
        data_s = perf_counter() - start
        if self._scratch is None:
            self._scratch = self._allocated()
        losses = self.examples.xp.empty(self.L, w.dtype)
        for a in range(0, self.L, self.size):
            chunk = slice(a, min(a + self.size, self.L))
            scratch = self._scratch.part(chunk.stop - a)
            start = perf_counter()
            self._gather_(rows[chunk], scratch)
            data_s += perf_counter() - start
            multiply_(scratch.x, w[chunk], scratch.z)
            compute_ = self._on_host_ if self.host else self._on_device_
            compute_(w[chunk], rows[chunk], scratch, out[chunk], losses[chunk])
        self.book("data", data_s)
        return losses.tolist() if self.host else [losses]

    def _gather_(self, rows: Array, s: Scratch) -> None:
        """Copy the examples of row numbers [L, B] into the scratch memory."""
        x, y, xp = self.examples.x, self.examples.y, self.examples.xp
        if self.host:
            np.take(x, rows, axis=0, out=s.x, mode="clip")  # else NumPy buffers `out`
            np.take(y, rows, out=s.y, mode="clip")
        else:
            xp.take(x, rows, axis=0, out=s.x)

    def _on_host_(self, w: Array, rows: Array, s: Scratch, out: Array, losses: Array) -> None:
        """Compute gradients [L, d] and losses [L] from the margins s.z, by NumPy."""
        slopes_(s)
        multiply_back_(s.slope, s.x, out)
        ridge = self.examples.l2 * w  # [L, d]
        out += ridge
        s.z.sum(axis=1, out=losses)
        losses /= self.B
        losses += 0.5 * np.einsum("ld,ld->l", ridge, w)

    def _on_device_(self, w: Array, rows: Array, s: Scratch, out: Array, losses: Array) -> None:
        """Compute the same on a GPU, in 6 kernels with the gather and the product before."""
        xp = self.examples.xp
        kernels.logistic_(xp, self.examples.y, rows, s.z, s.slope)
        multiply_back_(s.slope, s.x, out)
        square = xp.matmul(w[:, None, :], w[:, :, None])  # [L, 1, 1]
        total = s.z.sum(axis=1)  # [L]
        kernels.ridge_(xp, w, self.examples.l2, total, self.B, square, out, losses)

    def _size(self) -> int:
        """Return how many learners to compute at once. Raises UserError if not even one fits."""
        most = int(memory.PART * self._free() / self._each)
        if not most:
            raise memory.too_large(self._each, self._free(), self.B)
        wished = max(1, CACHE_BYTES // self._each) if self.host else self.L
        return memory.equal_chunks(self.L, min(most, wished))

    def _free(self) -> int:
        return memory.host_free_bytes() if self.host else memory.array_free_bytes(self.examples.xp)

    def _allocated(self) -> Scratch:
        x, y, xp = self.examples.x, self.examples.y, self.examples.xp
        shape = min(self.size, self.L), self.B
        return Scratch(
            xp.empty((*shape, x.shape[1]), x.dtype),
            xp.empty(shape if self.host else (shape[0], 0), y.dtype),
            xp.empty(shape, x.dtype),
            xp.empty(shape, x.dtype),
        )


def multiply_(x: Array, w: Array, z: Array) -> None:
    """Write x·w into z [L, B], for x [L, B, d] and w [L, d]."""
    module(x).matmul(x, w[:, :, None], out=z[:, :, None])


def multiply_back_(slope: Array, x: Array, out: Array) -> None:
    """Write slope·x into out [L, d], for slope [L, B] and x [L, B, d]."""
    if slope.shape[1] == 1:
        module(x).multiply(slope, x[:, 0], out=out)
    else:
        module(x).matmul(slope[:, None, :], x, out=out[:, None, :])


def module(x: Array) -> ModuleType:
    """Return the array module of x."""
    return kernels.array_module(x) or np


def slopes_(s: Scratch) -> None:
    """Replace x·w in s.z by the losses, and write the slopes, by functions that NumPy vectorises.

    With m = y x·w and e = exp(−|m|) the loss is log(1 + e) + max(−m, 0), and the slope has
    σ(−m) = exp(min(−m, 0)) / (1 + e). With u = 1 + e rounded, log(1 + e) is log u + (e − (u − 1)) /
    u to all digits.
    """
    z, slope, B = s.z, s.slope, s.z.shape[1]
    z *= s.y  # m
    np.maximum(z, 0, out=slope)
    np.negative(slope, out=slope)
    np.exp(slope, out=slope)  # exp(min(−m, 0))
    e = np.abs(z)
    np.negative(e, out=e)
    np.exp(e, out=e)
    u = e + 1
    slope /= u
    slope *= s.y
    slope *= -1 / B
    np.minimum(z, 0, out=z)  # −max(−m, 0)
    e += 1 - u
    e /= u
    e -= z
    np.log(u, out=z)
    z += e
