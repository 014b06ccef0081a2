"""What a user asked `attach` for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localavg.algorithms.base import Algorithm
from localavg.attaching.state import words
from localavg.parallel import survive
from localavg.parallel.fleet import Fleet

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

CONTINUE = survive.CONTINUE
START_S = 60.0  # how long a rank waits in attach before it prints that others do not come


@dataclass(frozen=True, eq=False)
class Asked:
    """What a user asked `attach` for; the names are its arguments."""

    model: Module
    fleet: Fleet
    algorithm: Algorithm
    optimizers: Sequence[Optimizer]
    state: str | Mapping[str, str]
    statistics: str
    master: bool
    objective: Callable[[], float] | None
    seed: int
    log: str | None
    config: Mapping[str, object]
    warn_after: float
    hang_limit: float | None
    rows: int | None = None
    on_failure: str = "end"
    recovery_state: str = "policy"

    @property
    def stepped(self) -> bool:
        """Whether the steps of the optimisers matter: gradients or states are handled."""
        return bool(self.algorithm.exchange.scope) or words(self.state) != {"keep"}

    @property
    def patience(self) -> tuple[float, float | None]:
        """The seconds after which a rank that waits in attach prints it, and ends the job.

        The arguments are not checked yet.
        """
        warn_after, limit = (
            x if isinstance(x, int | float) and x > 0 else None
            for x in (self.warn_after, self.hang_limit)
        )
        return min(warn_after or START_S, START_S), limit
