"""The papers' bounds against K, P, μ, K₁, S and K₂, and the predicted K_opt and μ_opt against P.

They are for the given constants, with the same number of samples in all for every P. `localavg
theory --from-run FILE` measures the constants of a problem and lists the conditions of the theorems
that fail, which are not shown here. With a folder of runs, stars are the K of K-AVG and the μ of
M-AVG with the lowest mean training loss at the end; the constants of these runs may be others.

Cost: about 2 s.

    python analysis/theory.py --out figures
    python analysis/theory.py runs --out figures --L 2 --M 10
"""

import argparse
from typing import TypeAlias

import numpy as np
import output
import quantities
import results
import style

from localavg import theory
from localavg.files.record import Run, load_many

NUMBERS = {
    "F1-minus-Fstar": 2.3,
    "L": 1.0,
    "M": 10.0,
    "delta": 0.5,
    "gamma": 0.01,
    "batch-size": 16,
    "samples": 1e6,
}
P, LEARNERS = (8, 32, 128), 2.0 ** np.arange(2, 9)
K, MU, K1, S = np.arange(1, 65), np.linspace(0, 0.95, 96), np.arange(1, 33), 2 ** np.arange(6)
LOG = ("period K", "block momentum μ")  # bounds that span decades
STARS = {"predicted $K_{opt}$": ("kavg", "K"), "predicted $μ_{opt}$": ("mavg", "mu")}


Lines: TypeAlias = list[tuple[np.ndarray, np.ndarray, str]]  # x, y, name
Panel: TypeAlias = tuple[str, str, str, Lines]  # title, x label, y label, lines


def formulas(c: argparse.Namespace) -> list[Panel]:
    """Compute all panels for the constants c."""
    return [*_kavg(c), *_mavg(c), *_hieravg(c)]


def _plain(c: argparse.Namespace) -> dict[str, float]:
    """Return the constants of kavg and hieravg."""
    return {
        "F1_minus_Fstar": c.F1_minus_Fstar,
        "L": c.L,
        "B": c.batch_size,
        "M": c.M,
        "gamma": c.gamma,
    }


def _kavg(c: argparse.Namespace) -> list[Panel]:
    plain = _plain(c)

    def bound(P: int, K: np.ndarray) -> np.ndarray:
        N = c.samples / (P * c.batch_size * K)
        return theory.kavg_bound(**plain, P=P, K=K, N=N, delta=c.delta)

    S_total = c.samples / (LEARNERS * c.batch_size)  # updates of a learner, by P
    K_opt = theory.kavg_K_opt(**plain, P=LEARNERS, S_total=S_total, delta=c.delta)
    T = c.samples / (32 * c.batch_size)  # the same for every P
    asgd = theory.asgd_bound(**plain, P=LEARNERS, N=T)
    steady = theory.kavg_bound(**plain, P=LEARNERS, K=16, N=T / 16, delta=c.delta)
    both: Lines = [(LEARNERS, steady, "K-AVG, K = 16"), (LEARNERS, asgd, "ASGD")]
    predicted: Lines = [(LEARNERS, K_opt, "predicted")]
    return [
        ("K-AVG (3.2)", "period K", "bound", [(K, bound(p, K), f"P = {p}") for p in P]),
        ("K-AVG (3.2), ASGD (3.39), equal T", "learners P", "bound", both),
        ("K-AVG (3.46)", "learners P", "predicted $K_{opt}$", predicted),
    ]


def _mavg(c: argparse.Namespace) -> list[Panel]:
    block = {
        "F1_minus_Fstar": c.F1_minus_Fstar,
        "L": c.L,
        "B": c.batch_size,
        "M": 2 * c.L * c.F1_minus_Fstar,  # ‖∇F‖² ≤ 2L(F1 − F*)
        "sigma2": c.M,
        "eta": c.gamma,
    }

    def bound(P: int, mu: np.ndarray) -> np.ndarray:
        N = c.samples / (P * c.batch_size * 16)
        return theory.mavg_bound(**block, mu=mu, P=P, K=16, N=N, delta=c.delta)

    N = c.samples / (LEARNERS * c.batch_size) / 16
    mu_opt = theory.mavg_mu_opt(**block, P=LEARNERS, K=16, N=N)
    bounds: Lines = [(MU, bound(p, MU), f"P = {p}") for p in P]
    predicted: Lines = [(LEARNERS, mu_opt, "predicted")]
    return [
        ("M-AVG (3), K = 16", "block momentum μ", "bound", bounds),
        ("M-AVG (3), K = 16", "learners P", "predicted $μ_{opt}$", predicted),
    ]


