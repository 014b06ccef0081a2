"""The runs of a figure: read from a folder, grouped for the figure, and reduced over repeats.

A script reads its `arguments`, `gather`s its runs as {panel: {line: repeats}} and writes its figure
with `output.finish`.
"""

import argparse
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import options
import quantities
import style

from localavg.files.record import Run, UserError, load_many

Groups: TypeAlias = dict[str, dict[Hashable, list[Run]]]  # {panel: {line: repeats}}


def arguments(
    doc: str, folder: str | None = None, numbers: Mapping[str, float] | None = None
) -> argparse.Namespace:
    """Parse the command line of a script: the folder of its runs and --out.

    doc: the script's docstring. folder: the help of the folder, if it may be left out. numbers:
    options that take a number, and their defaults.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?" if folder else None,
        help=folder or "folder of run files, or one run file",
    )
    options.add_figures(parser, "--out", "write the figures into")
    for name, default in (numbers or {}).items():
        about = "value in the formulas (default: %(default)g)"
        parser.add_argument(f"--{name}", type=float, metavar="X", default=default, help=about)
    return parser.parse_args()


def gather(
    folder: Path,
    line: Callable[[Run], Hashable],
    panel: Callable[[Run], str] = quantities.problem,
    expected: Mapping[Hashable, str] | None = None,
    needs: str | None = "eval.train_loss",
    ended: bool = False,
    over: Sequence[str] = (),
) -> Groups:
    """Read the runs of a folder and group them as {panel: {line: repeats}}.

    line: the key of a run's line in this figure, None if the run does not belong to it. expected:
    line -> its name in the legend, in the order of the legend; other lines follow, sorted. needs:
    TABLE.COLUMN without which a run is left out. ended: leave out unfinished runs. over: settings
    in which the runs of a line may differ. Runs that are left out, unfinished, missing, or repeats
    of unequal settings are printed. Raises UserError if no run is left.
    """
    groups: Groups = {}
    names = expected or {}
    for run in load_many(folder):
        key = line(run)
        if why := _unfit(run, key, needs, ended):
            print(f"left out: {run.path} {why}")
            continue
        groups.setdefault(panel(run), {}).setdefault(key, []).append(run)
        if run.status != "finished":
            how = "diverged" if quantities.diverged(run) else f"is {run.status}"
            print(f"unfinished: {run.path} {how}")
    _print_missing(folder, groups, names)
    if not groups:
        raise UserError(
            f"{folder}: no run here belongs to this figure: its sweep is in jobs/sweeps"
        )
    ordered = _ordered(groups, list(names))
    _print_unequal(ordered, names, over)
    return ordered


def _unfit(run: Run, key: Hashable, needs: str | None, ended: bool) -> str:
    """Return why a run is left out of a figure, "" if it is not; arguments as in `gather`."""
    if key is None:
        return f"is {run.config.get('algorithm')}, or of settings that this figure does not show"
    if needs:
        table, column = needs.split(".")
        if getattr(run, table)[column].isna().all():
            return f"has no {column}" + " yet" * (run.status == "running")
    if ended and run.status != "finished" and not quantities.diverged(run):
        return f"is {run.status}, and only the end of a run counts here"
    return ""


def _ordered(groups: Groups, order: list[Hashable]) -> Groups:
    """Sort the panels, and the lines of each: those of `order` first, as they stand there."""

    def place(key: Hashable) -> tuple[int, list[Hashable]]:
        return order.index(key) if key in order else len(order), _natural(key)

    return {
        name: {key: lines[key] for key in sorted(lines, key=place)}
        for name, lines in sorted(groups.items())
    }


def _natural(key: Hashable) -> list[Hashable]:
    """Return a key by which lines are sorted: numbers before words."""
    parts = key if isinstance(key, tuple) else (key,)
    return [(isinstance(x, str), x) for x in parts if x is not None]


def _print_unequal(groups: Groups, names: Mapping[Hashable, str], over: Sequence[str]) -> None:
    """Print where repeats differ in settings other than those of `over`."""
    allowed = {*over, "steps"} if over else set()
    for name, lines in groups.items():
        for key, repeats in lines.items():
            if differ := sorted(set(style.differing(repeats)) - allowed):
                print(
                    f"note: the {len(repeats)} runs of {name}, {names.get(key, key)} differ in "
                    f"{', '.join(differ)}, and count together"
                )


def _print_missing(folder: Path, groups: Groups, expected: Mapping[Hashable, str]) -> None:
    """Print which lines of the figure and which runs of the folder's sweep are missing."""
    for key, words in expected.items():
        lacking = [panel for panel, lines in groups.items() if key not in lines]
        if lacking or not groups:
            where = f" ({'; '.join(lacking)})" if len(lacking) < len(groups) else ""
            print(f"missing: {words}{where}")
    plan = folder / "sweep.json"
    if plan.is_file():
        names = json.loads(plan.read_text())["runs"]
        absent = [name for name in names if not (folder / f"{name}.h5").exists()]
        if absent:
            shown = ", ".join(absent[:12]) + ", …" * (len(absent) > 12)
            print(f"missing: {len(absent)} of {len(names)} runs of the sweep: {shown}")


def by(repeats: Iterable[Run], *names: str) -> dict[Hashable, list[Run]]:
    """Group runs by the value of the first of these settings that they have, sorted."""
    cells: dict[Hashable, list[Run]] = {}
    for run in repeats:
        cells.setdefault(quantities.option(run, *names), []).append(run)
    return dict(sorted(cells.items(), key=lambda item: _natural(item[0])))


def values(
    cells: Mapping[Hashable, Sequence[Run]], of: Callable[[Run], float]
) -> dict[Hashable, list[float]]:
    """Return the finite values of `of` for the runs of every cell that has one."""
    found = {x: [v for v in map(of, repeats) if np.isfinite(v)] for x, repeats in cells.items()}
    return {x: v for x, v in found.items() if v}


def highest(cells: Mapping[Hashable, Sequence[float]]) -> Hashable:
    """Return the cell with the highest mean over repeats, the first of several."""
    return max(cells, key=lambda x: float(np.mean(cells[x])))


def lowest(cells: Mapping[Hashable, Sequence[float]]) -> Hashable:
    """Return the cell with the lowest mean over repeats, the first of several."""
    return min(cells, key=lambda x: float(np.mean(cells[x])))


def by_clock(repeats: Iterable[Run], gbits: Sequence[float] = ()) -> dict[str, list[Run]]:
    """Group runs by their problem and clock.

    gbits: the rates of links at which a run with a modelled clock counts, by default its own.
    """
    cells: dict[str, list[Run]] = {}
    runs = [
        other
        for run in repeats
        for other in (
            [quantities.at_rate(run, gbit) for gbit in gbits]
            if gbits and run.config.get("simulate")
            else [run]
        )
    ]
    for run in runs:
        cells.setdefault(quantities.clock(run), []).append(run)
    return cells
