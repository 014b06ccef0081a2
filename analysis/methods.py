"""All methods under one loop: training loss and test accuracy against what they cost.

The costs: updates, rounds, bytes, and seconds of a modelled clock with links of 1, 10 and 100
Gbit/s. A round is an average in which all learners take part. Bytes are what the link of a learner
carries in each direction, in averages of clusters too. Seconds are those of the run file, with the
averages as long as their bytes take at each rate: one set of runs serves all rates, because their
clock has no latency. Against all costs but updates a curve has one point a round, the first
evaluation after it: what is evaluated between rounds is an average that no learner has. The middle
of repeats is their median. The table has the seconds after which the training loss came down to
`--level`; `-` where it did not.

Cost: about 20 s for 54 runs.

    python analysis/methods.py runs/methods-laptop --out figures
"""

from collections.abc import Hashable, Sequence
from functools import cache

import curves
import numpy as np
import output
import pandas as pd
import quantities
import results
import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localavg.files.record import Run

MEASURES = {"train_loss": "methods", "test_accuracy": "methods_accuracy"}  # column: its figure
FAMILIES = {  # column of panels: its methods, and their names in the legend and the table
    "everyone, or neighbours, at each update": {
        "sync": "sync",
        "qsgd": "QSGD",
        "gossip ring": "gossip, ring",
        "gossip one-peer-exp": "gossip, one peer",
    },
    "a fixed period": {
        "kavg": "K-AVG",
        "mavg": "M-AVG",
        "slowmo": "SlowMo",
        "diloco": "DiLoCo",
        "fedavg": "FedAvg, half of P",
    },
    "a period that changes": {
        "postlocal": "post-local",
        "piecewise": "piecewise",
        "adpsgd": "ADPSGD",
        "adalupa": "ADA-LUPA",
        "adacomm": "AdaComm",
        "qsr": "QSR",
    },
    "clusters, or no average till the end": {
        "hieravg": "Hier-AVG",
        "hieravg levels": "Hier-AVG, 3 levels",
        "oneshot": "one-shot",
    },
}
NAMES = {key: name for family in FAMILIES.values() for key, name in family.items()}
REFERENCE = "sync"  # the method that stands in every panel
FAR = "oneshot"  # the line that is so far from the others that they could not be told apart
SECONDS = [quantities.seconds_at(gbit) for gbit in quantities.GBITS]
COSTS = {
    "t": "local updates t",
    "rounds": "rounds",
    "MB": "MB on a learner's link",
    **dict(zip(SECONDS, SECONDS, strict=True)),
}


def line(run: Run) -> str | None:
    """Return the algorithm and its kind, if the figure has it and the run's clock `rescales`."""
    words = [run.config.get("algorithm"), run.config.get("graph")]
    words += ["levels"] * (run.config.get("levels") is not None)
    key = " ".join(filter(None, words))
    return key if key in NAMES and quantities.rescales(run) else None


@cache  # every panel asks again
def rows_of(run: Run) -> pd.DataFrame:
    """Return the evaluations of a run with their costs, and with accuracies in percent."""
    rows = quantities.on_links(run)
    return rows.assign(test_accuracy=100 * rows.test_accuracy)


@cache
def shared(run: Run) -> pd.DataFrame:
    """Return the first of `rows_of` after each round, when every learner has the average."""
    return quantities.by_rounds(run, rows_of)


def draw(lines: dict[Hashable, list[Run]], column: str) -> Figure:
    """Make the figure of a column of /eval for one problem: a row of panels for every cost.

    A column of panels shows a family, the other methods in grey behind it.
    """
    families = {
        title: [key for key in lines if key in family] for title, family in FAMILIES.items()
    }
    families = {title: keys for title, keys in families.items() if keys}
    across = len(families)
    figure, panels = style.panels(across, rows=len(COSTS), height_in=1.5, sharey=True)
    for i, axes in enumerate(panels):
        cost, title = [*COSTS][i // across], [*families][i % across]
        rows = rows_of if cost == "t" else shared
        for key, repeats in lines.items():
            behind = key not in families[title] and key != REFERENCE
            name = NAMES[key] + " (off the scale)" * (key == FAR and len(lines) > 1)
            look = list(NAMES).index(key)
            curves.curve(axes, repeats, cost, column, name, look, rows, marks=4, behind=behind)
        axes.set(xlabel=COSTS[cost], ylabel="" if i % across else curves.Y_LABELS[column])
        if i < across:
            axes.set_title(style.short(title, 24))
        if cost != "t":
            axes.set_xscale("log", nonpositive="mask")
    for first in range(0, 3 * across, across):
        same_range(panels[first : first + across])
    same_range(panels[3 * across :])
    zoom(panels, lines, column)
    style.legend(figure)
    return figure


def same_range(panels: Sequence[Axes]) -> None:
    """Give the x axes of panels the same limits."""
    limits = np.array([axes.get_xlim() for axes in panels])  # [panels, 2]
    for axes in panels:
        axes.set_xlim(limits[:, 0].min(), limits[:, 1].max())


def zoom(panels: Sequence[Axes], lines: dict[Hashable, list[Run]], column: str) -> None:
    """Let the y axes of panels cover what the runs show after the first tenth of their updates.

    FAR is left out, if there are others.
    """
    shown = [repeats for key, repeats in lines.items() if key != FAR] or [*lines.values()]
    runs = [rows_of(run) for repeats in shown for run in repeats]
    later = pd.concat([rows[rows.t >= 0.1 * rows.t.max()][column] for rows in runs]).dropna()
    low, high = later.min(), later.max()
    for axes in panels:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def table(lines: dict[Hashable, list[Run]], level: float) -> list[tuple[str, ...]]:
    """Return the rows of the table of one problem."""
    return [
        (
            NAMES[key],
            output.over(repeats, "train_loss", 4),
            output.over(repeats, quantities.best_accuracy),
            output.over(repeats, quantities.rounds, 0),
            output.over(repeats, lambda run: float(rows_of(run).MB.iloc[-1]), 1),
            *(seconds_to(level, repeats, cost) for cost in SECONDS),
        )
        for key, repeats in lines.items()
    ]


def seconds_to(level: float, repeats: Sequence[Run], cost: str) -> str:
    """Write the cost when the training loss came down to a level; `-` if not in every run."""
    found = [quantities.reach(run, level, cost, shared) for run in repeats]
    return output.spread(found, 3) if np.isfinite(found).all() else "-"


def main() -> None:
    args = results.arguments(__doc__, numbers={"level": quantities.LEVEL})
    groups = results.gather(args.folder, line, expected=NAMES)
    several = len(groups) > 1
    header = (
        "method",
        "training loss",
        "best accuracy (%)",
        "rounds",
        "MB",
        *(f"s to {args.level:g} at {gbit}" for gbit in quantities.GBITS),
    )
    for i, (problem, lines) in enumerate(groups.items()):
        for column, stem in MEASURES.items():
            caption = (
                f"{problem}: {curves.Y_LABELS[column].removesuffix(' (%)')} of the averaged model "
                "against updates, rounds, bytes and modelled seconds, without latency; medians."
            )
            numbers = ()
            if column == "train_loss":
                numbers = (header, table(lines, args.level))
                caption += (
                    f" Below, MB of a learner's link in each direction, and seconds to a training "
                    f"loss of {args.level:g} at so many Gbit/s."
                )
            name = stem + f"_{i + 1}" * several
            output.finish(args, name, draw(lines, column), caption, {problem: lines}, *numbers)


if __name__ == "__main__":
    style.run(main)