def _hieravg(c: argparse.Namespace) -> list[Panel]:
    def bound(K1: int | np.ndarray, K2: int | np.ndarray, S: int | np.ndarray) -> np.ndarray:
        N = c.samples / (32 * c.batch_size * K2)
        return theory.hieravg_bound_3_6(
            **_plain(c), P=32, K1=K1, K2=K2, S=S, N=N, delta=1 - c.delta
        )

    by_K1: Lines = [(K1, bound(K1, 32, s), f"S = {s}") for s in (2, 4, 8)]
    by_S: Lines = [(S, bound(k, 32, S), f"K₁ = {k}") for k in (1, 4, 16)]
    by_K2: Lines = []
    for k in (1, 4, 16):
        K2 = np.arange(k, 65)
        by_K2.append((K2, bound(k, K2, 4), f"K₁ = {k}"))
    return [
        ("Hier-AVG (3.6), K₂ = 32", "local period K₁", "bound", by_K1),
        ("Hier-AVG (3.6), K₂ = 32", "cluster size S", "bound", by_S),
        ("Hier-AVG (3.6), S = 4", "global period K₂", "bound", by_K2),
    ]


def best(everything: list[Run], algorithm: str, setting: str) -> list[tuple[int, float]]:
    """Return (P, the setting with the lowest mean training loss at the end).

    There is one for every problem and P with several settings.
    """
    cells: dict[tuple[int, str], dict[float, list[float]]] = {}
    for run in everything:
        if run.config.get("algorithm") != algorithm:
            continue
        loss = quantities.end(run, "train_loss")
        if np.isfinite(loss):
            of_P = cells.setdefault((run.config["learners"], quantities.problem(run)), {})
            of_P.setdefault(run.config[setting], []).append(loss)
    return sorted((P, results.lowest(found)) for (P, _), found in cells.items() if len(found) > 1)


def main() -> None:
    about = "compare with the run files of this folder (default: none)"
    args = results.arguments(__doc__, about, NUMBERS)
    everything = load_many(args.folder) if args.folder else []
    lines = formulas(args)
    figure, panels = style.grid(len(lines), across=3)
    predicted = {"P": LEARNERS}
    for axes, (title, x_label, y_label, found) in zip(panels, lines, strict=True):
        for number, (x, y, label) in enumerate(found):
            axes.plot(x, y, label=label, markevery=max(1, len(x) // 6), **style.LINES[number])
        if stars := best(everything, *STARS[y_label]) if y_label in STARS else []:
            xs, ys = zip(*stars, strict=True)
            style.mark(axes, xs, ys, "runs")
        scale = "log" if x_label in LOG else "linear"
        axes.set(xlabel=x_label, ylabel=y_label, title=title, yscale=scale)
        if x_label == LOG[0]:
            axes.set_ylim(top=8 * axes.get_ylim()[1])  # room for the legend
        if x_label == "learners P":
            style.doubling(axes, LEARNERS[::2])
        axes.legend(handlelength=2.4)
        if y_label in STARS:
            predicted[y_label.translate({ord(c): None for c in "${}"})] = y.round(3)
    given = ", ".join(f"{name} = {getattr(args, name.replace('-', '_')):g}" for name in NUMBERS)
    caption = f"The papers' bounds for {given}; P = 32 for Hier-AVG. Conditions are not checked."
    rows = [[f"{x:g}" for x in row] for row in zip(*predicted.values(), strict=True)]
    output.finish(args, "theory", figure, caption, {}, [*predicted], rows)


if __name__ == "__main__":
    style.run(main)
