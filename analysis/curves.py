"""Curves over repeated runs: their median, with a band that one disturbed run cannot move far."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localavg.files.record import Run, UserError

X_LABELS = {"epoch": "epochs", "t": "local updates t", "wall_s": "wall clock (s)"}
IMAGES = 20
"""test images that an axis of accuracies covers at least"""
ROBUST = 5
"""repeats from which on a band is from quartile to quartile"""
Y_LABELS = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy (%)",
    "test_accuracy": "test accuracy (%)",
}


def curve(
    axes: Axes,
    runs: Sequence[Run],
    x: str,
    y: str,
    label: str,
    number: int = 0,
    rows: Callable[[Run], pd.DataFrame] = lambda run: run.eval,
    marks: int = 10,
    steps: bool = False,
    behind: bool = False,
) -> None:
    """Draw repeats of one run as their median, with their `band`.

    `x` (rising) and `y` are columns of the table that `rows` returns for a run. Points that are not
    finite are left out; of points with equal x the last one counts. Repeats with different x are
    interpolated at all of these x, within their common range. `number` chooses the look from
    `LINES`. marks: about as many markers. steps: a value holds from the point before up to its own.
    behind: draw the median alone, thin, grey and without a name, behind the others.
    """
    lines = [line for line in (_clean(rows(run), x, y) for run in runs) if len(line[0])]
    if not lines:
        return
    grid, values = _common(lines, steps)  # [n], [runs, n]
    look = style.LINES[number % len(style.LINES)]
    step = max(1, len(grid) // marks)
    first = min(number % 4 * step // 4, len(grid) - 1)  # lines on top of each other show markers
    how = "steps-pre" if steps else "default"
    middle = np.median(values, axis=0)
    if behind:
        axes.plot(grid, middle, color="0.82", linewidth=0.7, zorder=1, drawstyle=how)
        return
    axes.plot(grid, middle, label=label, markevery=(first, step), drawstyle=how, **look)
    if len(lines) > 1:
        low, high = band(values, len({run.config.get("seed") for run in runs}))  # [n], [n]
        between = "pre" if steps else None
        axes.fill_between(
            grid, low, high, color=look["color"], alpha=0.2, linewidth=0, step=between
        )


def band(values: np.ndarray, seeds: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a band over repeats [runs, n]: the quartiles of ROBUST or more, else all.

    Fewer repeats have no quartiles, and their band is from the least to the greatest. seeds: how
    many there are, if several runs have the same.
    """
    part = 0.25 if (seeds or len(values)) >= ROBUST else 0.0
    return np.quantile(values, part, axis=0), np.quantile(values, 1 - part, axis=0)


def points(axes: Axes, cells: Mapping[float, Sequence[float]], label: str, number: int = 0) -> None:
    """Draw repeats at a few x as their median, with their `band`.

    cells: {x: values of the repeats}. number: as in `curve`.
    """
    if not cells:
        return
    x, look = list(cells), style.LINES[number % len(style.LINES)]
    axes.plot(x, [np.median(cells[at]) for at in x], label=label, **look)
    if any(len(cells[at]) > 1 for at in x):
        ends = [band(np.array(cells[at])) for at in x]
        low, high = [float(a) for a, _ in ends], [float(b) for _, b in ends]
        if len(x) > 1:
            axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
        else:
            axes.vlines(x, low, high, color=look["color"], linewidth=0.8)


def rows_of(run: Run) -> pd.DataFrame:
    """Return /eval with accuracies in percent."""
    return run.eval.assign(
        train_accuracy=100 * run.eval.train_accuracy, test_accuracy=100 * run.eval.test_accuracy
    )


def last_fifth(run: Run) -> pd.DataFrame:
    """Return `rows_of` the last fifth of a run."""
    rows = rows_of(run)
    return rows[rows.epoch >= 0.8 * rows.epoch.max() - 1e-9]


