"""K-AVG Fig. 5 and 6: test accuracy at the end against the period K, one line a number of learners
P.

A panel a network. The table names the K of the highest mean accuracy for every P, beside the
paper's for vgg: 32 at P = 8, 2 at P = 64, 4 at P = 128. The best K need not be 1, and large K costs
more where P is large.

Cost: about 2 s for 30 runs.

    python analysis/kavg_fig5_6.py runs/kavg-fig5-6-laptop --out figures
"""

import numpy as np
import results
import style

PAPER = {8: 32, 64: 2, 128: 4}  # K_opt of vgg


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
            cells = results.values(results.by(repeats, "K"), results.accuracy)
            style.points(axes, cells, f"P = {P}", number)
            losses = results.values(
                results.by(repeats, "K"), lambda run: results.end(run, "train_loss")
            )
            best, least = (
                max(cells, key=lambda K: np.mean(cells[K])),
                min(losses, key=lambda K: np.mean(losses[K])),
            )
            rows.append(
                (
                    panel,
                    str(P),
                    str(best),
                    results.spread(cells[best]),
                    results.spread(cells.get(1, [])),
                    f"{results.spread(cells[max(cells)])} (K = {max(cells)})",
                    str(least),
                    str(PAPER.get(P, "-")),
                )
            )
        style.doubling(axes, [K for repeats in lines.values() for K in results.by(repeats, "K")])
        axes.set(
            xlabel="period K (local updates)",
            ylabel=style.Y_LABELS["test_accuracy"],
            title=style.short(panel),
        )
    style.legend(figure, ncols=5)
    header = (
        "problem",
        "P",
        "best K",
        "test accuracy (%)",
        "with K = 1",
        "with the largest K",
        "K of least training loss",
        "paper's best K, VGG",
    )
    results.finish(
        args,
        "kavg_fig5_6",
        figure,
        "Test accuracy of the averaged model at the end.",
        groups,
        header,
        rows,
    )


if __name__ == "__main__":
    style.run(main)
