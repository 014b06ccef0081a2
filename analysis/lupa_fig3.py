"""LUPA Fig. 3: time of LUPA-SGD (τ = 91) to a training loss of 0.35 against the machines P.

Left: the wall clock. Right: the local updates of each machine, which do not depend on the number of
cores. Dotted: linear speed-up, the time of one machine divided by P. Between evaluations the loss
is interpolated linearly.

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
AXES = {"wall_s": f"seconds to loss {LEVEL}", "t": f"updates to loss {LEVEL}"}


def linear(axes: Axes, cells: Mapping[int, list[float]]) -> None:
    """Draw the times of a linear speed-up over one machine."""
    times = [np.mean(cells[1]) / P for P in cells]
    label = "linear speed-up"
    axes.plot(list(cells), times, color="0.45", linewidth=0.8, linestyle=":", label=label)


def numbers(cells: Mapping[int, list[float]], P: int, runs: int, x: str) -> tuple[str, str, str]:
    """Write how many runs reached the loss, their mean, and the speed-up over the least P."""
    speed = np.mean(cells[min(cells)]) / np.mean(cells[P])
    mean = output.spread(cells[P], 3 if x == "wall_s" else 0)
    return f"{len(cells[P])}/{runs}", mean, f"{speed:.2f}"


def print_missing(panel: str, P: int) -> None:
    """Print that P machines did not reach the loss."""
    print(f"missing: {panel}, P = {P}: no run reached a loss of {LEVEL}; train longer")


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: run.config["K"] if run.config.get("algorithm") == "kavg" else None,
        quantities.clock,
        {91: "LUPA-SGD τ = 91"},
        over=("learners",),
    )
    figure, panels = style.panels(2, rows=len(groups))
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        for axes, (x, label) in zip(panels[2 * i :], AXES.items(), strict=False):
            machines: set[int] = set()
            for number, (tau, repeats) in enumerate(lines.items()):
                by_P = results.by(repeats, "learners")
                cells = results.values(by_P, partial(quantities.reach, level=LEVEL, column=x))
                curves.points(axes, cells, f"LUPA-SGD τ = {tau}", number)
                machines |= cells.keys()
                if 1 in cells:
                    linear(axes, cells)
                for P, some in by_P.items():
                    if P in cells:
                        rows.append((panel, label, str(P), *numbers(cells, P, len(some), x)))
                    elif x == "t":
                        print_missing(panel, P)
            axes.set(
                xlabel="machines P",
                ylabel=label,
                title=style.short(panel),
                xticks=sorted(machines),
                ylim=(0, None),
            )
    style.legend(figure)
    header = ("problem", "what", "P", "reached", "mean", "speed-up")
    caption = f"Time to a training loss of {LEVEL}."
    output.finish(args, "lupa_fig3", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
