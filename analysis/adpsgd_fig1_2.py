"""ADPSGD Fig. 1 and 2: V_t, the mean variance of the learners between two averages, over the run.

Left: CPSGD with periods p = 2, 4, 5, 8. Right: ADPSGD and p = 8; ADPSGD starts with less variance,
which falls more slowly. Vertical lines: the step size drops. Runs need `train --variance steps`.
The table has the weighted average (9), Σ γ_k Var[W_k] / Σ γ_k, which should be small.

Cost: about 2 s for 5 runs.

    python analysis/adpsgd_fig1_2.py runs/adpsgd-fig1-2-laptop --out figures
"""

import curves
import output
import pandas as pd
import quantities
import results
import style

NAMES: dict[tuple[str, int | None], str] = {
    **{("kavg", p): f"CPSGD p = {p}" for p in (2, 4, 5, 8)},
    ("adpsgd", None): "ADPSGD",
}
ROUNDING = 1e-9
"""part of the largest V_t that is rounding"""


def line(run: results.Run) -> tuple[str, int | None] | None:
    """Return (algorithm, p)."""
    return quantities.kind(run) if run.config.get("algorithm") in ("kavg", "adpsgd") else None


def shown(run: results.Run) -> pd.DataFrame:
    """Return the averages whose V_t is more than rounding, which equal learners have too."""
    rows = quantities.variances(run)
    return rows[rows.mean_variance > ROUNDING * rows.mean_variance.max()]


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(args.folder, line, expected=NAMES, needs="averages.mean_variance")
    figure, panels = style.panels(2, rows=len(groups), sharey=True)
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        for number, (key, repeats) in enumerate(lines.items()):
            name = NAMES.get(key, f"CPSGD p = {key[1]}")
            places = [key[0] == "kavg", key[0] == "adpsgd" or key[1] == 8]
            for axes in [axes for axes, here in zip(panels[2 * i :], places, strict=False) if here]:
                curves.curve(axes, repeats, "t", "mean_variance", name, number, shown)
            rows.append(
                (
                    panel,
                    name,
                    output.over(repeats, quantities.rounds, 0),
                    output.over(repeats, quantities.weighted_variance, 4),
                    output.over(repeats, "train_loss", 4),
                )
            )
        for axes in panels[2 * i : 2 * i + 2]:
            style.drops(axes, next(iter(lines.values()))[0])
            axes.set(xlabel=curves.X_LABELS["t"], yscale="log", title=style.short(panel))
        curves.same_x(panels[2 * i : 2 * i + 2])
        panels[2 * i].set_ylabel("mean variance $V_t$")
    style.legend(figure, ncols=5)
    header = ("problem", "algorithm", "averages", "weighted variance (9)", "final training loss")
    caption = (
        "Mean variance of the learners between two averages, where above rounding. Dotted vertical "
        "lines: the step size drops."
    )
    output.finish(args, "adpsgd_fig1_2", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
