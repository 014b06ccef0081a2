"""The synchronous loop: local updates, averages, records and checkpoints.

Every synchronous algorithm of `algorithms/` runs through it. `averaging.py` has what happens at an
average, `monitor.py` what is recorded, and `keeper.py` when a checkpoint is saved.
"""

from __future__ import annotations

from typing import Any

from localavg.files.checkpoint import Saved
from localavg.training.averaging import Averaging
from localavg.training.build import Experiment
from localavg.training.delayed import Delayed
from localavg.training.keeper import Keeper
from localavg.training.kept import Kept
from localavg.training.losses import Losses
from localavg.training.monitor import Monitor
from localavg.training.resume import Part, restore_


def train(
    e: Experiment,
    monitor: Monitor,
    keeper: Keeper,
    saved: Saved | None = None,
    kept: Kept | None = None,
) -> None:
    """Make T local updates of this rank's learners, whose weights are the rows of e.flat.w.

    The run starts from equal rows, or from `saved`, and ends with equal rows. kept: gets a copy of
    the run whenever all learners are equal. Collective. Every rank raises `Diverged` if a loss is
    not finite, and `Interrupted` if the run is stopped.
    """
    losses = Losses(e.fleet, monitor.now_s, monitor)
    averaging = _averaging(e, monitor, losses)
    w, g = e.flat.w, e.transport.zeros(e.flat.w.shape)  # [L, d]
    w_trained, g_trained = averaging.columns[0], g[:, : e.flat.d_trained]
    parts: dict[str, Part] = {
        "schedule": e.algorithm.schedule,
        "combine": e.algorithm.average,
        "averaging": averaging,
        "optimizer": e.optimizer,
        "engine": e.engine,
        "monitor": monitor,
        "losses": losses,
    }
    begun = restore_(saved, e.fleet, w, parts)
    if not begun:
        monitor.clock.start([*monitor.clock.seconds.values()])
        averaging.begin(0, e.step_size(1))
    keeper.start(begun, w, monitor, parts)
    if kept is not None:
        averaging.holds = True  # nothing is on its way where the run is copied
        kept.start(begun, averaging, parts)
    averaging.depart_()
    monitor.start(begun, w)
    T, step_size = e.length.T, e.step_size
    gradients_, update_ = averaging.gradients_at(e.engine.gradients_), e.optimizer.update_
    e.engine.book = monitor.clock.book
    watching = monitor.variance == "steps"
    for t in range(begun + 1, T + 1):  # t = completed local updates
        gamma = step_size(t)
        if watching:
            monitor.drifted(w_trained)
        rows = averaging.at_work  # of the learners that work in this round; None: all
        found = gradients_(w, t, out=g, rows=rows)  # [L] mini-batch losses
        monitor.losses += found
        averaging.learn(found)
        averaging.exchange_(g_trained, t, gamma, last=t == T)  # sync SGD, QSGD; D-PSGD's XW − γG
        update_(w_trained, g_trained, gamma, rows=rows)
        averaging.average_(t, gamma, last=t == T)  # kavg Alg. 1: w_j ← w̄
        if t == T:
            averaging.finish_()
        if t == monitor.due:
            monitor.report(t, gamma, w)
        if t == keeper.due:
            keeper.visit(t)
        if kept is not None and kept.due(t):
            kept.copy(t)
        averaging.depart_()


def _averaging(e: Experiment, monitor: Monitor, losses: Losses) -> Averaging:
    pieces = e.algorithm, e.transport, e.flat, e.optimizer
    how: dict[str, Any] = {
        "statistics": e.config.statistics == "average",
        "variance": monitor.variance != "no",
        "objective": monitor.objective,
        "losses": losses,
        "pace": monitor.pace(),
        "before": monitor.begin_average,
        "after": monitor.averaged,
        "laps": monitor,
    }
    if e.background is None:
        return Averaging(*pieces, **how)
    how |= {"background": e.background, "T": e.length.T, "begun": monitor.average_begun}
    return Delayed(*pieces, **how)
