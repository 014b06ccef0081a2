"""The style of the figures: for two-column papers, and legible in greyscale.

A script makes its figure with `panels`, `grid` or `curves`, draws repeated runs with `curve` or
`points`, and passes its `main` to `run`.
"""

import io
import string
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from tabulate import tabulate

from localavg.files.record import Run, UserError

SINGLE_IN, DOUBLE_IN = 3.4, 7.0  # width of one column and of two, in inches
# colour-blind safe colours with a line style and a marker each: those of Okabe and Ito from dark to
# light, and for figures with more lines muted ones of Tol
LINES = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#E69F00", "linestyle": (0, (8, 2)), "marker": "P"},
    {"color": "#56B4E9", "linestyle": (0, (2, 1)), "marker": "X"},
    {"color": "#882255", "linestyle": "-", "marker": "<"},
    {"color": "#117733", "linestyle": "--", "marker": ">"},
    {"color": "#332288", "linestyle": "-.", "marker": "p"},
    {"color": "#999933", "linestyle": ":", "marker": "*"},
    {"color": "#888888", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "h"},
    {"color": "#44AA99", "linestyle": (0, (8, 2)), "marker": "d"},
    {"color": "#AA4499", "linestyle": (0, (2, 1)), "marker": "8"},
    {"color": "#661100", "linestyle": "-", "marker": "x"},
    {"color": "#6699CC", "linestyle": "--", "marker": "+"},
    {"color": "#DDCC77", "linestyle": "-.", "marker": "1"},
    {"color": "#CC6677", "linestyle": ":", "marker": "2"},
)
SUBS = {1.5: (1, 1.5, 2, 3, 4, 5, 7), 3: (1, 3), np.inf: (1,)}  # most decades: labels in each
RC: Any = {  # matplotlib's settings
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
NOT_SETTINGS = {"seed", "out", "save_weights", "log_every", "resume"}  # may differ in repeats


def panels(
    columns: int = 1,
    width_in: float = DOUBLE_IN,
    height_in: float = 2.4,
    sharey: Literal["row"] | bool = False,
    rows: int = 1,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `rows` rows of `columns` panels; sizes are in inches.

    width_in: of the figure; height_in: of one row.
    """
    matplotlib.rcParams.update(RC)
    figure = Figure(figsize=(width_in, rows * height_in))
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


def grid(n: int, across: int = 4) -> tuple[Figure, list[Axes]]:
    """Make a figure of n panels, at most `across` in a row; a single one has half the width."""
    columns = min(n, across)
    figure, axes = panels(
        columns,
        width_in=SINGLE_IN if n == 1 else DOUBLE_IN,
        rows=-(-n // columns),
        height_in=2.5 if n <= across else 2.0,
    )
    for spare in axes[n:]:
        spare.remove()
    return figure, axes[:n]


def doubling(axes: Axes, xs: Iterable[float]) -> None:
    """Make the x axis logarithmic to base 2, with ticks at `xs`."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))])
    axes.minorticks_off()


def plain_log(axis: Axis, ticks: Sequence[float] | None = None) -> None:
    """Write plain numbers on a logarithmic axis, at `ticks` or at some of each decade drawn."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = next(s for most, s in SUBS.items() if not decades > most)
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def mark(axes: Axes, x: Sequence[float], y: Sequence[float], label: str = "paper") -> None:
    """Draw the values that a paper reports as hollow grey stars."""
    axes.plot(
        x,
        y,
        linestyle="none",
        marker="*",
        markersize=8,
        markerfacecolor="white",
        markeredgecolor="0.35",
        label=label,
        zorder=5,
    )


def level(axes: Axes, y: float, label: str) -> None:
    """Draw a horizontal reference line, such as a value that a paper reports."""
    axes.axhline(y, color="0.45", linewidth=0.8, linestyle=(0, (1, 1.5)), label=label, zorder=1)


def drops(axes: Axes, run: Run) -> None:
    """Draw vertical lines at the t where the step size of a run drops at its milestones."""
    end = run.eval.iloc[-1]
    for milestone in run.config.get("milestones") or ():
        if milestone < end.epoch:
            axes.axvline(milestone * end.t / end.epoch, color="0.6", linewidth=0.6, linestyle=":")


def letter(figure: Figure) -> None:
    """Begin the title of every panel with a letter, if there are several."""
    for axes, name in zip(figure.axes, string.ascii_lowercase, strict=False):
        if len(figure.axes) > 1 and not axes.get_title().startswith("("):
            axes.set_title(f"({name}) {axes.get_title()}".strip())


def legend(figure: Figure, ncols: int = 5) -> None:
    """Draw one legend above all panels, every label once in the order of first appearance.

    It replaces an earlier legend of the figure.
    """
    for old in list(figure.legends):
        old.remove()
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if figure.get_figwidth() < DOUBLE_IN:
        ncols = min(ncols, 2)  # of a single column
    if found:
        lines = -(-len(found) // ncols)
        columns = -(-len(found) // lines)
        handles, labels = list(found.values()), list(found)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def bars(axes: Axes, parts: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draw a horizontal bar for every name, the first on top.

    parts: {name: {part: length}}; the parts of a bar lie one after the other.
    """
    fills = ("0.25", "0.6", "0.85", "1.0")
    hatches = ("", "", "////", "....")
    left = np.zeros(len(parts))
    for i, part in enumerate(dict.fromkeys(part for lengths in parts.values() for part in lengths)):
        long = np.array([lengths.get(part, 0.0) for lengths in parts.values()])
        axes.barh(
            range(len(parts)),
            long,
            left=left,
            label=part,
            color=fills[i % 4],
            hatch=hatches[i % 4],
            edgecolor="0.2",
            linewidth=0.4,
            height=0.7,
        )
        left += long
    axes.set_yticks(range(len(parts)), list(parts))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.05)  # what is drawn beside bars later widens the axis
    axes.set_xlabel(label)


def short(panel: str, width: int = 46) -> str:
    """Wrap a panel's name into lines of at most `width` letters, for its title."""
    return textwrap.fill(panel, width, break_on_hyphens=False)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings, other than the seed, in which repeats of a run differ."""
    names = {name for run in runs for name in run.config} - NOT_SETTINGS
    return sorted(name for name in names if len({str(run.config.get(name)) for run in runs}) > 1)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png (200 dpi), and their folder; return the paths.

    Raises UserError if they cannot be written.
    """
    written = [stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(written[0], metadata={"CreationDate": None})
        figure.savefig(written[1], dpi=200)
    except OSError as error:
        raise UserError(
            f"{stem.parent}: cannot write figures here ({error.strerror}): give another --out"
        ) from error
    return written


def table(header: Sequence[str], rows: Sequence[Sequence[str]], how: str = "plain") -> str:
    """Return a table in the format `how` of tabulate.

    The first column and columns of words are flush left, columns of numbers flush right.
    """
    words = [i == 0 or any(row[i][:1].isalpha() for row in rows) for i in range(len(header))]
    sides = ["left" if w else "right" for w in words]
    return tabulate(rows, header, tablefmt=how, disable_numparse=True, colalign=sides)


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a user's mistake becomes one line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)
