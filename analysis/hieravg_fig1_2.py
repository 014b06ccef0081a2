"""Hier-AVG Fig. 1 and 2: training and test accuracy over epochs for K₂ = 8, 16, 32.

A column a network. As in the paper, only the last part of the run is shown, here the last fifth.
The paper: fewer global averages need not be worse. The table has the accuracies at the end.

Cost: about 2 s for 3 runs.

    python analysis/hieravg_fig1_2.py runs/hieravg-fig1-2-laptop --out figures
"""

import curves
import output
import quantities
import results
import style


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: run.config["K2"] if run.config.get("algorithm") == "hieravg" else None,
        expected={K2: f"K₂ = {K2}" for K2 in (8, 16, 32)},
    )
    figure = curves.curves(
        groups, ("train_accuracy", "test_accuracy"), lambda K2: f"K₂ = {K2}", rows=curves.last_fifth
    )
    rows = [
        (
            panel,
            str(K2),
            output.over(repeats, quantities.rounds, 0),
            output.over(repeats, "train_accuracy"),
            output.over(repeats, "test_accuracy"),
        )
        for panel, lines in groups.items()
        for K2, repeats in lines.items()
    ]
    header = ("problem", "K₂", "global averages", "training accuracy (%)", "test accuracy (%)")
    caption = "Training and test accuracy of the averaged model, the last fifth of the run."
    output.finish(args, "hieravg_fig1_2", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
