"""The rule by which runs decide: pass, fail or inconclusive, and what would decide.

A comparison is of pairs of runs with equal seeds. The one-sided 95 % t-bounds of the mean effect
decide with three pairs or more: pass if the whole interval is on the side of the margin that the
claim asks for, fail if it is on the other side. In between, the power of the same test says how
many seeds would decide, if the effect and its spread are as seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

PAIRS = 3
"""least number of pairs"""
RISK = 0.05
"""risk of a wrong verdict, on either side"""
POWER = 0.8
"""probability of a verdict that a number of seeds must have to be enough"""
MOST = 50
"""seeds beyond which a larger scale is named in place of a number of seeds"""
PASS, FAIL, OPEN, MISSING = "pass", "fail", "inconclusive", "missing"

Values: TypeAlias = dict[int, float]  # of a quantity, by seed


@dataclass(frozen=True)
class Decision:
    """A decided comparison.

    asked, seen: the effect that the claim asks for, and the one seen with its spread over seeds and
    the number of pairs. seeds: how many seeds would decide, of an open verdict; None: not known.
    """

    verdict: str
    asked: str = "-"
    seen: str = "-"
    seeds: int | None = None


def less(
    a: Values, b: Values, margin: float = 0.0, unit: str = "", digits: int = 2, risk: float = RISK
) -> Decision:
    """Decide a − b < margin."""
    effects = _paired(a, b, np.subtract)
    verdict, seeds = decide(effects, margin, risk)

    def write(x: float, sign: str = "+") -> str:
        return f"{x:{sign}.{digits}f}"

    spread = f" ± {write(effects.std(ddof=1), '')}" if len(effects) > 1 else ""
    mean = write(effects.mean()) if len(effects) else "-"
    seen = f"{mean}{spread}{unit} ({len(effects)})"
    limit = write(margin) if margin else "0"
    return Decision(verdict, f"< {limit}{unit}", seen, seeds)


def times(a: Values, b: Values, most: float = 1.0, risk: float = RISK) -> Decision:
    """Decide a / b < most, by the logarithms of the ratios; the mean is the geometric one."""
    ratios = _paired(a, b, np.divide)
    effects = np.log(ratios[ratios > 0])
    verdict, seeds = decide(effects, np.log(most), risk)
    if not len(effects):
        return Decision(verdict, f"< {most:.3g} times", "- (0)", seeds)
    spread = f" ± {100 * np.expm1(effects.std(ddof=1)):.2g} %" if len(effects) > 1 else ""
    seen = f"{np.exp(effects.mean()):.3g} times{spread} ({len(effects)})"
    return Decision(verdict, f"< {most:.3g} times", seen, seeds)


def _paired(
    a: Values, b: Values, effect: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the finite effects [pairs] of the seeds that both have."""
    both = sorted(a.keys() & b.keys())
    found = effect(np.array([a[s] for s in both], float), np.array([b[s] for s in both], float))
    return found[np.isfinite(found)]


def decide(effects: np.ndarray, margin: float, risk: float = RISK) -> tuple[str, int | None]:
    """Return the verdict on a mean effect below the margin, and the seeds that would decide.

    effects: [pairs]. The seeds are None where there is a verdict, and where fewer than two pairs
    tell nothing of the spread.
    """
    n = len(effects)
    if n >= PAIRS:
        room = stats.t.ppf(1 - risk, n - 1) * effects.std(ddof=1) / np.sqrt(n)
        if effects.mean() + room < margin:
            return PASS, None
        if effects.mean() - room > margin:
            return FAIL, None
    if n < 2:
        return OPEN, None
    return OPEN, max(PAIRS, n + 1, seeds_needed(effects.mean() - margin, effects.std(ddof=1), risk))


def power(n: int, shift: float, risk: float = RISK) -> float:
    """Return the probability that n pairs give the right verdict.

    shift: distance of the true effect from the margin, in standard deviations of the effect. It is
    the power of the one-sided t-test: P(T > t_{1 − risk, n − 1}), T noncentral with n − 1 degrees
    of freedom and noncentrality shift √n (Cohen 1988, §2).
    """
    limit = stats.t.ppf(1 - risk, n - 1)
    return float(stats.nct.sf(limit, n - 1, abs(shift) * np.sqrt(n)))


def seeds_needed(distance: float, spread: float, risk: float = RISK) -> int:
    """Return the least number of seeds, from 3 to MOST + 1, that decide with probability POWER.

    distance: of the effect from the margin; spread: standard deviation of the effect over seeds.
    MOST + 1 stands for all larger numbers.
    """
    if spread == 0:
        return PAIRS if distance else MOST + 1
    enough = (n for n in range(PAIRS, MOST + 1) if power(n, distance / spread, risk) >= POWER)
    return next(enough, MOST + 1)


def all_of(*decisions: Decision) -> Decision:
    """Return fail if one decision is fail, pass if all are pass, else inconclusive."""
    verdicts = {d.verdict for d in decisions}
    verdict = FAIL if FAIL in verdicts else PASS if verdicts == {PASS} else OPEN
    wanted = [d.seeds for d in decisions if d.verdict == OPEN]
    seeds = None if verdict != OPEN or None in wanted else max(n for n in wanted if n is not None)
    words = (" and ".join(dict.fromkeys(d.asked for d in decisions)),
             "; ".join(d.seen for d in decisions))  # fmt: skip
    return Decision(verdict, *words, seeds)


def any_of(*decisions: Decision) -> Decision:
    """Return pass if one decision is pass, fail if all are fail, else inconclusive.

    The decisions must have been made at a risk divided by their number. What is written is of the
    decision that passed, or else of the one that needs the fewest seeds.
    """
    verdicts = {d.verdict for d in decisions}
    verdict = PASS if PASS in verdicts else FAIL if verdicts == {FAIL} else OPEN
    same = [d for d in decisions if d.verdict == verdict]
    best = min(same, key=lambda d: d.seeds or MOST + 2)
    return Decision(verdict, best.asked, best.seen, best.seeds if verdict == OPEN else None)
