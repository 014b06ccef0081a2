"""Outer optimisers: what an average of everyone makes of the mean.

w̃ is the last average of everyone [n], w̄ the mean of the learners now, D = w̄ − w̃ what the round
has changed, γ the step size of the last update. η is --outer-lr, and μ is --mu: β₁ of adam and
yogi, β of slowmo. At an average of everyone:

    rule       step, then w_j ← w̃ for all j                                      source
    none       w̃ ← w̄                                                             kavg Alg. 1
    momentum   v ← μv + D;  w̃ ← w̃ + ηv                                           mavg Alg. 1
    nesterov   v ← μv + D;  w̃ ← w̃ + η(D + μv)                                    [1]
    adam       m ← μm + (1 − μ)D;  v ← β₂v + (1 − β₂)D²;  w̃ ← w̃ + η m/(√v + τ)   [2]
    yogi       the same, but v ← v − (1 − β₂)D² sign(v − D²)                     [2]
    slowmo     u ← μu − D/γ;  w̃ ← w̃ − ηγu                                        [3]

All moments are 0 at the start, but v of adam and yogi is τ². There is no bias correction.

[1] Douillard et al.: DiLoCo: Distributed Low-Communication Training of Language Models. 2023, arXiv
2311.08105, Algorithm 1. Its gradient is −D, and its momentum is torch's.
[2] Reddi et al.: Adaptive Federated Optimization. 2020, arXiv 2003.00295, Algorithm 2: FedAdam and
FedYogi, with β₂ = 0.99 and τ = 10⁻³. FedAvgM (Hsu et al. 2019, arXiv 1909.06335) is momentum.
[3] Wang et al.: SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum. 2020,
arXiv 1910.00643, Algorithm 1, where η is α and μ is β.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np

from localavg.algorithms.base import Mean
from localavg.errors import UserError, bad, positive
from localavg.interfaces import Array, Step, Transport
from localavg.parallel import kernels
from localavg.parallel.device import on_host, put_
from localavg.scope import Scope

SMALLEST = 1e-37  # step size whose inverse float32 holds with room


class OuterStep(Mean):
    """A step of the outer optimiser at averages of everyone. Averages of clusters are plain means.

    Columns that are not trained get the plain mean. lr: η. mu: μ.
    """

    default_lr: ClassVar[float] = 1.0
    default_mu: ClassVar[float] = 0.9
    moments: ClassVar[tuple[str, ...]] = ("v",)
    first: ClassVar[float] = 0.0  # the last moment at the start
    kernel: ClassVar[str]
    gamma = math.nan

    def __init__(self, lr: float | None = None, mu: float | None = None) -> None:
        self.lr = self.default_lr if lr is None else lr
        self.mu = self.default_mu if mu is None else mu
        self.kept = 1 + len(self.moments)
        positive("outer_lr", self.lr)
        if not 0 <= self.mu < 1:
            raise bad("mu", self.mu, "must lie in [0, 1)")
        self._memory = np.empty(0, np.float32)

    def start(self, w: Array, trained: int, transport: Transport) -> None:
        super().start(w, trained, transport)
        self.state = transport.common((self.kept, trained))  # [kept, n]: w̃ and the moments
        self.state[-1] = self.first
        self.begin(w)

    def begin(self, w: Array) -> None:
        first = w[0, : self.trained]
        # with a wire the state of rows on a GPU is the host's
        self.state[0] = on_host(first) if isinstance(self.state, np.ndarray) else first

    def step_of(self, scope: Scope, gamma: float) -> Step | None:
        self.gamma = gamma
        return self.step if scope is Scope.WORLD else None

    def step(self, mean: Array, columns: slice) -> Array:
        """Step w̃ and the moments of these columns, and return w̃ there.

        mean [m]: w̄ of these columns, which is overwritten.
        """
        w_tilde, *moments = self.state[:, columns]
        if (xp := kernels.array_module(mean)) is not None:
            kernels.outer_(xp, self.kernel, mean, self.numbers(), w_tilde, moments)
        else:
            self.step_(mean, w_tilde, *moments)
        return w_tilde

    @abstractmethod
    def step_(self, mean: Array, w_tilde: Array, *moments: Array) -> None:
        """Do `step` with NumPy, in few passes; mean [m] holds D and other terms on the way."""

    def numbers(self) -> tuple[float, ...]:
        """Return the parameters of the kernel."""
        return self.lr, self.mu

    def state_dict(self) -> dict[str, Array]:
        return dict(zip(("w_tilde", *self.moments), self.state, strict=True))

    def load_state_dict(self, state: dict[str, Array]) -> None:
        for name, mine in self.state_dict().items():
            put_(mine, state[name])

    def _scratch(self, like: Array) -> Array:
        if len(self._memory) < len(like):
            self._memory = np.empty_like(like)
        return self._memory[: len(like)]


class Momentum(OuterStep):
    """Block momentum (mavg Alg. 1, BMUF), FedAvgM."""

    kernel = "outer_momentum"

    def step_(self, mean: Array, w_tilde: Array, *moments: Array) -> None:
        (v,) = moments
        D = np.subtract(mean, w_tilde, mean)
        v *= self.mu  # v ← μv + D
        v += D
        w_tilde += v if self.lr == 1 else np.multiply(v, self.lr, mean)  # w̃ ← w̃ + ηv


class Nesterov(OuterStep):
    """Nesterov's form of momentum, as torch writes it (DiLoCo Alg. 1)."""

    default_lr = 0.7
    kernel = "outer_nesterov"

    def step_(self, mean: Array, w_tilde: Array, *moments: Array) -> None:
        (v,) = moments
        D = np.subtract(mean, w_tilde, mean)
        v *= self.mu  # v ← μv + D
        v += D
        D += np.multiply(v, self.mu, self._scratch(v))
        D *= self.lr
        w_tilde += D  # w̃ ← w̃ + η(D + μv)


