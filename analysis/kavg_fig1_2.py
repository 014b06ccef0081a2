"""K-AVG Fig. 1 and 2: test accuracy at the end against the number of learners P, K-AVG beside
Downpour and EAMSGD.

A panel a network. The paper: K-AVG is always ahead, and the asynchronous ones fall to guessing (10
%) at P = 128 with γ₀ = 1. A run that diverged counts as guessing. The table has the mean staleness
of the exchanges too.

Cost: about 2 s for 45 runs.

    python analysis/kavg_fig1_2.py runs/kavg-fig1-2-laptop --out figures
"""

import results
import style

NAMES = {"kavg": "K-AVG", "downpour": "Downpour", "eamsgd": "EAMSGD"}


def line(run: results.Run) -> tuple | None:
    """(algorithm's place, first step size); smaller steps come later."""
    algorithm = run.config.get("algorithm")
    return (list(NAMES).index(algorithm), -run.config["lr"]) if algorithm in NAMES else None


def name(key: tuple) -> str:
    return f"{list(NAMES.values())[key[0]]}, γ₀ = {-key[1]:g}"


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(args.folder, line, ended=True, over=("learners", "alpha"))
    figure, panels = style.grid(len(groups), across=2)
    keys = sorted({key for lines in groups.values() for key in lines})
    rows = []
    for axes, (panel, lines) in zip(panels, groups.items(), strict=True):
        for key, repeats in lines.items():
            cells = results.by(repeats, "learners")
            style.points(
                axes, found := results.values(cells, results.accuracy), name(key), keys.index(key)
            )
            stale = {
                P: [run.staleness.staleness.mean() for run in some] for P, some in cells.items()
            }
            rows += [
                (panel, name(key), str(P), results.spread(found[P]), results.spread(stale[P], 1))
                for P in found
            ]
        style.doubling(
            axes, [P for repeats in lines.values() for P in results.by(repeats, "learners")]
        )
        style.level(axes, 10, "guessing")
        axes.set(
            xlabel="learners P", ylabel=style.Y_LABELS["test_accuracy"], title=style.short(panel)
        )
    style.legend(figure, ncols=3)
    header = ("problem", "algorithm", "P", "test accuracy (%)", "mean staleness")
    results.finish(
        args,
        "kavg_fig1_2",
        figure,
        "Test accuracy of the averaged model, or the center, at the end.",
        groups,
        header,
        rows,
    )


if __name__ == "__main__":
    style.run(main)
