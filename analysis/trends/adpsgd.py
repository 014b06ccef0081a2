"""What ADPSGD's paper claims: its Fig. 4 to 8 and Table I."""

from collections.abc import Iterator

import quantities
import results

from localavg.files.record import Run

from . import rule
from .comparisons import (
    equal_loss,
    fewer_rounds,
    lower_loss,
    more_accurate,
    no_less_accurate,
    versus,
)
from .rule import Values, all_of
from .select import Check, Claim, Finding, alike, always, mean, of, settings_of, where

EFFICIENCY = 0.8
"""part of the ideal speed-up that counts as linear"""
GAINS = {"100": 1.1, "10": 1.4}
"""speed-up over FULLSGD asked for, by Gbit/s; the paper has 1.14 and 1.46 or more"""
OURS, FULL, P8, CODED = (
    {"algorithm": "adpsgd"},
    {"algorithm": "sync"},
    {"algorithm": "kavg", "K": 8},
    {"algorithm": "qsgd"},
)
STEPS = {"algorithm": "piecewise"}  # CPSGD with a warm-up


def gbit(run: Run) -> str:
    """Return the rate of the modelled link in Gbit/s."""
    return f"{8e-9 * run.config['bandwidth_bytes_per_s']:g}"


def faster(found: list[Run]) -> Iterator[Finding]:
    """Is ADPSGD faster than FULLSGD by GAINS at each modelled bandwidth?"""
    modelled = [run for run in found if run.config.get("simulate")]
    for some in results.by_clock(modelled, quantities.ADPSGD_GBITS).values():
        for group in alike(some):
            ours, theirs = (of(group, quantities.wall_s, **line) for line in (OURS, FULL))
            if ours and theirs and (gain := GAINS.get(gbit(group[0]))):
                words = f"seconds: {mean(ours, 3)}, FULLSGD {mean(theirs, 3)}"
                decision = rule.times(ours, theirs, 1 / gain)
                yield Finding(quantities.clock(group[0]), decision, words)


def per_example(run: Run) -> float:
    """Return the wall clock divided by the number of examples trained on."""
    return quantities.wall_s(run) / float(run.train.samples.iloc[-1])


def _on_most_nodes(found: list[Run]) -> Iterator[tuple[str, int, dict[str, Values]]]:
    """Yield (clock, P, {algorithm: seconds an example}) for the most nodes P of every clock."""
    for some in results.by_clock(found, quantities.ADPSGD_GBITS).values():
        for group in alike(some, "learners"):
            alone = of(group, per_example, "sgd")
            if alone and (Ps := settings_of(group, "learners", "adpsgd")):
                cells = {a: of(group, per_example, a, learners=Ps[-1]) for a in ("adpsgd", "sync")}
                yield quantities.clock(group[0]), Ps[-1], {"sgd": alone, **cells}


def almost_linear(found: list[Run]) -> Iterator[Finding]:
    """Is ADPSGD's speed-up on the most nodes at least EFFICIENCY of their number?"""
    for clock, P, s in _on_most_nodes(found):
        speed = {seed: s["sgd"][seed] / x for seed, x in s["adpsgd"].items() if seed in s["sgd"]}
        words = f"speed-up {mean(speed)}"
        yield Finding(f"{clock}, P = {P}", rule.times(always(speed, EFFICIENCY * P), speed), words)


def scales_better(found: list[Run]) -> Iterator[Finding]:
    """Is ADPSGD faster than FULLSGD on the most nodes?"""
    for clock, P, s in _on_most_nodes(found):
        if s["sync"]:
            words = "; ".join(
                f"{name} {mean({k: 1e6 * x for k, x in s[a].items()})} µs an example"
                for a, name in (("adpsgd", "ADPSGD"), ("sync", "FULLSGD"))
            )
            yield Finding(f"{clock}, P = {P}", rule.times(s["adpsgd"], s["sync"]), words)


