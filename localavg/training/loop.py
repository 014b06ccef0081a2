"""The synchronous loop: local updates, an average when the schedule says so, what is recorded and
kept beside it.

Every synchronous algorithm of `algorithms/` runs through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localavg.algorithms.base import Algorithm
from localavg.learner.flat import Flat
from localavg.learner.optim import SGD
from localavg.learner.stepsizes import StepSize
from localavg.problems import Problem
from localavg.scope import Scope
from localavg.training.keeper import Keeper
from localavg.training.monitor import Monitor


def train(
    problem: Problem,
    flat: Flat,
    algorithm: Algorithm,
    optimizer: SGD,
    step_size: StepSize,
    feed: Callable[[int, int], Any],
    transport: Any,
    learners: range,
    T: int,
    monitor: Monitor,
    keeper: Keeper,
    statistics: bool = True,
) -> None:
    """T local updates of this rank's learners, whose weights are the rows of flat.w; collective
    over the ranks.

    feed(j, t) is learner j's mini-batch for update t. statistics: an average covers what is not
    trained too. It starts from equal rows, or where `keeper` has a run to go on with, and always
    ends averaged. Raises `monitor.Diverged` where a loss is not finite and `keeper.Interrupted`
    where the run was told to stop, on every rank alike.
    """
    schedule, average, exchange = algorithm.schedule, algorithm.average, algorithm.exchange
    lap, losses, watching = monitor.clock.lap, monitor.losses, monitor.V
    w, g = flat.w, transport.zeros(flat.w.shape)  # [L, d]
    rows = list(zip(learners, w, g, strict=True))  # learner j, its weights and gradient: views [d]
    w_trained, g_trained, w_statistics = (
        w[:, : flat.d_trained],
        g[:, : flat.d_trained],
        w[:, flat.d_trained :],
    )
    w_averaged = w if statistics else w_trained
    average.start(w_averaged, flat.d_trained)
    optimizer.start(w_trained.shape, transport.zeros, transport.ordinary)

    begun = keeper.restore_(
        w, schedule=schedule, combine=average, optimizer=optimizer, monitor=monitor
    )
    if not begun and schedule.needs == "objective":
        schedule.observe(0, monitor.objective(0, w[0]), step_size(1))
    monitor.start(begun, w)
    for t in range(begun + 1, T + 1):  # t = completed local updates
        gamma = step_size(t)
        if watching:
            monitor.drifted(w_trained)
        for j, w_j, g_j in rows:
            lap("compute")
            batch = feed(j, t)
            lap("data")
            losses.append(problem.gradient_(w_j, batch, out=g_j))
        if exchange.scope:
            monitor.computed()
            exchange.exchange_(g_trained, t, transport)
            monitor.averaged(t, exchange.scope)
        optimizer.update_(w_trained, g_trained, gamma)
        scope = schedule.final if t == T else schedule.after(t)
        if scope:
            monitor.computed()
            S = average.average_(w_averaged, scope, transport, variance=monitor.variance)
            optimizer.at_average_(scope, transport)
            monitor.averaged(t, scope, S)
            if schedule.needs:
                w_bar = (
                    w[0] if statistics else transport.mean(w)
                )  # kept statistics are each learner's own
                feedback = S if schedule.needs == "variance" else monitor.objective(t, w_bar)
                schedule.observe(t, feedback, gamma)
        if t == monitor.due:
            monitor.computed()
            monitor.report(t, gamma, w)
        if t == keeper.due:
            keeper.visit(t)
    if exchange.scope and statistics and w_statistics.size:
        transport.mean_(
            w_statistics, Scope.WORLD
        )  # the weights are equal, what normalises them is not
