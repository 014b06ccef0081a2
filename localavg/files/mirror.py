"""The rows of a run file in the memory of every rank, so that another rank can go on with the file.

Every rank makes the same calls. The first rank writes the file; the others keep the rows that are
not in the file yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from localavg.files.record import Record
from localavg.files.schema import EVENTS, TABLES
from localavg.parallel.fleet import Fleet


class Mirror(Record):
    """The run file `file`, which rank 0 of `fleet` writes; None on the other ranks.

    rows: by table, the number of rows in the file. Every method but `append` and `counts` is
    collective, or is called on all ranks alike.
    """

    def __init__(self, fleet: Fleet, file: Record | None) -> None:
        # it has no file of its own, so nothing of Record but the methods is used
        self.world, self.file = fleet.world, file
        self.rows = fleet.world.bcast(file.rows if file else None)
        self._new: dict[str, list[Mapping[str, float | str]]] = {group: [] for group in TABLES}

    def append(self, group: str, **row: float | str) -> None:
        """Buffer one row of `group`, as `Record.append`."""
        self._new[group].append(row)
        if self.file is not None:
            self.file.append(group, **row)

    def flush(self, force: bool = False) -> bool:
        """Write the buffered rows if due, as `Record.flush`, and forget those in the file."""
        wrote = self.file.flush(force) if self.file is not None else False
        rows = self.world.bcast(self.file.rows if self.file is not None else None)
        for group, new in self._new.items():
            del new[: rows[group] - self.rows[group]]
        self.rows = dict(rows)
        return wrote

    def counts(self) -> dict[str, int]:
        """Return the number of rows so far, in the file or not."""
        return {group: self.rows[group] + len(new) for group, new in self._new.items()}

    def back_to(self, fleet: Fleet, counts: Mapping[str, int]) -> Mirror:
        """Take back all rows but the first `counts` of each table; events stay.

        From now on it is the mirror of the ranks of `fleet`, and nobody writes until `take_over`.
        """
        stay = {**counts, EVENTS: self.counts()[EVENTS]}
        for group, new in self._new.items():
            del new[max(0, stay[group] - self.rows[group]) :]
        kept = {group: min(rows, stay[group]) for group, rows in self.rows.items()}
        self.rows, self.world, self.file = kept, fleet.world, None
        return self

    def take_over(self, path: str) -> None:
        """Go on with the file at `path`, on the rank that writes it from now on.

        Raises UserError if it cannot be read or written.
        """
        self.file = Record.taken_over(path, self.rows)
        for group, new in self._new.items():
            for row in new:
                self.file.append(group, **row)

    def save_weights(self, name: str, w: np.ndarray) -> None:
        """Write a vector, as `Record.save_weights`."""
        if self.file is not None:
            self.file.save_weights(name, w)

    def finish(self, status: str, **attrs: object) -> None:
        """Write all rows and the final status, as `Record.finish`."""
        if self.file is not None:
            self.file.finish(status, **attrs)
