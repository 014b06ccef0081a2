"""The papers' trends, checked on runs: pass, fail or inconclusive for each, as a Markdown table.

The rule is one for all. A claim says that some quantity of one setting lies below that of another,
or below it plus a margin, all other settings equal. Runs are paired by seed; with three pairs or
more the one-sided 95 % t-bounds of the mean difference decide: pass where the upper bound lies
below the margin, fail where the lower one lies above, and inconclusive between, or with fewer
pairs. "Equal loss" allows 1 % of the loss that the runs began with, "no worse" 1 point of accuracy,
"linear" four fifths of the ideal. Where a claim picks the best of several settings, the 5 % are
divided by their number.

Cost: a few seconds for all laptop sweeps.

    python analysis/claims.py runs --out figures
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import results
import style
from scipy import stats
from tabulate import tabulate

from localavg.files.record import Run, load_many

PAIRS, RISK = 3, 0.05
LOSS, POINTS, EFFICIENCY, LEVEL = 0.01, 1.0, 0.8, 0.35
SHARED = (
    "problem",
    "data_name",
    "model",
    "learners",
    "batch_size",
    "lr",
    "optimizer",
    "momentum",
    "state",
    "schedule",
    "factor",
    "milestones",
    "every",
    "warmup_epochs",
    "sampling",
    "l2",
    "epochs",
    "steps",
    "no_augment",
)
PASS, FAIL, OPEN, MISSING = "pass", "fail", "inconclusive", "missing"


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim in one place."""

    where: str
    verdict: str
    numbers: str


