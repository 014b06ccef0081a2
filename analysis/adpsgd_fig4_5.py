"""ADPSGD Fig. 4 and 5: training loss and test accuracy over epochs, and where the time goes.

FULLSGD, CPSGD with p = 8, ADPSGD and QSGD; a column a network. Bars: time in computation and
communication, by the clock of the runs: measured, or modelled (train --simulate) for links of 10
and of 100 Gbit/s, one set of runs for both, whose training does not depend on it. The paper: ADPSGD
is 1.14 and 1.24 times as fast as FULLSGD at 100 Gbit/s, 1.46 and 1.83 times at 10, with 498 and 494
averages of 4000 updates.

Cost: about 3 s for 12 runs.

    python analysis/adpsgd_fig4_5.py runs/adpsgd-fig4-5-laptop --out figures
"""

import argparse
from typing import TypeAlias

import curves
import numpy as np
import output
import quantities
import results
import style

NAMES = {
    "sync": "FULLSGD",
    "kavg": "CPSGD p = 8",
    "piecewise": "CPSGD",
    "adpsgd": "ADPSGD",
    "qsgd": "QSGD",
}
PARTS = {
    "compute_s": "computation",
    "data_s": "data",
    "communicate_s": "communication",
    "wait_s": "waiting",
}


def line(run: results.Run) -> str | None:
    """Return the algorithm, if it is one of the figure's; CPSGD is kavg, or piecewise by pieces."""
    algorithm = run.config.get("algorithm")
    if algorithm == "kavg" and run.config["K"] != 8:
        return None
    return algorithm if algorithm in NAMES else None


def name(key: str) -> str:
    """Return the name of an algorithm in the legend."""
    return NAMES[key]


Times: TypeAlias = dict[str, dict[str, dict[str, float]]]  # {clock: {algorithm: {part: seconds}}}


def times(groups: results.Groups) -> tuple[Times, list[tuple[str, ...]]]:
    """Return the seconds of every part, medians over repeats, and the rows of the table."""
    found: Times = {}
    rows: list[tuple[str, ...]] = []
    for lines in groups.values():
        for key, repeats in lines.items():
            for clock, some in results.by_clock(repeats, quantities.ADPSGD_GBITS).items():
                parts = {
                    word: np.median([run.train[column].iloc[-1] for run in some])
                    for column, word in PARTS.items()
                }
                found.setdefault(clock, {})[name(key)] = parts
                rows.append(
                    (
                        clock,
                        name(key),
                        output.over(some, quantities.rounds, 0),
                        payload(some),
                        output.over(some, "train_loss", 4),
                        output.over(some, quantities.best_accuracy),
                        output.over(some, quantities.wall_s, 3),
                    )
                )
    return dict(sorted(found.items())), rows


def payload(repeats: list[results.Run]) -> str:
    """Return the MB of all averages; "-" where one rank had all learners and nothing was sent."""
    sent = any(quantities.sent_MB(run) for run in repeats)
    return output.over(repeats, quantities.sent_MB, 1) if sent else "-"


def draw(
    args: argparse.Namespace, stem: str, groups: results.Groups, levels: dict[str, float]
) -> None:
    """Draw the figure of curves and the one of bars.

    levels: accuracies of the paper in percent, by their names.
    """
    figure = curves.curves(groups, ("train_loss", "test_accuracy"), name)
    for axes in figure.axes:
        if axes.get_ylabel() == curves.Y_LABELS["test_accuracy"]:
            for label, percent in levels.items():
                style.level(axes, percent, label)
    style.legend(figure)
    found, rows = times(groups)
    header = (
        "problem and clock",
        "algorithm",
        "averages",
        "payload (MB)",
        "training loss",
        "best accuracy (%)",
        "seconds",
    )
    caption = (
        "Training loss and test accuracy of the averaged model, without the first part of the "
        "curves. No payload where one rank has all learners."
    )
    output.finish(args, stem, figure, caption, groups, header, rows)
    figure, panels = style.grid(len(found), across=2)
    for axes, (clock, parts) in zip(panels, found.items(), strict=True):
        style.bars(axes, parts, "wall clock (s)")
        axes.set_title(style.short(clock))
    curves.same_x(panels)
    style.legend(figure)
    caption = "Where the time went, medians over repeats."
    output.finish(args, f"{stem}_times", figure, caption, groups)


def main() -> None:
    args = results.arguments(__doc__)
    expected = {key: name for key, name in NAMES.items() if key != "piecewise"}
    groups = results.gather(
        args.folder, lambda run: key if (key := line(run)) in expected else None, expected=expected
    )
    draw(args, "adpsgd_fig4_5", groups, {})


if __name__ == "__main__":
    style.run(main)
