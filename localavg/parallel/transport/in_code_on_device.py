"""Means of rows in a GPU's memory that cross nodes in code, made in memory of the host.

The rows are copied to memory that the ranks of a node share. There they are averaged as rows of the
host are, so the codes and the bits are the same, and only codes travel between nodes. Then the mean
is copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from localavg.interfaces import Array, Code, Step
from localavg.parallel.aligned import address
from localavg.parallel.device import on_host
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.in_code import InCode
from localavg.parallel.transport.mixing import Mixing
from localavg.parallel.transport.on_device import OnDevice
from localavg.scope import Scope


class InCodeOnDevice(InCode):
    """As InCode, for rows on the device of the transport `way`.

    Means over scopes that cross nodes pass through the host, also those that are not coded: then a
    node sends a row once, and not once a rank. All else is left to `way`.
    """

    def __init__(self, way: OnDevice, fleet: Fleet) -> None:
        super().__init__(fleet, way.clusters, way.why, way.dtype)
        self.name, self.way, self.device = way.name, way, way.device
        self._crossing = {scope for scope in self.sizes if self.crosses(scope)}
        self._rows = np.empty((fleet.L, 0), self.dtype)  # [L, ≥ n] room on the host
        self._beside = self._rows  # [L, n] that of the rows that are watched
        self._address = 0  # of the rows that are watched

    def again(self, fleet: Fleet) -> InCodeOnDevice:
        return InCodeOnDevice(self.way.again(fleet), fleet)

    def zeros(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [L, n] on the device."""
        return self.way.zeros(shape)

    def ordinary(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [L, n] on the device."""
        return self.way.ordinary(shape)

    def settle(self) -> None:
        """Wait until all queued work of the device is done."""
        self.way.settle()

    def aside(self) -> AbstractContextManager[None]:
        return self.way.aside()

    def watch(self, w: Array, pieces: Sequence[slice] = (slice(None),)) -> None:
        """Code the means of w [L, ≥ n], which `zeros` made. Collective; called once."""
        self._rows = self._beside = super().zeros(w.shape)
        self._address = address(w)
        super().watch(self._beside, pieces)

    def begin(self, w: Array) -> None:
        """Take the equal weights w [L, ≥ n] as the last average of everyone."""
        super().begin(on_host(w[:1]))

    def mean_(
        self, w: Array, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place; see `Transport.mean_`."""
        if scope not in self._crossing:
            return self._by_way().mean_(w, scope, variance, step)
        self._check(w)
        n, stream = w.shape[1], self.device.stream()
        first = (address(w) - self._address) // self.dtype.itemsize
        watched = 0 <= first < self._beside.shape[1]
        if not watched and n > self._rows.shape[1]:
            self._rows = super().zeros((len(w), n))
        host = self._beside[:, first : first + n] if watched else self._rows[:, :n]
        for here, there in zip(host, w, strict=True):
            self.device.copy(here, there, stream)
        self.device.settle()
        mean_ = super().mean_ if watched else super(InCode, self).mean_
        S = mean_(host, scope, variance, step)
        for group in self.groups[scope]:
            rows = w[group.rows]
            self.device.copy(rows[0], host[group.rows.start], stream)
            rows[1:] = rows[0]  # all get the same
        return S

    def mean(self, w: Array) -> Array:
        """Return w̄ [n] over all rows of w [L, n], which stay as they are, until the next call."""
        return self._by_way().mean(w)

    def variance(self, w: Array) -> float:
        """Return Var[W] = (1/P) Σ_j ‖w̄ − w_j‖² of the rows w [L, n], which stay (adpsgd eq. 7)."""
        return self._by_way().variance(w)

    def coded_mean_(
        self,
        w: Array,
        code: Code,
        draws: Callable[[int, int, int], np.ndarray],
        again: Callable[[int, int], np.ndarray],
    ) -> None:
        """Set every row of w [L, n] to the mean of all rows, which travels in `code`."""
        self._by_way().coded_mean_(w, code, draws, again)

    def take_spread_s(self) -> float:
        """Return the seconds that this rank computed S since the last call."""
        return super().take_spread_s() + self.way.take_spread_s()

    def mix_bytes(self, nbytes: int, W: np.ndarray) -> np.ndarray:
        """Return each rank's bytes [R, 2] in one mix by W."""
        return self.way.mix_bytes(nbytes, W)

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """Return this rank's bytes in one mean, within its node and across nodes."""
        if scope not in self._crossing:
            return self.way.payload_bytes(nbytes, scope)
        return super().payload_bytes(nbytes, scope)

    def _mix(self, w: Array, W: np.ndarray) -> Mixing:
        return self.way._mix(w, W)

    def _by_way(self) -> OnDevice:
        self.way.weights, self.way.laps = self.weights, self.laps
        return self.way
