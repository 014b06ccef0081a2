"""House style of the figures: two-column papers, legible in greyscale; and the frame that every figure script shares.

A script makes its figure with `panels`, draws repeated runs with `curve`, writes with `save` and hands `main` to `run`.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localavg.record import Run, UserError

SINGLE_IN, DOUBLE_IN = 3.4, 7.0  # width of one column and of both, inches
LINES = (  # colour-blind safe colours (Okabe and Ito) from dark to light, with a line style and a marker each
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#E69F00", "linestyle": (0, (8, 2)), "marker": "P"},
    {"color": "#56B4E9", "linestyle": (0, (2, 1)), "marker": "X"},
)
RC = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}
NOT_SETTINGS = {"seed", "out", "save_weights", "log_every"}  # what repeats of one run may differ in


def panels(
    columns: int = 1, width_in: float = DOUBLE_IN, height_in: float = 2.4, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels side by side in the house style, sizes in inches."""
    matplotlib.rcParams.update(RC)
    figure = Figure(figsize=(width_in, height_in))
    return figure, list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])


def curve(
    axes: Axes,
    runs: Sequence[Run],
    x: str,
    y: str,
    label: str,
    number: int = 0,
    rows: Callable[[Run], pd.DataFrame] = lambda run: run.eval,
) -> None:
    """Draw repeats of one run as their mean, with a band from their minimum to their maximum.

    `x` (rising) and `y` are columns of the table that `rows` gives for a run; points that are not finite are left out,
    of points with equal x the last counts. Repeats measured at different x are interpolated at all of these x, within
    the range that they share. `number` picks the look from `LINES`.
    """
    lines = [line for line in (_clean(rows(run), x, y) for run in runs) if len(line[0])]
    if not lines:
        return
    grid, values = _common(lines)  # [n], [runs, n]
    look = LINES[number % len(LINES)]
    every = max(1, len(grid) // 10)
    axes.plot(grid, values.mean(axis=0), label=label, markevery=every, **look)
    if len(lines) > 1:
        axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.2, linewidth=0)


def _clean(rows: pd.DataFrame, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    points = rows[[x, y]].to_numpy(float)  # [n, 2]
    points = points[np.isfinite(points).all(axis=1)]
    points = points[np.diff(points[:, 0], append=np.inf) > 0]
    return points[:, 0], points[:, 1]


def _common(lines: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = np.unique(np.concatenate([x for x, _ in lines]))  # [n]
    grid = grid[(grid >= first) & (grid <= max(first, last))]
    return grid, np.array([np.interp(grid, x, y) for x, y in lines])  # [n], [runs, n]


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings other than the seed in which runs that are drawn as repeats disagree."""
    names = set().union(*(run.config for run in runs)) - NOT_SETTINGS
    return sorted(name for name in names if len({str(run.config.get(name)) for run in runs}) > 1)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png (200 dpi), making the folder. Raises UserError when they cannot be written."""
    written = [stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(written[0], metadata={"CreationDate": None})
        figure.savefig(written[1], dpi=200)
    except OSError as error:
        raise UserError(f"{stem.parent}: cannot write figures here ({error.strerror}): give another --out") from error
    return written


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text table: the first column flush left, the others flush right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a mistake of the user ends it with one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="replace")
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)
