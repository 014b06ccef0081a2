"""ADPSGD §III-A and §V-B: periods that grow, fall or stay, with about as many averages each.

It shows when in a run averages help most: strategies 1 to 4 (4 then 8, 8 then 4, 8, 5) and the
counter-example 20 then 5, which makes as many averages as p = 8. The paper: 20 then 5 ends at 91.84
% (GoogLeNet) and 89.78 % (VGG16), training loss 0.023 and 0.15, worse than all others.

Cost: about 2 s for 5 runs.

    python analysis/adpsgd_strategies.py runs/adpsgd-strategies-laptop --out figures
"""

import curves
import output
import quantities
import results
import style


def line(run: results.Run) -> tuple[int, ...] | None:
    """Return the periods in their order."""
    if run.config.get("algorithm") == "kavg":
        return (run.config["K"],)
    if run.config.get("algorithm") != "piecewise":
        return None
    return tuple(int(piece.split(":")[1]) for piece in run.config["pieces"].split(","))


def name(key: tuple[int, ...]) -> str:
    """Return the name of a strategy in the legend."""
    return "p = " + ", then ".join(map(str, key))


def main() -> None:
    args = results.arguments(__doc__)
    expected = {key: name(key) for key in ((4, 8), (8, 4), (8,), (5,), (20, 5))}
    groups = results.gather(args.folder, line, expected=expected)
    figure = curves.curves(groups, ("train_loss", "test_accuracy"), name)
    rows = [
        (
            panel,
            name(key),
            output.over(repeats, quantities.rounds, 0),
            output.over(repeats, lambda run: run.eval.train_loss.min(), 4),
            output.over(repeats, quantities.best_accuracy),
            output.over(repeats, quantities.weighted_variance, 4),
        )
        for panel, lines in groups.items()
        for key, repeats in lines.items()
    ]
    header = (
        "problem",
        "period",
        "averages",
        "least training loss",
        "best accuracy (%)",
        "weighted variance (9)",
    )
    caption = "Training loss and test accuracy of the averaged model."
    output.finish(args, "adpsgd_strategies", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
