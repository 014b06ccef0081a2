"""Hier-AVG Fig. 5: training and test accuracy over epochs, K-AVG against Hier-AVG.

K-AVG has K = 43; Hier-AVG has K₂ = 43, K₁ = 20, S = 4. The paper, on ImageNet: Hier-AVG is ahead
from the first epoch, by 1.15 (training) and 0.51 points (test) after 90.

Cost: about 2 s for 2 runs.

    python analysis/hieravg_fig5.py runs/hieravg-fig5-laptop --out figures
"""

from typing import TypeAlias

import curves
import output
import results
import style

Key: TypeAlias = tuple[str, int, int | None, int | None]  # algorithm, global period, K₁, S


def line(run: results.Run) -> Key | None:
    """Return the run's key."""
    c = run.config
    K = {"kavg": "K", "hieravg": "K2"}.get(c.get("algorithm"))
    return (c["algorithm"], c[K], c.get("K1"), c.get("S")) if K else None


def name(key: Key) -> str:
    """Return the name of a line in the legend."""
    algorithm, K, K1, S = key
    return f"K-AVG K = {K}" if algorithm == "kavg" else f"Hier-AVG K₂ = {K}, K₁ = {K1}, S = {S}"


def early(run: results.Run) -> float:
    """Return the training accuracy after a tenth of the run, in percent."""
    return 100 * run.eval[run.eval.epoch <= 0.1 * run.eval.epoch.max()].train_accuracy.iloc[-1]


def main() -> None:
    args = results.arguments(__doc__)
    expected = {key: name(key) for key in (("kavg", 43, None, None), ("hieravg", 43, 20, 4))}
    groups = results.gather(args.folder, line, expected=expected)
    figure = curves.curves(groups, ("train_accuracy", "test_accuracy"), name)
    rows = [
        (
            panel,
            name(key),
            output.over(repeats, early),
            output.over(repeats, "train_accuracy"),
            output.over(repeats, "test_accuracy"),
            output.over(repeats, "train_loss", 4),
        )
        for panel, lines in groups.items()
        for key, repeats in lines.items()
    ]
    header = (
        "problem",
        "algorithm",
        "a tenth of the run: training accuracy (%)",
        "training accuracy (%)",
        "test accuracy (%)",
        "training loss",
    )
    caption = "Training and test accuracy of the averaged model."
    output.finish(args, "hieravg_fig5", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
