"""Names of run files: readable, unique, made of the options that vary in the sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from localavg import algorithms
from localavg.errors import UserError

SHORT = {"learners": "P", "batch-size": "B", "model": "", "data": ""}  # option -> its short name
Value: TypeAlias = str | bool | int | float | list[Any]  # as TOML or --set has it
Options: TypeAlias = Mapping[str, tuple[str, Value]]  # argparse's dest -> option, value


def named(path: str, runs: list[tuple[str, Options, set[str], int]]) -> list[str]:
    """Make a name for every run, such as kavg-K16-P32-s0.

    runs: (algorithm, options, dests of the options that a grid gave, seed). A name has the options
    that differ between the runs of the algorithm or that a grid gave. Raises UserError if two runs
    have the same name.
    """
    taken: dict[str, Options] = {}
    for algorithm, options, _, seed in runs:
        like = [(other, gridded) for name, other, gridded, _ in runs if name == algorithm]
        varies = [
            d
            for d in options
            if any(d in gridded or other.get(d) != options[d] for other, gridded in like)
        ]
        ordered = sorted(varies, key=lambda dest: _order(algorithm, dest, options[dest][0]))
        name = "-".join([algorithm, *(_part(*options[dest]) for dest in ordered), f"s{seed}"])
        if name in taken:
            raise UserError(
                f"{path}: two runs would both be {name}: remove one, or let them differ in an "
                "option"
            )
        taken[name] = options
    return list(taken)


def _order(algorithm: str, dest: str, option: str) -> int:
    """Return an option's place: data and model, the algorithm's own options, P, the rest."""
    if SHORT.get(option) == "":
        return 0
    if dest in algorithms.options(algorithm):
        return 1
    return 2 if option == "learners" else 3


def _part(option: str, value: Value) -> str:
    """Write an option as a part of a name: K16, P32, nesterov."""
    if value is True:
        return option
    text = "_".join(map(str, value)) if isinstance(value, list) else str(value)
    if option in ("data", "model") and text.endswith((".h5", ".hdf5")):
        text = Path(text).stem
    short = SHORT.get(option, option)
    return short + "_" * short[-1:].isdigit() + re.sub(r"[^\w.+]+", "_", text)
