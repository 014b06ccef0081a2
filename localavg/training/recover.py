"""Outlive ranks that die: the others go on from the last average of everyone.

    train                                       until a call fails, or the run has ended
    revoke, agree                               has anybody seen a rank die?
    no one:  end
    someone: shrink, lay P learners over the ranks that live, restore, agree, and train again

`parallel/survive.py` has the calls of MPI, and `kept.py` what is restored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
from mpi4py import MPI

from localavg.errors import SharedError, UserError
from localavg.files import checkpoint
from localavg.files.mirror import Mirror
from localavg.files.record import Record
from localavg.parallel import survive
from localavg.parallel.fleet import Fleet
from localavg.parallel.probe import Probe
from localavg.parallel.transport.cuda_aware import CudaAware
from localavg.parallel.transport.nccl import Nccl
from localavg.parallel.transport.shared import SharedMemory
from localavg.training.build import Chosen, Experiment, assemble, task_of
from localavg.training.ending import Diverged, Interrupted
from localavg.training.keeper import Keeper
from localavg.training.kept import Kept
from localavg.training.monitor import Monitor
from localavg.training.problem import make_problem
from localavg.training.resume import Start
from localavg.training.stopwatch import NAMES

CONTINUE = survive.CONTINUE
Watched = Callable[[Experiment, Mirror], tuple[Monitor, Keeper]]


@dataclass(frozen=True, eq=False)
class Attempt:
    """A run on some ranks, and how often ranks were lost before it.

    start: where it starts; its file is a mirror. resumed: whether the run began with a checkpoint.
    began_s: the time when the attempt began, by the clock `perf_counter`. repeated, seconds: the
    updates to make again after all losses, and the time that they cost. old: runs before, and
    their copies, whose rows messages that failed may still read.
    """

    e: Experiment
    start: Start
    monitor: Monitor
    keeper: Keeper
    kept: Kept
    resumed: bool
    began_s: float
    losses: int = 0
    repeated: int = 0
    seconds: float = 0.0
    old: tuple[tuple[Experiment, Kept], ...] = ()

    @property
    def t(self) -> int:
        """The updates made so far."""
        begun = self.start.saved.t if self.start.saved else 0
        return max(begun, self.monitor.reported + self.monitor.updates)

    @property
    def mirror(self) -> Mirror:
        """The run file."""
        assert isinstance(self.start.file, Mirror), "made by `first`"
        return self.start.file

    @property
    def summary(self) -> str:
        """What the losses of ranks cost, "" if there were none."""
        return survive.summary(self.losses, str(self.repeated), self.seconds)


def first(e: Experiment, start: Start, watched: Watched) -> Attempt:
    """Return the attempt of all ranks. Collective."""
    resumed = start.saved is not None
    mirror = Mirror(e.fleet, start.file)
    monitor, keeper = watched(e, mirror)
    kept = Kept(e, monitor, mirror)
    start = start._replace(file=mirror)
    return Attempt(e, start, monitor, keeper, kept, resumed, perf_counter())


def outlive(
    attempts: list[Attempt], train: Callable[[Attempt], tuple[int, str]], watched: Watched
) -> tuple[Attempt, int, str]:
    """Train, and again without the ranks that were lost, until it ends. Collective.

    attempts: the first attempt, which is taken out, so that nobody holds its rows after a loss.
    train: trains, and raises Lost where ranks died. watched: makes the monitor and the keeper.
    Return the last attempt, the exit status and why the run did not finish.
    """
    a = attempts.pop()
    survive.survivors[:] = [a.e.fleet.world]
    with a.keeper.listener.listening():
        while True:
            status, why, done = 1, "", True
            try:
                status, why = train(a)
            except survive.Lost:
                done = False
                with survive.limited(a.e.fleet.world, survive.RESUME):
                    survive.revoke(a.e.fleet.made)
                    a.kept.abandon()
            if survive.agreed(a.e.fleet.world, done):
                return a, status, why
            a.monitor.close()
            a = _recovered(a, watched)


def passing(work: Callable[[], None], world: MPI.Intracomm) -> None:
    """Do the work, and raise Lost in place of an exception that a rank's death causes."""
    with survive.noticing(world, (Diverged, Interrupted, UserError)):
        work()


def _recovered(a: Attempt, watched: Watched) -> Attempt:
    """Return the attempt of the ranks that live. Collective over them.

    The job ends where that fails or takes too long.
    """
    at_s, build = perf_counter(), partial(_again, a, a.t, watched)
    return _told(a, survive.without_lost(a.e.fleet.world, a.e.fleet.made, build), at_s)


