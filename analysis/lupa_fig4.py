"""LUPA Fig. 4: training loss of LUPA-SGD with τ = 91 and of ADA-LUPA-SGD, whose periods grow.

They grow from τ_0 = 91. Left: against local updates. Right: against rounds of communication. In
T = 5469 updates ADA-LUPA makes 10 rounds (11 with the one at the end) and LUPA 61, and both reach
the same level.

Cost: about 2 s for 2 runs.

    python analysis/lupa_fig4.py runs/lupa-fig4-laptop --out figures
"""

import curves
import output
import quantities
import results
import style

NAMES = {("kavg", 91): "LUPA-SGD τ = 91", ("adalupa", None): "ADA-LUPA-SGD"}


def line(run: results.Run) -> tuple[str, int | None] | None:
    """Return (algorithm, τ)."""
    return quantities.kind(run) if run.config.get("algorithm") in ("kavg", "adalupa") else None


def name(key: tuple[str, int | None]) -> str:
    """Return the name of a line in the legend."""
    return NAMES.get(key, f"LUPA-SGD τ = {key[1]}")


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(args.folder, line, expected=NAMES)
    figure, panels = style.panels(2, rows=len(groups), sharey=True)
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        left, right = panels[2 * i : 2 * i + 2]
        for number, (key, repeats) in enumerate(lines.items()):
            label = name(key)
            curves.curve(left, repeats, "t", "train_loss", label, number)
            curves.curve(
                right, repeats, "rounds", "train_loss", label, number, quantities.by_rounds
            )
            rounds = output.over(repeats, quantities.rounds, 0)
            rows.append((panel, label, rounds, output.over(repeats, "train_loss", 4)))
        left.set(
            xlabel=curves.X_LABELS["t"],
            ylabel=curves.Y_LABELS["train_loss"],
            title=style.short(panel),
        )
        right.set(xlabel="communication rounds", title=style.short(panel))
    style.legend(figure)
    header = ("problem", "algorithm", "rounds", "final training loss")
    caption = "Training loss of the averaged model."
    output.finish(args, "lupa_fig4", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
