"""The run file: HDF5, written by rank 0 while training runs.

A flush builds the next version of the file in memory, writes it under another name
(`NAME.partial`) and renames it to the file's name. So a reader always finds one whole version, even
if the writer is busy, was killed or met a full disk. The tables and columns are in `schema`;
`reading` reads the file back, and its names are offered here too.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np

from localavg.errors import UserError
from localavg.files import atomic, tables
from localavg.files.hdf5 import clear_errors
from localavg.files.process import identity
from localavg.files.provenance import now
from localavg.files.reading import NotARunFile, Run, load, load_many
from localavg.files.schema import (
    BENCHES,
    CLUSTER,
    EVENTS,
    NEIGHBOURS,
    SCHEMA,
    SCHEMA_VERSION,
    TABLES,
    WEIGHTS,
    WORLD,
)

__all__ = [
    "BENCHES",
    "CLUSTER",
    "NEIGHBOURS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "WORLD",
    "NotARunFile",
    "Record",
    "Run",
    "UserError",
    "load",
    "load_many",
    "refuse_existing",
    "stored",
]

ENDS = ("finished", "interrupted", "failed")
REWRITE_BYTES_PER_S = 4e6  # average rate at which unforced flushes may rewrite the file
_REQUIRED = {  # columns that a row must have; the others are NaN where they are left out
    group: {name for name, column in table.items() if column[0] != "f8"}
    for group, table in TABLES.items()
}


class Record:
    """Writer of one run file, on rank 0 only; make one with `create`, `reopen` or `taken_over`."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path, self._clock = path, clock
        self._rows: dict[str, list[Mapping[str, float | str]]] = {group: [] for group in TABLES}
        self.rows = dict.fromkeys(TABLES, 0)  # rows in the file
        self._flushed_s = self._wait_s = 0.0
        self._checked: set[tuple[str, ...]] = set()  # (group, *columns) of valid rows so far
        self._mine: int | None = None  # inode of the file as this Record last wrote it

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, object],
        provenance: Mapping[str, object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> Record:
        """Make a new run file with status `running`, and the folders above it.

        `config` and `provenance` are flat: str, int, float, bool, None (written as "none"), lists
        and tuples (written as JSON text). /provenance names this process, by which `process.gone`
        finds out whether it still runs. `clock` returns seconds. Raises UserError if `path`
        cannot be written or exists; if two processes create it at once, one gets this error.
        """
        refuse_existing(path)
        record = cls(Path(path), clock)
        problem = f"{path}: cannot write in the folder {record.path.parent}"
        with clear_errors(problem, "give another folder"):
            record.path.parent.mkdir(parents=True, exist_ok=True)
            record.path.open("x").close()
        try:
            root = {"schema": SCHEMA_VERSION, "status": "running"}
            origin = {**provenance, "process": identity()}
            record._rewrite({"/": root, "config": config, "provenance": origin}, mode="w")
        except BaseException:
            record.path.unlink(missing_ok=True)
            raise
        return record

    @classmethod
    def reopen(
        cls,
        path: str | os.PathLike[str],
        rows: Mapping[str, int],
        provenance: Mapping[str, object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> Record:
        """Resume a run file that did not finish: cut each group but events to its number in `rows`.

        `provenance` is that of the resuming process; the first start and command are kept, and
        `resumes` is counted up. Raises UserError if the file cannot be read or written.
        """
        run = load(path, weights=False)
        before, record = run.provenance, cls(Path(path), clock)
        record.rows.update({**rows, EVENTS: len(run.events)})
        origin: dict[str, object] = {
            **provenance,
            **{name: before[name] for name in ("start", "command") if name in before},
            "resumes": before.get("resumes", 0) + 1,
            "resumed": now(),
            "resumed_by": provenance.get("command"),
            "process": identity(),
        }
        record._rewrite({"/": {"status": "running"}, "provenance": origin}, cut=True)
        return record

    @classmethod
    def taken_over(
        cls,
        path: str | os.PathLike[str],
        rows: Mapping[str, int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> Record:
        """Go on with the file of a run whose ranks were lost: cut each group to its number of rows.

        The file names this process from now on. Raises UserError if it cannot be read or written.
        """
        record = cls(Path(path), clock)
        record.rows.update(rows)
        record._rewrite(
            {"/": {"status": "running"}, "provenance": {"process": identity()}}, cut=True
        )
        return record

    def append(self, group: str, **row: float | str) -> None:
        """Buffer one row of `group`; a float column that is left out is NaN.

        Raises ValueError for an unknown column, or if an integer or text column is left out.
        """
        if (columns := (group, *row)) not in self._checked:
            known, required = TABLES[group].keys(), _REQUIRED[group]
            if not required <= row.keys() <= known:
                unknown, missing = sorted(row.keys() - known), sorted(required - row.keys())
                raise ValueError(f"/{group}: unknown columns {unknown}, missing columns {missing}")
            self._checked.add(columns)
        self._rows[group].append(row)

    def flush(self, force: bool = False) -> bool:
        """Write the buffered rows if a flush is due or `force`; return whether it wrote.

        A flush is due max(2 s, 300 × the time of the last flush, 1 s for every 4 MB of file) after
        the last one. Raises UserError if the file cannot be written; then the file is unchanged and
        the rows stay buffered.
        """
        due = force or self._clock() - self._flushed_s >= self._wait_s
        if due and (due := any(self._rows.values())):
            self._rewrite()
        return due

    def save_weights(self, name: str, w: np.ndarray) -> None:
        """Write vector `w` [d] as float32 `weights` or `initial_weights`.

        Raises ValueError for another name or shape, and UserError as `flush` does.
        """
        if name not in WEIGHTS or np.ndim(w) != 1:
            raise ValueError(
                f"{name} {np.shape(w)}: weights are a vector named {' or '.join(WEIGHTS)}"
            )
        about = {"unit": "1", "description": WEIGHTS[name]}
        self._rewrite({name: about}, {name: np.asarray(w, np.float32)})

    def finish(self, status: str, **attrs: object) -> None:
        """Write all rows, the final `status`, root attributes such as `failure`, and the end time.

        Raises ValueError for a status that does not end a run, and UserError as `flush` does.
        """
        if status not in ENDS:
            raise ValueError(f"status {status!r}: a run ends as one of {', '.join(ENDS)}")
        self._rewrite({"/": {**attrs, "status": status}, "provenance": {"end": now()}})

    def _rewrite(
        self,
        attrs: Mapping[str, Mapping[str, object]] | None = None,
        vectors: Mapping[str, np.ndarray] | None = None,
        mode: str = "r+",
        cut: bool = False,
    ) -> None:
        """Write the file with attributes {group: {name: value}}, vectors [d] and buffered rows.

        mode: that of h5py, "w" for an empty file; cut: first cut the tables to `self.rows`.
        """
        start = self._clock()
        new = {group: tables.columns(group, rows) for group, rows in self._rows.items() if rows}
        problem = f"{self.path}: cannot write this run file"
        with clear_errors(problem, "free space or check the file system"):
            if self._mine not in (None, _inode(self.path)):
                raise OSError(
                    "another run has put its own file there, or moved this one away; end one of "
                    "them, and give each its own `out`"
                )
            image = io.BytesIO(self.path.read_bytes())
            with h5py.File(image, mode) as file:
                _put(file, attrs or {}, vectors or {})
                if cut:
                    tables.cut(file, self.rows)
                for group, columns in new.items():
                    tables.extend(file, group, columns)
            partial = self.path.with_name(f"{self.path.name}.partial")
            with atomic.replacing(self.path, partial):
                partial.write_bytes(image.getbuffer())
                inode = partial.stat().st_ino
            self._mine = inode
        for group in new:
            self.rows[group] += len(self._rows[group])
            self._rows[group].clear()
        self._flushed_s = self._clock()
        self._wait_s = max(
            2.0, 300 * (self._flushed_s - start), image.getbuffer().nbytes / REWRITE_BYTES_PER_S
        )


def _inode(path: Path) -> int:
    """Return the inode of a file, 0 if its folder has none: another run moves it away first."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        path.parent.stat()
        return 0


def _put(
    file: h5py.File, attrs: Mapping[str, Mapping[str, object]], vectors: Mapping[str, np.ndarray]
) -> None:
    """Write the vectors [d] and the attributes {group: {name: value}} into an open file."""
    for name, w in vectors.items():
        if name in file:
            del file[name]
        file[name] = w  # [d]
    for name, values in attrs.items():
        tables.write_attrs(file[name] if name in file else file.create_group(name), values)


def stored(value: object) -> object:
    """Return a setting in the form in which a run file gives it back."""
    return list(value) if isinstance(value, tuple) else value


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise UserError if a file of this name exists."""
    if os.path.lexists(path):
        raise UserError(
            f"{path} exists; run files are never overwritten: give another name or move it away"
        )
