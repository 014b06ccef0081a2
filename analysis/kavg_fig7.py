"""K-AVG Fig. 7: the gap in test accuracy between K-AVG and sequential SGD against P.

Both train for the same number of epochs. One line a network; above 0 K-AVG is ahead. The paper:
within 1.3 points for nin at P = 128, up to 8.8 behind for vgg.

Cost: about 2 s for 10 runs.

    python analysis/kavg_fig7.py runs/kavg-fig7-laptop --out figures
"""

import curves
import numpy as np
import output
import quantities
import results
import style

NAMES = {"kavg": "K-AVG", "sgd": "sequential SGD"}


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: a if (a := run.config.get("algorithm")) in NAMES else None,
        expected=NAMES,
        ended=True,
        over=("learners",),
    )
    figure, (axes,) = style.panels(1, width_in=style.SINGLE_IN, height_in=2.5)
    rows = []
    learners: set[int] = set()
    for number, (panel, lines) in enumerate(groups.items()):
        cells = results.values(results.by(lines.get("kavg", []), "learners"), quantities.accuracy)
        alone = [quantities.accuracy(run) for run in lines.get("sgd", [])]
        if not (cells and alone):
            print(f"missing: {panel}: K-AVG and SGD, both")
            continue
        learners |= cells.keys()
        base = float(np.mean(alone))
        gaps = {P: [x - base for x in found] for P, found in cells.items()}
        curves.points(axes, gaps, panel, number)
        for P, found in cells.items():
            both = output.spread(found), output.spread(alone)
            rows.append((panel, str(P), *both, f"{np.mean(found) - base:+.2f}"))
    style.level(axes, 0, "sequential SGD")
    style.doubling(axes, learners or {1})
    axes.set(xlabel="learners P", ylabel="gap in test accuracy (points)")
    style.legend(figure, ncols=1)
    header = ("problem", "P", "K-AVG (%)", "SGD (%)", "gap")
    caption = (
        "Test accuracy of K-AVG less that of sequential SGD, both at the end. Dotted: sequential "
        "SGD."
    )
    output.finish(args, "kavg_fig7", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
