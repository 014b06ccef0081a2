"""ADPSGD Fig. 3: the averaging period over the run, and CPSGD's constant periods.

One panel a problem: logistic regression with the paper's 16 learners, B = 128 and 160 epochs on
Epsilon-like data, and a convolutional network on scikit-learn's digits with 4 learners. As in the
paper the period is 1 for an epoch and 4 while C₂ is sampled, a quarter of the run, and the step
size drops tenfold at 1/2 and 3/4 of the run (vertical lines). Repeats with other seeds become a
band. The table has the averages and the final training loss of every algorithm.

Cost: about 2 s for the figure; the runs take a minute and a half on two cores:

    python analysis/adpsgd_fig3.py runs/adpsgd-fig3 --out figures

    jobs/local/mpirun -n 2 localavg train adpsgd \\
        --data epsilon-like:50000x500 --learners 16 --sampling shuffle --batch-size 128 \\
        --epochs 160 --lr 1 --lr-schedule steps --milestones 80 120 \\
        --out runs/adpsgd-fig3/logistic-adpsgd-s0.h5
    jobs/local/mpirun -n 2 localavg train kavg --K 8 \\
        --data epsilon-like:50000x500 --learners 16 --sampling shuffle --batch-size 128 \\
        --epochs 160 --lr 1 --lr-schedule steps --milestones 80 120 \\
        --out runs/adpsgd-fig3/logistic-kavg8-s0.h5
    jobs/local/mpirun -n 4 python jobs/examples/attach.py --algorithm adpsgd \\
        --batch-size 16 --epochs 60 --out runs/adpsgd-fig3/network-adpsgd-s0.h5
    jobs/local/mpirun -n 4 python jobs/examples/attach.py --algorithm kavg K=8 \\
        --batch-size 16 --epochs 60 --out runs/adpsgd-fig3/network-kavg8-s0.h5

and the two lines with --K 8 or K=8 once more, with 4 in place of 8.
"""

import curves
import numpy as np
import output
import pandas as pd
import quantities
import results
import style

from localavg.files.record import WORLD

NAMES = {("adpsgd", None): "ADPSGD", ("kavg", 8): "CPSGD p = 8", ("kavg", 4): "CPSGD p = 4"}


def periods(run: results.Run) -> pd.DataFrame:
    """Return the averages of all learners before the end of the run.

    The average at the end is left out, because its period may be cut short.
    """
    averages = run.averages
    return averages[(averages.scope == WORLD) & (averages.t < run.config["steps"])]


def line(run: results.Run) -> tuple[str, int | None] | None:
    """Return (algorithm, p)."""
    known = run.config.get("algorithm") in ("adpsgd", "kavg")
    return quantities.kind(run) if known and len(periods(run)) else None


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(args.folder, line, quantities.trained, NAMES)
    width_in = style.DOUBLE_IN if len(groups) > 1 else style.SINGLE_IN
    figure, panels = style.panels(len(groups), width_in)
    rows = []
    for axes, (panel, lines) in zip(panels, groups.items(), strict=True):
        looks = list(dict.fromkeys([*NAMES, *lines]))  # a line's look does not depend on the others
        for key, repeats in lines.items():
            name = NAMES.get(key, f"CPSGD p = {key[1]}")
            averages = np.mean([quantities.rounds(run) for run in repeats])
            last = np.mean([periods(run).period.iloc[-1] for run in repeats])
            loss = [quantities.end(run, "train_loss") for run in repeats]
            label = f"{name}: {averages:.0f} averages"
            curves.curve(axes, repeats, "t", "period", label, looks.index(key), periods, steps=True)
            spread = f" ± {np.std(loss, ddof=1):.2g}" if len(loss) > 1 else ""
            rows.append(
                (
                    f"{panel}, {name}",
                    str(len(repeats)),
                    f"{averages:.0f}",
                    f"{last:.0f}",
                    f"{np.mean(loss):.4g}{spread}",
                )
            )
        first = next(iter(lines.values()))[0]
        style.drops(axes, first)
        axes.set(
            xlabel=curves.X_LABELS["t"],
            ylabel="averaging period (updates)",
            ylim=(0, None),
            title=f"{panel} ({quantities.data(first)}), {first.config['learners']} learners",
        )
        axes.set_ylim(0, 1.25 * axes.dataLim.y1)  # room for the legend
        # the legend hides the vertical lines behind it
        axes.legend(loc="upper left", frameon=True, framealpha=1, edgecolor="none")
    header = ("problem, algorithm", "runs", "averages", "last period", "final training loss")
    caption = "Averaging period; dotted vertical lines: the step size drops."
    output.finish(args, "adpsgd_fig3", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
