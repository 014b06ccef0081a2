"""The constants of the papers' bounds for a problem: ``localavg theory --from-run FILE…``.

Logistic regression gives them exactly, up to the tolerances stated. For networks, and any other
problem with a gradient, `sampled_constants` estimates them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from localavg.errors import UserError
from localavg.interfaces import Problem
from localavg.learner.flat import Places
from localavg.learner.sampling import IID
from localavg.problems.logistic import Logistic
from localavg.theory import Constants

GAP = 1e-6
"""largest F(w) − F* of the minimiser found"""
BATCHES, TURNS = 8, 10
"""mini-batches, and steps of power iteration, of the estimate for networks"""

Batch = TypeVar("Batch")


def logistic_constants(
    problem: Logistic, visited: Sequence[np.ndarray], delta: float
) -> tuple[Constants, dict[str, float]]:
    """Compute the constants of a logistic regression that starts at zero weights.

    They are F_1 − F*, L, M, the PL constant and the bound on ‖∇F‖². visited: weights [d] that runs
    went through, in addition to the start and the minimiser; M and ‖∇F‖² are the largest over all
    of them. The PL constant is λ, with which F is strongly convex. The second value returned is
    what was found on the way: F1, Fstar, and gap, the certificate ‖∇F‖² / (2λ) ≥ F(w) − F* of the
    minimiser.
    """
    if not problem.l2 > 0:
        raise UserError(
            "`from_run`: a run with `l2 = 0` has no strongly convex objective, so F* has no "
            "certificate; give the constants by hand"
        )

    start = np.zeros(problem.d)
    F1, _ = _objective(problem, start)
    minimiser, Fstar, gradient = _minimised(problem, start)
    weights = [start, minimiser, *visited]
    gradients = [_objective(problem, np.asarray(w, float))[1] for w in weights]
    constants = Constants(
        F1_minus_Fstar=F1 - Fstar,
        L=problem.smoothness(),
        M=max(problem.gradient_variance(w) for w in weights),
        delta=delta,
        G2_max=max(float(g @ g) for g in gradients),
        mu_PL=problem.l2,
    )
    gap = float(gradient @ gradient) / (2 * problem.l2)
    return constants, {"F1": F1, "Fstar": float(Fstar), "gap": gap}


def _objective(problem: Logistic, w: np.ndarray) -> tuple[float, np.ndarray]:
    """Return F and its gradient [d] at w [d]."""
    loss, _, grad = problem.sums(
        w.astype(np.float32), problem.data.train, 0, problem.n, gradient=True
    )
    assert grad is not None
    return loss / problem.n + problem.l2 / 2 * (w @ w), grad / problem.n + problem.l2 * w


def _minimised(problem: Logistic, start: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the minimiser of F [d], F and its gradient [d] there."""
    from scipy.optimize import minimize

    objective: Any = partial(_objective, problem)  # scipy-stubs do not know jac=True by name
    best = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={
            "gtol": (2 * problem.l2 * GAP / problem.d) ** 0.5,  # of every component
            "ftol": 0.0,
            "maxiter": 10_000,
            "maxcor": 30,
        },
    )
    return best.x, best.fun, best.jac


def network_constants(
    problem: Problem, seed: int, B: int, visited: Sequence[np.ndarray], delta: float
) -> tuple[Constants, dict[str, float]]:
    """Estimate the constants of a network on a few mini-batches of unchanged images.

    They are taken at the initial weights and at `visited`, as run files hold them. The least loss
    is taken to be 0. The second value returned is the number of mini-batches and of weights that
    were used.
    """
    start = np.zeros(problem.d, np.float32)
    problem.initial_(start)
    trained = Places(dict([*problem.shapes.items()][: problem.parameters]), align=problem.align)
    n, g = trained.d, np.zeros(problem.d, np.float32)
    row = start.copy()

    def gradient(w: np.ndarray, batch: int) -> tuple[float, np.ndarray]:
        row[:n] = trained.unpacked(w)
        row[n:] = start[n:]  # each gradient updates the statistics, and none depends on them
        return float(problem.gradient_(row, feed(0, batch), out=g)), trained.packed(g[:n]).copy()

    feed = problem.feed(IID(problem.n, 1, B, seed), range(1), BATCHES)
    weights = [trained.packed(start[:n]), *(w[: trained.size] for w in visited)]
    constants = sampled_constants(
        gradient, weights, range(1, BATCHES + 1), B, delta=delta, turns=TURNS
    )
    return constants, {"batches": BATCHES, "weights": len(weights)}


def sampled_constants(
    gradient: Callable[[np.ndarray, Batch], tuple[float, np.ndarray]],
    visited: Sequence[np.ndarray],
    batches: Sequence[Batch],
    B: int,
    Fstar: float = 0.0,
    delta: float = 0.5,
    turns: int = 20,
) -> Constants:
    """Estimate the constants of a differentiable problem from mini-batches of B examples.

    gradient(w, batch): the mini-batch loss at w [d] and its gradient [d]. visited: weights [d]
    along a run, the first of them the start. F_1 is the mean loss at the start. Fstar: the least
    possible loss. M, the variance of one example's gradient, is B times that of mini-batches. L is
    the largest curvature found, a lower bound of the Lipschitz constant: at each of `visited` the
    eigenvalue of the Hessian of the mean loss that is largest in absolute value, by `turns` steps
    of power iteration on differences of gradients. M, L and the bound on ‖∇F‖² are the largest over
    `visited`.
    """
    if len(batches) < 2:
        raise UserError(f"{len(batches)} mini-batches: a variance needs at least 2")

    def mean_gradient(w: np.ndarray) -> np.ndarray:
        return np.mean([gradient(w, batch)[1] for batch in batches], axis=0, dtype=float)

    L, M, G2 = 0.0, 0.0, 0.0
    for w in visited:
        each = np.array([gradient(w, batch)[1] for batch in batches], float)  # [batches, d]
        g = each.mean(axis=0)
        M = max(M, B * float(((each - g) ** 2).sum()) / (len(batches) - 1))
        G2 = max(G2, float(g @ g))
        u = np.random.default_rng(0).standard_normal(len(w))
        step = 1e-3 * max(1.0, float(np.linalg.norm(w)))
        for _ in range(turns):
            u = step * u / np.linalg.norm(u)
            u = (mean_gradient(w + u) - mean_gradient(w - u)) / 2
            L = max(L, float(np.linalg.norm(u)) / step)
    F1 = float(np.mean([gradient(visited[0], batch)[0] for batch in batches]))
    return Constants(F1_minus_Fstar=F1 - Fstar, L=L, M=M, delta=delta, G2_max=G2)