def curves(
    groups: Mapping[str, Mapping[Hashable, Sequence[Run]]],
    columns: Sequence[str],
    name: Callable[[Hashable], str],
    x: str = "epoch",
    rows: Callable[[Run], pd.DataFrame] = rows_of,
) -> Figure:
    """Make a figure with a panel for every column of /eval and every one of `groups`.

    A panel has a curve for every line, labelled by `name`; a line looks alike in all panels.
    Columns that no run of a panel has are left out. The y axes do not show the first part of the
    curves.
    """
    places = _places(groups, columns)
    across = len(places) // len(columns) if 1 < len(places) // len(columns) <= 4 else 4
    figure, axes = style.grid(len(places), across)
    keys = dict.fromkeys(key for lines in groups.values() for key in lines)
    looks = {key: i for i, key in enumerate(keys)}
    for at, (column, panel) in zip(axes, places, strict=True):
        for key, repeats in groups[panel].items():
            curve(at, repeats, x, column, name(key), looks[key], rows=rows)
        at.set(
            xlabel=X_LABELS.get(x, x),
            ylabel=Y_LABELS[column],
            title=style.short(panel, 16 if across > 2 else 46),
        )
        _focus(at, percent=not column.endswith("loss"))
    same_x(axes)
    style.legend(figure)
    return figure


def same_x(panels: Sequence[Axes]) -> None:
    """Let panels that are compared cover the same x."""
    ends = np.array([axes.get_xlim() for axes in panels])  # [panels, 2]
    for axes in panels:
        axes.set_xlim(ends[:, 0].min(), ends[:, 1].max())


def _places(
    groups: Mapping[str, Mapping[Hashable, Sequence[Run]]], columns: Sequence[str]
) -> list[tuple[str, str]]:
    """Return (column, group) for every panel that some run has data for; UserError if none is."""
    places = [
        (column, panel)
        for column in columns
        for panel, lines in groups.items()
        if any(run.eval[column].notna().any() for repeats in lines.values() for run in repeats)
    ]
    if not places:
        raise UserError(f"no run here has {' or '.join(columns)}: nothing to draw")
    return places


def _focus(axes: Axes, percent: bool = True) -> None:
    """Let the y axis cover the curves after the first fifth of the x axis, and the later bands.

    An axis of percent covers at least IMAGES times the least difference of two points: one image
    of the test.
    """
    points = np.concatenate([line.get_xydata() for line in axes.lines])  # [n, 2]
    bands = [path.vertices for drawn in axes.collections for path in drawn.get_paths()]
    edges = np.concatenate([np.empty((0, 2)), *bands])  # [m, 2]
    last = points[:, 0].max()
    later = points[points[:, 0] >= 0.2 * last, 1]
    apart = np.diff(np.unique(np.round(later, 6)))
    later = np.concatenate([later, edges[edges[:, 0] >= 0.5 * last, 1]])
    room = 0.15 * float(np.ptp(later))
    if not percent:
        axes.set_ylim(later.min() - room, later.max() + room)
        return
    image = float(apart.min()) if len(apart) else 0.0
    room = max(room, 0.2, (IMAGES * min(image, 0.5) - np.ptp(later)) / 2)
    axes.set_ylim(later.min() - room, min(later.max() + room, 100 + room / 2))


def _clean(rows: pd.DataFrame, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite points of two columns, x [n] and y [n]; of equal x the last one."""
    points = rows[[x, y]].to_numpy(float)  # [n, 2]
    points = points[np.isfinite(points).all(axis=1)]
    points = points[np.diff(points[:, 0], append=np.inf) > 0]
    return points[:, 0], points[:, 1]


def _common(
    lines: list[tuple[np.ndarray, np.ndarray]], steps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate lines (x, y) at all x of their common range; return x [n], y [lines, n].

    steps: between two points a line has the value of the later one.
    """
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = np.unique(np.concatenate([x for x, _ in lines]))  # [n]
    grid = grid[(grid >= first) & (grid <= max(first, last))]
    if steps:
        at = [y[np.searchsorted(x, grid, "left").clip(max=len(y) - 1)] for x, y in lines]
        return grid, np.array(at)
    return grid, np.array([np.interp(grid, x, y) for x, y in lines])  # [n], [runs, n]