def first_of_table(ours: str, theirs: str, setting: str) -> Check:
    """Make the check that `ours` is more accurate than `theirs`, whatever the setting."""

    def check(found: list[Run]) -> Iterator[Finding]:
        best = quantities.best_accuracy
        for group in alike(found, "learners", "lr"):
            a = of(group, best, ours)
            values = settings_of(group, setting, theirs) if setting else [None]
            cells = {
                x: of(group, best, theirs, **({setting: x} if setting else {})) for x in values
            }
            if a and any(cells.values()):
                decision = all_of(*(rule.less(b, a, unit=" points") for b in cells.values()))
                words = "; ".join(
                    f"{theirs}{f' {setting} = {x}' if setting else ''} {mean(b)} %"
                    for x, b in cells.items()
                )
                yield Finding(where(group[0]), decision, f"{ours} {mean(a)} %; {words}")

    return check


LONGER = "--scale gpu, whose runs are ten times as long"
CLAIMS = [
    Claim(
        "ADPSGD makes fewer averages than FULLSGD at equal loss (Fig. 4, 5)",
        "adpsgd-fig4-5",
        versus(OURS, FULL, equal_loss(), fewer_rounds(), name="FULLSGD"),
        LONGER,
    ),
    Claim(
        "ADPSGD makes fewer averages than CPSGD p = 8 at equal loss (Fig. 4, 5)",
        "adpsgd-fig4-5",
        versus(OURS, P8, equal_loss(), fewer_rounds(), name="p = 8"),
        LONGER,
    ),
    Claim(
        "ADPSGD is more accurate than p = 8 (Fig. 4, 5)",
        "adpsgd-fig4-5",
        versus(OURS, P8, more_accurate(of=quantities.best_accuracy), name="p = 8"),
        LONGER,
    ),
    Claim(
        "ADPSGD is more accurate than FULLSGD (Fig. 4, 5)",
        "adpsgd-fig4-5",
        versus(OURS, FULL, more_accurate(of=quantities.best_accuracy), name="FULLSGD"),
        LONGER,
    ),
    Claim(
        "ADPSGD has less loss than QSGD (Fig. 4, 5)",
        "adpsgd-fig4-5",
        versus(OURS, CODED, lower_loss(), name="QSGD"),
        LONGER,
    ),
    Claim(
        "ADPSGD is faster than FULLSGD, by 1.1 at 100 Gbit/s and 1.4 at 10 (Fig. 4, 5)",
        "adpsgd-fig4-5",
        faster,
        LONGER,
    ),
    Claim("ADPSGD is almost linear in P (Fig. 6)", "adpsgd-fig6", almost_linear, LONGER),
    Claim("ADPSGD is ahead of FULLSGD on 16 nodes (Fig. 6)", "adpsgd-fig6", scales_better, LONGER),
    Claim(
        "Small batches are more accurate than ADPSGD (Table I)",
        "adpsgd-table1",
        first_of_table("sgd", "adpsgd", ""),
        LONGER,
    ),
    Claim(
        "ADPSGD is more accurate than CPSGD with any period (Table I)",
        "adpsgd-table1",
        first_of_table("adpsgd", "kavg", "K"),
        LONGER,
    ),
    Claim(
        "ADPSGD is more accurate than FULLSGD with any step size (Table I)",
        "adpsgd-table1",
        first_of_table("adpsgd", "sync", "lr"),
        LONGER,
    ),
    Claim(
        "ADPSGD with a warm-up has less loss than p = 8 (Fig. 7)",
        "adpsgd-fig7-8",
        versus(OURS, STEPS, lower_loss(), name="p = 8"),
        "--scale paper, on ImageNet",
    ),
    Claim(
        "ADPSGD with a warm-up is about as accurate as FULLSGD (Fig. 7)",
        "adpsgd-fig7-8",
        versus(OURS, FULL, no_less_accurate(), name="FULLSGD"),
        "--scale paper, on ImageNet",
    ),
    Claim(
        "ADPSGD with a warm-up has less loss than QSGD (Fig. 7)",
        "adpsgd-fig7-8",
        versus(OURS, CODED, lower_loss(), name="QSGD"),
        "--scale paper, on ImageNet",
    ),
]
