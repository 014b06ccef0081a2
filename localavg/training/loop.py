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
from localavg.problems.engines.loop import Loop
from localavg.training.averaging import Averaging
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
    """Make T local updates of this rank's learners, whose weights are the rows of flat.w.

    feed(j, t) is learner j's mini-batch for update t. statistics: an average covers what is not
    trained too. The run starts from equal rows, or where `keeper` has a run to resume, and always
    ends averaged. Collective. Raises `monitor.Diverged` where a loss is not finite and
    `keeper.Interrupted` where the run was told to stop, on every rank alike.
    """
    averaging = Averaging(
        algorithm,
        transport,
        flat,
        optimizer,
        statistics=statistics,
        variance=monitor.variance,
        objective=monitor.objective,
        before=monitor.computed,
        after=monitor.averaged,
    )
    gradients_ = Loop(problem, feed, learners, monitor.clock.lap).gradients_
    w, g = flat.w, transport.zeros(flat.w.shape)  # [L, d]
    w_trained, g_trained = averaging.columns[0], g[:, : flat.d_trained]
    optimizer.start(w_trained.shape, transport.zeros, transport.ordinary)

    begun = keeper.restore_(
        w,
        schedule=algorithm.schedule,
        combine=algorithm.average,
        optimizer=optimizer,
        monitor=monitor,
    )
    if not begun:
        averaging.begin(step_size(1))
    monitor.start(begun, w)
    losses, watching, update_ = monitor.losses, monitor.V, optimizer.update_
    for t in range(begun + 1, T + 1):  # t = completed local updates
        gamma = step_size(t)
        if watching:
            monitor.drifted(w_trained)
        losses += gradients_(w, t, out=g)
        averaging.exchange_(g_trained, t)  # sync SGD and QSGD only
        update_(w_trained, g_trained, gamma)
        averaging.average_(t, gamma, last=t == T)  # kavg Alg. 1: w_j ← w̄
        if t == monitor.due:
            monitor.report(t, gamma, w)
        if t == keeper.due:
            keeper.visit(t)
    averaging.finish_()
