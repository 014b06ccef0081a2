"""What Hier-AVG's paper claims: its Fig. 1 to 5 and Table 1."""

import itertools
from collections.abc import Iterator

import hieravg_fig5
import quantities

from localavg.files.record import Run

from . import rule
from .comparisons import Comparison, compare, lower_loss, more_accurate, no_less_accurate, versus
from .select import Check, Claim, Finding, alike, chosen, of, settings_of, where

EARLY = 1.0
"""points of training accuracy by which Hier-AVG is ahead after a tenth of the run; the paper: 6"""
POINTS = 1.0
"""points of training accuracy that few global averages may cost"""


def training_accuracy(run: Run) -> float:
    """Return the training accuracy at the end, in percent."""
    return 100 * quantities.end(run, "train_accuracy")


def few_global(found: list[Run]) -> Iterator[Finding]:
    """Is the largest K₂ no worse than the smallest, by training accuracy?"""
    for group in alike(chosen(found, "hieravg")):
        K2s = settings_of(group, "K2", "hieravg")
        if len(K2s) > 1:
            lines = [{"algorithm": "hieravg", "K2": K2} for K2 in (K2s[-1], K2s[0])]
            test = Comparison(
                "training accuracy (%)",
                training_accuracy,
                lambda a, b, _: rule.less(b, a, POINTS, " points"),
            )
            place = where(group[0], "learners", K2=K2s[-1])
            yield compare(group, *lines, (test,), f"K₂ = {K2s[0]}", place)


def lower(setting: str, smaller: bool) -> Check:
    """Make the check that a smaller (or larger) K1 or S ends at a lower training loss."""
    fixed = "S" if setting == "K1" else "K1"

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(chosen(found, "hieravg")):
            others = settings_of(group, fixed, "hieravg")
            for K2, other in itertools.product(settings_of(group, "K2", "hieravg"), others):
                same = chosen(group, **{"K2": K2, fixed: other})
                if len(tried := settings_of(same, setting, "hieravg")) > 1:
                    good, bad = (tried[0], tried[-1]) if smaller else (tried[-1], tried[0])
                    a, b = ({"algorithm": "hieravg", setting: x} for x in (good, bad))
                    place = where(group[0], "learners", **{"K2": K2, fixed: other})
                    yield compare(same, a, b, (lower_loss(),), f"{setting} = {bad}", place)

    return check


def twice(comparison: Comparison) -> Check:
    """Make the check of Hier-AVG with K2 = 2K against K-AVG with K."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            for K, K1, S in itertools.product(
                settings_of(group, "K", "kavg"),
                settings_of(group, "K1", "hieravg"),
                settings_of(group, "S", "hieravg"),
            ):
                ours = {"algorithm": "hieravg", "K2": 2 * K, "K1": K1, "S": S}
                theirs = {"algorithm": "kavg", "K": K}
                if all(of(group, quantities.accuracy, **line) for line in (ours, theirs)):
                    place = where(group[0], "learners", K=K, K1=K1, S=S)
                    yield compare(group, ours, theirs, (comparison,), "K-AVG", place)

    return check


OURS, PLAIN = {"algorithm": "hieravg"}, {"algorithm": "kavg"}
ahead_early = Comparison(
    "training accuracy after a tenth of the run (%)",
    hieravg_fig5.early,
    lambda a, b, _: rule.less(b, a, -EARLY, " points"),
)
GPU = "--scale gpu, with ResNet-18 and 200 epochs"
IMAGENET = "--scale paper, on ImageNet"
CLAIMS = [
    Claim(
        "Hier-AVG trains no worse with K₂ = 32 than with 8 (Fig. 1, 2)",
        "hieravg-fig1-2",
        few_global,
        GPU,
    ),
    Claim(
        "Hier-AVG: smaller K₁ lowers training loss (Fig. 3)",
        "hieravg-fig3-4",
        lower("K1", smaller=True),
        GPU,
    ),
    Claim(
        "Hier-AVG: larger S lowers training loss (Fig. 4)",
        "hieravg-fig3-4",
        lower("S", smaller=False),
        GPU,
    ),
    Claim(
        "Hier-AVG(2K) is no less accurate than K-AVG(K) (Table 1)",
        "hieravg-table1",
        twice(no_less_accurate()),
        GPU,
    ),
    Claim(
        "Hier-AVG(2K) is more accurate than K-AVG(K) (Table 1)",
        "hieravg-table1",
        twice(more_accurate()),
        GPU,
    ),
    Claim(
        "Hier-AVG is ahead of K-AVG after a tenth of the run (Fig. 5)",
        "hieravg-fig5",
        versus(OURS, PLAIN, ahead_early, name="K-AVG"),
        IMAGENET,
    ),
    Claim(
        "Hier-AVG ends at a lower training loss than K-AVG (Fig. 5)",
        "hieravg-fig5",
        versus(OURS, PLAIN, lower_loss(), name="K-AVG"),
        IMAGENET,
    ),
    Claim(
        "Hier-AVG ends more accurate than K-AVG (Fig. 5)",
        "hieravg-fig5",
        versus(OURS, PLAIN, more_accurate(), name="K-AVG"),
        IMAGENET,
    ),
]
