"""The gradients of many learners at once: each operation of the network for all of them.

Small networks take most of their time to start operations. Here an operation is started once for a
chunk of learners, not once for each. The results are those of `loop` up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localavg.errors import UserError
from localavg.interfaces import Array, Book, Engine, unbooked
from localavg.problems.batches import Batches
from localavg.problems.engines import memory
from localavg.problems.engines.masks import Masks
from localavg.problems.engines.together import Module, Together
from localavg.problems.rows import Rows


class Net(NamedTuple):
    """What the engine needs of a network."""

    name: str
    skeleton: nn.Module
    """on the device meta"""
    rows: Rows
    l2: float
    autocast: AbstractContextManager[object]


class Batch(Engine):
    """Computes gradients chunk by chunk, those of a chunk by `together.Together`.

    size: the learners of a chunk (None: by the memory that they take).
    """

    name = "batch"

    def __init__(self, net: Net, feed: Batches, learners: range, size: int | None = None) -> None:
        self.net, self.feed, self.learners = net, feed, learners
        self.book: Book = unbooked
        self.module = Module(net.skeleton, net.name)
        self.size = size or 0
        self.masks: Masks | None = None
        self._each = 0  # bytes that a learner takes, as measured
        self._works = False
        self._rows: tuple[Array, Array] | None = None  # w and out [L, d] of the chunks
        self._chunks: list[tuple[range, Together]] = []

    def gradients_(self, w: Array, t: int, out: Array, rows: Sequence[int] | None = None) -> Any:
        """Compute the gradients as `interfaces.Engine` describes."""
        assert rows is None, "choose loop where some learners rest"
        if self._rows is None or self._rows[0] is not w or self._rows[1] is not out:
            self._bind(w, t, out)
        losses, data_s = [], 0.0
        with self._explained():
            for learners, together in self._chunks:
                start = perf_counter()
                x, y, seeds = self.feed.step(learners, t)
                data_s += perf_counter() - start
                losses.append(together.gradient_(x, y, self._drawn(seeds)))
        self._works = True
        self.book("data", data_s)
        all_losses = torch.cat(losses)  # [L]
        return all_losses.tolist() if self.net.rows.device == "cpu" else [all_losses]

    def _bind(self, w: Array, t: int, out: Array) -> None:
        """Choose the chunks of the rows w [L, d] and out [L, d]."""
        with self._explained():
            x, y, seeds = self.feed.step(self.learners[:1], t)
            if seeds:
                net = self.net
                self.masks = Masks(net.skeleton, net.rows, w[0], x[0], net.autocast)
            if not self.size:
                self.size = self._size(w[:1], x, y, self._drawn(seeds))
        self._chunks = []
        for a in range(0, len(self.learners), self.size):
            rows = slice(a, a + self.size)
            self._chunks.append((self.learners[rows], self._together(w[rows], out[rows])))
        self._rows = w, out

    def _size(self, w: Array, x: Tensor, y: Tensor, masks: list[Tensor]) -> int:
        """Compute the gradient of a copy of one row [1, d] to see what it takes."""
        device, rows = self.net.rows.device, self.net.rows
        free = memory.free_bytes(device)
        w = w.copy()
        together = self._together(w, w * 0)
        largest = max(x.nbytes for x in together.tensors.values())
        self._each = largest + memory.kept_bytes(
            lambda: together.gradient_(x, y, masks), [rows.tensor(w), x, y]
        )
        return memory.chunk(len(self.learners), self._each, free, device, len(x[0]))

    def _together(self, w: Array, out: Array) -> Together:
        net = self.net
        return Together(self.module, net.rows, w, out, net.l2, net.autocast)

    def _drawn(self, seeds: list[int]) -> list[Tensor]:
        if self.masks is None:
            return []
        return self.masks.draw_(seeds, self.masks.places(len(seeds)))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors that the user can mend as UserError."""
        try:
            yield
        except (RuntimeError, MemoryError) as e:
            if memory.is_shortage(e):
                raise memory.used_up(
                    self.size or 1, self._each, self.net.rows.device, self.feed.B
                ) from e
            if self._works:
                raise
            why = str(e).partition("\n")[0]
            raise UserError(
                f"`engine = batch`: {self.net.name} cannot be computed for several learners at "
                f"once ({why}); use `engine = loop`"
            ) from e
