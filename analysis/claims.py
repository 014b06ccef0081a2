"""The papers' claims, decided on runs: pass, fail or inconclusive for each, as a Markdown table.

A claim says that some quantity of one setting lies below that of another, or below it plus a
margin, all other settings equal: the effect that it asks for. Runs are paired by seed. With three
pairs or more the one-sided 95 % t-bounds of the mean effect decide: pass where the whole interval
lies on the side that the claim asks for, fail where it lies on the other, and inconclusive between,
or with fewer pairs. Of an inconclusive one stands how many seeds would decide it with probability
0.8, if effect and spread are as seen (the power of the same test), or beyond 50 the scale that
would. "Equal loss" allows 1 % of the loss that the runs began with, "no less accurate" half a point
unless another margin is named, "linear" asks for four fifths of the ideal. Where a claim picks one
of several settings, the 5 % are divided by their number. Times are compared by their ratios. A run
that diverged counts as guessing.

Cost: a few seconds for all laptop sweeps.

    python analysis/claims.py runs --out figures
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import output
import results
import style
from tabulate import tabulate
from trends import (
    adpsgd,
    adpsgd_periods,
    headline,
    hieravg,
    kavg,
    lupa,
    many_learners,
    mavg,
    methods,
)
from trends.rule import FAIL, MISSING, MOST, OPEN, PASS, Decision
from trends.select import Claim, Finding

from localavg.files.record import Run, load_many

CLAIMS: dict[str, Claim] = {
    claim.text: claim
    for paper in (
        kavg,
        lupa,
        adpsgd_periods,
        adpsgd,
        mavg,
        hieravg,
        methods,
        headline,
        many_learners,
    )
    for claim in paper.CLAIMS
}
HEADER = (
    "claim",
    "where",
    "asked for",
    "seen ± spread (pairs)",
    "verdict",
    "would decide",
    "mean ± standard deviation (runs)",
)


def findings(found: list[Run]) -> Iterator[tuple[str, Finding]]:
    """Yield every claim with its findings, or with one that its runs are missing.

    A claim is decided on the runs of its own sweep, where their folder is named after a sweep.
    """
    sweeps = {claim.sweep for claim in CLAIMS.values()}
    names = [owner(run) for run in found]
    for text, claim in CLAIMS.items():
        others = sweeps - {claim.sweep}
        own = [run for run, name in zip(found, names, strict=True) if name not in others]
        why = f"no runs to compare: .venv/bin/localavg sweep jobs/sweeps/{claim.sweep}.toml"
        for finding in list(claim.check(own)) or [Finding("-", Decision(MISSING), why)]:
            yield text, finding


def owner(run: Run) -> str:
    """Return the sweep whose folder has the run, RUNS/NAME-SCALE or one below it, or ""."""
    sweeps = {claim.sweep for claim in CLAIMS.values()}
    names = [folder.name.rpartition("-")[0] for folder in run.path.absolute().parents[:2]]
    return next((name for name in names if name in sweeps), "")


def would_decide(text: str, finding: Finding) -> str:
    """Write what would decide an open finding: a number of seeds, or a larger scale."""
    seeds = finding.decision.seeds
    if finding.verdict == MISSING:
        return "its runs"
    if finding.verdict != OPEN:
        return "-"
    if seeds is None and finding.decision.seen.startswith("- (0)"):
        return f"3 seeds that come to it, as none here does; {CLAIMS[text].scale}"
    if seeds is None:
        return "3 seeds or more"
    return f"{seeds} seeds" if seeds <= MOST else f"over {MOST} seeds; {CLAIMS[text].scale}"


def table(found: Iterable[tuple[str, Finding]]) -> str:
    """Write findings as a Markdown table."""
    rows = [
        (
            *(text, f.where, f.decision.asked, f.decision.seen),
            *(f.verdict, would_decide(text, f), f.numbers),
        )
        for text, f in found
    ]
    return tabulate(rows, HEADER, tablefmt="github", disable_numparse=True)


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
