"""The papers' trends, checked on runs: pass, fail or inconclusive for each, as a Markdown table.

The rule is one for all. A claim says that some quantity of one setting lies below that of another,
or below it plus a margin, all other settings equal. Runs are paired by seed; with three pairs or
more the one-sided 95 % t-bounds of the mean difference decide: pass where the upper bound lies
below the margin, fail where the lower one lies above, and inconclusive between, or with fewer
pairs. "Equal loss" allows 1 % of the loss that the runs began with, "no worse" 1 point of accuracy,
"linear" four fifths of the ideal, "much sooner" a quarter of the time. Where a claim picks the best
of several settings, the 5 % are divided by their number.

Cost: a few seconds for all laptop sweeps.

    python analysis/claims.py runs --out figures
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import output
import quantities
import results
import style
from scipy import stats
from tabulate import tabulate

from localavg.files.record import Run, load_many

PAIRS, RISK = 3, 0.05  # least number of pairs; risk of a wrong verdict
LOSS, POINTS, EFFICIENCY = 0.01, 1.0, 0.8  # equal loss, no worse accuracy (points), linear
LEVEL = 0.35  # training loss of LUPA's Fig. 3
TIMES = 4.0  # how often the time of K-AVG at 1 Gbit/s goes into that of sync
SHARED = (  # settings in which runs that are compared must agree
    "problem",
    "data_name",
    "model",
    "learners",
    "batch_size",
    "lr",
    "optimizer",
    "momentum",
    "state",
    "lr_schedule",
    "factor",
    "milestones",
    "decay_every",
    "warmup_epochs",
    "sampling",
    "l2",
    "epochs",
    "steps",
    "no_augment",
)
SYMBOLS = {"learners": "P"}
PASS, FAIL, OPEN, MISSING = "pass", "fail", "inconclusive", "missing"


@dataclass(frozen=True)
class Finding:
    """What the runs show of a claim in one place: a problem and its settings."""

    where: str
    verdict: str
    numbers: str


Values: TypeAlias = dict[int, float]  # of a quantity, by seed
Check: TypeAlias = Callable[[list[Run]], Iterator[Finding]]


def below(a: Values, b: Values, margin: float = 0.0, risk: float = RISK) -> str:
    """Return the verdict on a < b + margin, from pairs of equal seeds."""
    differences = np.array([a[seed] - b[seed] - margin for seed in sorted(a.keys() & b.keys())])
    differences = differences[np.isfinite(differences)]
    if (n := len(differences)) < PAIRS:
        return OPEN
    room = stats.t.ppf(1 - risk, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    if differences.mean() + room < 0:
        return PASS
    return FAIL if differences.mean() - room > 0 else OPEN


def all_of(*verdicts: str) -> str:
    """Return fail if one verdict is fail, pass if all are pass, else inconclusive."""
    return FAIL if FAIL in verdicts else PASS if set(verdicts) == {PASS} else OPEN


def alike(found: Iterable[Run], *but: str) -> list[list[Run]]:
    """Group the ended runs that agree in all shared settings except those named in `but`."""
    left_out = {*but, "steps"} if "learners" in but else set(but)
    shared = [name for name in SHARED if name not in left_out]
    groups: dict[str, list[Run]] = {}

    def place(run: Run) -> tuple[str, int]:
        return quantities.problem(run), run.config.get("learners") or 0

    for run in sorted(found, key=place):
        if run.status == "finished" or quantities.diverged(run):
            groups.setdefault(str([run.config.get(name) for name in shared]), []).append(run)
    return list(groups.values())


def of(
    found: Iterable[Run],
    quantity: Callable[[Run], float],
    algorithm: str | None = None,
    **settings: float | None,
) -> Values:
    """Return a quantity of the runs of an algorithm (None: of all) with these settings."""
    return {
        run.config.get("seed"): quantity(run)
        for run in found
        if algorithm in (None, run.config["algorithm"])
        and all(run.config.get(k) == x for k, x in settings.items())
    }


def mean(values: Values, digits: int = 2) -> str:
    """Write mean ± standard deviation and, in brackets, the number of values."""
    return f"{output.spread(list(values.values()), digits)} ({len(values)})"


def loss(run: Run) -> float:
    """Return the training loss at the end."""
    return np.inf if quantities.diverged(run) else quantities.end(run, "train_loss")


def settings_of(found: Iterable[Run], name: str, algorithm: str) -> list[Any]:
    """Return the values of a setting among the runs of an algorithm, sorted."""
    return sorted(
        {
            run.config[name]
            for run in found
            if run.config["algorithm"] == algorithm and run.config.get(name) is not None
        }
    )


def room(found: Iterable[Run]) -> float:
    """Return the difference up to which losses count as equal."""
    return LOSS * float(np.nanmean([run.eval.train_loss.iloc[0] for run in found if len(run.eval)]))


def place(run: Run, *names: str) -> str:
    """Write the problem and these settings of a run."""
    settings = [f"{SYMBOLS.get(name, name)} = {run.config.get(name)}" for name in names]
    return ", ".join([quantities.problem(run), *settings])


def best_period(found: list[Run]) -> Iterator[Finding]:
    """Is there a P whose best K is above 1, by test accuracy?"""
    for problem in alike(found, "learners"):
        accuracies = {
            (P, K): of(problem, quantities.accuracy, "kavg", K=K, learners=P)
            for P in settings_of(problem, "learners", "kavg")
            for K in settings_of(problem, "K", "kavg")
        }
        tries = [(P, K) for (P, K), more in accuracies.items() if K > 1 and more]
        tries = [(P, K) for P, K in tries if accuracies.get((P, 1))]
        if not tries:
            continue
        risk = RISK / len(tries)
        if any(below(accuracies[P, 1], accuracies[P, K], risk=risk) == PASS for P, K in tries):
            verdict = PASS
        elif all(below(accuracies[P, 1], accuracies[P, K]) == FAIL for P, K in tries):
            verdict = FAIL
        else:
            verdict = OPEN
        means = {key: np.mean(list(accuracies[key].values())) for key in tries}
        words = []
        for P in dict.fromkeys(P for P, _ in tries):
            _, K = max((key for key in tries if key[0] == P), key=means.__getitem__)
            one, more = mean(accuracies[P, 1]), mean(accuracies[P, K])
            words.append(f"P = {P}: K = {K} {more} %, K = 1 {one} %")
        yield Finding(quantities.problem(problem[0]), verdict, "; ".join(words))


def adpsgd_against(other: str, period: int | None) -> Check:
    """Make the check that ADPSGD makes fewer averages than `other` at equal loss."""
    named = {"K": period} if period else {}

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            ours, theirs = of(group, loss, "adpsgd"), of(group, loss, other, **named)
            if ours and theirs:
                rounds = quantities.rounds
                counts = of(group, rounds, "adpsgd"), of(group, rounds, other, **named)
                yield Finding(
                    place(group[0], "learners"),
                    all_of(below(ours, theirs, room(group)), below(*counts)),
                    f"averages {mean(counts[0], 0)} against {mean(counts[1], 0)}, "
                    f"training loss {mean(ours, 4)} against {mean(theirs, 4)}",
                )

    return check


def mavg_ahead(found: list[Run]) -> Iterator[Finding]:
    """Does M-AVG with μ = 0.7 end at a lower training loss than K-AVG?"""
    for group in alike(found):
        for K in settings_of(group, "K", "mavg"):
            ours = of(group, loss, "mavg", K=K, mu=0.7)
            theirs = of(group, loss, "kavg", K=K) or of(group, loss, "mavg", K=K, mu=0.0)
            if ours and theirs:
                yield Finding(
                    place(group[0], "learners") + f", K = {K}",
                    below(ours, theirs),
                    f"training loss {mean(ours, 4)}, K-AVG {mean(theirs, 4)}",
                )


def least(losses: Mapping[float, Values], seed: int) -> float:
    """Return the μ of the least loss of a seed; losses: {μ: {seed: loss}}."""
    return min(losses, key=lambda mu: losses[mu][seed])


def best_momentum(found: list[Run]) -> Iterator[Finding]:
    """Is the μ of least training loss larger at the largest P than at the smallest?"""
    for problem in alike([run for run in found if run.config["algorithm"] == "mavg"], "learners"):
        best: dict[int, Values] = {}  # {P: {seed: μ}}
        for P in settings_of(problem, "learners", "mavg"):
            losses = {
                mu: of(problem, loss, "mavg", mu=mu, learners=P)
                for mu in settings_of(problem, "mu", "mavg")
            }
            losses = {mu: values for mu, values in losses.items() if values}
            seeds = set.intersection(*(set(values) for values in losses.values()))
            if len(losses) > 1:
                best[P] = {seed: least(losses, seed) for seed in seeds}
        if len(best) > 1:
            words = "; ".join(f"P = {P}: {mean(mus)}" for P, mus in best.items())
            yield Finding(
                quantities.problem(problem[0]),
                below(best[min(best)], best[max(best)]),
                f"μ of least training loss: {words}",
            )


def hieravg_twice(found: list[Run]) -> Iterator[Finding]:
    """Is Hier-AVG with K2 = 2K no worse than K-AVG with K, by test accuracy?"""
    for group in alike(found):
        for K, K1, S in itertools.product(
            settings_of(group, "K", "kavg"),
            settings_of(group, "K1", "hieravg"),
            settings_of(group, "S", "hieravg"),
        ):
            ours = of(group, quantities.accuracy, "hieravg", K2=2 * K, K1=K1, S=S)
            theirs = of(group, quantities.accuracy, "kavg", K=K)
            if ours and theirs:
                yield Finding(
                    place(group[0], "learners") + f", K = {K}, K₁ = {K1}, S = {S}",
                    below(theirs, ours, POINTS),
                    f"test accuracy {mean(ours)} %, K-AVG {mean(theirs)} %",
                )


def hieravg_lower(setting: str, smaller: bool) -> Check:
    """Make the check that a smaller (or larger) K1 or S ends at a lower training loss."""
    fixed = "S" if setting == "K1" else "K1"

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike([run for run in found if run.config["algorithm"] == "hieravg"]):
            others = settings_of(group, fixed, "hieravg")
            for K2, other in itertools.product(settings_of(group, "K2", "hieravg"), others):
                same = [
                    run for run in group if run.config["K2"] == K2 and run.config[fixed] == other
                ]
                if len(tried := settings_of(same, setting, "hieravg")) > 1:
                    good, bad = (tried[0], tried[-1]) if smaller else (tried[-1], tried[0])
                    a, b = of(same, loss, **{setting: good}), of(same, loss, **{setting: bad})
                    yield Finding(
                        place(group[0], "learners") + f", K2 = {K2}, {fixed} = {other}",
                        below(a, b),
                        f"training loss {mean(a, 4)} at {setting} = {good}, {mean(b, 4)} at {bad}",
                    )

    return check


def lupa_level(found: list[Run]) -> Iterator[Finding]:
    """Does LUPA with τ = 91 reach the loss of sync, with fewer rounds?"""
    for group in alike(found):
        ours, theirs = of(group, loss, "kavg", K=91), of(group, loss, "sync")
        if ours and theirs:
            counts = (
                of(group, quantities.rounds, "kavg", K=91),
                of(group, quantities.rounds, "sync"),
            )
            yield Finding(
                place(group[0], "learners"),
                all_of(below(ours, theirs, room(group)), below(*counts)),
                f"training loss {mean(ours, 4)}, sync {mean(theirs, 4)}; "
                f"rounds {mean(counts[0], 0)} of {mean(counts[1], 0)}",
            )


def linear(found: list[Run]) -> Iterator[Finding]:
    """Is the time to a loss of LEVEL with the most learners P at most 1 / (0.8 P) of one's?"""
    kind = ("kavg", "logistic")
    averaged = [
        run for run in found if (run.config["algorithm"], run.config.get("problem")) == kind
    ]
    for by_clock in results.by_clock(averaged).values():
        for group in alike(by_clock, "learners"):
            Ps = settings_of(group, "learners", "kavg")
            if len(Ps) < 2 or Ps[0] > 1:
                continue
            times = {P: of(group, lambda run: quantities.reach(run, LEVEL), learners=P) for P in Ps}
            work = {seed: EFFICIENCY * P * s for P in Ps[-1:] for seed, s in times[P].items()}
            words = "; ".join(f"P = {P}: {mean(seconds, 3)}" for P, seconds in times.items())
            yield Finding(
                quantities.clock(group[0]),
                below(work, times[1]),
                f"seconds to loss {LEVEL}: {words}",
            )


