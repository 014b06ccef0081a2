"""The constants of the papers' bounds, from the problem that runs were made on: ``localavg theory --from-run FILE…``.

Logistic regression gives them exactly, up to the tolerances stated; for anything else that has a gradient, networks for
one, `sampled_constants` estimates them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from localavg import datasets
from localavg.config import UserError
from localavg.fleet import Fleet
from localavg.problems.logistic import Logistic
from localavg.record import Run
from localavg.theory import Constants

GAP = 1e-6  # how far above F* the minimiser may be


def logistic_constants(problem: Logistic, visited: Sequence[np.ndarray], delta: float) -> tuple[Constants, dict[str, float]]:
    """F_1 − F*, L, M, the PL constant and the bound on ‖∇F‖² of a logistic regression started at zero weights.

    visited: weights [d] that runs went through, beside the start and the minimiser; M and ‖∇F‖² are the largest over all of
    them. The PL constant is λ, by which F is strongly convex. Second come what was found on the way: F1, Fstar, and
    gap, the certificate ‖∇F‖² / (2λ) ≥ F(w) − F* of the minimiser found.
    """
    from scipy.optimize import minimize

    if not problem.l2 > 0:
        raise UserError("--from-run: a run with --l2 0 has no strongly convex objective, so F* has no certificate; give the "
                        "constants by hand")

    def F(w: np.ndarray) -> tuple[float, np.ndarray]:
        loss, _, grad = problem.sums(w.astype(np.float32), problem.data.train, 0, problem.n, gradient=True)
        return loss / problem.n + problem.l2 / 2 * (w @ w), grad / problem.n + problem.l2 * w

    start = np.zeros(problem.d)
    gtol = (2 * problem.l2 * GAP / problem.d) ** 0.5  # of every component
    best = minimize(F, start, jac=True, method="L-BFGS-B", options={"gtol": gtol, "ftol": 0.0, "maxiter": 10_000, "maxcor": 30})
    gap = float(best.jac @ best.jac) / (2 * problem.l2)
    weights = [start, best.x, *visited]
    gradients = [F(np.asarray(w, float))[1] for w in weights]
    constants = Constants(
        F1_minus_Fstar=F(start)[0] - best.fun, L=problem.smoothness(), M=max(problem.gradient_variance(w) for w in weights),
        delta=delta, G2_max=max(float(g @ g) for g in gradients), mu_PL=problem.l2,
    )
    return constants, {"F1": F(start)[0], "Fstar": float(best.fun), "gap": gap}


def from_runs(runs: Sequence[Run], fleet: Fleet, delta: float) -> list[dict[str, Any]]:
    """For every problem among the runs, {"problem", "runs", "constants", "found"}.

    Raises UserError for runs whose problem is not logistic regression.
    """
    problems: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        if run.config.get("problem") != "logistic":
            raise UserError(f"--from-run {run.path}: only logistic-regression runs so far, not {run.config.get('problem')}")
        problems.setdefault((run.config["data"], run.config["l2"]), []).append(run)
    rows = []
    for (data, l2), same in problems.items():
        problem = Logistic(datasets.load(data, fleet), l2)
        visited = [run.weights for run in same if run.weights is not None]
        constants, found = logistic_constants(problem, visited, delta)
        rows.append({"problem": f"{data}, λ = {l2:g}", "runs": same, "constants": constants, "found": found})
    return rows


def sampled_constants(gradient: Callable[[np.ndarray, Any], tuple[float, np.ndarray]], visited: Sequence[np.ndarray],
                      batches: Sequence[Any], B: int, Fstar: float = 0.0, delta: float = 0.5, turns: int = 20) -> Constants:
    """The constants of any differentiable problem, a network for one, estimated on a sample of mini-batches of B examples.

    gradient(w, batch): the mini-batch loss at w [d] and its gradient [d]. visited: weights [d] along a run, the first of
    them the start. F_1 is the mean loss there; Fstar the least that the loss can be. M, the variance of one example's
    gradient, is B times that of mini-batches. L is the largest curvature met: at each of `visited` the eigenvalue of the
    Hessian of the mean loss largest in absolute value, by `turns` of power iteration on differences of gradients; a lower
    bound of the Lipschitz constant. M, L and the bound on ‖∇F‖² are the largest over `visited`.
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
