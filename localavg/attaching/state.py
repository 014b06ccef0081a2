"""What an average does to the state of torch optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from localavg.attaching.row import Row
from localavg.interfaces import Transport
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer


def step_size(optimizers: Sequence[Optimizer]) -> float:
    """Return the present step size γ of the first optimiser; NaN if there is none."""
    return float(optimizers[0].param_groups[0]["lr"]) if optimizers else math.nan


class TorchState:
    """Keeps, averages or resets the optimisers' tensors that have the shape of their parameter.

    policy: keep, average or reset. parts: the parameters of each optimiser, by name.
    """

    def __init__(
        self,
        policy: str,
        optimizers: Sequence[Optimizer],
        parts: Sequence[Mapping[str, Tensor]],
        fleet: Fleet,
        transport: Transport,
        device: torch.device,
    ) -> None:
        self.policy = policy
        self.parameters = {name: p for part in parts for name, p in part.items()}
        self._optimizer = {
            name: x for x, part in zip(optimizers, parts, strict=True) for name in part
        }
        self.fleet, self.transport, self.device = fleet, transport, device
        self.rows: dict[str, Row] = {}  # by the state's key, from its first average on

    @property
    def averaged(self) -> int:
        """The number of rows that are averaged with the weights."""
        return len(self.rows)

    def at_average_(self, scope: Scope, transport: Transport) -> None:
        """Apply the policy when the weights average over `scope`. Collective."""
        if self.policy == "average":
            self._average_(scope, transport)
        elif self.policy == "reset":
            for name, p in self.parameters.items():
                # The optimiser makes a new state, as at its first step.
                self._optimizer[name].state.pop(p, None)

    def _average_(self, scope: Scope, transport: Transport) -> None:
        states = {
            name: self._optimizer[name].state.get(p, {}) for name, p in self.parameters.items()
        }
        shaped = {
            key
            for name, state in states.items()
            for key, x in state.items()
            if key != "step" and getattr(x, "shape", None) == self.parameters[name].shape
        }
        # A rank may not have this state yet.
        for key in sorted(set().union(*self.fleet.world.allgather(shaped))):
            if key not in self.rows:
                like = {name: states[name].get(key, p) for name, p in self.parameters.items()}
                self.rows[key] = Row(like, self.transport.zeros, device=self.device)
            row = self.rows[key]
            row.adopt({name: state[key] for name, state in states.items() if key in state})
            for name in [name for name, state in states.items() if key not in state]:
                row.tensors[name].zero_()
            row.load_()
            transport.mean_(row.w, scope)
            row.store_()
