"""The run file: HDF5, written by rank 0 while training runs and read back as DataFrames.

A flush builds the next version of the file in memory, writes it beside the old one (`NAME.partial`)
and renames it over. Whoever opens the path finds one whole version, whether the writer is busy, was
killed or met a full disk. Its tables and columns are in `schema`.
"""

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from localavg.errors import UserError
from localavg.files import atomic
from localavg.files.hdf5 import reason
from localavg.files.provenance import now
from localavg.files.schema import BENCHES, CLUSTER, SCHEMA, SCHEMA_VERSION, WORLD  # noqa: F401  CLUSTER, WORLD: for readers

if TYPE_CHECKING:
    from pandas import DataFrame

ENDS = ("finished", "interrupted", "failed")
WEIGHTS = {
    "weights": "averaged model at the end",
    "initial_weights": "model that all learners started from",
}
CHUNK_ROWS = 1024
REWRITE_BYTES_PER_S = 4e6  # what unforced flushes may ask of a shared file system, on average
_TABLES = {**SCHEMA, **BENCHES}
_INTEGERS = {
    group: {name for name, column in table.items() if column[0] != "f8"}
    for group, table in _TABLES.items()
}


class NotARunFile(UserError):
    """A readable HDF5 file that is something else."""


class Record:
    """Writer of one run file, held by rank 0 alone; make one with `create`."""

    def __init__(self, path: Path, clock: Callable[[], float]):
        self.path, self._clock = path, clock
        self._rows: dict[str, list[Mapping[str, Any]]] = {group: [] for group in _TABLES}
        self.rows = dict.fromkeys(_TABLES, 0)  # rows in the file
        self._flushed_s = self._wait_s = 0.0
        self._checked: set[tuple[str, ...]] = set()  # the columns that rows have come with
        self._mine: int | None = None  # inode of the file as it was written last

    @classmethod
    def create(
        cls, path: str | os.PathLike, config: Mapping, provenance: Mapping, clock=time.perf_counter
    ) -> "Record":
        """Make a new run file with status `running`, and the folders above it; `clock` gives
        seconds.

        `config` and `provenance` are flat: str, int, float, bool, None (written "none"), lists and
        tuples (JSON text). Raises UserError when `path` exists (one of two racing creators gets it)
        or cannot be written.
        """
        refuse_existing(path)
        record = cls(Path(path), clock)
        with _clear_errors(
            f"{path}: cannot write in the folder {record.path.parent}", "give another folder"
        ):
            record.path.parent.mkdir(parents=True, exist_ok=True)
            record.path.open("x").close()
        try:
            root = {"schema": SCHEMA_VERSION, "status": "running"}
            record._rewrite({"/": root, "config": config, "provenance": provenance}, mode="w")
        except BaseException:
            record.path.unlink(missing_ok=True)
            raise
        return record

    @classmethod
    def reopen(
        cls,
        path: str | os.PathLike,
        rows: Mapping[str, int],
        provenance: Mapping,
        clock=time.perf_counter,
    ) -> "Record":
        """Go on with a run file that did not finish: cut it to `rows` of each group; `provenance`
        says who goes on.

        The first start and command stay; `resumes` counts. Raises UserError where it cannot be read
        or written.
        """
        before = load(path, weights=False).provenance
        record = cls(Path(path), clock)
        record.rows.update(rows)
        kept = {name: before[name] for name in ("start", "command") if name in before}
        again = {
            "resumes": before.get("resumes", 0) + 1,
            "resumed": now(),
            "resumed_by": provenance.get("command"),
        }
        record._rewrite(
            {"/": {"status": "running"}, "provenance": {**provenance, **kept, **again}}, cut=True
        )
        return record

    def append(self, group: str, **row: float) -> None:
        """Buffer one row of `group`; a float column left out is NaN. ValueError: unknown column,
        integer left out.
        """
        if (columns := (group, *row)) not in self._checked:
            if not _INTEGERS[group] <= row.keys() <= _TABLES[group].keys():
                unknown, lacking = row.keys() - _TABLES[group].keys(), _INTEGERS[group] - row.keys()
                raise ValueError(
                    f"/{group}: unknown columns {sorted(unknown)}, missing columns "
                    f"{sorted(lacking)}"
                )
            self._checked.add(columns)
        self._rows[group].append(row)

    def flush(self, force: bool = False) -> bool:
        """Write the buffered rows if due, or with `force`; tells whether it wrote.

        Due: max(2 s, 300 x what the last flush took, 1 s for every 4 MB of file) after the last
        one. Raises UserError when the file cannot be written; it then stays as it was and the rows
        stay buffered.
        """
        due = force or self._clock() - self._flushed_s >= self._wait_s
        if due and (due := any(self._rows.values())):
            self._rewrite()
        return due

    def save_weights(self, name: str, w: np.ndarray) -> None:
        """Write vector `w` [d] as float32 `weights` or `initial_weights`. Raises UserError as
        `flush`.
        """
        if name not in WEIGHTS or np.ndim(w) != 1:
            raise ValueError(
                f"{name} {np.shape(w)}: weights are a vector named {' or '.join(WEIGHTS)}"
            )
        self._rewrite(
            {name: {"unit": "1", "description": WEIGHTS[name]}}, {name: np.asarray(w, np.float32)}
        )

    def finish(self, status: str, **attrs: Any) -> None:
        """Write all rows, the final `status`, root attributes such as `failure`, and `end`.
        UserError as `flush`.
        """
        if status not in ENDS:
            raise ValueError(f"status {status!r}: a run ends as one of {', '.join(ENDS)}")
        self._rewrite({"/": {**attrs, "status": status}, "provenance": {"end": now()}})

    def _rewrite(
        self,
        attrs: Mapping | None = None,
        vectors: Mapping | None = None,
        mode: str = "r+",
        cut=False,
    ) -> None:
        start = self._clock()
        tables = {group: _columns(group, rows) for group, rows in self._rows.items() if rows}
        with _clear_errors(
            f"{self.path}: cannot write this run file", "free space or check the file system"
        ):
            if self._mine not in (None, self.path.stat().st_ino):
                raise OSError(
                    "another run has put its own file there; end one of them, and give each its "
                    "own --out"
                )
            image = io.BytesIO(self.path.read_bytes())
            with h5py.File(image, mode) as file:
                for name, w in (vectors or {}).items():
                    if name in file:
                        del file[name]
                    file[name] = w  # [d]
                for name, values in (attrs or {}).items():
                    _write_attrs(file[name] if name in file else file.create_group(name), values)
                if cut:
                    file.attrs.pop("failure", None)
                for group in set(file) & set(_TABLES) if cut else ():
                    for column in file[group].values():
                        column.resize(min(len(column), self.rows[group]), axis=0)
                for group, columns in tables.items():
                    _extend(file, group, columns)
            with atomic.replacing(
                self.path, self.path.with_name(f"{self.path.name}.partial")
            ) as part:
                part.write_bytes(image.getbuffer())
                mine = part.stat().st_ino
            self._mine = mine
        for group in tables:
            self.rows[group] += len(self._rows[group])
            self._rows[group].clear()
        self._flushed_s = self._clock()
        self._wait_s = max(
            2.0, 300 * (self._flushed_s - start), image.getbuffer().nbytes / REWRITE_BYTES_PER_S
        )