def asgd_degrades(found: list[Run]) -> Iterator[Finding]:
    """Is the test accuracy of Downpour and EAMSGD lower at the largest P than at the smallest?"""
    for algorithm in ("downpour", "eamsgd"):
        ours = [run for run in found if run.config["algorithm"] == algorithm]
        for group in alike(ours, "learners"):
            if len(Ps := settings_of(group, "learners", algorithm)) > 1:
                accuracies = {P: of(group, quantities.accuracy, learners=P) for P in Ps}
                words = "; ".join(f"P = {P}: {mean(a)} %" for P, a in accuracies.items())
                yield Finding(
                    f"{place(group[0], 'lr')}, {algorithm}",
                    below(accuracies[Ps[-1]], accuracies[Ps[0]]),
                    f"test accuracy: {words}",
                )


def lower_loss(algorithm: str) -> Check:
    """Make the check that an algorithm ends at a lower training loss than K-AVG with its K."""

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            for K in settings_of(group, "K", algorithm):
                ours, theirs = of(group, loss, algorithm, K=K), of(group, loss, "kavg", K=K)
                if ours and theirs:
                    yield Finding(
                        place(group[0], "learners") + f", K = {K}",
                        below(ours, theirs),
                        f"training loss {mean(ours, 4)}, K-AVG {mean(theirs, 4)}",
                    )

    return check


