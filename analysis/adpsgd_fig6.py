"""ADPSGD Fig. 6: speed-up of FULLSGD and ADPSGD over SGD on one node, against the number of nodes.

It compares the wall clock per example. A panel for every network and clock: measured, or modelled
(train --simulate) for links of 10 and of 100 Gbit/s, one set of runs for both. Dotted: linear.
Stars: numbers in the paper's text, FULLSGD on 16 nodes with VGG16: 12.77 at 100 Gbit/s and 6.12 at
10; ADPSGD is almost linear.

Cost: about 2 s for 21 runs.

    python analysis/adpsgd_fig6.py runs/adpsgd-fig6-laptop --out figures
"""

from collections.abc import Hashable, Sequence

import curves
import numpy as np
import output
import quantities
import results
import style

from localavg.files.record import Run

NAMES = {"sgd": "SGD on one node", "sync": "FULLSGD", "adpsgd": "ADPSGD"}
PAPER = {"100": 12.77, "10": 6.12}  # FULLSGD, VGG16, 16 nodes, by Gbit/s


def an_example_s(run: Run) -> float:
    """Return the wall clock divided by the number of examples trained on.

    Epochs are not exactly equal, because their last incomplete update is left out.
    """
    return quantities.wall_s(run) / run.train.samples.iloc[-1]


def speed_ups(runs: Sequence[Run], alone_s: float) -> dict[int, list[float]]:
    """Return the speed-ups of runs on P nodes, by P, over a wall clock per example on one."""
    times = results.values(results.by(runs, "learners"), an_example_s)
    return {P: [alone_s / s for s in seconds] for P, seconds in times.items()}


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: a if (a := run.config.get("algorithm")) in NAMES else None,
        expected=NAMES,
        needs="train.wall_s",
        ended=True,
        over=("learners",),
    )
    clocks: dict[str, dict[Hashable, list[Run]]] = {}  # {clock: {line: repeats}}
    for lines in groups.values():
        for key, repeats in lines.items():
            for clock, some in results.by_clock(repeats, quantities.ADPSGD_GBITS).items():
                clocks.setdefault(clock, {})[key] = some
    figure, panels = style.grid(len(clocks), across=2)
    rows = []
    for axes, (panel, lines) in zip(panels, sorted(clocks.items()), strict=True):
        alone = [an_example_s(run) for run in lines.pop("sgd", [])]
        nodes = {1}
        for key, repeats in lines.items() if alone else ():
            cells = speed_ups(repeats, float(np.mean(alone)))
            curves.points(axes, {1: [1.0], **cells}, NAMES[key], list(NAMES).index(key) - 1)
            nodes |= cells.keys()
            for P, found in cells.items():
                rows.append((panel, NAMES[key], str(P), output.spread(found)))
        if not (alone and lines):
            print(f"missing: {panel}: SGD on one node and another algorithm on the same clock")
        if (link := panel.rpartition(" at ")[2].removesuffix(" Gbit/s")) in PAPER:
            style.mark(axes, [16], [PAPER[link]], "paper, FULLSGD with VGG16")
        line = sorted(nodes)
        axes.plot(line, line, color="0.45", linewidth=0.8, linestyle=":", label="linear")
        axes.set(
            xlabel="nodes P",
            ylabel="speed-up over one node",
            title=style.short(panel),
            xticks=sorted(nodes),
        )
    style.legend(figure)
    header = ("problem and clock", "algorithm", "nodes", "speed-up")
    caption = (
        "Wall clock per example of SGD on one node over that on P nodes. Dotted: linear speed-up. "
        "Stars: the paper's numbers for FULLSGD with VGG16 on 16 nodes."
    )
    output.finish(args, "adpsgd_fig6", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
