"""What an average does to the state of torch optimisers.

The moments have the names of `config/state.py`, m and v, and other tensors have torch's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from localavg.attaching.row import Row
from localavg.config.state import by_name, words
from localavg.errors import UserError
from localavg.interfaces import Array, Transport
from localavg.parallel.device import numbers
from localavg.parallel.fleet import Fleet

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

MOMENTS = {  # torch's names
    "m": ("exp_avg", "momentum_buffer"),
    "v": ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer"),
}


def step_size(optimizers: Sequence[Optimizer]) -> float:
    """Return the present step size γ of the first optimiser; NaN if there is none."""
    return float(optimizers[0].param_groups[0]["lr"]) if optimizers else math.nan


def as_text(state: str | Mapping[str, str]) -> str:
    """Return the argument `state` as text, such as m=reset,v=average."""
    named = by_name("state", state)
    return named if isinstance(named, str) else ",".join(f"{k}={v}" for k, v in named.items())


def check_moments(state: str | Mapping[str, str], optimizer: Optimizer) -> None:
    """Raise UserError if `state` names a moment that is not there, or resets v alone."""
    named, kind = by_name("state", state), type(optimizer).__name__
    if isinstance(named, str):
        return
    both = "betas" in optimizer.defaults
    for letter, torchs in MOMENTS.items():
        if name := next((name for name in named if name in torchs), ""):
            letters = "m or v" if name == "momentum_buffer" else letter
            raise UserError(
                f"attach: `state = {as_text(state)}`: {name} is a moment; call it {letters}"
            )
    if not both and {"m", "v"} & {*named} and not optimizer.defaults.get("momentum"):
        raise UserError(
            f"attach: `state = {as_text(state)}`: {kind} has neither m nor v; name the tensors of "
            "its state as torch does, or leave it out"
        )
    if not both and {"m", "v"} <= {*named}:
        raise UserError(
            f"attach: `state = {as_text(state)}`: {kind} has one moment, its momentum; call it m "
            "or v"
        )
    if both and named.get("v") == "reset" != named.get("m"):
        raise UserError(
            f"attach: `state = {as_text(state)}`: {kind} counts one step for m and v, so v cannot "
            "start again alone: its next steps would be far too large; reset m too"
        )


class TorchState:
    """Keeps, averages or resets the optimisers' tensors that have the shape of their parameter.

    state: keep, average or reset, or these by moment. parts: the parameters of each optimiser, by
    name.
    """

    def __init__(
        self,
        state: str | Mapping[str, str],
        optimizers: Sequence[Optimizer],
        parts: Sequence[Mapping[str, Tensor]],
        fleet: Fleet,
        transport: Transport,
        device: torch.device,
    ) -> None:
        self.policy = by_name("state", state)
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

    def at_average_(self, average_: Callable[[Array], None]) -> None:
        """Apply the policy when the weights average, as `Optimizer` does. Collective."""
        self._check_names()
        asked = words(self.policy)
        if "average" in asked:
            self._average_(average_)
        if "reset" in asked:
            self._reset_()

    def _check_names(self) -> None:
        """Raise UserError for a name that no tensor of the state has, once there are some."""
        named = set() if isinstance(self.policy, str) else {*self.policy} - {"m", "v"}
        if not named:
            return
        states = [
            (name, self._optimizer[name].state.get(p, {})) for name, p in self.parameters.items()
        ]
        keys = set().union(*(self._shaped(name, state) for name, state in states))
        if keys and named - keys:
            raise UserError(
                f"attach: `state = {as_text(self.policy)}`: no tensor of the optimiser's state is "
                f"called {min(named - keys)}; there are {', '.join(sorted(keys))}"
            )

    def _word(self, key: str) -> str:
        """Return what happens to the tensors that torch calls `key`."""
        if isinstance(self.policy, str):
            return self.policy
        names = (key, *(name for name in ("v", "m") if key in MOMENTS[name]))
        return next((self.policy[name] for name in names if name in self.policy), "keep")

    def _shaped(self, name: str, state: Mapping[str, Tensor]) -> set[str]:
        """Return the keys of a parameter's state that are tensors of its shape."""
        shape = self.parameters[name].shape
        return {k for k, x in state.items() if k != "step" and getattr(x, "shape", None) == shape}

    def _reset_(self) -> None:
        for name, p in self.parameters.items():
            states = self._optimizer[name].state
            again = {k for k in self._shaped(name, states.get(p, {})) if self._word(k) == "reset"}
            if again == self._shaped(name, states.get(p, {})):
                # The optimiser makes a new state, as at its first step.
                states.pop(p, None)
            for key in again if p in states else ():
                states[p][key].zero_()

    def _average_(self, average_: Callable[[Array], None]) -> None:
        states = {
            name: self._optimizer[name].state.get(p, {}) for name, p in self.parameters.items()
        }
        shaped = set().union(*(self._shaped(name, state) for name, state in states.items()))
        counted = {name: state["step"] for name, state in states.items() if "step" in state}
        found = [x if getattr(x, "is_cuda", False) else float(x) for x in counted.values()]
        steps = dict(zip(counted, numbers(found).tolist(), strict=True))
        shapes, counts = zip(*self.fleet.world.allgather((shaped, steps)), strict=True)
        self._count_(states, steps, counts)
        # A rank may not have this state yet.
        for key in sorted(x for x in set().union(*shapes) if self._word(x) == "average"):
            if key not in self.rows:
                like = {name: states[name].get(key, p) for name, p in self.parameters.items()}
                self.rows[key] = Row(like, self.transport.zeros, device=self.device)
            row = self.rows[key]
            row.adopt({name: state[key] for name, state in states.items() if key in state})
            for name in [name for name, state in states.items() if key not in state]:
                row.tensors[name].zero_()
            row.load_()
            average_(row.w)
            row.store_()

    def _count_(
        self,
        states: Mapping[str, dict],
        steps: Mapping[str, float],
        counts: Sequence[Mapping[str, float]],
    ) -> None:
        """Set every parameter's step count to the largest of the ranks: a scaler skips steps."""
        for name, step in steps.items():
            most = max(count.get(name, 0.0) for count in counts)
            if step != most:
                own = states[name]["step"]
                states[name]["step"] = most if isinstance(own, int | float) else own.fill_(most)
