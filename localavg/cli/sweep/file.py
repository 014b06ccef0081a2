"""Read the TOML file of a sweep and check its sections."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeAlias

from localavg.errors import UserError

SCALES = ("paper", "laptop")
Table: TypeAlias = dict[str, Any]  # a section of TOML
SECTIONS = {"sweep", "common", "grid", "runs", *SCALES}
ABOUT = {"title", "paper", "figure"}  # what [sweep] says


def tables(path: Path) -> Table:
    """Return the sections of a sweep's file.

    Raises UserError if the file cannot be read or is not a sweep.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise UserError(
            f"{path}: cannot read this sweep ({e.strerror}): give the path of a .toml file"
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: this is no TOML ({e}): correct that line") from e
    if unknown := sorted(table.keys() - SECTIONS):
        raise UserError(
            f"{path}: [{unknown[0]}] is no section of a sweep: use {', '.join(sorted(SECTIONS))}"
        )
    runs = table.get("runs")
    blocks = runs if isinstance(runs, list) else []
    if not blocks or not all(isinstance(b, dict) and "algorithm" in b for b in blocks):
        raise UserError(f"{path}: a sweep needs [[runs]] blocks with an algorithm each")
    for block in (table, *blocks):
        within = [block[name] for name in (*SCALES, "common") if isinstance(block.get(name), dict)]
        for part in (block, *within):
            for name in (*SCALES, "sweep", "common", "grid"):
                if not isinstance(part.get(name, {}), dict):
                    raise UserError(f"{path}: {name} = {part[name]}: must be a section [{name}]")
    for name, text in table.get("sweep", {}).items():
        if name not in ABOUT or not isinstance(text, str):
            rule = f"must be one of {', '.join(sorted(ABOUT))}, with a text in quotes"
            raise UserError(f"{path}: [sweep] {name} = {text!r}: {rule}")
    for block in blocks:
        if not isinstance(block["algorithm"], str):
            raise UserError(f"{path}: algorithm = {block['algorithm']}: must be a name in quotes")
    return table