def _again(
    a: Attempt, t: int, watched: Watched, world: MPI.Intracomm, made: list[survive.Revocable]
) -> Attempt:
    """Build the run on the ranks of `world`, and find what it goes on from. Collective."""
    e, c = a.e, a.e.config
    fleet = Fleet(world, e.fleet.P, c.ranks_per_node, made, outlives=True)
    problem = make_problem(c, e.problem.data, fleet, e.device)
    task = task_of(c, fleet, fleet.P, e.device, problem)
    chosen = Chosen(e.device.name, e.engine.name, e.transport.name)
    now = assemble(task, _tried(e), chosen, recovers=True)
    kept = a.kept.latest(world)
    if kept is None and a.resumed:
        raise SharedError("there was no average of everyone since the run was resumed")
    saved, counts, at_s = None, dict.fromkeys(a.mirror.counts(), 0), a.began_s
    if kept is not None:
        saved, note = kept.restored(world, now)
        counts, at_s = {**note.counts}, note.at_s
    begun = saved.t if saved else 0
    mirror = a.mirror.back_to(fleet, counts)
    monitor, keeper = watched(now, mirror)
    fleet.together(
        partial(_take_over, c.path, mirror, keeper, begun) if fleet.rank == 0 else lambda: None
    )
    lost_s = max(world.allgather(perf_counter() - at_s))
    if saved is not None:  # a meeting of all ranks, and a long one
        times = saved.state["monitor"]
        times["seconds"][NAMES.index("communicate")] += lost_s
        times["meetings"] = np.append(times["meetings"], lost_s)
    else:  # so were the losses before, which nothing has counted
        monitor.clock.seconds["communicate"] += a.seconds + lost_s
        monitor.clock.meetings.append(a.seconds + lost_s)
    repeated = max(world.allgather(t)) - begun
    return replace(
        a,
        e=now,
        start=Start(saved, mirror),
        monitor=monitor,
        keeper=keeper,
        kept=Kept(now, monitor, mirror, before=kept or a.kept),
        began_s=perf_counter(),
        losses=a.losses + 1,
        repeated=a.repeated + repeated,
        seconds=a.seconds + lost_s,
        old=(*a.old, (e, a.kept)) if _may_read(e) else a.old,
    )


def _tried(e: Experiment) -> Probe | None:
    """Return that MPI takes device memory, if the run has given it some."""
    aware = e.transport.name == CudaAware.name
    return Probe(True, "as before ranks were lost", nodes=2) if aware else None


def _may_read(e: Experiment) -> bool:
    """Return whether a message that failed may still read rows of this run."""
    quiet = [SharedMemory.name] + [Nccl.name] * (not e.algorithm.average.neighbours)
    return e.fleet.nodes > 1 or e.transport.name not in quiet


def _take_over(path: str, mirror: Mirror, keeper: Keeper, begun: int) -> None:
    """Go on with the run file after update `begun`, on the rank that writes it.

    Later checkpoints count rows that the file loses, so they go before the rows do.
    """
    if checkpoint.remove_after(keeper.folder, begun):
        keeper.save_soon()
    mirror.take_over(path)


def _told(a: Attempt, again: Attempt, at_s: float) -> Attempt:
    """Record that ranks were lost, on all ranks, and print it on the first one."""
    t = again.start.saved.t if again.start.saved else 0
    repeated, seconds = again.repeated - a.repeated, again.seconds - a.seconds
    tell(again.mirror, a.e.fleet, again.e.fleet, t, repeated, seconds, at_s)
    return again


def tell(
    file: Record | None,
    before: Fleet,
    after: Fleet,
    t: int,
    repeated: int,
    seconds: float,
    at_s: float,
) -> str:
    """Write a row of /events, if there is a file, and print it on the first rank that lives.

    before, after: the ranks. t, repeated: the update from which they go on, and the updates to make
    again. seconds: what the loss cost. at_s: when the recovery began, by the clock `perf_counter`.
    Return who died.
    """
    gone = survive.lost(before.world, after.world)
    names = ", ".join(f"rank {r} on {before.hosts[r]}" for r in gone)
    if file is not None:
        file.append(
            "events",
            t=t,
            repeated=repeated,
            lost=names,
            ranks_before=before.ranks,
            ranks_after=after.ranks,
            seconds=seconds,
        )
    if after.rank == 0:
        print(
            f"localavg: {names} died; {after.ranks} rank{'s go' if after.ranks > 1 else ' goes'} "
            f"on after step {t}, with {repeated} updates to make again; the recovery took "
            f"{perf_counter() - at_s:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    return names
