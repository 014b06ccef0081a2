"""What ADPSGD's paper claims of variances and periods: its Fig. 1 to 3, §III-A and §V-B."""

from collections.abc import Iterator

import adpsgd_fig3
import numpy as np
import quantities

from localavg.files.record import Run

from . import rule
from .adpsgd import LONGER, OURS, P8
from .comparisons import Comparison, compare, lower_loss, more_accurate, versus
from .rule import all_of
from .select import Check, Claim, Finding, Quantity, alike, always, chosen, mean, of, where

GROWN = 2.0
"""how often the period at the end contains that before the step size first drops"""
STEADY = 2.0
"""factor within which V_t counts as nearly constant"""


def variance_of(*spans: tuple[float, float]) -> Quantity:
    """Make the ratio of the mean V_t in the second span of a run to that in the first."""

    def ratio(run: Run) -> float:
        rows, T = quantities.variances(run), run.config.get("steps") or run.eval.t.max()
        first, second = (
            rows.mean_variance[(rows.t > a * T) & (rows.t <= b * T)].mean() for a, b in spans
        )
        return float(second / first)

    return ratio


def variance_falls(found: list[Run]) -> Iterator[Finding]:
    """Is V_t of p = 8 at most half as large in the quarter after the step size first drops?"""
    for group in alike(chosen(found, **P8)):
        ratio = of(group, variance_of((0.25, 0.5), (0.5, 0.75)))
        words = f"V_t of the third quarter over that of the second: {mean(ratio, 3)}"
        yield Finding(where(group[0], "learners"), rule.times(ratio, always(ratio, 1), 0.5), words)


def variance_steady(found: list[Run]) -> Iterator[Finding]:
    """Is ADPSGD's V_t in the second quarter within a factor STEADY of that in the first?"""
    for group in alike(chosen(found, **OURS)):
        ratio = of(group, variance_of((0.0, 0.25), (0.25, 0.5)))
        low, high = always(ratio, 1 / STEADY), always(ratio, 1)
        decision = all_of(rule.times(low, ratio), rule.times(ratio, high, STEADY))
        words = f"V_t of the second quarter over that of the first: {mean(ratio, 3)}"
        yield Finding(where(group[0], "learners"), decision, words)


def weighted(most: float) -> Comparison:
    """Make the comparison: our weighted variance (9) is at most so many times theirs."""
    return Comparison(
        "weighted variance", quantities.weighted_variance, lambda a, b, _: rule.times(a, b, most), 4
    )


def growth(run: Run) -> float:
    """Return the period at the end over the period when the step size first drops."""
    averages, end = adpsgd_fig3.periods(run), run.eval.iloc[-1]
    drop = run.config["milestones"][0] * end.t / end.epoch
    before = averages.period[averages.t <= drop]
    return float(averages.period.iloc[-1] / before.iloc[-1]) if len(before) else np.nan


def grows(found: list[Run]) -> Iterator[Finding]:
    """Is ADPSGD's period at the end GROWN times that before the step size drops?"""
    for group in alike([run for run in chosen(found, **OURS) if run.config.get("milestones")]):
        ratio = of(group, growth)
        words = f"the last period over that before the drop: {mean(ratio)}"
        yield Finding(where(group[0], "learners"), rule.times(always(ratio, GROWN), ratio), words)


def as_few_as_8(found: list[Run]) -> Iterator[Finding]:
    """Does ADPSGD make no more averages than a period of 8?"""
    for group in alike(chosen(found, **OURS)):
        counts = of(group, quantities.rounds)
        eighth = of(group, lambda run: run.eval.t.max() / 8)
        words = f"averages {mean(counts, 0)}, an eighth of the updates {mean(eighth, 0)}"
        yield Finding(where(group[0], "learners"), rule.times(counts, eighth, 1.02), words)


def strategies(good: str, bad: str, *comparisons: Comparison) -> Check:
    """Make the check that the periods `good` are better than `bad`, both as in "4, 8"."""

    def key(run: Run) -> str:
        if run.config["algorithm"] == "kavg":
            return str(run.config["K"])
        return ", ".join(piece.split(":")[1] for piece in run.config["pieces"].split(","))

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(chosen(found, "piecewise") + chosen(found, "kavg")):
            # the lines are told by a name of their own, as pieces have epochs in them
            lines = {k: [run for run in group if key(run) == k] for k in (good, bad)}
            if all(lines.values()):
                values = {k: some[0].config for k, some in lines.items()}
                a, b = (
                    {"algorithm": c["algorithm"], "K": c.get("K"), "pieces": c.get("pieces")}
                    for c in values.values()
                )
                place = where(group[0], "learners")
                yield compare(group, a, b, comparisons, f"periods {bad}", place)

    return check


CLAIMS = [
    Claim(
        "V_t grows with the period: less than half for p = 2 than for p = 8 (Fig. 1)",
        "adpsgd-fig1-2",
        versus({"algorithm": "kavg", "K": 2}, P8, weighted(0.5), name="p = 8"),
        LONGER,
    ),
    Claim(
        "V_t falls with the step size, to less than half (Fig. 1)",
        "adpsgd-fig1-2",
        variance_falls,
        LONGER,
    ),
    Claim(
        "ADPSGD's weighted variance (9) is smaller than that of p = 8 (Fig. 2)",
        "adpsgd-fig1-2",
        versus(OURS, P8, weighted(0.8), name="p = 8"),
        LONGER,
    ),
    Claim(
        "ADPSGD keeps V_t nearly constant through the first half (Fig. 2)",
        "adpsgd-fig1-2",
        variance_steady,
        LONGER,
    ),
    Claim(
        "ADPSGD's period at the end is twice that before the drop (Fig. 3)",
        "adpsgd-fig3",
        grows,
        LONGER,
    ),
    Claim(
        "ADPSGD makes no more averages than a period of 8 (Fig. 3)",
        "adpsgd-fig3",
        as_few_as_8,
        LONGER,
    ),
    Claim(
        "A period of 4 then 8 ends at less loss than 8 then 4 (§III-A)",
        "adpsgd-strategies",
        strategies("4, 8", "8, 4", lower_loss()),
        LONGER,
    ),
    Claim(
        "A period of 20 then 5 ends at more loss than 8 throughout (§V-B)",
        "adpsgd-strategies",
        strategies("8", "20, 5", lower_loss()),
        LONGER,
    ),
    Claim(
        "A period of 20 then 5 ends less accurate than 8 throughout (§V-B)",
        "adpsgd-strategies",
        strategies("8", "20, 5", more_accurate(of=quantities.best_accuracy)),
        LONGER,
    ),
]
