"""The job arrays of a sweep: one for each number of ranks, so that no job holds idle nodes.

The jobs of an array share its runs. A job does its runs one after the other. Runs that are smaller
than a node are packed: a job does several at once on one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from localavg.cli.sweep.cost import RateOf, computing, work
from localavg.cli.sweep.plan import Planned

JOBS = 10
"""most jobs of an array, unless told"""
SAME_ROWS = 1_000_000
"""rows of data of unknown size, where only the proportions of the runs' lengths count"""


@dataclass(frozen=True)
class Node:
    """What a job asks of a node, at most, as the template has it."""

    ranks: int
    gpus: int
    whole: bool = False
    """whether a job holds all GPUs of its nodes, whatever it asks for"""


@dataclass(frozen=True)
class Array:
    """A job array. runs: all of one number of ranks, done or not: a share is a share of these."""

    ranks: int
    """of one run"""
    runs: tuple[Planned, ...]
    todo: tuple[Planned, ...]
    jobs: int
    at_once: int
    """runs that a job does at the same time"""
    nodes: int
    """of one job"""
    per_node: int
    """ranks on a node"""
    gpus: int
    """on a node"""
    held: int
    """GPUs of a node that nobody else can use meanwhile; 0 where the runs use none"""

    @property
    def shares(self) -> list[list[Planned]]:
        """The runs to do of each job."""
        wanted = {run.name for run in self.todo}
        return [
            [r for r in self.runs[k :: self.jobs] if r.name in wanted] for k in range(self.jobs)
        ]


def arrays(
    runs: Sequence[Planned], todo: Sequence[Planned], node: Node, jobs: int | None, one_gpu: bool
) -> list[Array]:
    """Return the arrays that do the runs `todo`. jobs: at most so many an array.

    one_gpu: all ranks of a run are on one node and share a GPU; a job does one run at a time.
    """
    found = []
    for ranks in sorted({run.ranks for run in todo}):
        like = tuple(run for run in runs if run.ranks == ranks)
        nodes = 1 if one_gpu else ceil(ranks / node.ranks)
        pack = 1 if one_gpu else max(1, node.ranks // ranks)
        count = min(jobs or (1 if one_gpu else JOBS), ceil(len(like) / pack))
        share = ceil(len(like) / count)
        at_once = ceil(share / ceil(share / pack))  # no more than are needed for as many rounds
        per_node = ceil(ranks / nodes) * at_once
        on_gpu = any(run.given.get("device") == "cuda" for run in like)
        gpus = 1 if one_gpu else ceil(per_node * node.gpus / node.ranks)
        found.append(
            Array(
                ranks=ranks,
                runs=like,
                todo=tuple(run for run in todo if run.ranks == ranks),
                jobs=count,
                at_once=at_once,
                nodes=nodes,
                per_node=per_node,
                gpus=gpus if on_gpu else 0,
                held=(node.gpus if node.whole else gpus) if on_gpu else 0,
            )
        )
    return found


@dataclass(frozen=True)
class Hours:
    """What an array takes. Hours of unknown rates are None, and `idle` is right nevertheless."""

    longest: float | None
    """wall clock of its longest job"""
    gpu: float | None
    """GPU hours that it holds, or without GPUs hours of ranks"""
    weight: float
    """the same in a unit common to the arrays of a sweep"""
    idle: float
    """part of them in which a GPU, or the place of a rank, has no learner"""
    why: str
    """why hours are None"""


def hours(array: Array, rate_of: RateOf) -> Hours:
    """Return what an array takes at these rates of one rank."""
    why, rates = "", []
    for run in array.todo:
        rate = rate_of(run)
        why = rate if isinstance(rate, str) else why
        rates.append(None if isinstance(rate, str) else rate)
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        known = []
    took = {}  # of each run
    for i, run in enumerate(array.todo):
        rows, per_s = (known[i].rows, known[i].examples_per_s) if known else (SAME_ROWS, 1.0)
        took[run.name] = work(run, rows) / (per_s * computing(run)) / 3600
    places = array.nodes * (array.held or array.per_node)
    each = array.nodes * (array.gpus or array.per_node) / array.at_once  # of one run
    jobs = [_wall([took[run.name] for run in share], array.at_once) for share in array.shares]
    held = sum(jobs) * places
    learning = sum(min(computing(run), each) * took[run.name] for run in array.todo)
    idle = max(0.0, 1 - learning / held)
    return Hours(max(jobs) if known else None, held if known else None, held, idle, why)


def _wall(runs: list[float], at_once: int) -> float:
    """Return how long these runs take, each started when one of `at_once` slots is free."""
    slots = [0.0] * at_once
    for taken in runs:
        slots[slots.index(min(slots))] += taken
    return max(slots)
