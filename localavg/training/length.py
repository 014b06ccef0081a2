"""How long a run is and how often it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

from localavg.config import TrainConfig


@dataclass(frozen=True)
class Length:
    """The length of a run of P learners. Every number of updates counts one learner's updates."""

    P: int
    T: int
    """local updates"""
    B: int
    """examples in a mini-batch"""
    epoch: float
    """updates in an epoch"""
    log_every: int
    """updates between rows of /train"""
    eval_every: int
    """updates between rows of /eval"""

    @classmethod
    def of(cls, c: TrainConfig, P: int, epoch: float) -> Length:
        """Return the length that the settings ask for."""
        T = c.steps or max(1, math.ceil(round((c.epochs or 1.0) * epoch, 9)))
        return cls(
            P=P,
            T=T,
            B=c.batch_size,
            epoch=epoch,
            log_every=min(T, c.log_every or max(1, T // 100)),
            eval_every=min(T, c.eval_every or max(1, T // 20)),
        )
