"""The local update of all of a rank's rows at once, and the optimiser's state at an average.

Conventions are torch.optim's: v ← m v + g, w ← w − γ v. `state` lists the moments, matrices [L, n].
An average does to each of them what its policy says: keep (no change), average (like the weights),
reset (to zero). A moment has a step count of its own for its bias correction, reset with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from localavg.config.state import MOMENTS, by_moment
from localavg.interfaces import Array
from localavg.parallel import kernels
from localavg.parallel.aligned import host_zeros
from localavg.parallel.device import put_

CHUNK = 1 << 15
"""elements updated at a time: they stay in a core's cache between the operations of one update"""


class Optimizer(ABC):
    """The local update of all rows, and its state.

    policy: keep, average or reset, or these by moment, as m=reset,v=average.
    """

    moments: tuple[str, ...] = ()
    """the names of the moments, which are matrices [L, n] of state"""
    kernel: str
    """name of the GPU kernel that does the whole update"""

    def __init__(self, policy: str = "keep") -> None:
        self.policies = tuple(by_moment(policy, self.moments).values())  # one a moment
        self.state: list[Array] = []
        self._cut: tuple[Array | None, Array | None, list[tuple[Array, ...]]] = None, None, []

    @property
    def averaged(self) -> int:
        """The number of matrices of state that are averaged with the weights."""
        return self.policies.count("average")

    def start(
        self,
        shape: tuple[int, int],
        zeros: Callable[[tuple[int, int]], Array],
        ordinary: Callable[[tuple[int, int]], Array] | None = None,
    ) -> None:
        """Make the state, all zero, for weights of shape (L, n).

        zeros: the transport's, makes state that is averaged. ordinary: makes state that is not
        averaged; the default is NumPy.
        """
        made = {"average": zeros}
        self.state = [made.get(each, ordinary or host_zeros)(shape) for each in self.policies]

    def update_(self, w: Array, g: Array, gamma: float, rows: Sequence[int] | None = None) -> None:
        """Do one local update of w [L, n] in place; g [L, n] is overwritten.

        rows: those of the learners that work; None: all.
        """
        if rows is not None:
            self._update_some_(w, g, gamma, rows)
            return
        if (xp := kernels.array_module(w)) is not None:
            kernels.update_(xp, self.kernel, w, g, self.state, gamma, *self.numbers())
            return
        if self._cut[0] is not w or self._cut[1] is not g:
            self._cut = w, g, list(zip(*(_pieces(x) for x in (w, g, *self.state)), strict=True))
        for piece in self._cut[2]:
            self.step_(gamma, *piece)

    def _update_some_(self, w: Array, g: Array, gamma: float, rows: Sequence[int]) -> None:
        """Update some rows, one after the other."""
        xp = kernels.array_module(w)
        for l in rows:
            w_l, g_l, *state = (x[l : l + 1] for x in (w, g, *self.state))  # [1, n] each
            if xp is not None:
                kernels.update_(xp, self.kernel, w_l, g_l, state, gamma, *self.numbers())
                continue
            for piece in zip(*map(_pieces, (w_l, g_l, *state)), strict=True):
                self.step_(gamma, *piece)

    def numbers(self) -> tuple[float, ...]:
        """Return the scalar arguments of the GPU kernel that follow γ."""
        return ()

    @abstractmethod
    def step_(self, gamma: float, w: Array, g: Array, *state: Array) -> None:
        """Update one piece of the matrices in place; g is overwritten."""

    def at_average_(self, average_: Callable[[Array], None]) -> None:
        """Apply the policies to the state when the weights average.

        average_: averages rows [L, n] of state as the weights were averaged.
        """
        for i, policy in enumerate(self.policies):
            if policy == "average":
                average_(self.state[i])
            elif policy == "reset":
                self.reset_(i)

    def reset_(self, i: int) -> None:
        """Set moment i to zero."""
        self.state[i][...] = 0

    def state_dict(self) -> dict[str, Array | list[int]]:
        """Return the state matrices [L, n] by number."""
        return {str(i): s for i, s in enumerate(self.state)}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Copy the matrices that `state_dict` returned into the state."""
        for i, s in enumerate(self.state):
            put_(s, state[str(i)])


class SGD(Optimizer):
    """w ← w − γ g."""

    kernel = "sgd"

    def step_(self, gamma: float, w: Array, g: Array, *state: Array) -> None:
        g *= gamma
        w -= g


class Momentum(Optimizer):
    """v ← m v + g; w ← w − γ v, or with Nesterov's look-ahead w ← w − γ (g + m v)."""

    moments = MOMENTS["momentum"]

    def __init__(self, m: float, nesterov: bool = False, policy: str = "keep") -> None:
        super().__init__(policy)
        self.m, self.nesterov = m, nesterov
        self.kernel = "nesterov" if nesterov else "momentum"

    def numbers(self) -> tuple[float, ...]:
        return (self.m,)

    def step_(self, gamma: float, w: Array, g: Array, *state: Array) -> None:
        (v,) = state
        v *= self.m
        v += g
        if self.nesterov:
            g += self.m * v
            g *= gamma
            w -= g
        else:
            w -= gamma * v


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015) with its default β₁ = 0.9, β₂ = 0.999, ε = 1e-8.

    LUPA's released code trains with it.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    moments = MOMENTS["adam"]
    kernel = "adam"

    def __init__(self, policy: str = "keep") -> None:
        super().__init__(policy)
        self.t = [0, 0]  # updates since m, and since v, was zero

    def numbers(self) -> tuple[float, ...]:
        return self.beta1, self.beta2, (1 - self.beta2 ** self.t[1]) ** -0.5, self.eps

    def reset_(self, i: int) -> None:
        super().reset_(i)
        self.t[i] = 0

    def update_(self, w: Array, g: Array, gamma: float, rows: Sequence[int] | None = None) -> None:
        self.t = [t + 1 for t in self.t]
        on_gpu = kernels.array_module(w) is not None  # its kernel leaves 1 / (1 − β₁^t) to γ
        super().update_(w, g, gamma / (1 - self.beta1 ** self.t[0]) if on_gpu else gamma, rows)

    def step_(self, gamma: float, w: Array, g: Array, *state: Array) -> None:
        m, v = state
        m *= self.beta1  # first moment
        m += (1 - self.beta1) * g
        g *= g
        g *= 1 - self.beta2
        v *= self.beta2  # second moment
        v += g
        # γ m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁^t), v̂ = v / (1 − β₂^t), each with its own t
        g[...] = v
        g **= 0.5
        g *= (1 - self.beta2 ** self.t[1]) ** -0.5
        g += self.eps
        w -= gamma / (1 - self.beta1 ** self.t[0]) * (m / g)

    def state_dict(self) -> dict[str, Array | list[int]]:
        return {**super().state_dict(), "t": self.t}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        super().load_state_dict(state)
        both = np.broadcast_to(state["t"], 2)  # checkpoints of earlier versions have one for both
        self.t = [int(t) for t in both]


