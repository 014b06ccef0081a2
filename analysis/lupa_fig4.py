"""LUPA Fig. 4: training loss of LUPA-SGD with τ = 91 and of ADA-LUPA-SGD, whose periods grow from
τ_0 = 91.

Left against local updates, right against rounds of communication: ADA-LUPA makes 10 (11 with the
one at the end) of T = 5469 updates where LUPA makes 61, and comes to the same level.

Cost: about 2 s for 2 runs.

    python analysis/lupa_fig4.py runs/lupa-fig4-laptop --out figures
"""

import results
import style

NAMES = {("kavg", 91): "LUPA-SGD τ = 91", ("adalupa", None): "ADA-LUPA-SGD"}


def line(run: results.Run) -> tuple | None:
    return results.kind(run) if run.config.get("algorithm") in ("kavg", "adalupa") else None


def name(key: tuple) -> str:
    return NAMES.get(key, f"LUPA-SGD τ = {key[1]}")


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(args.folder, line, expected=NAMES)
    figure, panels = style.panels(2, rows=len(groups), sharey=True)
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        left, right = panels[2 * i : 2 * i + 2]
        for number, (key, repeats) in enumerate(lines.items()):
            style.curve(left, repeats, "t", "train_loss", name(key), number)
            style.curve(
                right, repeats, "rounds", "train_loss", name(key), number, rows=results.by_rounds
            )
            rows.append(
                (
                    panel,
                    name(key),
                    results.over(repeats, results.rounds, 0),
                    results.over(repeats, "train_loss", 4),
                )
            )
        left.set(
            xlabel=style.X_LABELS["t"],
            ylabel=style.Y_LABELS["train_loss"],
            title=style.short(panel),
        )
        right.set(xlabel="communication rounds", title=style.short(panel))
    style.legend(figure)
    header = ("problem", "algorithm", "rounds", "final training loss")
    results.finish(
        args, "lupa_fig4", figure, "Training loss of the averaged model.", groups, header, rows
    )


if __name__ == "__main__":
    style.run(main)
