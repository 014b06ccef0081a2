"""Windows of numbers that a thread draws while the numbers before them are in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np

Numbers = TypeVar("Numbers")
"""a tensor of torch's or an array, in the host's memory"""


class Event(Protocol):
    """The part of a GPU's events, by torch or CuPy, that is needed here."""

    def synchronize(self) -> None:
        """Wait until the work before it is done."""


class Window(Generic[Numbers]):
    """Host memory for the numbers of some updates, which is copied to the GPU as a whole.

    numbers [updates, …]: pinned where there is a GPU; fits: whether the numbers of an update are
    there. copied: the event that the GPU has read the numbers; None before.
    """

    def __init__(self, numbers: Numbers, updates: int) -> None:
        self.numbers = numbers
        self.fits = np.zeros(updates, bool)
        self.copied: Event | None = None


class Ahead(Generic[Numbers]):
    """Draws window k + 1 in a thread while window k is in use.

    fill(k, window) writes window k = 0, 1, …; the thread alone calls it. windows: two, whose memory
    is used in turn. count: the number of windows of the run, after which nothing is drawn ahead.
    The thread starts with the first `take`.
    """

    def __init__(
        self,
        fill: Callable[[int, Window[Numbers]], None],
        windows: tuple[Window[Numbers], Window[Numbers]],
        count: int,
    ) -> None:
        self.closed = False
        self._fill, self._windows, self._count = fill, windows, count
        self._free = 0  # which of the two is not in use
        self._next: tuple[int, Future[None]] | None = None
        self._pool = ThreadPoolExecutor(1, "windows")

    def take(self, k: int) -> Window[Numbers]:
        """Wait for window k and return it; it may be used until the next call.

        The numbers may be copied by the GPU later: the thread waits for the window's event
        `copied` before it writes to them again. An error of `fill` is raised here.
        """
        if self._next is None or self._next[0] != k:
            self._begin(k)
        assert self._next is not None
        future, self._next = self._next[1], None
        future.result()
        window = self._windows[self._free]
        self._free = 1 - self._free
        if k + 1 < self._count:
            self._begin(k + 1)
        return window

    def close(self) -> None:
        """End the thread, which leaves the window that it draws."""
        self.closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, k: int) -> None:
        """Have the thread draw window k into the free memory, after what it draws now."""
        if self._next is not None:
            self._next[1].cancel()
        self._next = k, self._pool.submit(self._work, k, self._windows[self._free])

    def _work(self, k: int, window: Window[Numbers]) -> None:
        if window.copied is not None:
            window.copied.synchronize()
        window.fits[:] = False
        self._fill(k, window)
