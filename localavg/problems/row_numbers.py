"""The row numbers of the mini-batches of all learners of a rank, in the memory where they compute.

They are drawn as arrays for many updates and learners: to make an object for each mini-batch costs
more than the arithmetic on a small one.
"""

from __future__ import annotations

from copy import deepcopy
from types import ModuleType

import numpy as np

from localavg.errors import UserError
from localavg.interfaces import Array
from localavg.learner.sampling import Sampler
from localavg.parallel.device import pinned, queue_copy
from localavg.problems.ahead import Ahead, Window

WINDOW, WINDOW_BYTES = 256, 4 << 20
"""largest number of updates, and of bytes, whose row numbers travel to a GPU in one copy"""


class HostRows:
    """Row numbers on the host, drawn when an update needs them.

    Those of a whole window of the sampler are kept: 1 kB times B for each learner with `iid`.
    """

    def __init__(self, sampler: Sampler, learners: range) -> None:
        if sampler.n > np.iinfo(np.int32).max:
            raise UserError(f"`engine = batch`: {sampler.n} rows are too many; use `engine = loop`")
        self.sampler, self.learners = deepcopy(sampler), learners
        self._tables: np.ndarray | None = None  # int32 [L, updates, B]
        self._window = -1  # the sampler's window that they are of

    def take(self, t: int) -> np.ndarray:
        """Return the row numbers [L, B] of update t, valid until the next call."""
        window, place = divmod(t - 1, self.sampler.length)
        return self._drawn(window)[:, place]

    def write_(self, t: int, out: np.ndarray) -> None:
        """Write the row numbers of the updates t, t + 1, … into out [updates, L, B]."""
        done = 0
        while done < len(out):
            window, place = divmod(t + done - 1, self.sampler.length)
            some = self._drawn(window)[:, place : place + len(out) - done]
            out[done : done + some.shape[1]] = some.swapaxes(0, 1)
            done += some.shape[1]

    def close(self) -> None:
        """Do nothing: there is no thread."""

    def _drawn(self, window: int) -> np.ndarray:
        """Return the numbers [L, updates, B] of one of the sampler's windows."""
        if self._tables is None:
            shape = len(self.learners), self.sampler.length, self.sampler.B
            self._tables = np.empty(shape, np.int32)
        if window != self._window:
            self._window = -1  # if a draw fails
            for l, j in enumerate(self.learners):
                self._tables[l] = self.sampler.table(j, window)
            self._window = window
        return self._tables


class DeviceRows:
    """Row numbers on a GPU: those of a window of updates travel in one copy from pinned memory.

    A thread draws the next window meanwhile. xp: CuPy, or a stand-in with its names.
    """

    def __init__(self, sampler: Sampler, learners: range, T: int, xp: ModuleType) -> None:
        self.xp, self.T, m = xp, T, len(learners) * sampler.B
        self.length = max(1, min(WINDOW, WINDOW_BYTES // (4 * m), T))  # updates in a window
        shape = self.length, len(learners), sampler.B
        self._draws = HostRows(sampler, learners)  # the thread's own
        self._windows = (
            Window(pinned(xp, shape, np.int32), self.length),
            Window(pinned(xp, shape, np.int32), self.length),
        )
        self._ahead = Ahead(self._fill, self._windows, -(-T // self.length))
        self._numbers = xp.empty(shape, np.int32)
        self._window = -1  # the window that is there

    def take(self, t: int) -> Array:
        """Return the row numbers [L, B] of update t; work queued before the next call reads them.

        Nothing waits for the GPU but the thread, before it writes to memory that was copied.
        """
        k, place = divmod(t - 1, self.length)
        if k != self._window:
            self._window = -1  # if a draw fails
            window = self._ahead.take(k)
            stream = self.xp.cuda.get_current_stream()
            queue_copy(self.xp, self._numbers, window.numbers, stream)
            window.copied = stream.record()
            self._window = k
        return self._numbers[place]

    def close(self) -> None:
        """End the thread, and wait until the GPU has read the pinned memory."""
        self._ahead.close()
        for window in self._windows:
            if window.copied is not None:
                window.copied.synchronize()

    def _fill(self, k: int, window: Window[np.ndarray]) -> None:
        """Draw the numbers of window k, in the thread."""
        first = k * self.length + 1
        updates = min(self.length, self.T + 1 - first)
        self._draws.write_(first, window.numbers[:updates])
        window.fits[:updates] = True
