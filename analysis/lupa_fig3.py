"""LUPA Fig. 3: time of LUPA-SGD (τ = 91) to a training loss of 0.35 against the machines P.

A panel a clock and mini-batch. Of a measured clock there is a second panel, with the local updates
of each machine, which do not depend on the number of cores; on a modelled one they would be the
same picture again. Dotted: linear speed-up, the time of one machine divided by P. Between
evaluations the loss is interpolated linearly. The loss is 0.35, or where not all runs come down to
it the least to which all do.

Cost: about 2 s for 30 runs.

    python analysis/lupa_fig3.py runs/lupa-fig3-laptop --out figures
"""

from collections.abc import Mapping
from functools import partial

import curves
import numpy as np
import output
import quantities
import results
import style
from matplotlib.axes import Axes

LEVEL = 0.35
AXES = {"wall_s": "seconds", "t": "updates"}


def linear(axes: Axes, cells: Mapping[int, list[float]]) -> None:
    """Draw the times of a linear speed-up over one machine."""
    times = [np.median(cells[1]) / P for P in cells]
    label = "linear speed-up"
    axes.plot(list(cells), times, color="0.45", linewidth=0.8, linestyle=":", label=label)


def numbers(cells: Mapping[int, list[float]], P: int, runs: int, x: str) -> tuple[str, str, str]:
    """Write how many runs reached the loss, their mean, and the speed-up over the least P."""
    speed = np.mean(cells[min(cells)]) / np.mean(cells[P])
    mean = output.spread(cells[P], 3 if x == "wall_s" else 0)
    return f"{len(cells[P])}/{runs}", mean, f"{speed:.2f}"


def place(run: results.Run) -> str:
    """Return the name of a run's panel: its clock and mini-batch."""
    return f"{quantities.clock(run)}, B = {run.config.get('batch_size')}"


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: run.config["K"] if run.config.get("algorithm") == "kavg" else None,
        place,
        {91: "LUPA-SGD τ = 91"},
        over=("learners",),
    )
    places = [
        (panel, x)
        for panel, lines in groups.items()
        for x in AXES
        if x == "wall_s"
        or not any(r.config.get("simulate") for some in lines.values() for r in some)
    ]
    figure, panels = style.grid(len(places), across=2)
    rows = []
    for axes, (panel, x) in zip(panels, places, strict=True):
        lines = groups[panel]
        level = quantities.common_level([r for some in lines.values() for r in some], LEVEL)
        machines: set[int] = set()
        for number, (tau, repeats) in enumerate(lines.items()):
            by_P = results.by(repeats, "learners")
            for column, word in AXES.items():
                reach = partial(quantities.reach, level=level, column=column)
                cells = results.values(by_P, reach)
                what = f"{word} to loss {level:g}"
                if x == "wall_s":
                    rows += [
                        (panel, what, str(P), *numbers(cells, P, len(by_P[P]), column))
                        for P in cells
                    ]
                if column == x:
                    curves.points(axes, cells, f"LUPA-SGD τ = {tau}", number)
                    machines |= cells.keys()
                    if 1 in cells:
                        linear(axes, cells)
        axes.set(
            xlabel="machines P",
            ylabel=f"{AXES[x]} to loss {level:g}",
            title=style.short(panel),
            xticks=sorted(machines),
            ylim=(0, None),
        )
    style.legend(figure)
    header = ("problem", "what", "P", "reached", "mean", "speed-up")
    caption = "Time to a training loss. Dotted: linear speed-up over one machine."
    output.finish(args, "lupa_fig3", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
