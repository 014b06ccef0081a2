"""Hier-AVG Table 1: test accuracy of K-AVG with its best K and of Hier-AVG with K₂ = 2K.

P is 16, 32, 64. The paper, on ResNet-18 and CIFAR-10: half the global averages give an accuracy
that is no lower. Its values stand in the last column.

Cost: about 2 s for 24 runs.

    python analysis/hieravg_table1.py runs/hieravg-table1-laptop --out figures
"""

from typing import TypeAlias

import output
import quantities
import results
import style

Key: TypeAlias = tuple[int, str, int, int | None, int | None]  # P, algorithm, K or K₂, K₁, S

PAPER: dict[Key, float] = {  # test accuracy (%)
    (16, "kavg", 32, None, None): 94.00,
    (16, "hieravg", 64, 2, 4): 94.01,
    (16, "hieravg", 64, 4, 4): 94.11,
    (16, "hieravg", 64, 16, 4): 94.08,
    (32, "kavg", 4, None, None): 93.70,
    (32, "hieravg", 8, 4, 8): 93.90,
    (64, "kavg", 4, None, None): 92.50,
    (64, "hieravg", 8, 1, 4): 93.17,
}


def line(run: results.Run) -> Key | None:
    """Return the key of the run's row."""
    c = run.config
    K = {"kavg": "K", "hieravg": "K2"}.get(c.get("algorithm"))
    return (c["learners"], c["algorithm"], c[K], c.get("K1"), c.get("S")) if K else None


def name(key: Key) -> str:
    """Return the name of a row."""
    P, algorithm, K, K1, S = key
    if algorithm == "kavg":
        return f"P = {P}, K-AVG K = {K}"
    return f"P = {P}, Hier-AVG K₂ = {K}, K₁ = {K1}, S = {S}"


def main() -> None:
    args = results.arguments(__doc__)
    expected = {key: name(key) for key in PAPER}
    needs = "eval.test_accuracy"
    groups = results.gather(args.folder, line, expected=expected, needs=needs, ended=True)
    rows = [
        (
            panel,
            str(P),
            "K-AVG" if algorithm == "kavg" else "Hier-AVG",
            *(str(x or "-") for x in (K, K1, S)),
            output.over(repeats, quantities.rounds, 0),
            output.over(repeats, quantities.accuracy),
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
    output.finish_table(args, "hieravg_table1", header, rows, "Test accuracy at the end.", groups)


if __name__ == "__main__":
    style.run(main)
