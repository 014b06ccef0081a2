"""The rows of /averages, one per exchange, until they are written to the run file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy

import numpy as np

from localavg.files.record import Record
from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Modelled
from localavg.training.payload import Kind, Payload

Pieces = tuple[int, ...]
"""numbers of pieces of a row"""


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
        # t, scope, period, S, V_t, the numbers of its meetings (the first, and the next one's), the
        # update after which it began, and the numbers of its pieces
        self._rows: list[tuple[int, Scope, int, float, float, int, int, int, Pieces]] = []
        self._several: dict[tuple[Kind, Scope, Pieces], None] = {}  # averages of several pieces
        self.travelled: list[float] = []  # seconds of the delayed ones among them, on this rank
        self._fleet, self._payload = fleet, payload
        self.count()

    def count(self) -> None:
        """Add up over the ranks the bytes of an exchange as it is now. Collective."""
        algorithm = self._payload.algorithm
        pieces = range(len(algorithm.average.pieces))
        each: list[tuple[Kind, Scope, Pieces]] = [
            (kind, scope, (i,)) for kind in Kind for scope in algorithm.scopes for i in pieces
        ]
        each += self._several
        mine = np.array([self._payload.of_kind(*one) for one in each], np.int64)
        together = np.sum(self._fleet.world.allgather(mine), axis=0)
        self._bytes = dict(zip(each, together.tolist(), strict=True))

    def resume(self, last: int) -> None:
        """Go on in a new run file; the last exchange came after update `last`."""
        self._last = last

    def move(self, fleet: Fleet, payload: Payload) -> None:
        """Go on with other ranks, or with other rows. Collective."""
        self._fleet, self._payload = fleet, payload
        self.count()

    def drifted(self, variance: float, seconds: float) -> None:
        """Record Var[W_k] before an update, and the seconds that computing it took."""
        self._drift.append(variance)
        self.diagnosis_s += seconds

    def note(
        self,
        t: int,
        scope: Scope,
        S: float,
        meetings: range,
        begun: int | None = None,
        travelled_s: float = 0.0,
    ) -> None:
        """Record an exchange over `scope` after update t.

        S: the variance, NaN if not known. meetings: numbers of its meetings since the last report.
        begun: the update after which it began, if it is a delayed average, and travelled_s the
        seconds that it was on its way.
        """
        if begun is not None:
            self.travelled.append(travelled_s)
        began = t if begun is None else begun
        pieces = self._payload.pieces(began)
        if len(pieces) != 1:
            self._several[self._payload.kind(began), scope, pieces] = None
        period, self._last = t - self._last, t
        V = math.nan
        if self._drift:
            V = sum(self._drift) / len(self._drift)
            self._drift.clear()
        if self.writes:
            span = meetings.start, meetings.stop
            self._rows.append((t, scope, period, S, V, *span, began, pieces))

    def write(
        self,
        record: Record | Modelled,
        seconds: np.ndarray,
        waits: np.ndarray,
        travelled_s: np.ndarray,
    ) -> None:
        """Buffer the rows in the run file.

        seconds, waits [meetings]: communication and waiting in each meeting since the last report.
        travelled_s [delayed averages]: how long they were on their way.
        """
        algorithm = self._payload.algorithm
        travelled = iter(travelled_s.tolist())
        for t, scope, period, S, V, first, end, begun, pieces in self._rows:
            took_s, waited_s = float(seconds[first:end].sum()), float(waits[first:end].sum())
            hidden_s = 0.0
            if begun != t:  # what the learners waited for it is all that is not hidden
                waited_s, took_s = took_s + waited_s, next(travelled)
                hidden_s = max(0.0, took_s - waited_s)
            kind, neighbours = self._payload.kind(begun), scope is Scope.NEIGHBOURS
            within, across = (
                self._payload.mixed(t) if neighbours else self._bytes[kind, scope, pieces]
            )
            record.append(
                "averages",
                t=t,
                begun=begun,
                scope=scope.kind,
                level=scope.level(len(algorithm.scopes)),
                period=period,
                variance=S,
                mean_variance=V,
                bytes_node=within,
                bytes_cross=across,
                seconds=took_s,
                wait_s=waited_s,
                hidden_s=hidden_s,
            )
        self._rows.clear()

    def still(self) -> Averages:
        """Return a copy whose `state_dict` stays as it is."""
        still = copy(self)
        still._drift, still._rows = [*self._drift], [*self._rows]
        still.travelled = [*self.travelled]
        return still

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run needs; `averages` has the rows, one after the other."""
        rows = [(t, scope.kind, *more) for t, scope, *more, _, _ in self._rows]
        return {
            "drift": self._drift,
            "averages": np.array(rows, np.float64).ravel(),
            "travelled": self.travelled,
            "begun": np.array([begun for *_, begun, _ in self._rows], np.float64),
            "levels": np.array([scope for _, scope, *_ in self._rows], np.float64),
            "diagnosis_s": self.diagnosis_s,
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`."""
        self._drift[:] = state["drift"].tolist()
        rows = state["averages"].reshape(-1, 7).tolist()
        levels = state.get("levels", np.ones(len(rows))).tolist()  # all were 1 in earlier versions
        began = state.get("begun", [t for t, *_ in rows])  # and none was delayed
        self.travelled[:] = np.asarray(state.get("travelled", [])).tolist()
        self._rows[:] = [
            (
                int(t),
                Scope.recorded(int(kind), int(level)),
                int(period),
                S,
                V,
                int(first),
                int(end),
                int(begun),
                self._payload.pieces(begun),
            )
            for (t, kind, period, S, V, first, end), level, begun in zip(
                rows, levels, began, strict=True
            )
        ]
        self.diagnosis_s, self._last = float(state["diagnosis_s"]), int(state["last"])
