"""ADPSGD Table I: the best test accuracy of small-batch SGD, ADPSGD, CPSGD and FULLSGD, beside the
paper's.

Of CPSGD the best period and of FULLSGD the best step size count, by their mean over repeats, as in
the paper. The best evaluation of a run is its accuracy.

Cost: about 2 s for 9 runs.

    python analysis/adpsgd_table1.py runs/adpsgd-table1-laptop --out figures
"""

import numpy as np
import results
import style

COLUMNS = {  # algorithm: its column, and of what setting the best counts
    "sgd": ("SMALL_BATCH", ()),
    "adpsgd": ("ADPSGD", ()),
    "kavg": ("CPSGD", ("K", "p")),
    "sync": ("FULLSGD", ("lr", "γ₀")),
}
PAPER = {"GoogLeNet": (93.68, 93.49, 93.08, 92.94), "VGG16": (92.45, 92.17, 91.29, 92.10)}


def best(repeats: list, option: tuple) -> str:
    """The best setting's mean ± standard deviation, and which it is."""
    cells = results.values(results.by(repeats, *option[:1]), results.best_accuracy)
    if not cells:
        return "-"
    setting = max(cells, key=lambda x: np.mean(cells[x]))
    return results.spread(cells[setting]) + (f" ({option[1]} = {setting:g})" if option else "")


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: a if (a := run.config.get("algorithm")) in COLUMNS else None,
        expected={key: said for key, (said, _) in COLUMNS.items()},
        needs="eval.test_accuracy",
        ended=True,
        over=("K", "lr"),
    )
    rows = [
        (panel, *(best(lines.get(key, []), option) for key, (_, option) in COLUMNS.items()))
        for panel, lines in groups.items()
    ]
    rows += [
        (f"paper: {network}, CIFAR-10", *(f"{x:.2f}" for x in percents))
        for network, percents in PAPER.items()
    ]
    results.finish_table(
        args,
        "adpsgd_table1",
        ("problem", *(said for said, _ in COLUMNS.values())),
        rows,
        "Best test accuracy (%).",
        groups,
    )


if __name__ == "__main__":
    style.run(main)
