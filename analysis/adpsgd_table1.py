"""ADPSGD Table I: the best test accuracy of small-batch SGD, ADPSGD, CPSGD and FULLSGD.

The paper's values stand below. As in the paper, the best period of CPSGD and the best step size of
FULLSGD count, by their mean over repeats. The best evaluation of a run is its accuracy.

Cost: about 2 s for 9 runs.

    python analysis/adpsgd_table1.py runs/adpsgd-table1-laptop --out figures
"""

import output
import quantities
import results
import style

# algorithm: its column, and the setting whose best value counts, with its symbol
COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sgd": ("SMALL_BATCH", ()),
    "adpsgd": ("ADPSGD", ()),
    "kavg": ("CPSGD", ("K", "p")),
    "sync": ("FULLSGD", ("lr", "γ₀")),
}
PAPER = {"GoogLeNet": (93.68, 93.49, 93.08, 92.94), "VGG16": (92.45, 92.17, 91.29, 92.10)}


def best(repeats: list[results.Run], option: tuple[str, ...]) -> str:
    """Write the mean ± standard deviation of the best setting, and the setting."""
    cells = results.values(results.by(repeats, *option[:1]), quantities.best_accuracy)
    if not cells:
        return "-"
    setting = results.highest(cells)
    return output.spread(cells[setting]) + (f" ({option[1]} = {setting:g})" if option else "")


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: a if (a := run.config.get("algorithm")) in COLUMNS else None,
        expected={key: column for key, (column, _) in COLUMNS.items()},
        needs="eval.test_accuracy",
        ended=True,
        over=("K", "lr"),
    )
    rows = []
    for panel, lines in groups.items():
        cells = (best(lines.get(key, []), option) for key, (_, option) in COLUMNS.items())
        rows.append((panel, *cells))
    for network, percents in PAPER.items():
        rows.append((f"paper: {network}, CIFAR-10", *(f"{x:.2f}" for x in percents)))
    header = ("problem", *(column for column, _ in COLUMNS.values()))
    output.finish_table(args, "adpsgd_table1", header, rows, "Best test accuracy (%).", groups)


if __name__ == "__main__":
    style.run(main)
