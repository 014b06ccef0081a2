"""What is trained: a problem gives the loss and its gradient with respect to one row of the flat
weight matrix.

`logistic.py` is the plain example; `network.py` trains torch modules. A problem of your own has
these methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

Array = Any


class Problem(ABC):
    """The interface that the loop and the monitor use. F = mean loss over data.train + regulariser.

    data: a Dataset; n its training examples; shapes: the tensors of a row in their order,
    parameters first; parameters: how many of them are trained (None: all), the others being
    statistics; l2: λ.
    """

    data: Any
    n: int
    shapes: Mapping[str, tuple[int, ...]]
    parameters: int | None = None
    l2: float

    @abstractmethod
    def initial_(self, w: Array) -> None:
        """The starting point into w [d]."""

    @abstractmethod
    def feed(self, sampler: Any, learners: range, T: int) -> Callable[[int, int], Any]:
        """(j, t) → the mini-batch of learner j for update t; the loop asks for t = 1 … T, the
        learners in order in each.
        """

    @abstractmethod
    def gradient_(self, w: Array, batch: Any, out: Array) -> Any:
        """The gradient of the mini-batch objective at w [d] into `out` [d]; returns the loss, a
        scalar.
        """

    @abstractmethod
    def sums(
        self, w: Array, split: Any, lo: int, hi: int, gradient: bool = False
    ) -> tuple[float, int, Array | None]:
        """Over rows lo … hi − 1 of a split: the sum of the losses, the number classified right, the
        sum of the gradients.
        """

    def regulariser(self, w: Array) -> float:
        """What F adds to the mean loss at w [d]."""
        return 0.0

    def calibrate_(self, w: Array) -> None:  # noqa: B027  nothing to do for most
        """Make the averaged model w [d] ready to be evaluated."""

    def close(self) -> None:  # noqa: B027
        """Training is over, or has failed."""