def thriftier(algorithm: str, other: str) -> Check:
    """Make the check that an algorithm is no less accurate than `other` with fewer averages.

    Where both have a K, of the same K.
    """

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            for K in settings_of(group, "K", algorithm):
                same = {"K": K} if settings_of(group, "K", other) else {}
                ours = of(group, quantities.accuracy, algorithm, K=K)
                theirs = of(group, quantities.accuracy, other, **same)
                if ours and theirs:
                    counts = (
                        of(group, quantities.rounds, algorithm, K=K),
                        of(group, quantities.rounds, other, **same),
                    )
                    yield Finding(
                        place(group[0], "learners") + f", K = {K}",
                        all_of(below(theirs, ours, POINTS), below(*counts)),
                        f"test accuracy {mean(ours)} %, {other} {mean(theirs)} %; "
                        f"averages {mean(counts[0], 0)} against {mean(counts[1], 0)}",
                    )

    return check


def sooner(found: list[Run]) -> Iterator[Finding]:
    """Does K-AVG reach a loss at 1 Gbit/s in at most 1 / TIMES of the time of sync?"""

    on_links = partial(quantities.by_rounds, rows=quantities.on_links)

    def seconds(run: Run) -> float:
        return quantities.reach(run, quantities.LEVEL, quantities.seconds_at(1), on_links)

    for group in alike([run for run in found if quantities.rescales(run)]):
        for K in settings_of(group, "K", "kavg"):
            ours, theirs = of(group, seconds, "kavg", K=K), of(group, seconds, "sync")
            if ours and theirs:
                yield Finding(
                    place(group[0], "learners") + f", K = {K}",
                    below({seed: TIMES * s for seed, s in ours.items()}, theirs),
                    f"seconds to loss {quantities.LEVEL} at 1 Gbit/s: {mean(ours)}, "
                    f"sync {mean(theirs)}",
                )


