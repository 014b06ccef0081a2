"""What the ranks of `attach` are about to do, and what is written where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple


class What(IntEnum):
    """What the ranks are about to do."""

    AVERAGE = 1
    EXCHANGE = 2
    STEP = 3
    FINISH = 4
    AVERAGED = 5
    BYTES = 6
    END = 7
    OVER = 8
    ATTACH = 9


TEXTS = (  # of What
    "",
    "the average after update {t}",
    "the exchange of the gradients of update {t}",
    "averager.step() of update {t}",
    "averager.finish() after update {t}",
    "averager.averaged() after update {t}",
    "averager.payload_bytes() after update {t}",
    "the end of its program after update {t}, without averager.finish()",
    "the end of its program, after averager.finish() after update {t}",
    "localavg.attach() of the same model again after update {t}",
)
COUNT = (
    "give every rank the same number of updates, as by DistributedSampler and drop_last=True, and "
    "checkpoints of the same update"
)
STEPS = "make every step on every rank; a gradient scaler needs averager.exchange() before its step"
CALLS = "make this call on every rank, not under `if rank == 0`"
ORDER = "call the averagers in the same order on every rank"


class Taking(NamedTuple):
    """The parameters that take part in an exchange of gradients, which must be the same ones."""

    names: tuple[str, ...] = ()
    number: int = 0
    """a digest of the names, from 0 to 2^63 − 1; all processes find the same"""

    @classmethod
    def part(cls, names: tuple[str, ...]) -> Taking:
        """Return these parameters with their digest."""
        found = blake2b("\n".join(names).encode(), digest_size=8).digest()
        return cls(names, int.from_bytes(found) >> 1)


NOBODY = Taking()
Place = tuple[int, What, int, int, str, tuple[str, ...]]  # rank, what, t, mark, fault, taking


def differ(places: list[Place]) -> str:
    """Write where the ranks are, in one line, and what to do."""
    if faults := [(rank, fault) for rank, *_, fault, _ in places if fault]:
        rank, fault = faults[0]
        alone = fault.removeprefix("attach: ")
        return fault if len(faults) == len(places) else f"attach: on rank {rank}, {alone}"
    where: dict[str, list[int]] = {}
    several = len({mark >> 16 for *_, mark, _, _ in places}) > 1
    # which optimisers and parameters it is about shows only where nothing else differs
    marks = not several and len({(what, t) for _, what, t, *_ in places}) == 1
    if marks and len({mark for *_, mark, _, _ in places}) == 1:
        return _taking_differs(places)
    for rank, what, t, mark, *_ in places:
        text = TEXTS[what].format(t=t) + f" of averager {(mark >> 16) + 1}" * several
        steps = ", ".join(str(i) for i in range(16) if mark >> i & 1) or "none"
        where.setdefault(text + f" (stepped optimisers: {steps})" * marks, []).append(rank)
    parts = [f"{_ranks(ranks)} in {text}" for text, ranks in where.items()]
    whats, counts = {what for _, what, *_ in places}, {t for _, _, t, *_ in places}
    if several:
        remedy = ORDER
    elif whats & {What.AVERAGED, What.BYTES, What.ATTACH} and len(whats) > 1:
        # a rank that made fewer updates is in a call that the others will make, too
        remedy = f"{CALLS}, and {COUNT}" if len(counts) > 1 else CALLS
    elif whats & {What.EXCHANGE, What.STEP} and len(counts) == 1:
        remedy = STEPS
    else:
        remedy = COUNT
    return f"attach: {', but '.join(parts)}; {remedy}"


def _taking_differs(places: list[Place]) -> str:
    """Write which parameters take part on some ranks alone, and what to do."""
    t, sets = places[0][2], {rank: set(names) for rank, *_, names in places}
    everywhere = set.intersection(*sets.values())
    ordered = dict.fromkeys(name for *_, names in places for name in names)
    names = [name for name in ordered if name not in everywhere]
    where = [rank for rank, found in sets.items() if names[0] in found]
    alike = [name for name in names if all((name in sets[r]) == (r in where) for r in sets)]
    return (
        f"attach: update {t} has gradients of {shown(alike)} on {_some(where)}, but not on "
        f"{_some([rank for rank in sets if rank not in where])}; train and freeze "
        "(requires_grad_) the same parameters on every rank"
    )


def shown(names: Sequence[str]) -> str:
    """Write some names: the first ones, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _ranks(ranks: list[int]) -> str:
    return f"{_some(ranks)} {'is' if len(ranks) == 1 else 'are'}"


def _some(ranks: list[int]) -> str:
    """Write some ranks: the first ones, and how many more."""
    first = ", ".join(map(str, ranks[:4]))
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return f"rank {first}" if len(ranks) == 1 else f"ranks {first}{more}"
