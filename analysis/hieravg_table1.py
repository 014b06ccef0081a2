"""Hier-AVG Table 1: test accuracy of K-AVG with its best K and of Hier-AVG with K₂ = 2K, for P =
16, 32, 64.

Half the global averages at an accuracy no lower, says the paper, on ResNet-18 and CIFAR-10; its
values stand in the last column.

Cost: about 2 s for 24 runs.

    python analysis/hieravg_table1.py runs/hieravg-table1-laptop --out figures
"""

import results
import style

PAPER = {  # (P, algorithm, K or K₂, K₁, S): test accuracy (%)
    (16, "kavg", 32, None, None): 94.00,
    (16, "hieravg", 64, 2, 4): 94.01,
    (16, "hieravg", 64, 4, 4): 94.11,
    (16, "hieravg", 64, 16, 4): 94.08,
    (32, "kavg", 4, None, None): 93.70,
    (32, "hieravg", 8, 4, 8): 93.90,
    (64, "kavg", 4, None, None): 92.50,
    (64, "hieravg", 8, 1, 4): 93.17,
}


def line(run: results.Run) -> tuple | None:
    """A row of the table."""
    c = run.config
    K = {"kavg": "K", "hieravg": "K2"}.get(c.get("algorithm"))
    return (c["learners"], c["algorithm"], c[K], c.get("K1"), c.get("S")) if K else None


def main() -> None:
    args = results.arguments(__doc__)
    expected = {
        key: f"P = {key[0]}, {'K-AVG K' if key[1] == 'kavg' else 'Hier-AVG K₂'} = {key[2]}"
        + (f", K₁ = {key[3]}, S = {key[4]}" if key[3] else "")
        for key in PAPER
    }
    groups = results.gather(
        args.folder, line, expected=expected, needs="eval.test_accuracy", ended=True
    )
    rows = [
        (
            panel,
            str(P),
            "K-AVG" if algorithm == "kavg" else "Hier-AVG",
            *(str(x or "-") for x in (K, K1, S)),
            results.over(repeats, results.rounds, 0),
            results.over(repeats, results.accuracy),
            f"{PAPER[P, algorithm, K, K1, S]:.2f}" if (P, algorithm, K, K1, S) in PAPER else "-",
        )
        for panel, lines in groups.items()
        for (P, algorithm, K, K1, S), repeats in lines.items()
    ]
    header = (
        "problem",
        "P",
        "algorithm",
        "K or K₂",
        "K₁",
        "S",
        "global averages",
        "test accuracy (%)",
        "paper (%)",
    )
    results.finish_table(args, "hieravg_table1", header, rows, "Test accuracy at the end.", groups)


if __name__ == "__main__":
    style.run(main)
