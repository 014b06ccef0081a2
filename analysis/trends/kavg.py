"""What K-AVG's paper claims: its Fig. 1 to 7."""

from collections.abc import Iterator

import numpy as np
import quantities
from quantities import accuracy

from localavg.files.record import Run

from . import rule
from .rule import Decision, Values, all_of, any_of
from .select import Check, Claim, Finding, alike, always, chosen, mean, of, settings_of, where

FALL = 2.0
"""points of accuracy that count as a fall"""
HARDLY = 1.0
"""points of accuracy that hardly matter"""
TRAINED, GUESSING = 70.0, 20.0
"""test accuracies (%) from and up to which an asynchronous run has learned, or has not"""
SPEED_UP = 2.0
"""speed-up of K-AVG at the largest P; the paper has 2.5 and 2.6"""
NAMES = {"downpour": "Downpour", "eamsgd": "EAMSGD"}


def ahead(found: list[Run]) -> Iterator[Finding]:
    """Is K-AVG more accurate than both asynchronous methods at every P, at its step size?"""
    for group in alike(found, "learners"):
        for algorithm, name in NAMES.items():
            decisions, words = [], []
            for P in settings_of(group, "learners", "kavg"):
                ours, theirs = (of(group, accuracy, key, learners=P) for key in ("kavg", algorithm))
                if theirs:
                    decisions.append(rule.less(theirs, ours, unit=" points"))
                    words.append(f"P = {P}: K-AVG {mean(ours)} %, {name} {mean(theirs)} %")
            if decisions:
                place = f"{where(group[0], 'lr')}, {name}"
                yield Finding(place, all_of(*decisions), "; ".join(words))


def degrades(found: list[Run]) -> Iterator[Finding]:
    """Is Downpour's and EAMSGD's accuracy lower by FALL at the largest P than at the smallest?"""
    for algorithm, name in NAMES.items():
        for group in alike(chosen(found, algorithm), "learners"):
            if len(Ps := settings_of(group, "learners", algorithm)) > 1:
                cells = {P: of(group, accuracy, learners=P) for P in Ps}
                words = "; ".join(f"P = {P}: {mean(a)} %" for P, a in cells.items())
                decision = rule.less(cells[Ps[-1]], cells[Ps[0]], -FALL, " points")
                yield Finding(f"{where(group[0], 'lr')}, {name}", decision, words)


def with_small_steps(algorithm: str, learns: bool) -> Check:
    """Make the check that an algorithm does (not) learn at the largest P with small steps.

    Small: a tenth of K-AVG's γ₀ or less.
    """

    def check(found: list[Run]) -> Iterator[Finding]:
        most = max(settings_of(found, "lr", "kavg"), default=1.0) / 10 * (1 + 1e-9)
        small = [run for run in chosen(found, algorithm) if run.config["lr"] <= most]
        for group in alike(small, "learners"):
            P = settings_of(group, "learners", algorithm)[-1]
            ours = of(group, accuracy, learners=P)
            if learns:
                decision = rule.less(always(ours, TRAINED), ours, unit=" points")
            else:
                decision = rule.less(ours, always(ours, GUESSING), unit=" points")
            yield Finding(where(group[0], "lr", P=P), decision, f"test accuracy {mean(ours)} %")

    return check


def times_at(first: bool) -> Check:
    """Make the check of the wall clocks at the smallest P, or of those at the largest."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found, "learners"):
            for algorithm, name in NAMES.items():
                Ps = sorted(
                    set(settings_of(group, "learners", "kavg"))
                    & set(settings_of(group, "learners", algorithm))
                )
                if len(Ps) < 2:
                    continue
                P = Ps[0] if first else Ps[-1]
                ours, theirs = (
                    of(group, quantities.wall_s, key, learners=P) for key in ("kavg", algorithm)
                )
                decision = (
                    rule.times(theirs, ours) if first else rule.times(ours, theirs, 1 / SPEED_UP)
                )
                words = f"seconds: K-AVG {mean(ours, 3)}, {name} {mean(theirs, 3)}"
                yield Finding(f"{where(group[0], P=P)}, {name}", decision, words)

    return check


def _accuracies(problem: list[Run]) -> dict[int, dict[int, Values]]:
    """Return {P: {K: accuracies}} of K-AVG, of every P with several K."""
    cells = {
        P: {
            K: values
            for K in settings_of(problem, "K", "kavg")
            if (values := of(problem, accuracy, "kavg", K=K, learners=P))
        }
        for P in settings_of(problem, "learners", "kavg")
    }
    return {P: by_K for P, by_K in cells.items() if len(by_K) > 1 and 1 in by_K}


def best_above_1(found: list[Run]) -> Iterator[Finding]:
    """Is there a P whose best K is above 1, by test accuracy?"""
    for problem in alike(found, "learners"):
        cells = _accuracies(problem)
        tries = [(P, K) for P, by_K in cells.items() for K in by_K if K > 1]
        if tries:
            risk = rule.RISK / len(tries)
            tested = [
                rule.less(cells[P][1], cells[P][K], unit=" points", risk=risk) for P, K in tries
            ]
            words = []
            for P, by_K in cells.items():
                K = max((K for K in by_K if K > 1), key=lambda K: np.mean([*by_K[K].values()]))
                words.append(f"P = {P}: K = {K} {mean(by_K[K])} %, K = 1 {mean(by_K[1])} %")
            yield Finding(where(problem[0]), any_of(*tested), "; ".join(words))


def best_falls(found: list[Run]) -> Iterator[Finding]:
    """Is the best K of a seed, by test accuracy, at the largest P half of that at the smallest?"""
    for problem in alike(found, "learners"):
        if len(cells := _accuracies(problem)) > 1:
            best = {P: _best(cells[P]) for P in (min(cells), max(cells))}
            few, many = best.values()
            words = "; ".join(f"P = {P}: best K {mean(K, 1)}" for P, K in best.items())
            yield Finding(where(problem[0]), rule.times(many, few, 0.5), words)


def _best(by_K: dict[int, Values]) -> Values:
    """Return the K of the highest accuracy, by seed."""
    seeds = set.intersection(*(set(values) for values in by_K.values()))
    return {seed: max(by_K, key=lambda K: by_K[K][seed]) for seed in seeds}


def long_periods(most_learners: bool) -> Check:
    """Make the check that the largest K costs FALL at the largest P, or hardly at the smallest."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for problem in alike(found, "learners"):
            if len(cells := _accuracies(problem)) > 1:
                P = max(cells) if most_learners else min(cells)
                one, K = cells[P][1], max(cells[P])
                many = cells[P][K]
                decision: Decision = (
                    rule.less(many, one, -FALL, " points")
                    if most_learners
                    else rule.less(one, many, HARDLY, " points")
                )
                words = f"test accuracy: K = {K} {mean(many)} %, K = 1 {mean(one)} %"
                yield Finding(where(problem[0], P=P), decision, words)

    return check


