"""An asynchronous run: assign the ranks' roles, train over MPI or in simulated time, write a file.

The first server writes the run file, because it decides the order of the exchanges. In simulated
time one process does everything.

With `device = cuda`, which auto never takes here, the learners compute on the GPUs of their ranks,
and the servers hold the center in the host's memory and use no GPU. The learners' ranks evaluate
its copies, on their GPUs. In simulated time the center lies on the GPU, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from localavg import algorithms
from localavg.algorithms.center import CenterLearner
from localavg.algorithms.eamsgd import EAMSGD
from localavg.config import TrainConfig
from localavg.errors import FINISHED, UserError
from localavg.interfaces import Array, Feed, Settings
from localavg.learner import stepsizes
from localavg.learner.flat import Flat, Places
from localavg.parallel.device import choose_device, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.gpus import find_gpus
from localavg.training import header, where
from localavg.training.asynchronous.client import client
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.mail import Mail
from localavg.training.asynchronous.messages import Roles
from localavg.training.asynchronous.replay import order_of
from localavg.training.asynchronous.server import FirstServer, Server
from localavg.training.asynchronous.simulate import simulate
from localavg.training.build import Task, load_task, start_equal_
from localavg.training.ending import Diverged, Outcome, ended
from localavg.training.evaluate import Evaluator, by_rank
from localavg.training.resume import earlier, resume
from localavg.training.stopwatch import Stopwatch


class Carrier(NamedTuple):
    """What carries weights between learners and servers."""

    name: str
    why: str = "two-sided, between learners and servers"


def run(c: TrainConfig, world: MPI.Intracomm, provenance: Settings | None = None) -> Outcome:
    """Do the same as `training.run.run`, for an algorithm of `algorithms.ASYNCHRONOUS`."""
    _check_ranks(c, world)
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

    # 3. Open the run file. Such a run makes no checkpoints: it starts from the beginning.
    config = header.config(task) | _filled_in(local)
    replay = fleet.together(lambda: _order(c, config, roles.P, local.T, local.rule.K))
    origin = _origin(task, roles, provenance)
    _, file = resume(c, fleet, before, config, origin, writes)
    if file is not None:
        header.write_holdings(file, task)
    log = Log(task.length, task.step_size, file)

    # 4. Train.
    status, why = ended(
        lambda: _train(task, local, center, roles, servers, log, clock, replay),
        file,
        log,
        task.problem,
        world,
        stepsizes.remedy(c),
    )
    roles.free()
    fleet.free()

    # 5. End.
    took = f"{'modelled ' * bool(task.timing)}{log.summary()}"
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
        feed = problem.feed(task.sampler, roles.learners or range(1), T, in_step=False)
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
        "learners_per_rank": roles.layout.per_rank,
    }


def _train(
    task: Task,
    local: Local,
    center: Array,
    roles: Roles,
    servers: int,
    log: Log,
    clock: Stopwatch,
    replay: list[int] | None,
) -> None:
    """Train with `center` [d], evaluate it on the way, and save what was evaluated last."""
    c, file = task.config, log.file if task.config.save_weights else None
    world, problem = roles.world, task.problem
    places = Places(problem.shapes, problem.parameters, problem.align)
    on_gpus = c.device == "cuda" and not c.simulate
    shares = by_rank(world, roles.clients if on_gpus else world.size)
    evaluator = Evaluator(problem, world, shares, examples=c.eval_examples, grad_norm=c.grad_norm)
    # [d] a network keeps the address of the weights that it evaluates, so always give it these
    last, looked_at = np.empty(center.shape, np.float32), center.copy()

    def look(U: int, wall_s: float, w: Array) -> None:
        """Evaluate w [d], the center after U updates."""
        last[:] = on_host(w)
        put_(looked_at, last)
        log.evaluated(U, wall_s, evaluator.row(looked_at))

    def look_now() -> None:
        look(log.U, log.wall_s, center)

    if file is not None:
        file.save_weights("initial_weights", places.packed(on_host(center)))
    with np.errstate(over="ignore", invalid="ignore"):  # the log checks the losses
        look(0, 0.0, center)
        if task.timing:
            simulate(local, center, roles.P, log, task.timing, servers, c.seed, look_now)
        else:
            _play(local, center, roles, log, clock, replay, look)
    if file is not None:
        file.save_weights("weights", places.packed(last))


def _filled_in(local: Local) -> dict[str, object]:
    """Return the settings that the rule chooses if they are not given."""
    return {"alpha": local.rule.alpha} if isinstance(local.rule, EAMSGD) else {}


def _order(c: TrainConfig, config: Settings, P: int, T: int, K: int) -> list[int] | None:
    """Return the order of arrival to repeat, None if no run is to be replayed."""
    return order_of(c.replay, config, P, T, K) if c.replay else None


def _make(c: TrainConfig, P: int) -> algorithms.Asynchronous:
    return algorithms.make(c.algorithm, c.options, T=1, epoch=1.0, P=P, momentum=c.momentum)


def _play(
    local: Local,
    center: Array,
    roles: Roles,
    log: Log,
    clock: Stopwatch,
    replay: list[int] | None,
    look: Callable[[int, float, Array], None],
) -> None:
    """Let every rank play its role until all learners are done.

    Then all ranks evaluate the copies of the center together, by `look`.
    """
    copies, why = [], ""
    mails = [Mail(learner.message, local.device) for learner in local.learners]
    roles.meet()
    started = perf_counter()
    clock.start()
    if roles.learners:
        client(local, mails, roles, clock)
    elif roles.first:
        server = FirstServer(
            local.rule, center, roles, log, lambda: perf_counter() - started, replay
        )
        why, copies = server.lead(local.T), server.copies
    else:
        Server(local.rule, center, roles).follow()
    roles.meet()
    source = roles.servers[0]
    why, kept = roles.world.bcast((why, [(U, wall_s) for U, wall_s, _ in copies]), source)
    for k, (U, wall_s) in enumerate(kept):
        w = copies[k][2] if roles.first else np.empty(center.shape, np.float32)  # [d]
        roles.world.Bcast(w, source)
        look(U, wall_s, w)
    if why:
        raise Diverged(why)
