"""Read the TOML file of a sweep, check its sections, and put them in the order of strength."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeAlias

from localavg.algorithms import ASYNCHRONOUS
from localavg.errors import UserError

SCALES = ("paper", "laptop", "digits", "root", "gpu")
INHERITED = {
    "gpu": "paper",
    "digits": "laptop",
    "root": "laptop",
}  # scale: the scale whose sections it has too, weaker than its own
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


def scales(scale: str) -> list[str]:
    """Return the scales whose sections count at a scale, the weakest first."""
    return [*([INHERITED[scale]] if scale in INHERITED else []), scale]


def levels(table: Table, block: Table, where: str, scale: str) -> list[tuple[str, Table]]:
    """Return the sections that choose the options of a block, by their names, the weakest first.

    where: the name of the block. At scale gpu all learners of a run compute on one GPU, in one
    process: `ranks` of the paper's scale does not count. Learners that take turns on one GPU would
    come to a server in another order than those of P GPUs, so the asynchronous algorithms run in
    simulated time.
    """
    found = [("common", table.get("common", {})), ("grid", {"grid": table.get("grid", {})})]
    on_gpu = {"device": "cuda"} | ({"simulate": True} if block["algorithm"] in ASYNCHRONOUS else {})
    for name in scales(scale):
        found += [(name, on_gpu)] if name == "gpu" else []
        found.append((name, _section(table, name, scale)))
    found.append((where, block))
    found += [(f"{where}, {name}", _section(block, name, scale)) for name in scales(scale)]
    return [*found, ("--set", table["set"])]


def _section(table: Table, name: str, scale: str) -> Table:
    section: Table = table.get(name, {})
    ranked = name == scale or scale != "gpu"
    return section if ranked else {k: v for k, v in section.items() if k != "ranks"}
