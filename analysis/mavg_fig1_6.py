"""M-AVG Fig. 1 to 6 and Table I: training and test accuracy of K-AVG and M-AVG over epochs.

A column a network. Table I has the test accuracy at the end, and the paper's validation accuracy on
CIFAR-10 after 200 epochs.

Cost: about 3 s for 12 runs.

    python analysis/mavg_fig1_6.py runs/mavg-fig1-6-laptop --out figures
"""

import argparse
from typing import TypeAlias

import curves
import output
import quantities
import results
import style

PAPER = {  # validation accuracy (%): K-AVG, M-AVG
    "ResNet-18": (94.81, 95.31),
    "DenseNet": (95.2, 95.5),
    "SENet": (94.73, 94.91),
    "GoogLeNet": (94.36, 95.00),
    "MobileNet": (91.77, 92.16),
    "PreActResNet-18": (94.54, 95.03),
    "DPN": (95.69, 95.75),
}


Key: TypeAlias = tuple[str, float | None]  # algorithm, μ


def line(run: results.Run) -> Key | None:
    """Return the run's key."""
    algorithm = run.config.get("algorithm")
    return (algorithm, run.config.get("mu")) if algorithm in ("kavg", "mavg") else None


def name(key: Key) -> str:
    """Return the name of a line in the legend."""
    return "K-AVG" if key[0] == "kavg" else f"M-AVG μ = {key[1]:g}"


def draw(args: argparse.Namespace, stem: str, caption: str) -> results.Groups:
    """Draw the curves and print a table of their ends; return the runs."""
    expected = {("kavg", None): "K-AVG", ("mavg", 0.7): "M-AVG μ = 0.7"}
    groups = results.gather(args.folder, line, expected=expected)
    figure = curves.curves(groups, ("train_accuracy", "test_accuracy"), name)
    rows = [
        (
            panel,
            name(key),
            output.over(repeats, "train_accuracy"),
            output.over(repeats, quantities.accuracy),
            output.over(repeats, "train_loss", 4),
        )
        for panel, lines in groups.items()
        for key, repeats in lines.items()
    ]
    header = ("problem", "algorithm", "training accuracy (%)", "test accuracy (%)", "training loss")
    output.finish(args, stem, figure, caption, groups, header, rows)
    return groups


def main() -> None:
    args = results.arguments(__doc__)
    groups = draw(args, "mavg_fig1_6", "Training and test accuracy of the averaged model.")
    rows = []
    for panel, lines in groups.items():
        paper = PAPER.get(panel.partition(",")[0], ())
        for key, repeats in lines.items():
            theirs = f"{paper[key[0] == 'mavg']:.2f}" if paper else "-"
            rows.append((panel, name(key), output.over(repeats, quantities.accuracy), theirs))
    shown = {panel.partition(",")[0] for panel in groups}
    for network in [network for network in PAPER if network not in shown]:
        for algorithm, percent in zip(("K-AVG", "M-AVG"), PAPER[network], strict=True):
            rows.append((f"paper: {network}, CIFAR-10", algorithm, "-", f"{percent:.2f}"))
    header = ("problem", "algorithm", "test accuracy (%)", "paper (%)")
    output.finish_table(args, "mavg_table1", header, rows, "Test accuracy at the end.", groups)


if __name__ == "__main__":
    style.run(main)
