"""The time that a run would take on a modelled machine, and plans: that time against its settings.

A plan is of averages of everyone every K updates, one learner a rank. Learners compute for the
drawn times of their updates and wait for each other; an average takes its time inside a node and
then that of an Allreduce between the nodes, each with one link. The clock is that of `--simulate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from localavg.algorithms.base import Schedule
from localavg.algorithms.fragments import InTurn, check
from localavg.algorithms.kavg import Every
from localavg.errors import UserError, at_least, bad
from localavg.files import record
from localavg.scope import Scope
from localavg.simulate.clock import Synchronous, averages
from localavg.simulate.timing import MOST, Timing, fit

WORK = 50_000
"""times that the clock of a plan is asked for a learner's updates; the rest is extrapolated"""
FEWEST = 16
"""rounds of a plan that are modelled in any case"""


def modelled_s(
    timing: Timing,
    P: int,
    schedule: Schedule,
    T: int,
    seed: int,
    nbytes: float,
    clusters: Sequence[int] = (),
    delay: int = 0,
) -> float:
    """Return the wall clock of T updates of P learners that average by `schedule`.

    nbytes: of the weights of one learner. clusters: learners in a cluster of each level, innermost
    first. delay: updates after which an average is merged.
    """
    clock = Synchronous(timing, P, seed, averages(timing, P, nbytes, clusters))
    elapse(clock, schedule, T, delay)
    return clock.wall_s


def elapse(clock: Synchronous, schedule: Schedule, T: int, delay: int = 0) -> int:
    """Let T updates pass on the clock, with the averages of `schedule`; 0 is no delay.

    As in training a delayed average that would not arrive before T does not begin, one that falls
    due while another is on its way begins when that is merged, and at T everyone averages at once.
    Return the number of averages.
    """
    made, begun, scope = 0, 0, Scope.NONE  # averages, and of that on its way its begin and scope
    waiting = Scope.NONE  # an average that fell due while another was on its way
    for t in range(1, T + 1):
        if scope and t == begun + delay:
            clock.merge(scope, begun, t)
            made, scope = made + 1, Scope.NONE
        due = schedule.final if t == T else max(schedule.after(t), waiting)
        if due and (t == T or not delay):
            clock.advance(t)
            clock.average(due)
            made += 1
        elif scope:
            waiting = due
        elif due:
            waiting = Scope.NONE
            if t + delay <= T:
                begun, scope = t, due
    clock.advance(T)
    return made


@dataclass(frozen=True)
class Machine:
    """Nodes of as many ranks each, one learner a rank, and what their averages cost."""

    timing: Timing
    """of an update, and of a message between two nodes"""
    nodes: int = 1
    ranks: int = 1
    """ranks on a node"""
    node_s: float = 0.0
    """seconds of an average inside a node"""

    def __post_init__(self) -> None:
        at_least("nodes", self.nodes, 1)
        at_least("ranks_per_node", self.ranks, 1)
        if not 0 <= self.node_s <= MOST:
            raise bad("node_s", self.node_s, f"must lie between 0 and {MOST:g} seconds")

    @property
    def P(self) -> int:
        """The number of learners."""
        return self.nodes * self.ranks

    def average_s(self, nbytes: float, part: float = 1.0) -> float:
        """Return the seconds of an average of nbytes a learner, without waiting.

        part: of the weights that it is of.
        """
        within = part * self.node_s if self.ranks > 1 else 0.0
        return within + self.timing.mean_s(self.nodes, nbytes)

    def link_bytes(self, nbytes: float) -> float:
        """Return the bytes of one average on a node's link, in each direction."""
        return 2 * (self.nodes - 1) / self.nodes * nbytes


def measured(run: record.Run) -> Machine:
    """Return the machine that a measured run had; `timing.fit` says which runs will do.

    The averages of a run on one node are all inside the node, and its timing has no bandwidth of a
    link that was measured. Those of a run between nodes count as the link's alone.
    """
    timing = fit([run])
    if run.config.get("delay"):
        raise UserError(
            f"{run.path}: its averages were delayed, so that the waiting for the slowest learner "
            "does not show; give the file of a run without `delay`"
        )
    ranks, nodes = run.provenance["ranks"], run.provenance.get("nodes", 1)
    nbytes = 4 * run.config["d"]
    seconds = timing.mean_s(ranks, nbytes)
    if nodes == 1:
        return Machine(timing, 1, ranks, seconds)
    link = Machine(timing, nodes, -(-ranks // nodes))
    bytes_s = seconds - timing.mean_s(nodes, 0)  # without the latencies
    timing = replace(timing, bandwidth_bytes_per_s=link.link_bytes(nbytes) / bytes_s)
    return replace(link, timing=timing)


@dataclass(frozen=True)
class Prediction:
    """What a plan says of one setting, for T updates of each learner."""

    wall_s: float
    communicate: float
    """the part of a learner's time in averages that no update hides, without waiting"""
    wait: float
    """the part of a learner's time in waiting for other learners"""
    average_s: float
    """duration of one average, of one piece if there are several, without waiting"""
    link_bytes: float
    """bytes on a node's link, in each direction"""
    learners: int


def predict(
    machine: Machine,
    nbytes: float,
    K: int,
    T: int,
    delay: int = 0,
    seed: int = 0,
    fragments: int = 1,
) -> Prediction:
    """Predict T updates with averages of nbytes a learner every K updates, merged after `delay`.

    With `fragments` an average is of one of so many pieces, which take turns, and nbytes of a
    piece; after update T all pieces average. A long run is modelled for a part of its rounds, and
    the rest is extrapolated.
    """
    if not 0 <= delay <= K:
        raise bad("delay", delay, f"must lie between 0 and the period of {K} updates")
    check(fragments, K, False, delay, ())
    rounds = -(-T // K)
    part = max(FEWEST, WORK // machine.P)
    n, whole = (T, 1.0) if rounds <= part else (K * part, T / (K * part))
    average_s = machine.average_s(nbytes, 1 / fragments)

    def seconds(scope: Scope, t: int) -> tuple[int, float]:
        return machine.P, average_s * (fragments if t == n else 1)

    clock = Synchronous(machine.timing, machine.P, seed, seconds)
    schedule = Every(K) if fragments == 1 else InTurn(K, fragments)
    made = elapse(clock, schedule, n, delay) + fragments - 1
    return Prediction(
        wall_s=whole * clock.wall_s,
        communicate=clock.communicate_s / clock.wall_s,
        wait=clock.wait_s / clock.wall_s,
        average_s=average_s,
        link_bytes=whole * made * machine.link_bytes(nbytes),
        learners=machine.P,
    )