def stored(value: Any) -> Any:
    """A setting as it comes back from a run file."""
    return list(value) if isinstance(value, tuple) else value


def refuse_existing(path: str | os.PathLike) -> None:
    """Raise UserError where a file of this name exists."""
    if os.path.lexists(path):
        raise UserError(
            f"{path} exists; run files are never overwritten: give another name or move it away"
        )


@dataclass(frozen=True, eq=False)
class Run:
    """What a run file holds. Tables have the columns of `SCHEMA`, and no rows where the run
    recorded none.
    """

    path: Path
    status: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    train: "DataFrame"
    averages: "DataFrame"
    eval: "DataFrame"
    staleness: "DataFrame"
    weights: np.ndarray | None  # [d] float32
    initial_weights: np.ndarray | None  # [d] float32
    attrs: dict[str, Any]
    rows: "DataFrame | None" = None  # of a benchmark, with the columns of `BENCHES`


def load(path: str | os.PathLike, weights: bool = True, bench: str | None = None) -> Run:
    """Read one run file, a running one too; `weights=False` leaves the weight vectors unread
    (None).

    bench: a benchmark, whose file is read instead of one of training. Raises UserError for a file
    that is missing, damaged or of another schema, NotARunFile for other HDF5.
    """
    from pandas import DataFrame

    reading = _clear_errors(
        f"{path}: cannot read this run file", "check the path, and move damaged files away"
    )
    with reading, open(path, "rb"), h5py.File(path, "r", locking=False) as file:
        attrs = _read_attrs(file)
        whole = {"schema", "status"} <= attrs.keys() and {"config", "provenance"} <= file.keys()
        if not whole or file["config"].attrs.get("bench") != bench:
            raise NotARunFile(
                f"{path} is HDF5 but no run file: give a file that {_writer(bench)} wrote"
            )
        if attrs["schema"] != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema {attrs['schema']}, not {SCHEMA_VERSION}: use the version that "
                "wrote it"
            )
        tables = {group: DataFrame(_read_table(file, group)) for group in SCHEMA}
        vectors = {
            name: file[name][:] if weights and name in file else None for name in WEIGHTS
        }  # [d]
        config, origin = _read_attrs(file["config"]), _read_attrs(file["provenance"])
        rows = DataFrame(_read_table(file, bench)) if bench else None
        return Run(
            Path(path), attrs["status"], config, origin, **tables, **vectors, attrs=attrs, rows=rows
        )