class AdamW(Adam):
    """Adam with decoupled weight decay λ as torch has it: w ← (1 − γλ) w, then Adam's update.

    Loshchilov & Hutter 2019, arXiv 1711.05101; the paper multiplies λ by the schedule alone.
    """

    kernel = "adamw"

    def __init__(self, decay: float = 0.01, policy: str = "keep") -> None:
        super().__init__(policy)
        self.decay = decay

    def numbers(self) -> tuple[float, ...]:
        return *super().numbers(), self.shrink

    def update_(self, w: Array, g: Array, gamma: float, rows: Sequence[int] | None = None) -> None:
        self.shrink = 1 - gamma * self.decay
        super().update_(w, g, gamma, rows)

    def step_(self, gamma: float, w: Array, g: Array, *state: Array) -> None:
        w *= self.shrink
        super().step_(gamma, w, g, *state)


def _pieces(x: Array) -> list[Array]:
    """Cut x [L, n] into views of about CHUNK elements: some rows, or a part of one row, each."""
    L, n = x.shape
    rows, columns = max(1, CHUNK // n), min(n, CHUNK)
    return [
        x[i : i + rows, k : k + columns] for i in range(0, L, rows) for k in range(0, n, columns)
    ]


def make(name: str, momentum: float, policy: str, decay: float | None = None) -> Optimizer:
    """Make the local optimiser that the command line calls `name`."""
    if name == "sgd":
        return SGD(policy)
    if name == "adam":
        return Adam(policy)
    if name == "adamw":
        return AdamW(0.01 if decay is None else decay, policy)
    return Momentum(momentum, nesterov=name == "nesterov", policy=policy)
