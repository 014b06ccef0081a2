"""An asynchronous run from its settings: who does what, then over MPI or in simulated time, and a
run file about it.

The first server writes the file, for all that is known about the order comes together there; in
simulated time there is one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg import algorithms
from localavg.config import TrainConfig
from localavg.errors import FINISHED, UserError
from localavg.learner import stepsizes
from localavg.learner.flat import Flat
from localavg.learner.sampling import SAMPLERS
from localavg.parallel.fleet import Fleet
from localavg.simulate import timing
from localavg.training import resume
from localavg.training.asynchronous.client import client
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.log import Log
from localavg.training.asynchronous.messages import Roles
from localavg.training.asynchronous.replay import order_of
from localavg.training.asynchronous.server import FirstServer, Server
from localavg.training.asynchronous.simulate import simulate
from localavg.training.evaluate import Evaluator, by_rank
from localavg.training.length import Length
from localavg.training.monitor import Clock, Diverged
from localavg.training.run import load_data, make_problem

Array = Any


def run(c: TrainConfig, world: MPI.Intracomm, provenance: Mapping[str, Any] | None = None) -> int:
    """As `localavg.run.run`, for an algorithm of `algorithms.ASYNCHRONOUS`."""
    if c.simulate and world.size > 1:
        raise UserError(
            f"--simulate on {world.size} ranks: {c.algorithm} in simulated time is one process; "
            "use one rank"
        )
    servers = _make(c, c.learners or 1).servers
    fleet = Fleet(world)
    model = fleet.together(lambda: timing.make(c) if c.simulate else None)
    roles = Roles(world, c.learners, 0 if model else servers, c.algorithm)
    P, first, rule = roles.P, bool(model) or roles.first, _make(c, roles.P).rule
    earlier = fleet.together(lambda: resume.earlier(c) if first else None)
    if resume.finished(earlier, world):
        return FINISHED
    data = load_data(c, fleet)
    problem = fleet.together(lambda: make_problem(c, data, fleet))
    sampler = SAMPLERS[c.sampling](problem.n, P, c.batch_size, c.seed)
    length = Length.of(c, P, sampler.epoch)
    T = length.T
    feed, step_size = (
        problem.feed(sampler, roles.learners or range(1), T),
        stepsizes.make(c, sampler.epoch),
    )
    flat = Flat(problem.shapes, 1, problem.parameters)
    rule.lay_out(flat.d_trained)
    center = flat.w[0]  # [d] x̃
    if world.rank == 0:
        problem.initial_(center)
    world.Bcast(center)

    settings = {**resume.settings(c, P, data, problem, T), **(asdict(model) if model else {})}
    if "alpha" in settings:
        settings["alpha"] = rule.alpha
    replay = fleet.together(
        lambda: order_of(c.replay, settings, P, T, rule.K) if c.replay else None
    )
    carried = SimpleNamespace(
        name="simulated" if model else "messages", why="two-sided, between learners and servers"
    )
    origin = {
        **(world.bcast(provenance) or {}),
        **resume.where(fleet, carried),
        "learners_per_rank": roles.layout.per_rank,
    }
    _, file = resume.opened(c, fleet, settings, origin, earlier, first, checkpoints=False)
    evaluator = Evaluator(
        problem, world, by_rank(world), examples=c.eval_examples, grad_norm=c.grad_norm
    )
    log, clock = Log(length, step_size, file), Clock()
    local = Local(rule, problem, feed, step_size, T, np.zeros(problem.d, np.float32), clock.lap)
    last, looked_at = (
        np.empty_like(center),
        np.empty_like(center),
    )  # [d] networks remember memory that they evaluate

    def look(U: int, wall_s: float, w: Array) -> None:
        """Evaluate w [d], the center after U updates."""
        last[:] = looked_at[:] = w
        log.evaluated(U, wall_s, evaluator.row(looked_at))

    def work() -> None:
        if file is not None and c.save_weights:
            file.save_weights("initial_weights", center)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # divergence is found by its losses, told once
            look(0, 0.0, center)
            if model:
                simulate(
                    local,
                    center,
                    P,
                    log,
                    model,
                    servers,
                    c.seed,
                    lambda: look(log.U, log.wall_s, center),
                )
            else:
                _play(local, center, roles, log, clock, replay, look)
        if file is not None and c.save_weights:
            file.save_weights("weights", last)

    status, why = resume.ended(work, file, log, problem, world)
    roles.free()
    if file is not None:
        took = f"{'modelled ' * bool(model)}{log.summary()}"
        print(why or f"{c.algorithm}: {T} updates of {P} learners in {took}", file=sys.stderr)
        print(c.path, flush=True)
    return status


def _make(c: TrainConfig, P: int) -> algorithms.Asynchronous:
    return algorithms.make(c.algorithm, c.options, T=1, epoch=1.0, P=P, momentum=c.momentum)


def _play(
    local: Local,
    center: Array,
    roles: Roles,
    log: Log,
    clock: Clock,
    replay: list[int] | None,
    look: Callable[[int, float, Array], None],
) -> None:
    """Every rank in its role until all learners are done; then they `look` at the copies of the
    center together.
    """
    copies, why = [], ""
    roles.meet()
    started = perf_counter()
    clock.start()
    if roles.learners:
        client(local, center, roles, clock)
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
        w = copies[k][2] if roles.first else np.empty_like(center)  # [d]
        roles.world.Bcast(w, source)
        look(U, wall_s, w)
    if why:
        raise Diverged(why)
