"""K-AVG Fig. 5 and 6: test accuracy at the end against the period K, a line for every P.

A panel a network; P is the number of learners. The table has the K of the highest mean accuracy for
every P, and the paper's for vgg: 32 at P = 8, 2 at P = 64, 4 at P = 128. The best K need not be 1,
and a large K costs more accuracy if P is large.

Cost: about 2 s for 30 runs.

    python analysis/kavg_fig5_6.py runs/kavg-fig5-6-laptop --out figures
"""

from collections.abc import Mapping

import curves
import output
import quantities
import results
import style

PAPER = {8: 32, 64: 2, 128: 4}  # K_opt of vgg
HEADER = (
    "problem",
    "P",
    "best K",
    "test accuracy (%)",
    "with K = 1",
    "with the largest K",
    "K of least training loss",
    "paper's best K, VGG",
)


def numbers(
    cells: Mapping[int, list[float]], losses: Mapping[int, list[float]]
) -> tuple[str, str, str, str, str]:
    """Write the best K, the accuracies at it, at 1 and at the largest K, and the K of least loss.

    cells, losses: the accuracies and the training losses of the repeats, by K.
    """
    best, largest = results.highest(cells), max(cells)
    return (
        str(best),
        output.spread(cells[best]),
        output.spread(cells.get(1, [])),
        f"{output.spread(cells[largest])} (K = {largest})",
        str(results.lowest(losses)),
    )


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: run.config["learners"] if run.config.get("algorithm") == "kavg" else None,
        ended=True,
        over=("K",),
    )
    figure, panels = style.grid(len(groups), across=2)
    rows = []
    for axes, (panel, lines) in zip(panels, groups.items(), strict=True):
        for number, (P, repeats) in enumerate(lines.items()):
            by_K = results.by(repeats, "K")
            cells = results.values(by_K, quantities.accuracy)
            losses = results.values(by_K, lambda run: quantities.end(run, "train_loss"))
            curves.points(axes, cells, f"P = {P}", number)
            rows.append((panel, str(P), *numbers(cells, losses), str(PAPER.get(P, "-"))))
        style.doubling(axes, [K for repeats in lines.values() for K in results.by(repeats, "K")])
        axes.set(
            xlabel="period K (local updates)",
            ylabel=curves.Y_LABELS["test_accuracy"],
            title=style.short(panel),
        )
    style.legend(figure, ncols=5)
    caption = "Test accuracy of the averaged model at the end."
    output.finish(args, "kavg_fig5_6", figure, caption, groups, HEADER, rows)


if __name__ == "__main__":
    style.run(main)
