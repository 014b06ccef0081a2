"""What a practitioner can rely on, by the decisions of the claims: the first page of the results.

A piece of advice rests on claims. It can be relied on if they pass wherever runs decide them, it
cannot if one fails somewhere, and else these runs cannot tell. Numbers in the words are those of
the claims' margins.
"""

from collections.abc import Iterable, Sequence

import claims
from trends import kavg, lupa, mavg, methods
from trends.rule import FAIL, MISSING, OPEN, PASS
from trends.select import Finding

ADVICE: list[tuple[str, tuple[str, ...]]] = [  # the words, and what the claims' texts begin with
    (
        f"Average every 16 updates in place of every update: over 1 Gbit/s a training loss comes "
        f"at least {methods.TIMES:g} times sooner",
        ("K-AVG: much sooner",),
    ),
    (
        "On i.i.d. rows, logistic regression with one average in 91 updates ends at the loss of "
        f"synchronous SGD, in {100 * lupa.TIME:g} % of its time or less",
        ("LUPA τ = 91 is at", "LUPA τ = 91 is sooner"),
    ),
    (
        "Where learners hold different classes, average every 5 updates: every 91 is slightly "
        "worse, and one average at the end much worse",
        ("Different classes",),
    ),
    (
        "Up to the number of learners that the bounds allow, K-AVG speeds up as synchronous SGD",
        ("K-AVG is as good as sync",),
    ),
    ("Periods that grow save averages at the same loss or accuracy", ("ADA-LUPA", "QSR")),
    (
        f"Where learners are many a long period costs {kavg.FALL:g} points of accuracy or more, "
        f"where they are few {kavg.HARDLY:g} point or less",
        ("K-AVG falls steeply", "K hardly matters"),
    ),
    ("A period above 1 also makes the model more accurate", ("K-AVG's best K is above 1",)),
    ("The more learners, the smaller the best period", ("K-AVG's best K falls",)),
    (
        "Synchronous averages are more accurate than asynchronous updates, which degrade as "
        "learners are added",
        ("K-AVG is ahead of Downpour", "Downpour and EAMSGD degrade"),
    ),
    (
        f"With very many learners synchronous averages are {kavg.SPEED_UP:g} times as fast as one "
        "server",
        ("K-AVG is at least twice as fast",),
    ),
    ("NiN stands many learners better than another network", ("K-AVG's gap is smaller",)),
    (
        f"Block momentum of {mavg.OURS['mu']} trains further than plain averages at the same cost, "
        "and so do DiLoCo and SlowMo",
        ("M-AVG (μ = 0.7) ends at a lower", "DiLoCo", "SlowMo"),
    ),
    ("Block momentum also makes the model more accurate", ("M-AVG (μ = 0.7) ends more",)),
    ("The more learners, the larger the best block momentum", ("M-AVG's best μ",)),
    (
        f"A block momentum of {mavg.LARGE} is too large for few learners, and harms less with many",
        ("μ = 0.9 is the worst", "μ = 0.9 does less"),
    ),
    (
        "Averages in small groups allow half as many global ones, no less accurate",
        ("Hier-AVG(2K) is no less",),
    ),
    ("Such groups make the model more accurate", ("Hier-AVG(2K) is more", "Hier-AVG ends more")),
    (
        "Frequent averages in large groups lower the training loss",
        ("Hier-AVG: smaller K₁", "Hier-AVG: larger S"),
    ),
    (
        "A period steered by the variance (ADPSGD) saves averages at the loss of synchronous SGD",
        ("ADPSGD makes fewer averages than FULLSGD", "ADPSGD: fewer"),
    ),
    (
        "It saves averages against a fixed period of 8",
        ("ADPSGD makes fewer averages than CPSGD", "ADPSGD makes no more"),
    ),
    (
        "It makes the model more accurate than a fixed period or synchronous SGD",
        ("ADPSGD is more accurate than p = 8", "ADPSGD is more accurate than FULLSGD (Fig"),
    ),
    (
        "Average often first and rarely later, not the other way round",
        ("A period of 4 then 8", "A period of 20 then 5 ends at more"),
    ),
    (
        f"P machines take at most 1/({lupa.EFFICIENCY:g} P) of the time of one",
        ("LUPA speeds up linearly", "ADPSGD is almost linear"),
    ),
    (
        "Where an average takes longer than some updates, delaying it saves time",
        ("Delayed averages",),
    ),
    ("On a very slow link, int8 halves the time", ("int8",)),
    ("A period chosen by what averages cost is close to the best", ("The chosen period",)),
    ("Post-local SGD costs no accuracy and saves averages", ("Post-local",)),
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
