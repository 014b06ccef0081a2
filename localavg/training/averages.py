"""The rows of /averages, one per exchange, until they are written to the run file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from localavg.files.record import Record
from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled
from localavg.training.payload import Payload


class Averages:
    """Exchanges of weights or gradients since the last report.

    events: the seconds of each on this rank, with waiting. writes: whether this rank writes the run
    file and keeps the rows for it. diagnosis_s: the seconds that V_t took so far.
    """

    def __init__(self, fleet: Fleet, payload: Payload, writes: bool) -> None:
        self.writes = writes
        self.events: list[float] = []
        self.diagnosis_s = 0.0
        self._last = 0  # t of the last exchange
        self._drift: list[float] = []  # Var[W_k] of the updates since then
        self._rows: list[tuple] = []  # t, scope, period, S, V_t, seconds
        self._bytes = {
            scope: fleet.world.allreduce(np.array(payload.handed_over(scope))).tolist()
            for scope in (Scope.CLUSTER, Scope.WORLD)
        }

    def drifted(self, variance: float, seconds: float) -> None:
        """Record Var[W_k] before an update, and the seconds that computing it took."""
        self._drift.append(variance)
        self.diagnosis_s += seconds

    def note(self, t: int, scope: Scope, S: float, seconds: float) -> None:
        """Record an exchange over `scope` after update t. S: the variance, NaN if not known."""
        period, self._last = t - self._last, t
        self.events.append(seconds)
        V = math.nan
        if self._drift:
            V = sum(self._drift) / len(self._drift)
            self._drift.clear()
        if self.writes:
            self._rows.append((t, scope, period, S, V, seconds))

    def write(self, record: Record | Modelled) -> None:
        """Buffer the rows in the run file."""
        for t, scope, period, S, V, seconds in self._rows:
            within, across = self._bytes[scope]
            record.append(
                "averages",
                t=t,
                scope=int(scope),
                period=period,
                variance=S,
                mean_variance=V,
                bytes_node=within,
                bytes_cross=across,
                seconds=seconds,
            )
        self._rows.clear()

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run needs; `averages` has the rows, one after the other."""
        rows = np.array(self._rows, np.float64).reshape(-1, 6)
        return {
            "events": self.events,
            "drift": self._drift,
            "averages": rows.ravel(),
            "diagnosis_s": self.diagnosis_s,
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        self.events[:], self._drift[:] = state["events"].tolist(), state["drift"].tolist()
        rows = state["averages"].reshape(-1, 6).tolist()
        self._rows[:] = [
            (int(t), Scope(int(scope)), int(period), *rest) for t, scope, period, *rest in rows
        ]
        self.diagnosis_s, self._last = float(state["diagnosis_s"]), int(state["last"])
