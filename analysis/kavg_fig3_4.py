"""K-AVG Fig. 3 and 4: speed-up in wall clock of K-AVG over Downpour and EAMSGD against P.

All train for the same number of epochs. Only times of one clock can be compared: a panel for every
network and clock, measured or modelled (train --simulate). Stars are the paper's values at P = 128
for vgg: 2.5 over Downpour, 2.6 over EAMSGD.

Cost: about 2 s for 12 runs.

    python analysis/kavg_fig3_4.py runs/kavg-fig3-4-laptop --out figures
"""

from collections.abc import Hashable
from typing import TypeAlias

import curves
import numpy as np
import output
import quantities
import results
import style

OTHERS = {"downpour": "over Downpour", "eamsgd": "over EAMSGD"}
PAPER = {128: (2.5, 2.6)}
EQUAL = 0.005
"""relative difference up to which two lines are drawn as one"""

Cells: TypeAlias = dict[Hashable, list[float]]


def equal(a: Cells, b: Cells) -> bool:
    """Return whether two lines lie on each other."""
    return a.keys() == b.keys() and all(
        abs(np.median(a[P]) / np.median(b[P]) - 1) < EQUAL for P in a
    )


def main() -> None:
    args = results.arguments(__doc__)
    names = {"kavg": "K-AVG"} | {key: f"K-AVG {over}" for key, over in OTHERS.items()}
    groups = results.gather(
        args.folder,
        lambda run: a if (a := run.config.get("algorithm")) in names else None,
        quantities.clock,
        names,
        needs="train.wall_s",
        ended=True,
        over=("learners", "alpha"),
    )
    figure, panels = style.grid(len(groups), across=2)
    rows = []
    for axes, (panel, lines) in zip(panels, groups.items(), strict=True):
        times = {
            key: results.values(results.by(repeats, "learners"), quantities.wall_s)
            for key, repeats in lines.items()
        }
        ours = {P: float(np.mean(seconds)) for P, seconds in times.pop("kavg", {}).items()}
        drawn: dict[str, Cells] = {}  # label: speed-ups
        for key, others in times.items():
            both = {P: seconds for P, seconds in others.items() if P in ours}
            ratios = {P: [s / ours[P] for s in seconds] for P, seconds in both.items()}
            same = next((label for label, other in drawn.items() if equal(other, ratios)), "")
            drawn.pop(same, None)
            drawn[f"{same} and {OTHERS[key]}" if same else OTHERS[key]] = ratios
            rows += [(panel, OTHERS[key], str(P), output.spread(r)) for P, r in ratios.items()]
        for number, (label, ratios) in enumerate(drawn.items()):
            curves.points(axes, ratios, label, number)
        if not rows:
            print(f"missing: {panel}: K-AVG and another algorithm at the same P, on the same clock")
        stars = [(P, ratio) for P, ratios in PAPER.items() for ratio in ratios]
        xs, ys = zip(*stars, strict=True)
        style.mark(axes, xs, ys, "paper, VGG")
        style.doubling(axes, {*ours, *PAPER})
        style.level(axes, 1, "equal")
        title = style.short(panel)
        axes.set(xlabel="learners P", ylabel="speed-up of K-AVG", title=title, ylim=(0, None))
    style.legend(figure, ncols=2)
    header = ("problem and clock", "K-AVG", "P", "speed-up")
    caption = (
        "Wall clock of the asynchronous algorithm over that of K-AVG. Dotted: equal. Stars: the "
        "paper's for VGG."
    )
    output.finish(args, "kavg_fig3_4", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
