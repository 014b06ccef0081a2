"""LUPA Fig. 2: training loss of the averaged model against wall clock and communication rounds.

It shows SyncSGD, LUPA-SGD with τ = 5 and τ = 91, and one-shot averaging; repeats with other seeds
become a band. On the right, a curve has one point a round, the first evaluation after it, and the
start (t = 0) at 0 rounds: one-shot is two points, the start and the average at T. The runs of an
unfinished sweep are drawn, and the missing ones printed.

Cost: about 2 s and 150 MB for a finished sweep of four runs.

    python analysis/lupa_fig2.py runs/lupa-fig2 --out figures
"""

import curves
import output
import pandas as pd
import quantities
import results
import style

NAMES = {
    ("sync", None): "SyncSGD",
    ("kavg", 5): "LUPA-SGD τ = 5",
    ("kavg", 91): "LUPA-SGD τ = 91",
    ("oneshot", None): "one-shot",
}


def line(run: results.Run) -> tuple[str, int | None] | None:
    """Return (algorithm, τ)."""
    return (
        quantities.kind(run) if run.config.get("algorithm") in ("sync", "kavg", "oneshot") else None
    )


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(args.folder, line, expected=NAMES)
    figure, panels = style.panels(2, rows=len(groups), sharey=True)
    looks = list(dict.fromkeys([*NAMES, *(key for lines in groups.values() for key in lines)]))
    rows, several = [], len(groups) > 1
    for i, (panel, lines) in enumerate(groups.items()):
        left, right = panels[2 * i : 2 * i + 2]
        for key, repeats in lines.items():
            name = NAMES.get(key, f"LUPA-SGD τ = {key[1]}")
            look = looks.index(key)
            curves.curve(left, repeats, "wall_s", "train_loss", name, look)
            curves.curve(right, repeats, "rounds", "train_loss", name, look, quantities.by_rounds)
            ends = pd.concat(
                [quantities.evaluations(run).tail(1) for run in repeats]
            )  # a row a run
            rounds, loss, wall_s = ends[["rounds", "train_loss", "wall_s"]].mean()
            rows.append(
                (
                    f"{panel}, {name}" if several else name,
                    str(len(repeats)),
                    f"{rounds:.0f}",
                    f"{loss:.4f}",
                    f"{wall_s:.1f}",
                )
            )
        left.set(
            xlabel="wall clock (s), evaluation left out",
            ylabel=curves.Y_LABELS["train_loss"],
            title=style.short(panel) if several else "",
        )
        right.set(xlabel="communication rounds")
        right.set_xscale("symlog", linthresh=1, linscale=0.4)
        right.set_xticks([0, *(10**n for n in range(8) if 10**n <= right.get_xlim()[1])])
    style.legend(figure)
    header = ("algorithm", "runs", "rounds", "final loss", "wall clock (s)")
    caption = "Training loss of the averaged model against wall clock and rounds."
    output.finish(args, "lupa_fig2", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