def below(a: Mapping, b: Mapping, margin: float = 0.0, risk: float = RISK) -> str:
    """Whether a < b + margin; both are {seed: value}."""
    differences = np.array([a[seed] - b[seed] - margin for seed in sorted(a.keys() & b.keys())])
    differences = differences[np.isfinite(differences)]
    if (n := len(differences)) < PAIRS:
        return OPEN
    room = stats.t.ppf(1 - risk, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return (
        PASS if differences.mean() + room < 0 else FAIL if differences.mean() - room > 0 else OPEN
    )


def all_of(*verdicts: str) -> str:
    """Fail if one fails, pass if all pass."""
    return FAIL if FAIL in verdicts else PASS if set(verdicts) == {PASS} else OPEN


def alike(found: Iterable[Run], *but: str) -> list[list[Run]]:
    """Ended runs, sorted into those that agree in all shared settings, those named in `but` left
    aside.
    """
    shared = [
        name for name in SHARED if name not in but and not (name == "steps" and "learners" in but)
    ]
    groups: dict[str, list[Run]] = {}
    for run in sorted(
        found, key=lambda run: (results.problem(run), run.config.get("learners") or 0)
    ):
        if run.status == "finished" or results.diverged(run):
            groups.setdefault(str([run.config.get(name) for name in shared]), []).append(run)
    return list(groups.values())


def of(
    found: Iterable[Run], quantity: Callable[[Run], float], algorithm: str | None = None, **settings
) -> dict[int, float]:
    """{seed: quantity} of the runs with these settings."""
    return {
        run.config.get("seed"): quantity(run)
        for run in found
        if algorithm in (None, run.config["algorithm"])
        and all(run.config.get(k) == x for k, x in settings.items())
    }


def said(values: Mapping, digits: int = 2) -> str:
    """Mean ± standard deviation and how many."""
    return f"{results.spread(list(values.values()), digits)} ({len(values)})"


def loss(run: Run) -> float:
    """Training loss at the end."""
    return np.inf if results.diverged(run) else results.end(run, "train_loss")


def settings_of(found: Iterable[Run], name: str, algorithm: str) -> list:
    """The values of a setting among the runs of an algorithm, sorted."""
    return sorted(
        {
            run.config[name]
            for run in found
            if run.config["algorithm"] == algorithm and run.config.get(name) is not None
        }
    )


def room(found: Iterable[Run]) -> float:
    """What counts as equal loss."""
    return LOSS * float(np.nanmean([run.eval.train_loss.iloc[0] for run in found if len(run.eval)]))


def place(run: Run, *names: str) -> str:
    """The problem, and these settings."""
    said = {"learners": "P"}
    return ", ".join(
        [
            results.problem(run),
            *(f"{said.get(name, name)} = {run.config.get(name)}" for name in names),
        ]
    )


def best_period(found: list[Run]) -> Iterator[Finding]:
    for problem in alike(found, "learners"):
        tries = [
            (P, K)
            for P in settings_of(problem, "learners", "kavg")
            for K in settings_of(problem, "K", "kavg")
            if K > 1
            and of(problem, loss, "kavg", K=1, learners=P)
            and of(problem, loss, "kavg", K=K, learners=P)
        ]
        if not tries:
            continue
        one = {P: of(problem, results.accuracy, "kavg", K=1, learners=P) for P, _ in tries}
        more = {
            key: of(problem, results.accuracy, "kavg", K=key[1], learners=key[0]) for key in tries
        }
        wins = any(below(one[P], more[P, K], risk=RISK / len(tries)) == PASS for P, K in tries)
        verdict = (
            PASS
            if wins
            else FAIL
            if all(below(one[P], more[P, K]) == FAIL for P, K in tries)
            else OPEN
        )
        tops = {
            P: max(
                (K for p, K in tries if p == P),
                key=lambda K, P=P: np.mean(list(more[P, K].values())),
            )
            for P in one
        }
        yield Finding(
            results.problem(problem[0]),
            verdict,
            "; ".join(
                f"P = {P}: K = {K} {said(more[P, K])} %, K = 1 {said(one[P])} %"
                for P, K in tops.items()
            ),
        )


def adpsgd_against(other: str, period: int | None) -> Callable:
    named = {"K": period} if period else {}

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike(found):
            ours, theirs = of(group, loss, "adpsgd"), of(group, loss, other, **named)
            if ours and theirs:
                counts = (
                    of(group, results.rounds, "adpsgd"),
                    of(group, results.rounds, other, **named),
                )
                yield Finding(
                    place(group[0], "learners"),
                    all_of(below(ours, theirs, room(group)), below(*counts)),
                    f"averages {said(counts[0], 0)} against {said(counts[1], 0)}, "
                    f"training loss {said(ours, 4)} against {said(theirs, 4)}",
                )

    return check


def mavg_ahead(found: list[Run]) -> Iterator[Finding]:
    for group in alike(found):
        for K in settings_of(group, "K", "mavg"):
            ours = of(group, loss, "mavg", K=K, mu=0.7)
            theirs = of(group, loss, "kavg", K=K) or of(group, loss, "mavg", K=K, mu=0.0)
            if ours and theirs:
                yield Finding(
                    place(group[0], "learners") + f", K = {K}",
                    below(ours, theirs),
                    f"training loss {said(ours, 4)}, K-AVG {said(theirs, 4)}",
                )


def best_momentum(found: list[Run]) -> Iterator[Finding]:
    for problem in alike([run for run in found if run.config["algorithm"] == "mavg"], "learners"):
        best: dict[int, dict[int, float]] = {}  # {P: {seed: μ}}
        for P in settings_of(problem, "learners", "mavg"):
            losses = {
                mu: of(problem, loss, "mavg", mu=mu, learners=P)
                for mu in settings_of(problem, "mu", "mavg")
            }
            losses = {mu: values for mu, values in losses.items() if values}
            seeds = set.intersection(*(set(values) for values in losses.values()))
            if len(losses) > 1:
                best[P] = {
                    seed: min(losses, key=lambda mu, seed=seed, losses=losses: losses[mu][seed])
                    for seed in seeds
                }
        if len(best) > 1:
            yield Finding(
                results.problem(problem[0]),
                below(best[min(best)], best[max(best)]),
                "μ of least training loss: "
                + "; ".join(f"P = {P}: {said(mus)}" for P, mus in best.items()),
            )


def hieravg_twice(found: list[Run]) -> Iterator[Finding]:
    for group in alike(found):
        for K, K1, S in itertools.product(
            settings_of(group, "K", "kavg"),
            settings_of(group, "K1", "hieravg"),
            settings_of(group, "S", "hieravg"),
        ):
            ours = of(group, results.accuracy, "hieravg", K2=2 * K, K1=K1, S=S)
            theirs = of(group, results.accuracy, "kavg", K=K)
            if ours and theirs:
                yield Finding(
                    place(group[0], "learners") + f", K = {K}, K₁ = {K1}, S = {S}",
                    below(theirs, ours, POINTS),
                    f"test accuracy {said(ours)} %, K-AVG {said(theirs)} %",
                )


def hieravg_lower(setting: str, smaller: bool) -> Callable:
    fixed = "S" if setting == "K1" else "K1"

    def check(found: list[Run]) -> Iterator[Finding]:
        for group in alike([run for run in found if run.config["algorithm"] == "hieravg"]):
            for K2, other in itertools.product(
                settings_of(group, "K2", "hieravg"), settings_of(group, fixed, "hieravg")
            ):
                same = [
                    run for run in group if run.config["K2"] == K2 and run.config[fixed] == other
                ]
                if len(tried := settings_of(same, setting, "hieravg")) > 1:
                    good, bad = (tried[0], tried[-1]) if smaller else (tried[-1], tried[0])
                    a, b = of(same, loss, **{setting: good}), of(same, loss, **{setting: bad})
                    yield Finding(
                        place(group[0], "learners") + f", K2 = {K2}, {fixed} = {other}",
                        below(a, b),
                        f"training loss {said(a, 4)} at {setting} = {good}, {said(b, 4)} at {bad}",
                    )

    return check


def lupa_level(found: list[Run]) -> Iterator[Finding]:
    for group in alike(found):
        ours, theirs = of(group, loss, "kavg", K=91), of(group, loss, "sync")
        if ours and theirs:
            counts = of(group, results.rounds, "kavg", K=91), of(group, results.rounds, "sync")
            yield Finding(
                place(group[0], "learners"),
                all_of(below(ours, theirs, room(group)), below(*counts)),
                f"training loss {said(ours, 4)}, sync {said(theirs, 4)}; "
                f"rounds {said(counts[0], 0)} of {said(counts[1], 0)}",
            )


def linear(found: list[Run]) -> Iterator[Finding]:
    averaged = [
        run
        for run in found
        if run.config["algorithm"] == "kavg" and run.config.get("problem") == "logistic"
    ]
    for by_clock in results.by_clock(averaged).values():
        for group in alike(by_clock, "learners"):
            Ps = settings_of(group, "learners", "kavg")
            if len(Ps) < 2 or Ps[0] > 1:
                continue
            times = {P: of(group, lambda run: results.reach(run, LEVEL), learners=P) for P in Ps}
            work = {seed: EFFICIENCY * P * s for P in Ps[-1:] for seed, s in times[P].items()}
            yield Finding(
                results.clock(group[0]),
                below(work, times[1]),
                f"seconds to loss {LEVEL}: "
                + "; ".join(f"P = {P}: {said(found, 3)}" for P, found in times.items()),
            )


def asgd_degrades(found: list[Run]) -> Iterator[Finding]:
    for algorithm in ("downpour", "eamsgd"):
        for group in alike(
            [run for run in found if run.config["algorithm"] == algorithm], "learners"
        ):
            if len(Ps := settings_of(group, "learners", algorithm)) > 1:
                accuracies = {P: of(group, results.accuracy, learners=P) for P in Ps}
                yield Finding(
                    f"{place(group[0], 'lr')}, {algorithm}",
                    below(accuracies[Ps[-1]], accuracies[Ps[0]]),
                    "test accuracy: "
                    + "; ".join(f"P = {P}: {said(a)} %" for P, a in accuracies.items()),
                )


CLAIMS = {  # the claim: (its check, the sweep of its runs)
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
}


def findings(found: list[Run]) -> Iterator[tuple[str, Finding]]:
    """Every claim with what the runs say of it, in every place where they say something."""
    for claim, (check, sweep) in CLAIMS.items():
        several = list(check(found))
        yield from ((claim, finding) for finding in several)
        if not several:
            yield (
                claim,
                Finding(
                    "-", MISSING, f"no runs to compare: localavg sweep jobs/sweeps/{sweep}.toml"
                ),
            )


def table(found: Iterable[tuple[str, Finding]]) -> str:
    """What `findings` yields, as Markdown."""
    rows = [(claim, f.where, f.verdict, f.numbers) for claim, f in found]
    return tabulate(
        rows, ("claim", "where", "verdict", "mean ± standard deviation (runs)"), tablefmt="github"
    )


def counts(found: Iterable[tuple[str, Finding]]) -> str:
    """How many of each verdict."""
    verdicts = [finding.verdict for _, finding in found]
    return ", ".join(
        f"{n} {verdict}"
        for verdict in (PASS, FAIL, OPEN, MISSING)
        if (n := verdicts.count(verdict))
    )


def main() -> None:
    args = results.arguments(__doc__)
    found = list(findings(load_many(args.folder)))
    text = f"{table(found)}\n\n{counts(found)}\n"
    print(text)
    results.write(args.out / "claims.md", text)
    print(args.out / "claims.md")


if __name__ == "__main__":
    style.run(main)
