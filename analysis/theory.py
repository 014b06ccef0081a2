"""The papers' bounds against K, P, μ, K₁, S and K₂, and what they predict: K_opt and μ_opt against
P.

For the constants given, and as many samples in all for every P; `localavg theory --from-run FILE`
measures constants of a problem and lists where conditions of the theorems fail, which is not shown
here. With a folder of runs, stars are the K of K-AVG and the μ of M-AVG of the lowest mean training
loss at the end, whatever the constants of those runs are.

Cost: about 2 s.

    python analysis/theory.py --out figures
    python analysis/theory.py runs --out figures --L 2 --M 10
"""

import argparse

import numpy as np
import results
import style

from localavg import theory
from localavg.files.record import load_many

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


def formulas(c: argparse.Namespace) -> list[tuple]:
    """Panels (title, x label, y label, [(x, y, line's name)])."""
    of = {"F1_minus_Fstar": c.F1_minus_Fstar, "L": c.L, "B": c.batch_size}
    plain, T = of | {"M": c.M, "gamma": c.gamma}, c.samples / (LEARNERS * c.batch_size)
    block = of | {
        "M": 2 * c.L * c.F1_minus_Fstar,
        "sigma2": c.M,
        "eta": c.gamma,
    }  # ‖∇F‖² ≤ 2L(F1 − F*)

    def kavg(P, K):
        return theory.kavg_bound(
            **plain, P=P, K=K, N=c.samples / (P * c.batch_size * K), delta=c.delta
        )

    def mavg(P, mu):
        return theory.mavg_bound(
            **block, mu=mu, P=P, K=16, N=c.samples / (P * c.batch_size * 16), delta=c.delta
        )

    def hieravg(K1, K2, S):
        N = c.samples / (32 * c.batch_size * K2)
        return theory.hieravg_bound_3_6(**plain, P=32, K1=K1, K2=K2, S=S, N=N, delta=1 - c.delta)

    K_opt = theory.kavg_K_opt(**plain, P=LEARNERS, S_total=T, delta=c.delta)
    mu_opt = theory.mavg_mu_opt(**block, P=LEARNERS, K=16, N=T / 16)
    T = c.samples / (32 * c.batch_size)
    asgd = theory.asgd_bound(**plain, P=LEARNERS, N=T)
    steady = theory.kavg_bound(**plain, P=LEARNERS, K=16, N=T / 16, delta=c.delta)
    learners = "learners P"
    return [
        ("K-AVG (3.2)", "period K", "bound", [(K, kavg(p, K), f"P = {p}") for p in P]),
        (
            "K-AVG (3.2), ASGD (3.39), equal T",
            learners,
            "bound",
            [(LEARNERS, steady, "K-AVG, K = 16"), (LEARNERS, asgd, "ASGD")],
        ),
        ("K-AVG (3.46)", learners, "predicted $K_{opt}$", [(LEARNERS, K_opt, "predicted")]),
        (
            "M-AVG (3), K = 16",
            "block momentum μ",
            "bound",
            [(MU, mavg(p, MU), f"P = {p}") for p in P],
        ),
        ("M-AVG (3), K = 16", learners, "predicted $μ_{opt}$", [(LEARNERS, mu_opt, "predicted")]),
        (
            "Hier-AVG (3.6), K₂ = 32",
            "local period K₁",
            "bound",
            [(K1, hieravg(K1, 32, s), f"S = {s}") for s in (2, 4, 8)],
        ),
        (
            "Hier-AVG (3.6), K₂ = 32",
            "cluster size S",
            "bound",
            [(S, hieravg(k, 32, S), f"K₁ = {k}") for k in (1, 4, 16)],
        ),
        (
            "Hier-AVG (3.6), S = 4",
            "global period K₂",
            "bound",
            [(np.arange(k, 65), hieravg(k, np.arange(k, 65), 4), f"K₁ = {k}") for k in (1, 4, 16)],
        ),
    ]


def best(everything: list[results.Run], algorithm: str, setting: str) -> list[tuple[int, float]]:
    """(P, the setting of the lowest mean training loss at the end), for every problem and P where
    there are several.
    """
    cells: dict = {}
    for run in everything:
        if run.config.get("algorithm") == algorithm and np.isfinite(
            loss := results.end(run, "train_loss")
        ):
            of_P = cells.setdefault((run.config["learners"], results.problem(run)), {})
            of_P.setdefault(run.config[setting], []).append(loss)
    return sorted(
        (P, min(found, key=lambda x: np.mean(found[x])))
        for (P, _), found in cells.items()
        if len(found) > 1
    )


def main() -> None:
    args = results.arguments(
        __doc__, folder="run files to compare with (default: none)", numbers=NUMBERS
    )
    everything = load_many(args.folder) if args.folder else []
    lines = formulas(args)
    figure, panels = style.grid(len(lines), across=3)
    predicted = {"P": LEARNERS}
    for axes, (title, x_label, y_label, found) in zip(panels, lines, strict=True):
        for number, (x, y, label) in enumerate(found):
            axes.plot(x, y, label=label, markevery=max(1, len(x) // 6), **style.LINES[number])
        if stars := best(everything, *STARS[y_label]) if y_label in STARS else []:
            style.mark(axes, *zip(*stars, strict=True), label="runs")
        axes.set(
            xlabel=x_label,
            ylabel=y_label,
            title=title,
            yscale="log" if x_label in LOG else "linear",
        )
        if x_label == LOG[0]:
            axes.set_ylim(top=8 * axes.get_ylim()[1])  # room for the legend
        if x_label == "learners P":
            style.doubling(axes, LEARNERS[::2])
        axes.legend(handlelength=2.4)
        if y_label in STARS:
            predicted[y_label.translate({ord(c): None for c in "${}"})] = y.round(3)
    said = ", ".join(f"{name} = {getattr(args, name.replace('-', '_')):g}" for name in NUMBERS)
    caption = f"The papers' bounds for {said}; P = 32 for Hier-AVG. Conditions are not checked."
    rows = [[f"{x:g}" for x in row] for row in zip(*predicted.values(), strict=True)]
    results.finish(args, "theory", figure, caption, {}, [*predicted], rows)


if __name__ == "__main__":
    style.run(main)
