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
from localavg.files import tables
from localavg.files.hdf5 import clear_errors, opened
from localavg.files.schema import LATER, RENAMED, SCHEMA, SCHEMA_VERSION, TABLES, WEIGHTS

if TYPE_CHECKING:
    from pandas import DataFrame

Settings: TypeAlias = dict[str, Any]  # by name: numbers, text, bool, None and lists


SHOWN = ("algorithm", "data_name", "model", "learners", "K", "batch_size", "lr", "steps", "seed")
"""settings in a Run's repr, where the run has them"""


class NotARunFile(UserError):
    """An HDF5 file that can be read, but holds something else."""


@dataclass(frozen=True, eq=False)
class Run:
    """The contents of a run file; printed, it is a few lines.

    Tables have the columns of `SCHEMA`, and no rows where the run recorded none.
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
        """Return the file, how the run ended, its main settings, its length and its last row."""
        given = {name: self.config[name] for name in SHOWN if self.config.get(name) is not None}
        settings = ", ".join(f"{name}={value}" for name, value in given.items())
        tables = {group: getattr(self, group) for group in SCHEMA} | {"rows": self.rows}
        lengths = [f"{len(t)} in .{name}" for name, t in tables.items() if t is not None and len(t)]
        vectors = [
            f".{name} [{len(w)}]" for name in WEIGHTS if (w := getattr(self, name)) is not None
        ]
        lines = [f"Run {self.path}: {self.status}", settings or "no settings of training"]
        lines.append(
            f"rows: {', '.join(lengths) or 'none'}{'; ' * bool(vectors)}{', '.join(vectors)}"
        )
        if len(self.eval):
            last = self.eval.iloc[-1].dropna()
            lines.append("at the end: " + ", ".join(f"{k} {v:.6g}" for k, v in last.items()))
        if why := self.attrs.get("failure"):
            lines.append(f"failure: {why}")
        return "\n  ".join(lines)


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
        frames: dict[str, Any] = {group: DataFrame(_read_table(file, group)) for group in SCHEMA}
        vectors: dict[str, Any] = {
            name: file[name][:] if weights and name in file else None for name in WEIGHTS
        }
        return Run(
            path=Path(path),
            status=attrs["status"],
            config={RENAMED.get(k, k): value for k, value in _read_attrs(file["config"]).items()},
            provenance=_read_attrs(file["provenance"]),
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
