"""The step size γ_t of local update t = 1, 2, …."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from localavg.config import TrainConfig

StepSize = Callable[[int], float]


def constant(gamma: float) -> StepSize:
    """γ_t = γ."""
    return lambda t: gamma


def at_milestones(gamma: float, factor: float, milestones: list[int]) -> StepSize:
    """γ times `factor` for each milestone that t − 1 updates have reached (adpsgd, hieravg).

    milestones: numbers of completed updates, in ascending order.
    """
    return lambda t: gamma * factor ** bisect_right(milestones, t - 1)


def decay_every(gamma: float, factor: float, period: float) -> StepSize:
    """γ times `factor` after every `period` updates (kavg: ×0.5 every 50 epochs)."""
    return lambda t: gamma * factor ** int(round((t - 1) / period, 9))


def inverse_time(mu: float, a: float) -> StepSize:
    """γ_t = 4 / (μ (t + a)), μ the PL constant (lupa Theorem 1, a = ατ + 4)."""
    return lambda t: 4 / (mu * (t + a))


def warmed_up(after: StepSize, start: float, end: float, steps: int) -> StepSize:
    """Grow linearly from `start` at t = 1 to `end` after `steps` updates, then follow `after`.

    The warm-up is that of adpsgd §IV-C, ImageNet.
    """
    return lambda t: start + (end - start) * (t - 1) / steps if t <= steps else after(t)


def make(c: TrainConfig, epoch: float) -> StepSize:
    """Make γ_t as the settings ask; `epoch` is the number of updates in an epoch."""
    if c.lr_schedule == "steps" and c.decay_every is not None:
        gamma = decay_every(c.lr, c.factor, c.decay_every * epoch)
    elif c.lr_schedule == "steps":
        gamma = at_milestones(c.lr, c.factor, sorted(round(m * epoch) for m in c.milestones))
    elif c.lr_schedule == "inverse":
        assert c.pl_constant is not None, "TrainConfig refuses this schedule without μ"
        gamma = inverse_time(c.pl_constant, c.shift or 0.0)
    else:
        gamma = constant(c.lr)
    if steps := round(c.warmup_epochs * epoch):
        start = c.lr / 10 if c.warmup_from is None else c.warmup_from
        gamma = warmed_up(gamma, start, c.lr, steps)
    return gamma


def after_warm_up(c: TrainConfig, epoch: float, step_size: StepSize) -> StepSize:
    """Return γ_t, and for the updates of a warm-up the step size right after it."""
    steps = round(c.warmup_epochs * epoch)
    return lambda t: step_size(max(t, steps + 1))


def first_change(c: TrainConfig, epoch: float) -> int | None:
    """Return the number of updates after which γ is first multiplied by `factor`, None if never."""
    if c.lr_schedule != "steps":
        return None
    if c.decay_every is not None:
        return math.ceil(round(c.decay_every * epoch, 9))
    return round(min(c.milestones) * epoch)


def remedy(c: TrainConfig) -> str:
    """Return what makes the step size of a run that diverged smaller."""
    if c.lr_schedule == "inverse":
        return "raise `shift` or `pl_constant`, which give the step size"
    return "lower `lr`"
