"""Names of run files: readable, unique, made of what varies in the sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localavg.errors import UserError

SHORT = {"learners": "P", "batch-size": "B", "model": "", "data": ""}
Options = Mapping[str, tuple[str, Any]]  # argparse's dest -> option, value


def named(path: str, runs: list[tuple[str, Options, set[str], int]]) -> list[str]:
    """A name for every run (algorithm, options, those that a grid gave, seed), such as
    kavg-K16-P32-s0.

    It holds what differs between the runs of the algorithm, or came from a grid. Raises UserError
    where two are alike.
    """
    taken: dict[str, Options] = {}
    for algorithm, options, _, seed in runs:
        like = [(other, gridded) for name, other, gridded, _ in runs if name == algorithm]
        varies = [
            d
            for d in options
            if any(d in gridded or other.get(d) != options[d] for other, gridded in like)
        ]
        parts = [
            _part(*options[dest])
            for dest in sorted(varies, key=lambda dest: _order(dest, options[dest][0]))
        ]
        name = "-".join([algorithm, *parts, f"s{seed}"])
        if name in taken:
            raise UserError(
                f"{path}: two runs would both be {name}: take one out, or let them differ in an "
                "option"
            )
        taken[name] = options
    return list(taken)


def _order(dest: str, option: str) -> int:
    """Data and model first, then the algorithm's own options, P, and the rest."""
    return (
        0
        if SHORT.get(option) == ""
        else 1
        if dest.startswith("own ")
        else 2
        if option == "learners"
        else 3
    )


def _part(option: str, value: Any) -> str:
    text = "_".join(map(str, value)) if isinstance(value, list) else str(value)
    text = (
        Path(text).stem if option in ("data", "model") and text.endswith((".h5", ".hdf5")) else text
    )
    short = SHORT.get(option, option)
    return (
        option
        if value is True
        else short + "_" * short[-1:].isdigit() + re.sub(r"[^\w.+]+", "_", text)
    )
