"""What the sweeps of all methods are to show: `methods` and `bandwidth`."""

from collections.abc import Iterator
from functools import partial

import bandwidth
import quantities

from localavg.files.record import Run

from . import rule
from .comparisons import equal_loss, fewer_rounds, lower_loss, no_less_accurate, versus
from .rule import Decision, Values, all_of
from .select import Check, Claim, Finding, alike, mean, of, where

POINTS = 1.0
"""points of accuracy that fewer averages may cost"""
TIMES = 4.0
"""how often the time of K-AVG at 1 Gbit/s goes into that of sync"""
NEAR = 1.1
"""ratio of times up to which they count as near"""


def much_sooner(found: list[Run]) -> Iterator[Finding]:
    """Does K-AVG reach a loss at 1 Gbit/s in at most 1 / TIMES of the time of sync?"""
    on_links = partial(quantities.by_rounds, rows=quantities.on_links)

    def seconds(run: Run) -> float:
        return quantities.reach(run, quantities.LEVEL, quantities.seconds_at(1), on_links)

    for group in alike([run for run in found if quantities.rescales(run)]):
        ours, theirs = of(group, seconds, "kavg", K=16), of(group, seconds, "sync")
        if ours and theirs:
            words = f"seconds to loss {quantities.LEVEL} at 1 Gbit/s: {mean(ours)}"
            decision = rule.times(ours, theirs, 1 / TIMES)
            yield Finding(
                where(group[0], "learners", K=16), decision, f"{words}, sync {mean(theirs)}"
            )


Cells = dict[str, Values]  # seconds to the level of each line of the figure, by seed


def at_rates(found: list[Run]) -> Iterator[tuple[str, float, Cells]]:
    """Yield (place, Gbit/s, seconds of each line) for every bandwidth."""
    runs = [run for run in found if bandwidth.line(run)]
    for group in alike(runs):
        for rate in sorted({bandwidth.gbit(run) for run in group}):
            same = [run for run in group if bandwidth.gbit(run) == rate]
            cells: Cells = {}
            for run in same:
                seconds = quantities.reach(run, bandwidth.LEVEL)
                cells.setdefault(str(bandwidth.line(run)), {})[run.config["seed"]] = seconds
            yield f"{where(group[0], 'learners')}, {rate:g} Gbit/s", rate, cells


def against_waiting(key: str, most: float, rates: tuple[float, ...]) -> Check:
    """Make the check that a line takes at most so many times the seconds of averages that wait."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for place, rate, cells in at_rates(found):
            if rate in rates and key in cells and "plain" in cells:
                ours, theirs = cells[key], cells["plain"]
                words = f"seconds: {bandwidth.NAMES[key]} {mean(ours, 3)}, waiting"
                yield Finding(place, rule.times(ours, theirs, most), f"{words} {mean(theirs, 3)}")

    return check


def pieces_no_faster(found: list[Run]) -> Iterator[Finding]:
    """Are averages in pieces alone no faster than averages that wait, but for NEAR?"""
    for place, _, cells in at_rates(found):
        if "fragments" in cells and "plain" in cells:
            ours, theirs = cells["fragments"], cells["plain"]
            words = f"seconds: in pieces {mean(ours, 3)}, waiting {mean(theirs, 3)}"
            yield Finding(place, rule.times(theirs, ours, NEAR), words)


def chosen_near_best(found: list[Run]) -> Iterator[Finding]:
    """Is the chosen period within NEAR of the best line at every bandwidth?"""
    for place, _, cells in at_rates(found):
        others = {key: values for key, values in cells.items() if key != "auto"}
        if "auto" in cells and others:
            decisions = [rule.times(cells["auto"], values, NEAR) for values in others.values()]
            words = "; ".join(f"{bandwidth.NAMES[k]} {mean(v, 3)}" for k, v in cells.items())
            yield Finding(place, all_of(*decisions), f"seconds: {words}")


def alike_on_fast_links(found: list[Run]) -> Iterator[Finding]:
    """Do the lines differ by at most NEAR on the fastest links?"""
    for place, rate, cells in at_rates(found):
        if rate >= 10 and len(cells) > 1 and "plain" in cells:
            decisions: list[Decision] = []
            for key, values in cells.items():
                if key != "plain":
                    decisions.append(rule.times(values, cells["plain"], NEAR))
                    decisions.append(rule.times(cells["plain"], values, NEAR))
            words = "; ".join(f"{bandwidth.NAMES[k]} {mean(v, 3)}" for k, v in cells.items())
            yield Finding(place, all_of(*decisions), f"seconds: {words}")


ADPSGD, SYNC, KAVG = ({"algorithm": name} for name in ("adpsgd", "sync", "kavg"))
GPU = "--scale gpu, with ResNet-18 and 160 epochs"
CLAIMS = [
    Claim(
        "DiLoCo: lower training loss than K-AVG with as many averages",
        "methods",
        versus({"algorithm": "diloco"}, KAVG, lower_loss(), name="K-AVG", each="K"),
        GPU,
    ),
    Claim(
        "SlowMo: lower training loss than K-AVG with as many averages",
        "methods",
        versus({"algorithm": "slowmo"}, KAVG, lower_loss(), name="K-AVG", each="K"),
        GPU,
    ),
    Claim(
        "Post-local SGD: no less accurate than sync, with fewer averages",
        "methods",
        versus({"algorithm": "postlocal"}, SYNC, no_less_accurate(POINTS), fewer_rounds()),
        GPU,
    ),
    Claim(
        "QSR: no less accurate than K-AVG with its shortest period, with fewer averages",
        "methods",
        versus(
            {"algorithm": "qsr"},
            KAVG,
            no_less_accurate(POINTS),
            fewer_rounds(),
            name="K-AVG",
            each="K",
        ),
        GPU,
    ),
    Claim(
        "ADPSGD: fewer averages than sync at equal loss, among all methods",
        "methods",
        versus(ADPSGD, SYNC, equal_loss(), fewer_rounds()),
        GPU,
    ),
    Claim(
        "K-AVG: much sooner than sync at a training loss of 0.4 over 1 Gbit/s",
        "methods",
        much_sooner,
        GPU,
    ),
    Claim(
        "Delayed averages are sooner than those that wait, at 1 Gbit/s and below",
        "bandwidth",
        against_waiting("delay", 1.0, (0.1, 1.0)),
        GPU,
    ),
    Claim(
        "int8 takes half of the time or less at 0.1 Gbit/s",
        "bandwidth",
        against_waiting("wire", 0.5, (0.1,)),
        GPU,
    ),
    Claim("Pieces alone are no faster, but for a tenth", "bandwidth", pieces_no_faster, GPU),
    Claim("The chosen period is within a tenth of the best", "bandwidth", chosen_near_best, GPU),
    Claim(
        "Nothing differs by more than a tenth at 10 Gbit/s", "bandwidth", alike_on_fast_links, GPU
    ),
]
