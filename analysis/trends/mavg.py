"""What M-AVG's paper claims: its Fig. 1 to 12 and Table I."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from quantities import accuracy

from localavg.files.record import Run

from . import rule
from .comparisons import lower_loss, more_accurate, versus
from .rule import Values, all_of
from .select import Check, Claim, Finding, alike, chosen, loss, mean, of, settings_of, where

Cells: TypeAlias = dict[int, dict[float, Values]]  # {P: {μ: values}}
OURS, PLAIN = {"algorithm": "mavg", "mu": 0.7}, {"algorithm": "kavg"}
LARGE = 0.9
"""the μ that the paper finds worst at P = 6 and best at P = 48"""
STEP = 0.1
"""difference of two μ that counts"""


def by_P(found: list[Run], quantity: Callable[[Run], float]) -> Iterator[tuple[str, Cells]]:
    """Yield (place, {P: {μ: values}}) for every problem with several P and several μ."""
    for problem in alike(chosen(found, "mavg"), "learners"):
        cells: Cells = {}
        for P in settings_of(problem, "learners", "mavg"):
            of_P = {
                mu: of(problem, quantity, "mavg", mu=mu, learners=P)
                for mu in settings_of(problem, "mu", "mavg")
            }
            of_P = {mu: values for mu, values in of_P.items() if values}
            if len(of_P) > 1:
                cells[P] = of_P
        if len(cells) > 1:
            yield where(problem[0]), cells


def best(of_P: dict[float, Values], quantity: Callable[[Run], float]) -> Values:
    """Return the μ of the least loss, or of the highest accuracy, by seed."""
    seeds = set.intersection(*(set(values) for values in of_P.values()))
    choose = min if quantity is loss else max
    return {seed: choose(of_P, key=lambda mu: of_P[mu][seed]) for seed in seeds}


def best_grows(quantity: Callable[[Run], float], what: str) -> Check:
    """Make the check that the best μ at the largest P is larger than at the smallest, by STEP."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for place, cells in by_P(found, quantity):
            mus = {P: best(of_P, quantity) for P, of_P in cells.items()}
            words = "; ".join(f"P = {P}: {mean(mu)}" for P, mu in mus.items())
            decision = rule.less(mus[min(mus)], mus[max(mus)], -STEP)
            yield Finding(place, decision, f"μ of {what}: {words}")

    return check


def large_is_worst(found: list[Run]) -> Iterator[Finding]:
    """Is μ = 0.9 less accurate than every other μ at the smallest P?"""
    for place, cells in by_P(found, accuracy):
        P, of_P = min(cells), cells[min(cells)]
        if others := {mu: values for mu, values in of_P.items() if mu != LARGE and LARGE in of_P}:
            decision = all_of(
                *(rule.less(of_P[LARGE], values, unit=" points") for values in others.values())
            )
            words = "; ".join(f"μ = {mu}: {mean(values)} %" for mu, values in of_P.items())
            yield Finding(f"{place}, P = {P}", decision, words)


def large_recovers(found: list[Run]) -> Iterator[Finding]:
    """Is μ = 0.9 less far behind K-AVG (μ = 0) at the largest P than at the smallest?"""
    for place, cells in by_P(found, accuracy):
        behind = {
            P: {s: of_P[0.0][s] - x for s, x in of_P[LARGE].items() if s in of_P[0.0]}
            for P, of_P in cells.items()
            if 0.0 in of_P and LARGE in of_P
        }
        if len(behind) > 1:
            words = "; ".join(f"P = {P}: {mean(gap)} points" for P, gap in behind.items())
            decision = rule.less(behind[max(behind)], behind[min(behind)], unit=" points")
            yield Finding(place, decision, f"μ = 0.9 behind μ = 0: {words}")


GPU = "--scale gpu, with ResNet-18 and 200 epochs"
CLAIMS = [
    Claim(
        "M-AVG (μ = 0.7) ends at a lower training loss than K-AVG (Fig. 1-6)",
        "mavg-fig1-6",
        versus(OURS, PLAIN, lower_loss(), name="K-AVG", each="K"),
        GPU,
    ),
    Claim(
        "M-AVG (μ = 0.7) ends more accurate than K-AVG (Table I)",
        "mavg-fig1-6",
        versus(OURS, PLAIN, more_accurate(), name="K-AVG", each="K"),
        GPU,
    ),
    Claim(
        "M-AVG (μ = 0.7) ends at a lower training loss than K-AVG (Fig. 7)",
        "mavg-fig7-8",
        versus(OURS, PLAIN, lower_loss(), name="K-AVG", each="K"),
        "--scale paper, on ImageNet",
    ),
    Claim(
        "M-AVG (μ = 0.7) ends more accurate than K-AVG (Fig. 8)",
        "mavg-fig7-8",
        versus(OURS, PLAIN, more_accurate(), name="K-AVG", each="K"),
        "--scale paper, on ImageNet",
    ),
    Claim(
        "M-AVG's best μ grows with P, by training loss (Fig. 9-12, Lemma 6)",
        "mavg-fig9-12",
        best_grows(loss, "least training loss"),
        GPU,
    ),
    Claim(
        "M-AVG's best μ grows with P, by test accuracy (Fig. 9-12)",
        "mavg-fig9-12",
        best_grows(accuracy, "highest test accuracy"),
        GPU,
    ),
    Claim("μ = 0.9 is the worst where P is small (Fig. 9)", "mavg-fig9-12", large_is_worst, GPU),
    Claim(
        "μ = 0.9 does less harm where P is large (Fig. 10-12)", "mavg-fig9-12", large_recovers, GPU
    ),
]
