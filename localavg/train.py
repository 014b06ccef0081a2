"""The synchronous loop: local updates, an average when the schedule says so, what is recorded beside it.

Every algorithm of `algorithms.py` runs through it.
"""

from __future__ import annotations

import math
from typing import Any

from localavg.algorithms import Algorithm
from localavg.flat import Flat
from localavg.monitor import Monitor
from localavg.optim import SGD
from localavg.sampling import Sampler
from localavg.stepsizes import StepSize


def train(problem: Any, flat: Flat, algorithm: Algorithm, optimizer: SGD, step_size: StepSize, sampler: Sampler,
          transport: Any, learners: range, T: int, monitor: Monitor) -> None:
    """T local updates of this rank's learners, whose weights are the rows of flat.w; collective over the ranks.

    It starts from equal rows and always ends averaged. Raises `monitor.Diverged` on every rank where a loss is not finite.
    """
    schedule, combine, exchange = algorithm.schedule, algorithm.combine, algorithm.exchange
    lap, losses, watching = monitor.clock.lap, monitor.losses, monitor.V
    w, g = flat.w, transport.zeros(flat.w.shape)  # [L, d]
    rows = list(zip(learners, w, g, strict=True))  # learner j, its weights and gradient: views [d]
    w_trained, g_trained = w[:, : flat.d_trained], g[:, : flat.d_trained]
    combine.start(w, flat.d_trained)
    optimizer.start(w_trained.shape, transport.zeros)

    if schedule.needs == "objective":
        schedule.observe(0, monitor.objective(0, w[0]), step_size(1))
    monitor.start(w)
    last = 0  # t of the last average
    for t in range(1, T + 1):  # t = completed local updates
        gamma = step_size(t)
        if watching:
            monitor.drifted(w)
        for j, w_j, g_j in rows:
            lap("compute")
            batch = problem.fetch(sampler.batch(j, t))
            lap("data")
            losses.append(problem.gradient_(w_j, batch, out=g_j))
        if exchange.scope:
            lap("compute")
            exchange.exchange_(g_trained, t, transport)
            monitor.averaged(t, exchange.scope, 1, math.nan)
        optimizer.update_(w_trained, g_trained, gamma)
        scope = schedule.final if t == T else schedule.after(t)
        if scope:
            lap("compute")
            S = combine.average_(w, scope, transport, variance=monitor.variance)
            optimizer.at_average_(scope, transport)
            monitor.averaged(t, scope, t - last, S)
            last = t
            if schedule.needs:
                feedback = S if schedule.needs == "variance" else monitor.objective(t, w[0])
                schedule.observe(t, feedback, gamma)
        if t == monitor.due:
            lap("compute")
            monitor.report(t, gamma, w)
