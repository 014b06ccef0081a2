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

    writes: whether this rank writes the run file and keeps the rows for it. diagnosis_s: the
    seconds that V_t took so far.
    """

    def __init__(self, fleet: Fleet, payload: Payload, writes: bool) -> None:
        self.writes = writes
        self.diagnosis_s = 0.0
        self._last = 0  # t of the last exchange
        self._drift: list[float] = []  # Var[W_k] of the updates since then
        # t, scope, period, S, V_t, and the numbers of its meetings: the first, and the next one's
        self._rows: list[tuple[int, Scope, int, float, float, int, int]] = []
        self._fleet, self._payload = fleet, payload
        self.count()

    def count(self) -> None:
        """Add up over the ranks the bytes of an exchange as it is now. Collective."""
        until = self._payload.algorithm.exchange.until
        self._bytes = {
            (exchanged, scope): self._total(1 if exchanged else until + 1, scope)
            for exchanged in (True, False)
            for scope in self._payload.algorithm.scopes
        }

    def _total(self, t: float, scope: Scope) -> list[int]:
        mine = np.array(self._payload.handed_over(t, scope), np.int64)
        return self._fleet.world.allreduce(mine).tolist()

    def drifted(self, variance: float, seconds: float) -> None:
        """Record Var[W_k] before an update, and the seconds that computing it took."""
        self._drift.append(variance)
        self.diagnosis_s += seconds

    def note(self, t: int, scope: Scope, S: float, meetings: range) -> None:
        """Record an exchange over `scope` after update t.

        S: the variance, NaN if not known. meetings: numbers of its meetings since the last report.
        """
        period, self._last = t - self._last, t
        V = math.nan
        if self._drift:
            V = sum(self._drift) / len(self._drift)
            self._drift.clear()
        if self.writes:
            self._rows.append((t, scope, period, S, V, meetings.start, meetings.stop))

    def write(self, record: Record | Modelled, seconds: np.ndarray, waits: np.ndarray) -> None:
        """Buffer the rows in the run file.

        seconds, waits [meetings]: communication and waiting in each meeting since the last report.
        """
        algorithm = self._payload.algorithm
        for t, scope, period, S, V, first, end in self._rows:
            exchanged = bool(algorithm.exchange.at(t))
            neighbours = scope is Scope.NEIGHBOURS
            within, across = self._payload.mixed(t) if neighbours else self._bytes[exchanged, scope]
            record.append(
                "averages",
                t=t,
                scope=scope.kind,
                level=scope.level(len(algorithm.scopes)),
                period=period,
                variance=S,
                mean_variance=V,
                bytes_node=within,
                bytes_cross=across,
                seconds=float(seconds[first:end].sum()),
                wait_s=float(waits[first:end].sum()),
            )
        self._rows.clear()

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run needs; `averages` has the rows, one after the other."""
        rows = [(t, scope.kind, *more) for t, scope, *more in self._rows]
        return {
            "drift": self._drift,
            "averages": np.array(rows, np.float64).ravel(),
            "levels": np.array([scope for _, scope, *_ in self._rows], np.float64),
            "diagnosis_s": self.diagnosis_s,
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        self._drift[:] = state["drift"].tolist()
        rows = state["averages"].reshape(-1, 7).tolist()
        levels = state.get("levels", np.ones(len(rows))).tolist()  # all were 1 in earlier versions
        self._rows[:] = [
            (int(t), Scope.recorded(int(kind), int(level)), int(period), S, V, int(first), int(end))
            for (t, kind, period, S, V, first, end), level in zip(rows, levels, strict=True)
        ]
        self.diagnosis_s, self._last = float(state["diagnosis_s"]), int(state["last"])
