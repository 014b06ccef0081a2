"""Common to all bounds: the rules of their symbols, conditions, the constants of a problem."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias, TypeVar, cast

import numpy as np

from localavg.errors import UserError

X: TypeAlias = "float | np.ndarray"
"""a symbol of a formula or its value: a number, or an array that broadcasts with the others"""
Formula = TypeVar("Formula", bound=Callable[..., object])
Rule: TypeAlias = tuple[Callable[[np.ndarray], np.ndarray], str]

_at_least_0: Rule = (lambda x: (x >= 0) & (x < np.inf), "must be finite and at least 0")
_above_0: Rule = (lambda x: (x > 0) & (x < np.inf), "must be finite and above 0")
_at_least_1: Rule = (lambda x: (x >= 1) & (x < np.inf), "must be finite and at least 1")
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("F1_minus_Fstar", "M", "M_G", "sigma2", "G2_max", "C0", "C1", "a", "variance"), _at_least_0
    ),
    **dict.fromkeys(("L", "gamma", "eta", "N", "mu_PL", "alpha", "C"), _above_0),
    **dict.fromkeys(
        ("K", "K1", "K2", "S", "B", "T", "S_total", "tau", "taus", "tau0"), _at_least_1
    ),
    "P": (lambda x: x >= 1, "must be at least 1"),
    "c": (lambda x: (x >= 4) & (x < np.inf), "must be finite and at least 4, as α max τ_i + 4 is"),
    "E": (
        lambda x: (x >= 2) & (x < np.inf),
        "must be finite and at least 2: one period has nothing to grow from",
    ),
    "delta": (lambda x: (x > 0) & (x < 1), "must lie strictly between 0 and 1"),
    "mu": (lambda x: (x >= 0) & (x < 1), "must lie in [0, 1)"),
}


def admit(name: str, value: object) -> object:
    """Return the value of a symbol as a float array; raise UserError if it breaks the rule.

    None, and the value of a name without a rule, are returned as they are.
    """
    if name not in RULES or value is None:
        return value
    holds, rule = RULES[name]
    x = np.asarray(value, float)
    if (bad := x[~holds(x)]).size:
        raise UserError(f"{name} = {bad.flat[0]:g}: {rule}")
    return x


def checked(formula: Formula) -> Formula:
    """Pass the formula its symbols as float arrays that obey `RULES`."""

    @functools.wraps(formula)
    def call(**symbols: object) -> object:
        return formula(**{name: admit(name, value) for name, value in symbols.items()})

    return cast(Formula, call)


@dataclass(frozen=True, eq=False)
class Condition:
    """One condition of a theorem, `lhs relation rhs`.

    Its values are arrays where its symbols are arrays.
    """

    name: str
    """The paper, the equation and the inequality."""
    lhs: X
    """Left-hand side."""
    rhs: X
    """Right-hand side."""
    relation: str = ">="
    """One of >=, > and =."""

    @property
    def margin(self) -> X:
        """lhs − rhs, or −|lhs − rhs| for an equality: negative where the condition fails."""
        if self.relation == "=":
            return -np.abs(self.lhs - self.rhs)
        return np.subtract(self.lhs, self.rhs)

    @property
    def holds(self) -> bool | np.ndarray:
        """True where the condition is met."""
        return self.margin > 0 if self.relation == ">" else self.margin >= 0


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants of a problem, shared by all the papers. Tables and `predict` read them."""

    F1_minus_Fstar: float
    """F(w̃_1) − F*."""
    L: float
    """Lipschitz constant of ∇F."""
    M: float
    """Variance of the gradient at one sample (σ² in mavg, lupa and adpsgd)."""
    delta: float = 0.5
    """δ of K-AVG and M-AVG, in (0, 1).

    Hier-AVG's δ is 1 − this one, so that K1 = K2 gives K-AVG's bound.
    """
    G2_max: float | None = None
    """mavg's M, ‖∇F‖² ≤ M. None: 2 L (F1 − F*), which L-smoothness gives wherever F ≤ F1."""
    mu_PL: float | None = None
    """Polyak-Łojasiewicz constant μ of lupa. None: no PL condition, and no LUPA bound."""
    C1: float = 0.0
    """lupa (5): E‖g̃ − g‖² ≤ C1 ‖g‖² + σ²/B."""
    alpha: float = 1.0
    """lupa: a = α τ + 4 of the step size 4/(μ(t + a))."""

    def __post_init__(self) -> None:
        for f in fields(self):
            admit(f.name, getattr(self, f.name))

    @property
    def G2(self) -> float:
        """The bound on ‖∇F‖² that the formulas use."""
        return 2 * self.L * self.F1_minus_Fstar if self.G2_max is None else self.G2_max

    @property
    def M_G(self) -> float:
        """hieravg's M_G, E‖∇F(w; ξ)‖² ≤ M_G²: mean square = variance + squared mean."""
        return float(np.sqrt(self.M + self.G2))


def argmin_K(q0: X, q1: X, q2: X, c: X, lowest: X, highest: X) -> X:
    """Return the smallest integer K in [lowest, highest] that minimises B(K).

    B(K) = (q0 + q1 K + q2 K²) K/(K − c), 0 < c < 1. The result is int64.

    B(K) = a quadratic + c q(c)/(K − c). With q increasing, B is convex if q(c) > 0 and increasing
    if not. The minimum is thus the first K with B(K+1) >= B(K), and bisection over the integers
    finds it.
    """
    highest = np.maximum(lowest, np.minimum(highest, 2**53))  # floats hold all integers up to 2^53
    q0, q1, q2, c, low, high = np.broadcast_arrays(
        q0, q1, q2, c, np.ceil(lowest), np.floor(highest)
    )
    while np.any(low < high):
        K = (low + high) // 2
        # B(K+1) >= B(K) multiplied by the denominators: at large K the difference itself is lost in
        # rounding.
        rises = (q1 + q2 * (2 * K + 1 + c)) * (K - c) * (K + 1 - c) >= c * (q0 + q1 * c + q2 * c**2)
        low, high = np.where(rises | (low == high), low, K + 1), np.where(rises, K, high)
    return low.astype(np.int64)[()]
