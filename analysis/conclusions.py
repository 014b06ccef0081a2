"""What a practitioner can rely on, by the decisions of the claims: the first page of the results.

A piece of advice rests on claims. It can be relied on if they pass wherever runs decide them, it
cannot if one fails somewhere, and else these runs cannot tell. Numbers in the words are those of
the claims' margins.
"""

from collections.abc import Iterable, Sequence

import claims
from trends import comparisons, hieravg, kavg, lupa, many_learners, mavg, methods
from trends.rule import FAIL, MISSING, OPEN, PASS
from trends.select import Finding

ADVICE: list[tuple[str, tuple[str, ...]]] = [  # the words, and what the claims' texts begin with
    (
        f"Average every 16 updates in place of every update: over 1 Gbit/s a training loss comes "
        f"at least {methods.TIMES:g} times sooner",
        ("K-AVG: much sooner",),
    ),
    (
        "On i.i.d. rows with a small step size, logistic regression with one average in 91 updates "
        f"ends at the loss of synchronous SGD, in {100 * lupa.TIME:g} % of its time or less on "
        "modelled links of 1 Gbit/s",
        ("LUPA τ = 91 is at", "LUPA τ = 91 is sooner"),
    ),
    (
        "Where 4 learners hold different classes, average every 5 updates: every 91 is slightly "
        "worse, and one average at the end much worse",
        ("Different classes",),
    ),
    (
        "Periods that grow save averages at the same loss (ADA-LUPA), or at an accuracy that is "
        f"lower by at most {methods.POINTS:g} point (QSR)",
        ("ADA-LUPA", "QSR"),
    ),
    (
        "Post-local SGD saves averages and costs at most "
        f"{methods.POINTS:g} point of accuracy against synchronous SGD",
        ("Post-local",),
    ),
    (
        "Average often first and rarely later, not the other way round: the training loss is lower",
        ("A period of 4 then 8", "A period of 20 then 5 ends at more"),
    ),
    (
        "Rare averages first and frequent ones later also cost test accuracy",
        ("A period of 20 then 5 ends less accurate",),
    ),
    (
        f"Where learners are many a long period costs {kavg.FALL:g} points of accuracy or more, "
        f"where they are few {kavg.HARDLY:g} point or less",
        ("K-AVG falls steeply", "K hardly matters"),
    ),
    (
        "A period above 1 makes the model more accurate than averages at every update",
        ("K-AVG's best K is above 1",),
    ),
    ("The more learners, the smaller the best period", ("K-AVG's best K falls",)),
    (
        "After as many epochs, 8 and 16 learners are as accurate as sequential SGD, but for "
        f"{kavg.HARDLY:g} point",
        ("K-AVG is near sequential",),
    ),
    (
        "After as many epochs, the model is less accurate the more learners there are",
        ("K-AVG's gap to sequential",),
    ),
    ("NiN stands many learners better than another network", ("K-AVG's gap is smaller",)),
    (
        "At an equal step size, synchronous averages are more accurate than asynchronous updates",
        ("K-AVG is ahead of Downpour",),
    ),
    (
        "Asynchronous updates lose accuracy as learners are added, at both step sizes",
        ("Downpour and EAMSGD degrade",),
    ),
    (
        "At a tenth of the step size many learners train with Downpour, and do not with EAMSGD",
        ("Downpour learns", "EAMSGD does not learn"),
    ),
    (
        "With 128 learners on a modelled clock, synchronous averages are at least "
        f"{kavg.SPEED_UP:g} times as fast as asynchronous updates through one server",
        ("K-AVG is at least twice as fast",),
    ),
    (
        "With 8 learners, asynchronous updates through one server are faster",
        ("The asynchronous methods are faster",),
    ),
    (
        f"Block momentum of {mavg.OURS['mu']} trains further than plain averages at the same step "
        "size and cost, and so do DiLoCo and SlowMo",
        ("M-AVG (μ = 0.7) ends at a lower", "DiLoCo", "SlowMo"),
    ),
    (
        f"Block momentum of {mavg.OURS['mu']} makes the model more accurate than plain averages at "
        "the same step size",
        ("M-AVG (μ = 0.7) ends more",),
    ),
    ("The more learners, the larger the best block momentum", ("M-AVG's best μ",)),
    (
        f"A block momentum of {mavg.LARGE} is too large for few learners, and harms less with many",
        ("μ = 0.9 is the worst", "μ = 0.9 does less"),
    ),
    (
        "Averages in small groups allow half as many global ones, at an accuracy that is lower by "
        f"at most {comparisons.POINTS:g} points",
        ("Hier-AVG(2K) is no less",),
    ),
    (
        "Averages in small groups make the model more accurate",
        ("Hier-AVG(2K) is more", "Hier-AVG ends more"),
    ),
    (
        "Averages in groups between the global ones lower the training loss, frequent ones in "
        "large groups more than rare ones in small groups",
        ("Hier-AVG: smaller K₁", "Hier-AVG: larger S", "Hier-AVG ends at a lower"),
    ),
    (
        "With frequent averages in groups, a global one every 32 updates trains no worse than one "
        "every 8",
        ("Hier-AVG trains no worse",),
    ),
    (
        "With averages in groups, training accuracy is ahead by more than "
        f"{hieravg.EARLY:g} point after a tenth of the run",
        ("Hier-AVG is ahead of K-AVG",),
    ),
    (
        "A period steered by the variance (ADPSGD) saves averages against synchronous SGD, at a "
        f"training loss that is higher by at most {100 * comparisons.LOSS:g} % of the first loss",
        ("ADPSGD makes fewer averages than FULLSGD", "ADPSGD: fewer"),
    ),
    (
        "ADPSGD is faster than synchronous SGD on modelled links of 10 and 100 Gbit/s",
        ("ADPSGD is faster than FULLSGD", "ADPSGD is ahead of FULLSGD"),
    ),
    (
        "The variance of the learners grows with the period and falls with the step size; ADPSGD "
        "keeps it nearly constant, and its period grows when the step size drops",
        ("V_t ", "ADPSGD's weighted", "ADPSGD keeps V_t", "ADPSGD's period at the end"),
    ),
    (
        "ADPSGD with a warm-up ends at less training loss than a fixed period of 8",
        ("ADPSGD with a warm-up has less loss than p",),
    ),
    (
        "ADPSGD saves averages against a fixed period of 8",
        ("ADPSGD makes fewer averages than CPSGD", "ADPSGD makes no more"),
    ),
    (
        "ADPSGD makes the model more accurate than fixed periods and than synchronous SGD",
        ("ADPSGD is more accurate than",),
    ),
    (
        "ADPSGD with a warm-up is less accurate than synchronous SGD by at most "
        f"{comparisons.POINTS:g} points",
        ("ADPSGD with a warm-up is about",),
    ),
    (
        "ADPSGD ends at less training loss than synchronous SGD with coded gradients (QSGD)",
        ("ADPSGD has less loss than QSGD", "ADPSGD with a warm-up has less loss than QSGD"),
    ),
    (
        "One learner with small batches is more accurate than ADPSGD, after as many epochs",
        ("Small batches are",),
    ),
    (
        "Synchronous SGD with a larger mini-batch trains less in as many epochs",
        ("Synchronous SGD is worse with a larger mini-batch, at equal",),
    ),
    (
        "Synchronous SGD with a larger mini-batch trains less in as many updates",
        ("Synchronous SGD is worse with a larger mini-batch, update",),
    ),
    (
        "Where an average takes longer than some updates, delaying it saves time",
        ("Delayed averages",),
    ),
    ("On a link of 0.1 Gbit/s, int8 takes half of the time or less", ("int8",)),
    ("Averages in pieces alone are no faster than whole ones", ("Pieces alone",)),
    (
        "A period chosen by what averages cost (K = auto) is close to the best of all ways to "
        "average",
        ("The chosen period",),
    ),
    ("At 10 Gbit/s the way to average makes no difference", ("Nothing differs",)),
    (
        f"P machines take at most 1/({lupa.EFFICIENCY:g} P) of the time of one",
        ("LUPA speeds up linearly", "ADPSGD is almost linear"),
    ),
    ("Synchronous SGD speeds up linearly with up to 4096 learners", ("sync is linear",)),
    (
        "Up to the number of learners that the bounds allow, the squared gradient of K-AVG is at "
        f"most {1 / many_learners.EFFICIENCY:g} times that of synchronous SGD",
        ("K-AVG is as good as sync",),
    ),
    (
        f"At {many_learners.FACTOR} times the number of learners that bound (3.2) allows, K-AVG "
        "has lost half of the linear speed-up",
        ("K-AVG's linear speed-up ends",),
    ),
]
HEADINGS = {
    PASS: "What can be relied on",
    FAIL: "What cannot be relied on",
    OPEN: "What these runs cannot tell",
}
Checked = Sequence[tuple[str, Finding]]


