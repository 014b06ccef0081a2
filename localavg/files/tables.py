"""The tables of an open run file: rows appended and cut, and its attributes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import h5py
import numpy as np

from localavg.files.schema import CLUSTER, TABLES, WORLD

CHUNK_ROWS = 1024


def columns(group: str, rows: list[Mapping[str, float | str]]) -> dict[str, np.ndarray]:
    """Turn rows into columns, each [rows]."""
    return {
        name: np.array([row.get(name, np.nan) for row in rows], column[0])
        for name, column in TABLES[group].items()
    }


def cut(file: h5py.File, rows: Mapping[str, int]) -> None:
    """Cut every table to at most its number of rows, and forget how the run ended before."""
    for name in ("failure", "stopped_by", "stopped_after"):
        file.attrs.pop(name, None)
    for group in set(file) & set(TABLES):
        for column in file[group].values():
            column.resize(min(len(column), rows[group]), axis=0)


def extend(file: h5py.File, group: str, columns: Mapping[str, np.ndarray]) -> None:
    """Append rows to a table of the file, which is made if it is missing.

    A column that the table lacks, because an earlier version made it, is filled up by `absent`.
    """
    table = file[group] if group in file else file.create_group(group, track_order=True)
    rows = max(map(len, table.values()), default=0)
    for name, values in columns.items():  # [rows]
        if name in table:
            table[name].resize(len(table[name]) + len(values), axis=0)
            table[name][-len(values) :] = values
        else:
            if rows:
                before = {other: column[:rows] for other, column in table.items()}
                values = np.concatenate([absent(file, name, before), values]).astype(values.dtype)
            column = table.create_dataset(name, data=values, maxshape=(None,), chunks=(CHUNK_ROWS,))
            _, unit, description = TABLES[group][name]
            write_attrs(column, {"unit": unit, "description": description})


def absent(file: h5py.File, name: str, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a column [rows] that an earlier version did not write, NaN if it is not known.

    table: the other columns. In those versions no average was delayed, and clusters had one level.
    """
    if name == "begun":
        return table["t"]
    if name == "level":
        about, kind = file["config"].attrs, table["scope"]
        clusters = about.get("algorithm") == "hieravg" and about.get("S", 1) > 1
        top = 2 if clusters or CLUSTER in kind else 1
        return np.select([kind == CLUSTER, kind == WORLD], [1, top], 0)
    return np.full(len(next(iter(table.values()))), np.nan)


def write_attrs(item: h5py.HLObject, attrs: Mapping[str, object]) -> None:
    """Write attributes, each encoded as text or a number."""
    for name, value in attrs.items():
        item.attrs[name] = _encoded(value)


def _encoded(value: object) -> object:
    """Turn a setting into an attribute of HDF5; `reading` turns it back."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return json.dumps(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
