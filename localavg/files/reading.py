"""Read run files back, as DataFrames. `files.record` writes them and offers these names too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import numpy as np

from localavg.errors import UserError
from localavg.files import drawing, process, shown, tables
from localavg.files.hdf5 import clear_errors, opened
from localavg.files.schema import LATER, RENAMED, SCHEMA, SCHEMA_VERSION, TABLES, WEIGHTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

Settings: TypeAlias = dict[str, Any]  # by name: numbers, text, bool, None and lists


class NotARunFile(UserError):
    """An HDF5 file that can be read, but holds something else."""


@dataclass(frozen=True, eq=False)
class Run:
    """The contents of a run file; printed, it is three lines.

    status: finished, interrupted, failed or running; or died, where the file says running and its
    process was of this host and is gone. Tables have the columns of `SCHEMA`, and no rows where
    the run recorded none.
    """

    path: Path
    status: str
    config: Settings
    provenance: Settings
    train: DataFrame
    averages: DataFrame
    eval: DataFrame
    staleness: DataFrame
    periods: DataFrame
    holdings: DataFrame
    events: DataFrame
    weights: np.ndarray | None  # [d] float32
    initial_weights: np.ndarray | None  # [d] float32
    attrs: Settings
    rows: DataFrame | None = None  # of a benchmark, with the columns of `BENCHES`

    def __repr__(self) -> str:
        """Return three lines: what was run, where it ended, and where the file lies."""
        return shown.lines(self)

    def plot(self) -> list[Axes]:
        """Draw the loss against updates and seconds, and the periods; return the three panels.

        `panels[0].figure.savefig("curves.png")` saves them. Raises UserError without matplotlib.
        """
        return drawing.draw(drawing.new_figure(shown=True), {self.path.stem: self})


def load(path: str | os.PathLike[str], weights: bool = True, bench: str | None = None) -> Run:
    """Read one run file, also one that is being written, here or elsewhere.

    weights=False: do not read the weight vectors (None). bench: read the file of this benchmark,
    not one of training. Raises UserError for a file that is missing, damaged or of another schema,
    NotARunFile for other HDF5.
    """
    from pandas import DataFrame

    problem = f"{path}: cannot read this run file"
    reading = clear_errors(problem, "check the path, and move damaged files away")
    with reading, open(path, "rb"), opened(path) as file:
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
        origin = _read_attrs(file["provenance"])
        frames: dict[str, Any] = {group: DataFrame(_read_table(file, group)) for group in SCHEMA}
        vectors: dict[str, Any] = {
            name: file[name][:] if weights and name in file else None for name in WEIGHTS
        }
        return Run(
            path=Path(path),
            status=_status(attrs["status"], origin.get("process")),
            config={RENAMED.get(k, k): value for k, value in _read_attrs(file["config"]).items()},
            provenance=origin,
            **frames,
            **vectors,
            attrs=attrs,
            rows=DataFrame(_read_table(file, bench)) if bench else None,
        )


def load_many(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    weights: bool = False,
    bench: str | None = None,
) -> list[Run]:
    """Read all run files `*.h5` below a folder, or those of a list of files and folders.

    They are sorted by path. Other HDF5 files in folders are skipped. bench: as in `load`. Raises
    UserError for a damaged file, a missing folder, or a folder without run files.
    """
    runs = {}
    for place in map(Path, [source] if isinstance(source, str | os.PathLike) else source):
        for path in place.rglob("*.h5") if place.is_dir() else [place]:
            skipped = (NotARunFile,) if path != place else ()
            with contextlib.suppress(*skipped):
                if path == place or path.stat().st_size > 0:  # empty: a run about to start
                    runs[path] = load(path, weights, bench)
    if not runs:
        first = f"run {_writer(bench)}" if bench else "train"
        raise UserError(
            f"{source}: no run files (*.h5) here: {first} first, or give another folder"
        )
    return [runs[path] for path in sorted(runs)]


def _status(written: str, process_: object) -> str:
    """Return the status in a file, or "died" where it says running and its process has ended."""
    return "died" if written == "running" and process.gone(process_) else written


def _writer(bench: str | None) -> str:
    return f"bench {bench} --out FILE.h5" if bench else "a training run"


def _read_table(file: h5py.File, group: str) -> dict[str, np.ndarray]:
    """Read the columns of a table, each [rows]; a table that is missing has no rows."""
    if group not in file:
        return {name: np.empty(0, column[0]) for name, column in TABLES[group].items()}
    rows = min(len(column) for column in file[group].values())
    found = {name: file[group][name] for name in TABLES[group] if name in file[group]}
    columns = {
        name: (column.asstr() if h5py.check_string_dtype(column.dtype) else column)[:rows]
        for name, column in found.items()
    }
    for name, (dtype, *_) in TABLES[group].items():
        if name not in columns and (dtype == "f8" or name in LATER):  # of an earlier version
            columns[name] = tables.absent(file, name, columns).astype(dtype)
    return {name: columns[name] for name in TABLES[group] if name in columns}


def _read_attrs(item: h5py.HLObject) -> Settings:
    return {name: _decoded(value) for name, value in item.attrs.items()}


def _decoded(value: object) -> object:
    """Turn an attribute back into the None, list or number that `record` wrote."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    return json.loads(value) if value[:1] == "[" and value[-1:] == "]" else value