def rests_on(beginnings: Iterable[str]) -> list[str]:
    """Return the texts of the claims that begin so."""
    return [text for text in claims.CLAIMS if text.startswith(tuple(beginnings))]


def verdict(found: Iterable[Finding]) -> str:
    """Return pass if all findings pass, fail if one fails, else inconclusive."""
    verdicts = {finding.verdict for finding in found}
    return FAIL if FAIL in verdicts else PASS if verdicts == {PASS} else OPEN


def sentence(words: str, checked: Checked) -> str:
    """Write a piece of advice with its claims, their counts, and the first that does not pass."""
    sweeps = dict.fromkeys(claims.CLAIMS[text].sweep for text, _ in checked)
    counted = ", ".join(
        f"[{sweep}](#{sweep}) "
        + claims.counts((t, f) for t, f in checked if claims.CLAIMS[t].sweep == sweep)
        for sweep in sweeps
    )
    worst = verdict(finding for _, finding in checked)
    line = f"- {words} ({counted})."
    if worst == PASS:
        return line
    wanted = (FAIL,) if worst == FAIL else (OPEN, MISSING)
    text, finding = next((t, f) for t, f in checked if f.verdict in wanted)
    seen = f"{finding.where}: asked for {finding.decision.asked}, seen {finding.decision.seen}"
    if worst == FAIL:
        return f"{line} {seen}."
    if finding.verdict == MISSING:
        return f"{line} would decide: {claims.would_decide(text, finding)}."
    return f"{line} {seen}; would decide: {claims.would_decide(text, finding)}."


def page(checked: Checked) -> str:
    """Write the advice under three headings."""
    lines: dict[str, list[str]] = {kind: [] for kind in HEADINGS}
    for words, beginnings in ADVICE:
        texts = rests_on(beginnings)
        found = [(text, finding) for text, finding in checked if text in texts]
        lines[verdict(finding for _, finding in found)].append(sentence(words, found))
    shown = [
        f"**{HEADINGS[kind]}**\n\n" + "\n".join(some or ["- Nothing."])
        for kind, some in lines.items()
    ]
    return "\n\n".join(shown)
