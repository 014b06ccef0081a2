"""The TOML file of a sweep, read and its sections checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from localavg.errors import UserError

SCALES = ("paper", "laptop")
SECTIONS = {"sweep", "common", "grid", "runs", *SCALES}


def tables(path: Path) -> dict[str, Any]:
    """The sections of a sweep's file. Raises UserError where it cannot be read, or is no sweep."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(
            f"{path}: cannot read this sweep ({e.strerror}): give the path of a .toml file"
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: this is no TOML ({e}): mend that line") from e
    if unknown := sorted(table.keys() - SECTIONS):
        raise UserError(
            f"{path}: [{unknown[0]}] is no section of a sweep: use {', '.join(sorted(SECTIONS))}"
        )
    runs = table.get("runs")
    if (
        not isinstance(runs, list)
        or not runs
        or not all(isinstance(b, dict) and "algorithm" in b for b in runs)
    ):
        raise UserError(f"{path}: a sweep needs [[runs]] blocks with an algorithm each")
    for block in (table, *runs):
        for part in (
            block,
            *(block[name] for name in (*SCALES, "common") if isinstance(block.get(name), dict)),
        ):
            for name in (*SCALES, "sweep", "common", "grid"):
                if not isinstance(part.get(name, {}), dict):
                    raise UserError(f"{path}: {name} = {part[name]}: must be a section [{name}]")
    for block in runs:
        if not isinstance(block["algorithm"], str):
            raise UserError(f"{path}: algorithm = {block['algorithm']}: must be a name in quotes")
    return table