CLAIMS: dict[str, tuple[Check, str]] = {  # the claim: (its check, the sweep of its runs)
    "K-AVG: the best K is above 1 somewhere (kavg Fig. 5, 6)": (best_period, "kavg-fig5-6"),
    "ASGD degrades as P grows (kavg Fig. 1, 2)": (asgd_degrades, "kavg-fig1-2"),
    "ADPSGD: fewer averages than FULLSGD at equal loss (adpsgd Fig. 4, 5)": (
        adpsgd_against("sync", None),
        "adpsgd-fig4-5",
    ),
    "ADPSGD: fewer averages than CPSGD p = 8 at equal loss (adpsgd Fig. 4, 5)": (
        adpsgd_against("kavg", 8),
        "adpsgd-fig4-5",
    ),
    "M-AVG (μ = 0.7) ahead of K-AVG in training loss (mavg Fig. 1-6)": (mavg_ahead, "mavg-fig1-6"),
    "M-AVG: the best μ grows with P (mavg Fig. 9-12, Lemma 6)": (best_momentum, "mavg-fig9-12"),
    "Hier-AVG(2K) no worse than K-AVG(K) (hieravg Table 1)": (hieravg_twice, "hieravg-table1"),
    "Hier-AVG: smaller K₁ lowers training loss (hieravg Fig. 3)": (
        hieravg_lower("K1", smaller=True),
        "hieravg-fig3-4",
    ),
    "Hier-AVG: larger S lowers training loss (hieravg Fig. 4)": (
        hieravg_lower("S", smaller=False),
        "hieravg-fig3-4",
    ),
    "LUPA τ = 91 at the level of sync with 1/91 of the rounds (lupa Fig. 2)": (
        lupa_level,
        "lupa-fig2",
    ),
    "LUPA: linear speed-up in P (lupa Fig. 3)": (linear, "lupa-fig3"),
    "DiLoCo: lower training loss than K-AVG with as many averages": (
        lower_loss("diloco"),
        "methods",
    ),
    "SlowMo: lower training loss than K-AVG with as many averages": (
        lower_loss("slowmo"),
        "methods",
    ),
    "Post-local SGD: no less accurate than sync, with fewer averages": (
        thriftier("postlocal", "sync"),
        "methods",
    ),
    "QSR: no less accurate than K-AVG with its shortest period, with fewer averages": (
        thriftier("qsr", "kavg"),
        "methods",
    ),
    "ADPSGD: fewer averages than sync at equal loss, among all methods": (
        adpsgd_against("sync", None),
        "methods",
    ),
    "K-AVG: much sooner than sync at a training loss of 0.4 over 1 Gbit/s": (sooner, "methods"),
}


