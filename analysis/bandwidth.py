"""Modelled seconds to a training loss, and the bytes sent, against the bandwidth of the links.

Averages that wait for their end, that travel behind local updates, that are coded between nodes,
that come in pieces, all of these together, and a period that is chosen while training. Left: the
seconds after which the training loss came down to `--level`; a run that did not is left out. Right:
MB between nodes until then. Lines are medians of repeats, bands from the least to the greatest. The
best of each bandwidth is marked by a * in the table.

    python analysis/bandwidth.py runs/bandwidth-laptop --out figures
"""

from collections.abc import Hashable, Sequence

import curves
import numpy as np
import output
import quantities
import results
import style
from matplotlib.figure import Figure

from localavg.files.record import Run

NAMES = {  # in the order of the legend, and of the table
    "plain": "waiting",
    "delay": "delayed",
    "wire": "int8",
    "fragments": "in pieces",
    "fragments delay wire": "in pieces, delayed, int8",
    "auto": "K chosen",
}
LEVEL = 0.6
"""the training loss to which time is measured: half way of the runs at laptop scale"""
GBIT = 1.25e8
"""bytes a second of a link of 1 Gbit/s"""


def line(run: Run) -> str | None:
    """Return what is done to the averages of a run on a modelled clock, if the figure has it."""
    if run.config.get("algorithm") != "kavg" or not run.config.get("simulate"):
        return None
    if run.config.get("K") == "auto":
        return "auto"
    asked = [name for name in ("fragments", "delay", "wire") if run.config.get(name)]
    key = " ".join(asked) or "plain"
    return key if key in NAMES else None


def gbit(run: Run) -> float:
    """Return the rate of the run's links in Gbit/s."""
    return float(run.config["bandwidth_bytes_per_s"]) / GBIT


def MB_to(run: Run, level: float) -> float:
    """Return the MB that crossed between nodes until the loss came down to a level, or NaN."""
    t = quantities.reach(run, level, "t")
    averages = run.averages
    return 1e-6 * float(averages.bytes_cross[averages.t <= t].sum()) if np.isfinite(t) else np.nan


def cells(repeats: Sequence[Run], level: float, of: str) -> dict[float, list[float]]:
    """Return {Gbit/s: the seconds or MB of the repeats}, for rates at which all reach the level."""
    found: dict[float, list[float]] = {}
    for run in sorted(repeats, key=gbit):
        value = quantities.reach(run, level) if of == "s" else MB_to(run, level)
        found.setdefault(gbit(run), []).append(value)
    return {rate: values for rate, values in found.items() if np.isfinite(values).all()}


def draw(lines: dict[Hashable, list[Run]], level: float) -> Figure:
    """Make the figure of one problem."""
    figure, panels = style.panels(2, height_in=2.8)
    labels = {"s": f"modelled seconds to loss {level:g}", "MB": "MB between nodes until then"}
    for axes, (of, label) in zip(panels, labels.items(), strict=True):
        for key, repeats in lines.items():
            look = list(NAMES).index(str(key))
            curves.points(axes, cells(repeats, level, of), NAMES[str(key)], look)
        axes.set(xlabel="bandwidth of a link (Gbit/s)", ylabel=label)
        if axes.lines:
            axes.set(xscale="log", yscale="log")
            rates = {gbit(run) for repeats in lines.values() for run in repeats}
            style.plain_log(axes.xaxis, sorted(rates))
            style.plain_log(axes.yaxis)
    style.legend(figure)
    return figure


def table(lines: dict[Hashable, list[Run]], level: float) -> tuple[tuple[str, ...], ...]:
    """Return the header and the rows: the seconds of every method at every bandwidth."""
    rates = sorted({gbit(run) for repeats in lines.values() for run in repeats})
    found = {key: cells(repeats, level, "s") for key, repeats in lines.items()}
    best = {
        rate: min((np.median(each[rate]) for each in found.values() if rate in each), default=0.0)
        for rate in rates
    }

    def cell(values: Sequence[float] | None, rate: float) -> str:
        if values is None:
            return "-"
        return output.spread(values, 3) + " *" * int(np.median(values) == best[rate])

    rows = [
        (NAMES[str(key)], *(cell(each.get(rate), rate) for rate in rates))
        for key, each in found.items()
    ]
    return ("averages", *(f"s at {rate:g} Gbit/s" for rate in rates)), *rows


def main() -> None:
    args = results.arguments(__doc__, numbers={"level": LEVEL})
    groups = results.gather(args.folder, line, expected=NAMES, over=["bandwidth_bytes_per_s"])
    for i, (problem, lines) in enumerate(groups.items()):
        caption = (
            f"{problem}: modelled seconds to a training loss of {args.level:g}, and MB between "
            "nodes until then, against the bandwidth of a link; medians. Delayed averages send as "
            "much as those that wait. Below, the seconds; * is the least at that bandwidth."
        )
        header, *rows = table(lines, args.level)
        name = "bandwidth" + f"_{i + 1}" * (len(groups) > 1)
        figure = draw(lines, args.level)
        output.finish(args, name, figure, caption, {problem: lines}, header, rows)


if __name__ == "__main__":
    style.run(main)
