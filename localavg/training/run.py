"""A training run: build the pieces from the settings, train, and write the run file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from localavg import algorithms
from localavg.config import TrainConfig, seconds
from localavg.errors import FINISHED
from localavg.files import checkpoint
from localavg.files.record import Record
from localavg.interfaces import Settings
from localavg.learner import stepsizes
from localavg.parallel import survive
from localavg.parallel.device import on_host
from localavg.parallel.fleet import Fleet
from localavg.problems.engines.choose import AUTO
from localavg.scope import Scope
from localavg.simulate.clock import Modelled, Synchronous, averages
from localavg.training import header, recover
from localavg.training.build import Experiment, build
from localavg.training.ending import Outcome, ended
from localavg.training.evaluate import Evaluator, by_learner
from localavg.training.keeper import Keeper, Listener
from localavg.training.kept import Kept
from localavg.training.loop import train
from localavg.training.monitor import Monitor
from localavg.training.payload import Payload
from localavg.training.rehearsal import rehearse
from localavg.training.resume import Start, earlier, resume

if TYPE_CHECKING:
    from localavg.parallel.probe import Probe

PERIODS = ("K2", "levels", "p_init", "tau0", "alpha", "K")
"""options that give the (first) period of averages of all learners"""


def run(
    c: TrainConfig,
    world: MPI.Intracomm,
    provenance: Settings | None = None,
    aware: Probe | None = None,
    age_s: float = 0.0,
) -> Outcome:
    """Train with the settings `c` on the ranks of `world`.

    Rank 0 writes c.path. provenance: `provenance.provenance()`, made on rank 0.
    aware: the result of doctor's test of MPI on device memory, on rank 0 if a choice needs it.
    age_s: the seconds since the start of the process, which the time limit counts.
    Raises UserError on all ranks, before training starts, for anything that cannot be run.
    """
    began_s, outlives = monotonic() - age_s, c.on_failure == recover.CONTINUE
    if outlives:
        survive.check()
    # 1. Look for an earlier run in this file, before anything is read.
    fleet = Fleet(world, c.learners, c.ranks_per_node, outlives=outlives)
    writes = world.rank == 0
    before = earlier(c, fleet, writes)
    if before.finished:
        return Outcome(FINISHED, "")

    # 2. Build the pieces.
    e = build(c, fleet, aware, before.chosen)
    rehearse(e)
    notes = _notes(e)  # a schedule of the user's that fails does so here, and leaves no file

    # 3. Find the checkpoint to resume from, and open the run file.
    origin = {**(provenance or {}), **header.machine(e)}
    d = None if e.timing else e.flat.d
    start = resume(c, fleet, before, header.config(e), origin, writes, d)
    for note in notes:
        print(f"localavg: {note}", file=sys.stderr)

    # 4. Train.
    lost = ""
    if outlives:
        watch = partial(watched, began_s=began_s, listener=Listener())
        attempts = [recover.first(e, start, watch)]
        del e, start  # `outlive` frees them after a loss
        last, status, why = recover.outlive(attempts, _trained, watch)
        e, monitor, keeper, lost = last.e, last.monitor, last.keeper, last.summary
        writes = e.fleet.rank == 0
    else:
        monitor, keeper = watched(e, start.file, began_s)
        status, why = _ended(e, start, monitor, keeper)

    # 5. End.
    if not outlives:  # else ranks may be lost
        fleet.free()
    if writes and status == FINISHED:
        checkpoint.remove(keeper.folder)
        if why_not := e.algorithm.schedule.unsteered:
            print(f"localavg: {c.algorithm}: {why_not}", file=sys.stderr)
    return Outcome(status, (why or _summary(e, monitor) + lost) if writes else "")


def watched(
    e: Experiment,
    file: Record | None,
    began_s: float | None = None,
    listener: Listener | None = None,
) -> tuple[Monitor, Keeper]:
    """Return the monitor that records a run in `file`, and the keeper that saves it. Collective.

    began_s: when the time limit began, by the clock `monotonic`; now by default. listener: the
    keeper's.
    """
    c, fleet = e.config, e.fleet
    carrier = e.background or e.transport
    payload = Payload(e.algorithm, carrier, e.flat, e.optimizer, c.statistics == "average")
    rows: Record | Modelled | None = file
    ahead = None
    if e.timing:
        clock = Synchronous(
            e.timing,
            fleet.P,
            c.seed,
            averages(e.timing, fleet.P, payload.nbytes, e.algorithm.clusters),
            deepcopy(e.algorithm.participants),
        )
        if e.algorithm.schedule.hears:
            ahead = deepcopy(clock)  # alike on all ranks
        if file is not None:
            rows = Modelled(file, clock, e.algorithm.average.matrix, payload.nbytes)
    evaluator = Evaluator(
        e.problem, fleet.world, by_learner(fleet), examples=c.eval_examples, grad_norm=c.grad_norm
    )
    monitor = Monitor(fleet, e.transport, evaluator, rows, e.length, payload, c.variance, ahead)
    every = c.checkpoint_every or ""
    steps = int(every) if every.isdecimal() else None
    keeper = Keeper(
        fleet,
        file,
        checkpoint.folder_of(c.path),
        every_steps=steps,
        every_s=None if steps else seconds("checkpoint_every", c.checkpoint_every),
        limit_s=seconds("time_limit", c.time_limit),
        began_s=began_s,
        listener=listener,
    )
    return monitor, keeper


def _trained(a: recover.Attempt) -> tuple[int, str]:
    return _ended(a.e, a.start, a.monitor, a.keeper, a.kept)


def _ended(
    e: Experiment, start: Start, monitor: Monitor, keeper: Keeper, kept: Kept | None = None
) -> tuple[int, str]:
    """Train, and return the exit status and why the run did not finish."""
    work = partial(_train, e, start, monitor, keeper, kept)
    if kept is not None:
        work = partial(recover.passing, work, e.fleet.world)
    with nullcontext() if e.timing or kept is not None else keeper.listener.listening():
        remedy = stepsizes.remedy(e.config)
        return ended(work, start.file, monitor, e.problem, e.fleet.world, remedy)


def _train(
    e: Experiment, start: Start, monitor: Monitor, keeper: Keeper, kept: Kept | None
) -> None:
    if start.file is not None and start.saved is None:
        header.write_holdings(start.file, e, says=e.fleet.rank == 0)
    file = start.file if e.config.save_weights else None
    if file is not None and start.saved is None:
        file.save_weights("initial_weights", e.flat.packed(on_host(e.flat.w[0])))
    with np.errstate(over="ignore", invalid="ignore"):  # the monitor checks the losses
        train(e, monitor, keeper, start.saved, kept)
    if file is not None:
        file.save_weights("weights", e.flat.packed(on_host(e.flat.w[0])))


def _summary(e: Experiment, monitor: Monitor) -> str:
    """Write what a finished run did, and how long it took."""
    modelled = "; times in the run file are modelled" if e.timing else ""
    took = f"{e.config.algorithm}: {e.length.T} updates of {e.fleet.P} learners in "
    return f"{took}{monitor.summary()}{modelled}"


def _notes(e: Experiment) -> list[str]:
    """Return what the user may not have meant, on rank 0."""
    if e.fleet.rank > 0:
        return []
    deepcopy(e.algorithm.schedule).after(1)
    notes = _not_averaged(e)
    if e.config.engine == AUTO and e.device.name != "cpu":
        notes.insert(0, f"engine {e.engine.name}, {e.engine_why}")
    if (after := e.algorithm.schedule.steered_after) >= e.length.T:
        notes.append(
            f"{e.config.algorithm}'s warm-up and sampling take {after} updates of {e.length.T}: "
            "its period is never steered; train for longer, or lower warmup and Ks"
        )
    return notes


def _not_averaged(e: Experiment) -> list[str]:
    """Return that one learner averages nothing, or that the run ends before its first average."""
    name, P, T = e.config.algorithm, e.fleet.P, e.length.T
    if name == "sgd":
        return []
    if P == 1:
        return [
            f"{name} with 1 learner: nothing is averaged; use more learners (--learners 8), or "
            "more ranks (mpirun -n 8)"
        ]
    if (periods := _too_long(e)) is None:
        return []
    return [
        f"{name}{periods}: there is one average of all learners, after the last of {T} updates; "
        "use a shorter period, or train for longer"
    ]


def _too_long(e: Experiment) -> str | None:
    """Return the period that is longer than the run, as " with K = 64"; None if none is.

    The period may be the algorithm's own, without an option: then the text is empty.
    """
    given = algorithms.filled_in({**algorithms.options(e.config.algorithm), **e.config.options})
    if not given or e.algorithm.exchange.at(e.length.T):
        return None  # it has no period: one average is what it is for, or gradients travel
    schedule, T = deepcopy(e.algorithm.schedule), e.length.T
    if any(schedule.after(t) in (Scope.WORLD, Scope.NEIGHBOURS) for t in range(1, T + 1)):
        return None
    named = [f"{option} = {given[option]}" for option in PERIODS if given.get(option) is not None]
    return f" with {named[0]}" if named else ""