def findings(found: list[Run]) -> Iterator[tuple[str, Finding]]:
    """Yield every claim with its findings, or with one that its runs are missing."""
    for claim, (check, sweep) in CLAIMS.items():
        why = f"no runs to compare: localavg sweep jobs/sweeps/{sweep}.toml"
        for finding in list(check(found)) or [Finding("-", MISSING, why)]:
            yield claim, finding


def table(found: Iterable[tuple[str, Finding]]) -> str:
    """Write findings as a Markdown table."""
    rows = [(claim, f.where, f.verdict, f.numbers) for claim, f in found]
    header = ("claim", "where", "verdict", "mean ± standard deviation (runs)")
    return tabulate(rows, header, tablefmt="github")


def counts(found: Iterable[tuple[str, Finding]]) -> str:
    """Write the number of findings with each verdict."""
    verdicts = Counter(finding.verdict for _, finding in found)
    kinds = (PASS, FAIL, OPEN, MISSING)
    return ", ".join(f"{verdicts[kind]} {kind}" for kind in kinds if verdicts[kind])


def main() -> None:
    args = results.arguments(__doc__)
    found = list(findings(load_many(args.folder)))
    text = f"{table(found)}\n\n{counts(found)}\n"
    print(text)
    output.write(args.out / "claims.md", text)
    print(args.out / "claims.md")


if __name__ == "__main__":
    style.run(main)
