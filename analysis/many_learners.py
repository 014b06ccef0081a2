"""Loss and variance against the number of learners P, up to 4096, beside the bounds.

The step size is constant, and means are over the second half of a run, where noise is all that is
left. (a) Training loss above the least one, which a run of gradient descent found. (b) ‖∇F(w̄)‖² of
the mean model, and dotted the noise in bound (3.2) of K-AVG. (c) S, the variance of the learners'
weights before an average; dotted: that of K independent updates, γ²KM(1 − 1/P)/B. The table has the
part of the linear speed-up that is left: ‖∇F‖² of sync by that of K-AVG, and the same by the bound.

Cost: about 3 s for 58 runs.

    python analysis/many_learners.py runs/many-learners-laptop --out figures
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import curves
import numpy as np
import output
import quantities
import results
import style
from matplotlib.axes import Axes

from localavg import theory
from localavg.files.record import Run


class Known(NamedTuple):
    """Constants of a problem: L, the Lipschitz constant of ∇F, and M, an example's variance."""

    L: float
    M: float


CONSTANTS = {"epsilon-like:16384x32": Known(0.1735, 0.1249)}
"""of the problems with λ = 0.02, by `localavg theory --from-run`"""
SYNC, DESCENT = ("sync", None), ("sgd", None)
EXPECTED = {SYNC: "sync", ("kavg", 8): "K-AVG, K = 8", ("kavg", 64): "K-AVG, K = 64"}
LABELS = ("training loss above the least", "‖∇F(w̄)‖²", "variance S of the learners")
DOTTED = "bound (3.2), or K independent updates"
HEADER = ("algorithm", "P", "loss above the least", "‖∇F‖² · 10⁶", "left", "by the bound", "S")
Lines = Mapping[Hashable, Sequence[Run]]
Cells = dict[int, list[float]]  # of a quantity, by P


def learners(runs: Iterable[Run]) -> list[int]:
    """Return the numbers of learners of these runs."""
    return sorted({run.config["learners"] for run in runs})


def half(run: Run, column: str) -> float:
    """Return the mean of a column of /eval over the second half of a run."""
    return float(run.eval[column][run.eval.t > run.eval.t.max() / 2].mean())


def gradient(run: Run) -> float:
    """Return the mean of ‖∇F(w̄)‖² over the second half of a run."""
    return half(run, "grad_norm_sq")


def variance(run: Run) -> float:
    """Return the mean of S over the averages in the second half of a run."""
    return float(run.averages.variance[run.averages.t > run.eval.t.max() / 2].mean())


def by_P(repeats: Iterable[Run], of: Callable[[Run], float]) -> Cells:
    """Return a quantity of repeats by the number of learners."""
    return results.values(results.by(repeats, "learners"), of)


def predicted(key: Hashable, run: Run, P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the noise of bound (3.2), the speed-up that it leaves, and S, each [P]; else NaN.

    key: (algorithm, K). The δ is the largest that condition (3.1) allows.
    """
    c, K = CONSTANTS.get(quantities.data(run)), key[1] or 1
    if c is None:
        return (np.full(len(P), np.nan),) * 3
    gamma, B = run.config["lr"], run.config["batch_size"]
    constants = {"L": c.L, "M": c.M, "gamma": gamma, "B": B, "K": K, "N": 1.0}
    noise = theory.kavg_bound(F1_minus_Fstar=0.0, P=P, delta=1 - (c.L * gamma) ** 2, **constants)
    left = 1 / (1 + P / theory.kavg_P_end(L=c.L, gamma=gamma, K=K))
    return noise, left, gamma**2 * K * c.M * (1 - 1 / P) / B


def draw(panels: Sequence[Axes], lines: Lines, least: float) -> None:
    """Draw the three panels of a problem; least: the least loss."""
    of = (lambda run: half(run, "train_loss") - least, gradient, variance)
    for number, (key, repeats) in enumerate(lines.items()):
        name, Ps = EXPECTED.get(key, f"K-AVG, K = {key[1]}"), np.array(learners(repeats), float)
        noise, _, S = predicted(key, repeats[0], Ps)
        for axes, quantity, dotted in zip(panels, of, (None, noise, S), strict=True):
            if axes is panels[2] and key == SYNC:
                continue  # its learners are one model
            curves.points(axes, by_P(repeats, quantity), name, number)
            if dotted is not None:
                look = {"color": style.LINES[number]["color"], "linestyle": ":", "linewidth": 0.8}
                told = DOTTED in axes.get_legend_handles_labels()[1]
                axes.plot(Ps, dotted, label="" if told else DOTTED, **look)
    for axes, label in zip(panels, LABELS, strict=True):
        style.doubling(axes, learners(run for repeats in lines.values() for run in repeats))
        axes.set(xlabel="learners P", ylabel=label, yscale="log")
        axes.tick_params(axis="x", labelrotation=90)


def numbers(lines: Lines, least: float) -> Iterator[tuple[str, ...]]:
    """Write a row of the table for every line and P of a problem; least: the least loss."""
    ideal = by_P(lines.get(SYNC, ()), gradient)
    for key, repeats in lines.items():
        for P, some in results.by(repeats, "learners").items():
            found = [gradient(run) for run in some]
            left = np.mean(ideal[P]) / np.mean(found) if P in ideal else np.nan
            _, (bound,), _ = predicted(key, some[0], np.array([float(P)]))
            yield (
                EXPECTED.get(key, f"K-AVG, K = {key[1]}"),
                str(P),
                f"{np.mean([half(run, 'train_loss') for run in some]) - least:.2e}",
                output.spread([1e6 * g for g in found], 2),
                f"{left:.2f}",
                f"{bound:.2g}",
                output.spread([variance(run) for run in some], 4) if key != SYNC else "-",
            )


def main() -> None:
    args = results.arguments(__doc__)
    known = ("sync", "kavg", "sgd")
    groups = results.gather(
        args.folder,
        lambda run: quantities.kind(run) if run.config.get("algorithm") in known else None,
        expected=EXPECTED,
        needs="eval.grad_norm_sq",
        over=("learners",),
    )
    figure, panels = style.panels(3, rows=len(groups), height_in=2.5)
    rows = []
    for i, (problem, lines) in enumerate(groups.items()):
        descents = [quantities.end(run, "train_loss") for run in lines.pop(DESCENT, ())]
        least = min(descents, default=np.nan)
        draw(panels[3 * i : 3 * i + 3], lines, least)
        rows += [(problem, *row) if len(groups) > 1 else row for row in numbers(lines, least)]
    style.legend(figure)
    caption = (
        f"{', '.join(groups)}: means over the second half of a run. (a) Loss above the least one. "
        "(b) Squared gradient of the mean model; dotted: the noise in bound (3.2) of K-AVG. (c) "
        "Variance of the learners before an average; dotted: that of K independent updates."
    )
    header = (*["problem"] * (len(groups) > 1), *HEADER)
    output.finish(args, "many_learners", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
