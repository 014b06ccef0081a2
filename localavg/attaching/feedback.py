"""The losses and the time of a user's own loop, for an algorithm that they steer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from localavg.algorithms.base import Algorithm
from localavg.errors import UserError
from localavg.interfaces import Laps
from localavg.parallel.fleet import Fleet
from localavg.training.losses import Losses
from localavg.training.pace import Pace

if TYPE_CHECKING:
    from torch import Tensor


class Feedback(Losses):
    """The losses since the last average, and the seconds since the start, a restart's included.

    logged: whether a log takes the losses.
    """

    def __init__(self, fleet: Fleet, laps: Laps, algorithm: Algorithm, logged: bool) -> None:
        super().__init__(fleet, lambda: perf_counter() - self._began_s, laps)
        self._began_s = perf_counter()
        self._name, self._steers = algorithm.name, algorithm.schedule.hears
        if algorithm.schedule.needs == "pace":
            self._name += " with `K = auto`"
        self._wanted = logged or self._steers

    def noted(self, loss: float | Tensor | None) -> Any:
        """Note the loss of an update. Return it as a number or on its GPU, NaN if there is none.

        Raises UserError if the algorithm needs it and there is none.
        """
        if loss is None and self._steers:
            raise UserError(
                f"attach: {self._name} is steered by the losses: pass the loss of each update, "
                "averager.step(loss)"
            )
        kept = _kept(loss) if self._wanted and loss is not None else math.nan
        if self._steers:
            self.add([kept])
        return kept

    def pace(self, settle: Callable[[], None]) -> Pace:
        """Return what times averages and updates where no log does."""
        return Pace(self.fleet, settle, self.laps, lambda: 0.0, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses and the seconds, as plain Python values."""
        losses = super().state_dict()["losses"].tolist()
        return {"losses": losses, "seconds": perf_counter() - self._began_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`; it is empty where an earlier version saved it."""
        super().load_state_dict({"losses": np.array(state.get("losses", [[]]))})
        self._began_s = perf_counter() - state.get("seconds", 0.0)


def _kept(loss: float | Tensor) -> Any:
    """Return a loss as a number, or on its GPU: a number would wait for the GPU at every update."""
    if isinstance(loss, float | int):
        return loss
    loss = loss.detach()  # torch warns of a number made from a tensor with a graph
    # the next replay of a user's graph writes to the same tensor
    return loss.float().clone() if loss.is_cuda else float(loss)
