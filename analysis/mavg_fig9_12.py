"""M-AVG Fig. 9 to 12: test accuracy and training loss against the block momentum μ.

One line a number of learners P. The table has the best μ for every P, by accuracy and by loss. The
paper's best μ by validation accuracy is 0.7 for small P and 0.9 at P = 48, so it grows with P;
μ = 0 is K-AVG.

Cost: about 2 s for 60 runs.

    python analysis/mavg_fig9_12.py runs/mavg-fig9-12-laptop --out figures
"""

from collections.abc import Mapping

import curves
import output
import quantities
import results
import style

PAPER = {6: "0.7", 48: "0.9"}
HEADER = (
    "problem",
    "P",
    "best μ",
    "test accuracy (%)",
    "paper's best μ",
    "μ of least loss",
    "training loss",
)


def best(accuracies: Mapping[float, list[float]]) -> tuple[str, str]:
    """Write the μ of the highest mean accuracy, and this accuracy."""
    mu = results.highest(accuracies)
    return f"{mu:g}", output.spread(accuracies[mu])


def least(losses: Mapping[float, list[float]]) -> tuple[str, str]:
    """Write the μ of the lowest mean training loss, and this loss."""
    mu = results.lowest(losses)
    return f"{mu:g}", output.spread(losses[mu], 4)


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: run.config["learners"] if run.config.get("algorithm") == "mavg" else None,
        ended=True,
        over=("mu",),
    )
    figure, panels = style.panels(2, rows=len(groups))
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        accuracy, loss = panels[2 * i : 2 * i + 2]
        for number, (P, repeats) in enumerate(lines.items()):
            cells = results.by(repeats, "mu")
            right = results.values(cells, quantities.accuracy)
            low = results.values(cells, lambda run: quantities.end(run, "train_loss"))
            curves.points(accuracy, right, f"P = {P}", number)
            curves.points(loss, low, f"P = {P}", number)
            rows.append((panel, str(P), *best(right), PAPER.get(P, "-"), *least(low)))
        for axes, column in ((accuracy, "test_accuracy"), (loss, "train_loss")):
            axes.set(
                xlabel="block momentum μ", ylabel=curves.Y_LABELS[column], title=style.short(panel)
            )
        top = accuracy.dataLim.y1
        accuracy.set_ylim(max(accuracy.get_ylim()[0], top - 10), top + 0.5)
        loss.set_yscale("log")
        style.plain_log(loss.yaxis)
    style.legend(figure)
    caption = "M-AVG's test accuracy (from 10 points below the best) and training loss at the end."
    output.finish(args, "mavg_fig9_12", figure, caption, groups, HEADER, rows)


if __name__ == "__main__":
    style.run(main)
