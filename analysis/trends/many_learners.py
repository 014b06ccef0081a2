"""What the bounds say of P: how far the speed-up by more learners is linear, and where it ends.

With a constant step size ‖∇F(w̄)‖² comes down to noise, ∝ 1/P, and to what averages every K updates
cost in addition. sync has no such cost, so at each P it is the ideal for K-AVG. In bound (3.2) of
K-AVG both parts are equal at P = `theory.kavg_P_end`, so that K-AVG has twice the ideal there.
Corollary 1 of LUPA promises a linear speed-up up to `theory.lupa_P_end`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import many_learners as figure

from localavg import theory
from localavg.files.record import Run

from . import rule
from .rule import Values, all_of
from .select import Check, Claim, Finding, alike, mean, of, settings_of, where

EFFICIENCY = 0.8
"""part of the ideal speed-up that counts as linear"""
LEFT, FACTOR = 0.5, 4
"""part of it that is left where it ends, and how far beyond its predicted end it may do so"""


class Line(NamedTuple):
    """‖∇F‖² of sync and of K-AVG with a period K, by P, and where bounds let the speed-up end."""

    place: str
    sync: dict[int, Values]
    kavg: dict[int, Values]
    end_kavg: float
    end_lupa: float


def lines(found: list[Run]) -> Iterator[Line]:
    """Yield the lines of all problems whose constants are known."""
    for group in alike(found, "learners"):
        first = group[0].config
        known = figure.CONSTANTS.get(first.get("data_name"))
        for K in settings_of(group, "K", "kavg") if known else ():
            sync, kavg = (
                {P: of(group, figure.gradient, learners=P, **line) for P in figure.learners(group)}
                for line in ({"algorithm": "sync"}, {"algorithm": "kavg", "K": K})
            )
            yield Line(
                where(group[0], K=K),
                sync,
                {P: values for P, values in kavg.items() if values and sync[P]},
                float(theory.kavg_P_end(L=known.L, gamma=first["lr"], K=K)),
                float(theory.lupa_P_end(B=first["batch_size"], T=first["steps"], tau=K)),
            )


def sync_linear(found: list[Run]) -> Iterator[Finding]:
    """Does sync's ‖∇F‖² fall as 1/P, from one learner to each other number?"""
    for group in alike(found, "learners"):
        cells = {P: of(group, figure.gradient, "sync", learners=P) for P in figure.learners(group)}
        cells = {P: values for P, values in cells.items() if values}
        if len(cells) > 1 and min(cells) == 1:
            decisions = [
                rule.times(values, cells[1], 1 / (EFFICIENCY * P))
                for P, values in cells.items()
                if P > 1
            ]
            yield Finding(where(group[0]), all_of(*decisions), words({"sync": cells}))


def linear_to(end: str) -> Check:
    """Make the check that K-AVG is as good as sync up to `end`, a field of Line."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for line in lines(found):
            last = getattr(line, end)
            cells = {P: values for P, values in line.kavg.items() if 1 < P <= last}
            decisions = [rule.times(v, line.sync[P], 1 / EFFICIENCY) for P, v in cells.items()]
            if decisions:
                sync = {P: line.sync[P] for P in cells}
                place = f"{line.place}, up to P = {last:.3g}"
                yield Finding(place, all_of(*decisions), words({"K-AVG": cells, "sync": sync}))

    return check


def ends_there(found: list[Run]) -> Iterator[Finding]:
    """Is less than LEFT of the speed-up left at FACTOR times the P of bound (3.2)?"""
    for line in lines(found):
        beyond = [P for P in line.kavg if P >= FACTOR * line.end_kavg]
        if beyond:
            P = min(beyond)
            decision = rule.times(line.sync[P], line.kavg[P], LEFT)
            place = f"{line.place}, P = {P}, predicted {line.end_kavg:.2g}"
            cells = {"K-AVG": {P: line.kavg[P]}, "sync": {P: line.sync[P]}}
            yield Finding(place, decision, words(cells))


def words(cells: dict[str, dict[int, Values]]) -> str:
    """Write ‖∇F‖² of lines, in units of 10⁻⁶, by P."""
    parts = [
        f"{name} P = {P}: {mean({seed: 1e6 * g for seed, g in values.items()})}"
        for name, by_P in cells.items()
        for P, values in by_P.items()
    ]
    return f"‖∇F‖² · 10⁶: {'; '.join(parts)}"


LARGER = "another problem, with a larger step size or period"
CLAIMS = [
    Claim("sync is linear in P up to 4096 learners", "many-learners", sync_linear, LARGER),
    Claim(
        "K-AVG is as good as sync up to the P of bound (3.2)",
        "many-learners",
        linear_to("end_kavg"),
        LARGER,
    ),
    Claim(
        "K-AVG's linear speed-up ends at the P of bound (3.2), but for a factor of 4",
        "many-learners",
        ends_there,
        LARGER,
    ),
    Claim(
        "K-AVG is as good as sync up to LUPA's p = T²/(Bτ³)",
        "many-learners",
        linear_to("end_lupa"),
        LARGER,
    ),
]