class Adam(OuterStep):
    """FedAdam (Reddi et al. Alg. 2)."""

    default_lr = 0.01
    beta2, tau = 0.99, 1e-3
    moments = ("m", "v")
    first = tau**2
    kernel = "outer_adam"

    def step_(self, mean: Array, w_tilde: Array, *moments: Array) -> None:
        m, v = moments
        D = np.subtract(mean, w_tilde, mean)
        m *= self.mu  # m ← β₁m + (1 − β₁)D
        m += np.multiply(D, 1 - self.mu, self._scratch(D))
        D *= D
        self.second_(v, D)
        root = np.sqrt(v, mean)
        root += self.tau
        np.divide(m, root, mean)
        mean *= self.lr
        w_tilde += mean  # w̃ ← w̃ + η m/(√v + τ)

    def second_(self, v: Array, square: Array) -> None:
        """Step the second moment v [m]; square [m]: D², which is overwritten."""
        v *= self.beta2  # v ← β₂v + (1 − β₂)D²
        square *= 1 - self.beta2
        v += square

    def numbers(self) -> tuple[float, ...]:
        return self.lr, self.mu, self.beta2, self.tau


class Yogi(Adam):
    """FedYogi (Reddi et al. Alg. 2)."""

    kernel = "outer_yogi"

    def second_(self, v: Array, square: Array) -> None:
        sign = np.subtract(v, square, self._scratch(v))
        sign *= 1e30  # what is not 0 is far above 1e-30; np.sign takes 3 times as long
        np.clip(sign, -1, 1, out=sign)
        square *= 1 - self.beta2
        square *= sign
        v -= square  # v ← v − (1 − β₂)D² sign(v − D²)


class SlowMo(OuterStep):
    """Slow momentum (SlowMo Alg. 1): u is in units of gradients, so it follows γ."""

    default_mu = 0.5
    moments = ("u",)
    kernel = "outer_slowmo"
    needs_gamma = True

    def step_of(self, scope: Scope, gamma: float) -> Step | None:
        if scope is Scope.WORLD and not gamma > SMALLEST:  # nor NaN
            raise UserError(
                f"slowmo divides by the step size of the last update, which is {gamma:g}; let the "
                "step sizes stay above 0, or use `outer = momentum`"
            )
        return super().step_of(scope, gamma)

    def step_(self, mean: Array, w_tilde: Array, *moments: Array) -> None:
        (u,) = moments
        G = np.subtract(w_tilde, mean, mean)
        G *= 1 / self.gamma
        u *= self.mu  # u ← βu + (w̃ − w̄)/γ
        u += G
        w_tilde -= np.multiply(u, self.lr * self.gamma, mean)  # w̃ ← w̃ − αγu

    def numbers(self) -> tuple[float, ...]:
        return self.lr, self.mu, self.gamma


RULES: dict[str, type[OuterStep]] = {
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "yogi": Yogi,
    "slowmo": SlowMo,
}