def _gaps(found: list[Run]) -> dict[str, dict[int, Values]]:
    """Return {problem: {P: accuracy of sequential SGD less that of K-AVG}}, in points."""
    gaps: dict[str, dict[int, Values]] = {}
    for group in alike(found, "learners"):
        alone = of(group, accuracy, "sgd")
        for P in settings_of(group, "learners", "kavg") if alone else []:
            ours = of(group, accuracy, "kavg", learners=P)
            behind = {seed: alone[seed] - x for seed, x in ours.items() if seed in alone}
            gaps.setdefault(where(group[0]), {})[P] = behind
    return gaps


def near_sgd(found: list[Run]) -> Iterator[Finding]:
    """Is K-AVG at P = 8 and 16 within HARDLY of sequential SGD?"""
    for place, gaps in _gaps(found).items():
        few = {P: gap for P, gap in gaps.items() if P <= 16}
        decisions = [rule.less(gap, always(gap, 0), HARDLY, " points") for gap in few.values()]
        words = "; ".join(f"P = {P}: {mean(gap)} points behind" for P, gap in few.items())
        if few:
            yield Finding(place, all_of(*decisions), words)


def gap_opens(found: list[Run]) -> Iterator[Finding]:
    """Is the gap at the largest P wider by FALL than that at the smallest?"""
    for place, gaps in _gaps(found).items():
        if len(gaps) > 1:
            few, many = gaps[min(gaps)], gaps[max(gaps)]
            words = "; ".join(f"P = {P}: {mean(gap)} points behind" for P, gap in gaps.items())
            yield Finding(place, rule.less(few, many, -FALL, " points"), words)


def nin_spared(found: list[Run]) -> Iterator[Finding]:
    """Is NiN's gap at the largest P smaller than that of the other network, by HARDLY?"""
    gaps = _gaps(found)
    for place, of_nin in gaps.items():
        for other, of_other in gaps.items():
            if place.startswith("NiN") and not other.startswith("NiN"):
                P = max(of_nin.keys() & of_other.keys())
                a, b = of_nin[P], of_other[P]
                words = f"P = {P}: NiN {mean(a)} points behind SGD, the other {mean(b)}"
                decision = rule.less(a, b, -HARDLY, " points")
                yield Finding(f"{place} and {other}", decision, words)


TO_128 = "--scale gpu, with P to 128, K to 64 and 600 epochs"
CLAIMS = [
    Claim("K-AVG is ahead of Downpour and EAMSGD at every P (Fig. 1, 2)", "kavg-fig1-2", ahead),
    Claim("Downpour and EAMSGD degrade as P grows (Fig. 1, 2)", "kavg-fig1-2", degrades),
    Claim(
        "Downpour learns at a tenth of the step size and the largest P (Fig. 1, 2)",
        "kavg-fig1-2",
        with_small_steps("downpour", learns=True),
    ),
    Claim(
        "EAMSGD does not learn at a tenth of the step size and the largest P (Fig. 1, 2)",
        "kavg-fig1-2",
        with_small_steps("eamsgd", learns=False),
    ),
    Claim(
        "The asynchronous methods are faster at P = 8 (Fig. 3, 4)", "kavg-fig3-4", times_at(True)
    ),
    Claim(
        "K-AVG is at least twice as fast at the largest P (Fig. 3, 4)",
        "kavg-fig3-4",
        times_at(False),
    ),
    Claim("K-AVG's best K is above 1 somewhere (Fig. 5, 6)", "kavg-fig5-6", best_above_1, TO_128),
    Claim("K-AVG's best K falls as P grows (Fig. 5, 6)", "kavg-fig5-6", best_falls, TO_128),
    Claim(
        "K-AVG falls steeply for a long K where P is large (Fig. 5, 6)",
        "kavg-fig5-6",
        long_periods(most_learners=True),
        TO_128,
    ),
    Claim(
        "K hardly matters for K-AVG where P is small (Fig. 5, 6)",
        "kavg-fig5-6",
        long_periods(most_learners=False),
        TO_128,
    ),
    Claim("K-AVG is near sequential SGD at P = 8 and 16 (Fig. 7)", "kavg-fig7", near_sgd),
    Claim("K-AVG's gap to sequential SGD opens with P (Fig. 7)", "kavg-fig7", gap_opens),
    Claim("K-AVG's gap is smaller for NiN at many learners (Fig. 7)", "kavg-fig7", nin_spared),
]
