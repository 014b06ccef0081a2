"""K-AVG Fig. 1 and 2: test accuracy of K-AVG, Downpour and EAMSGD against the number of learners P.

A panel a network; the accuracy is that at the end. The paper: K-AVG is always ahead, and the
asynchronous algorithms fall to guessing (10 %) at P = 128 with γ₀ = 1. A run that diverged counts
as guessing. The table also has the mean staleness of the exchanges.

Cost: about 2 s for 45 runs.

    python analysis/kavg_fig1_2.py runs/kavg-fig1-2-laptop --out figures
"""

import curves
import output
import quantities
import results
import style

NAMES = {"kavg": "K-AVG", "downpour": "Downpour", "eamsgd": "EAMSGD"}


def line(run: results.Run) -> tuple[int, float] | None:
    """Return (place of the algorithm, −γ₀), so that smaller steps come later."""
    algorithm = run.config.get("algorithm")
    return (list(NAMES).index(algorithm), -run.config["lr"]) if algorithm in NAMES else None


def name(key: tuple[int, float]) -> str:
    """Return the name of a line in the legend."""
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
            found = results.values(cells, quantities.accuracy)
            curves.points(axes, found, name(key), keys.index(key))
            for P, accuracies in found.items():
                stale = output.spread([run.staleness.staleness.mean() for run in cells[P]], 1)
                rows.append((panel, name(key), str(P), output.spread(accuracies), stale))
        learners = [P for repeats in lines.values() for P in results.by(repeats, "learners")]
        style.doubling(axes, learners)
        style.level(axes, 10, "guessing")
        label = curves.Y_LABELS["test_accuracy"]
        axes.set(xlabel="learners P", ylabel=label, title=style.short(panel))
    style.legend(figure, ncols=3)
    header = ("problem", "algorithm", "P", "test accuracy (%)", "mean staleness")
    caption = "Test accuracy of the averaged model, or the center, at the end. Dotted: guessing."
    output.finish(args, "kavg_fig1_2", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
