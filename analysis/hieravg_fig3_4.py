"""Hier-AVG Fig. 3 and 4: training loss over epochs for K₁ = 4, 8 (S = 4) and S = 2, 4 (K₁ = 4).

K₂ = 32; two panels a network. As in the paper, only the last part of the run is shown, here the
last fifth. Theorem 3.5 and the paper: smaller K₁ and larger S lower the loss.

Cost: about 2 s for 18 runs.

    python analysis/hieravg_fig3_4.py runs/hieravg-fig3-4-laptop --out figures
"""

import curves
import output
import results
import style

IMPACTS = {"impact of K₁": lambda key: key[1] == 4, "impact of S": lambda key: key[0] == 4}


def line(run: results.Run) -> tuple[int, int] | None:
    """Return (K₁, S); a run with other levels has none."""
    c = run.config
    two = c.get("algorithm") == "hieravg" and c.get("levels") is None
    return (c["K1"], c["S"]) if two else None


def name(key: tuple[int, int]) -> str:
    """Return the name of (K₁, S) in the legend."""
    return f"K₁ = {key[0]}, S = {key[1]}"


def main() -> None:
    args = results.arguments(__doc__)
    expected = {key: name(key) for key in ((4, 4), (8, 4), (4, 2))}
    groups = results.gather(args.folder, line, expected=expected)
    pairs = {
        f"{panel}: {word}": shown
        for panel, lines in groups.items()
        for word, holds in IMPACTS.items()
        if (shown := {key: repeats for key, repeats in lines.items() if holds(key)})
    }
    figure = curves.curves(pairs, ("train_loss",), name, rows=curves.last_fifth)
    rows = [
        (panel, f"{K1}", f"{S}", output.over(repeats, "train_loss", 5))
        for panel, lines in groups.items()
        for (K1, S), repeats in lines.items()
    ]
    header = ("problem", "K₁", "S", "final training loss")
    caption = "Training loss of the averaged model, the last fifth of the run."
    output.finish(args, "hieravg_fig3_4", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
