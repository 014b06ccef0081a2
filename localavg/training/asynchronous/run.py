"""An asynchronous run: assign the ranks' roles, train over MPI or in simulated time, write a file.

The first server writes the run file, because it decides the order of the exchanges. In simulated
time one process does everything.

With `device = cuda`, which auto never takes here, the learners compute on the GPUs of their ranks,
and the servers hold the center in the host's memory and use no GPU. The learners' ranks evaluate
its copies, on their GPUs. In simulated time the center lies on the GPU, too.
"""

from __future__ import annotations

import sys
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from localavg import algorithms
from localavg.algorithms.center import CenterLearner
from localavg.algorithms.eamsgd import EAMSGD
from localavg.config import TrainConfig, seconds
from localavg.errors import FINISHED, UserError
from localavg.files import checkpoint
from localavg.files.checkpoint import Saved
from localavg.interfaces import Array, Feed, Settings
from localavg.learner import stepsizes
from localavg.learner.flat import Flat, Places
from localavg.parallel import survive
from localavg.parallel.device import choose_device, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.gpus import find_gpus
from localavg.training import header, where
from localavg.training.asynchronous import saver
from localavg.training.asynchronous.client import Client
from localavg.training.asynchronous.first_server import FirstServer
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.messages import Roles, span
from localavg.training.asynchronous.play import Play
from localavg.training.asynchronous.replay import check, order_of
from localavg.training.asynchronous.saver import Saver
from localavg.training.asynchronous.server import Server
from localavg.training.asynchronous.simulate import simulate
from localavg.training.build import Task, load_task, start_equal_
from localavg.training.ending import Outcome, ended
from localavg.training.evaluate import Evaluator, by_rank
from localavg.training.keeper import Listener
from localavg.training.resume import earlier, resume
from localavg.training.stopwatch import Stopwatch


class Carrier(NamedTuple):
    """What carries weights between learners and servers."""

    name: str
    why: str = "two-sided, between learners and servers"


def run(
    c: TrainConfig, world: MPI.Intracomm, provenance: Settings | None = None, age_s: float = 0.0
) -> Outcome:
    """Do the same as `training.run.run`, for an algorithm of `algorithms.ASYNCHRONOUS`."""
    began_s = monotonic() - age_s
    _check_ranks(c, world)
    check(c)
    if c.on_failure == survive.CONTINUE:
        survive.check()
    # 1. Look for an earlier run in this file, before anything is read.
    fleet, servers = Fleet(world), _make(c, c.learners or 1).servers
    roles = Roles(world, c.learners, 0 if c.simulate else servers, c.algorithm)
    writes = c.simulate or roles.first
    before = earlier(c, fleet, writes)
    if before.finished:
        return Outcome(FINISHED, "")

    # 2. Build the pieces.
    clock = Stopwatch()
    task, local, center = _build(c, fleet, roles, clock)

    # 3. Find the checkpoint to resume from, and open the run file. A simulated run has none.
    config = header.config(task) | _filled_in(local)
    replay = fleet.together(lambda: _order(c, config, roles.P, local.T, local.rule.K))
    origin = _origin(task, roles, provenance)
    d = None if task.timing or replay else len(center)
    saved, file = resume(c, fleet, before, config, origin, writes, d)
    if file is not None and saved is None:
        header.write_holdings(file, task)
    log = Log(task.length, task.step_size, file)

    # 4. Train.
    lost = ""
    if task.timing:
        work = partial(_simulated, task, local, center, servers, log)
        status, why = ended(work, file, log, task.problem, world, stepsizes.remedy(c))
    else:
        play = _play(task, local, center, roles, log, clock, replay, saved, began_s)
        work = partial(_played, play, saved is None)
        status, why = ended(work, file, log, task.problem, world, stepsizes.remedy(c))
        lost = play.summary
    if c.on_failure != survive.CONTINUE:  # else ranks may be lost
        roles.free()
        fleet.free()

    # 5. End.
    if file is not None and status == FINISHED:
        checkpoint.remove(checkpoint.folder_of(c.path))
    took = f"{'modelled ' * bool(task.timing)}{log.summary()}{lost}"
    done = f"{c.algorithm}: {local.T} updates of {roles.P} learners in {took}"
    return Outcome(status, "" if file is None else why or done)


def _check_ranks(c: TrainConfig, world: MPI.Intracomm) -> None:
    if c.simulate and world.size > 1:
        raise UserError(
            f"`simulate` on {world.size} ranks: {c.algorithm} in simulated time is one process; "
            "use one rank"
        )