def load_many(
    source: str | os.PathLike | Iterable[str | os.PathLike],
    weights: bool = False,
    bench: str | None = None,
) -> list[Run]:
    """Read the run files `*.h5` below a folder, or those of a list of files and folders; sorted by
    path. bench: as `load`.

    Skips other HDF5 files in folders. Raises UserError for damaged files, a missing folder, one
    without run files.
    """
    runs = {}
    for place in map(Path, [source] if isinstance(source, str | os.PathLike) else source):
        for path in place.rglob("*.h5") if place.is_dir() else [place]:
            with contextlib.suppress(NotARunFile if path != place else ()):
                if path == place or path.stat().st_size > 0:  # an empty one is a run about to start
                    runs[path] = load(path, weights, bench)
    if not runs:
        first = f"run {_writer(bench)}" if bench else "train"
        raise UserError(
            f"{source}: no run files (*.h5) here: {first} first, or give another folder"
        )
    return [runs[path] for path in sorted(runs)]


def _writer(bench: str | None) -> str:
    return f"bench {bench} --out FILE.h5" if bench else "a training run"


def _columns(group: str, rows: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {
        name: np.array([row.get(name, np.nan) for row in rows], c[0])
        for name, c in _TABLES[group].items()
    }


def _extend(file: h5py.File, group: str, columns: Mapping[str, np.ndarray]) -> None:
    table = file[group] if group in file else file.create_group(group, track_order=True)
    for name, values in columns.items():  # [rows]
        if name in table:
            table[name].resize(len(table[name]) + len(values), axis=0)
            table[name][-len(values) :] = values
        else:
            column = table.create_dataset(name, data=values, maxshape=(None,), chunks=(CHUNK_ROWS,))
            _write_attrs(
                column, dict(zip(("unit", "description"), _TABLES[group][name][1:], strict=True))
            )


def _read_table(file: h5py.File, group: str) -> dict[str, np.ndarray]:
    if group not in file:
        return _columns(group, [])
    rows = min(len(column) for column in file[group].values())
    found = {name: file[group][name] for name in _TABLES[group] if name in file[group]}
    return {
        name: (c.asstr() if h5py.check_string_dtype(c.dtype) else c)[:rows]
        for name, c in found.items()
    }  # [rows]


def _write_attrs(item: h5py.HLObject, attrs: Mapping[str, Any]) -> None:
    for name, value in attrs.items():
        text = (
            "none"
            if value is None
            else json.dumps(value)
            if isinstance(value, list | tuple)
            else value
        )
        text = os.fspath(text) if isinstance(text, os.PathLike) else text
        item.attrs[name] = (
            text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text
        )


def _read_attrs(item: h5py.HLObject) -> dict[str, Any]:
    return {name: _decoded(value) for name, value in item.attrs.items()}


def _decoded(value: Any) -> Any:
    """What `_write_attrs` made of None, lists and numbers."""
    if isinstance(value, str):
        return (
            None
            if value == "none"
            else json.loads(value)
            if value[:1] == "[" and value[-1:] == "]"
            else value
        )
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _clear_errors(problem: str, remedy: str):
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{problem} ({reason(error) or type(error).__name__}): {remedy}") from error
