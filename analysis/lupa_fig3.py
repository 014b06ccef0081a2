"""LUPA Fig. 3: time to a training loss of 0.35 against the number of machines P, LUPA-SGD with τ =
91.

Left the wall clock, right the local updates of each machine, which do not depend on how many cores
are at hand; dotted: a P-th of what one machine takes, linear speed-up. The level is met between
evaluations in proportion.

Cost: about 2 s for 30 runs.

    python analysis/lupa_fig3.py runs/lupa-fig3-laptop --out figures
"""

import numpy as np
import results
import style

LEVEL = 0.35
AXES = {"wall_s": f"seconds to loss {LEVEL}", "t": f"updates to loss {LEVEL}"}


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: run.config["K"] if run.config.get("algorithm") == "kavg" else None,
        results.clock,
        {91: "LUPA-SGD τ = 91"},
        over=("learners",),
    )
    figure, panels = style.panels(2, rows=len(groups))
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        for axes, (x, label) in zip(panels[2 * i :], AXES.items(), strict=False):
            every = set()
            for number, (tau, repeats) in enumerate(lines.items()):
                cells = results.values(
                    results.by(repeats, "learners"), lambda run, x=x: results.reach(run, LEVEL, x)
                )
                style.points(axes, cells, f"LUPA-SGD τ = {tau}", number)
                every |= cells.keys()
                if cells and (least := min(cells)) == 1:
                    axes.plot(
                        list(cells),
                        [np.mean(cells[1]) / P for P in cells],
                        color="0.45",
                        linewidth=0.8,
                        linestyle=":",
                        label="linear speed-up",
                    )
                for P, some in results.by(repeats, "learners").items():
                    if x == "t" and P not in cells:
                        print(
                            f"missing: {panel}, P = {P}: no run came down to a loss of {LEVEL}; "
                            "train longer"
                        )
                    elif P in cells:
                        speed = np.mean(cells[least]) / np.mean(cells[P])
                        digits = 3 if x == "wall_s" else 0
                        rows.append(
                            (
                                panel,
                                label,
                                str(P),
                                f"{len(cells[P])}/{len(some)}",
                                results.spread(cells[P], digits),
                                f"{speed:.2f}",
                            )
                        )
            axes.set(
                xlabel="machines P",
                ylabel=label,
                title=style.short(panel),
                xticks=sorted(every),
                ylim=(0, None),
            )
    style.legend(figure)
    header = ("problem", "what", "P", "reached", "mean", "speed-up")
    results.finish(
        args, "lupa_fig3", figure, f"Time to a training loss of {LEVEL}.", groups, header, rows
    )


if __name__ == "__main__":
    style.run(main)