def _build(
    c: TrainConfig, fleet: Fleet, roles: Roles, clock: Stopwatch
) -> tuple[Task, Local, Array]:
    """Return the task, what this rank's learners share, and the initial center [d]. Collective.

    A wrong option is reported before data is read.
    """
    rule = _make(c, roles.P).rule
    device = choose_device("cuda" if roles.learners and c.device == "cuda" else "cpu", fleet)
    if c.device == where.AUTO and roles.first and find_gpus()[0]:
        print(
            f"localavg: device cpu, auto: {c.algorithm} takes a GPU only if it is asked for; "
            "--device cuda takes it",
            file=sys.stderr,
        )
    task = load_task(c, fleet, roles.P, device)
    problem, T = task.problem, task.length.T

    def rows() -> tuple[Flat, Array]:
        places = problem.shapes, 1, problem.parameters
        return Flat(*places, device.zeros, problem.align), device.zeros((problem.d,))

    flat, scratch = fleet.together(rows)
    center = flat.w[0]
    rule.lay_out(flat.d_trained)
    start_equal_(problem, flat.w, fleet.world)

    def parts() -> tuple[Feed, list[CenterLearner]]:
        feed = problem.feed(task.sampler, span(roles.learners), T, in_step=False)
        return feed, [rule.learner(j, center, device.zeros) for j in roles.learners]

    feed, learners = fleet.together(parts)
    local = Local(rule, learners, device, problem, feed, task.step_size, T, scratch, clock.lap)
    return task, local, center


def _origin(task: Task, roles: Roles, provenance: Settings | None) -> dict[str, object]:
    """Return /provenance. Collective."""
    carrier = Carrier("simulated" if task.timing else "messages")
    return {
        **(roles.world.bcast(provenance) or {}),
        **header.hosts(task.fleet, carrier),
        **header.gpus(task.fleet, task.device),
        **header.redraws(task),
        "learners_per_rank": roles.per_rank,
    }


def _simulated(task: Task, local: Local, center: Array, servers: int, log: Log) -> None:
    """Train in simulated time with `center` [d], and evaluate it on the way."""
    c, world = task.config, task.fleet.world
    how: dict[str, Any] = {"examples": c.eval_examples, "grad_norm": c.grad_norm}
    evaluator = Evaluator(task.problem, world, by_rank(world, world.size), **how)
    # [d] a network keeps the address of the weights that it evaluates, so always give it these
    last, looked_at = np.empty(center.shape, np.float32), center.copy()

    def look() -> None:
        """Evaluate the center as it is."""
        last[:] = on_host(center)
        put_(looked_at, last)
        log.evaluated(log.U, log.wall_s, evaluator.row(looked_at))

    _save(log, task, "initial_weights", center)
    with np.errstate(over="ignore", invalid="ignore"):  # the log checks the losses
        look()
        assert task.timing is not None, "only a simulated run has modelled times"
        simulate(local, center, task.length.P, log, task.timing, servers, c.seed, look)
    _save(log, task, "weights", last)


def _played(play: Play, fresh: bool) -> None:
    """Train over MPI. fresh: the run starts from the beginning."""
    if fresh:
        _save(play.log, play.task, "initial_weights", play.center)
    with np.errstate(over="ignore", invalid="ignore"):
        play.run()
    _save(play.log, play.task, "weights", play.evaluated)


def _save(log: Log, task: Task, name: str, w: Array) -> None:
    """Write w [d] to the run file, on the rank that writes it, if weights are asked for."""
    problem = task.problem
    if log.file is not None and task.config.save_weights:
        places = Places(problem.shapes, problem.parameters, problem.align)
        log.file.save_weights(name, places.packed(on_host(w)))


def _filled_in(local: Local) -> dict[str, object]:
    """Return the settings that the rule chooses if they are not given."""
    return {"alpha": local.rule.alpha} if isinstance(local.rule, EAMSGD) else {}


def _order(c: TrainConfig, config: Settings, P: int, T: int, K: int) -> list[int] | None:
    """Return the order of arrival to repeat, None if no run is to be replayed."""
    return order_of(c.replay, config, P, T, K) if c.replay else None


def _make(c: TrainConfig, P: int) -> algorithms.Asynchronous:
    return algorithms.make(c.algorithm, c.options, T=1, epoch=1.0, P=P, momentum=c.momentum)


def _play(
    task: Task,
    local: Local,
    center: Array,
    roles: Roles,
    log: Log,
    clock: Stopwatch,
    replay: list[int] | None,
    saved: Saved | None,
    began_s: float,
) -> Play:
    """Return the run with this rank in its role, at the start or as it was saved."""
    t, listener = saver.progress(saved, roles.P), Listener()
    if saved is not None:
        put_(center, saved.state["center"]["x"])
        log.load_state_dict(saved.state["log"])
        zeros = local.device.zeros
        local.learners = [local.rule.learner(j, center, zeros) for j in roles.learners]
        for learner in local.learners:
            learner.t = t[learner.j]
    role: Client | Server
    if not roles.serves:
        role = Client(local, roles, clock)
    elif not roles.first:
        role = Server(local.rule, center, roles)
    else:
        keeper = None if replay else _saver(task.config, listener, began_s)
        role = FirstServer(local.rule, center, roles, log, local.T, t, replay, keeper)
        start = [(0, 0.0, on_host(center).copy())]
        role.copies += start if saved is None else saver.copies_of(saved, len(center))
    return Play(task, local, center, roles, log, role, listener)


def _saver(c: TrainConfig, listener: Listener, began_s: float) -> Saver:
    every = c.checkpoint_every or ""
    steps = int(every) if every.isdecimal() else None
    return Saver(
        checkpoint.folder_of(c.path),
        listener,
        every_s=None if steps else seconds("checkpoint_every", c.checkpoint_every),
        every_steps=steps,
        limit_s=seconds("time_limit", c.time_limit),
        began_s=began_s,
    )
