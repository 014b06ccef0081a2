"""Epsilon-like data: dense unit-norm rows and a noisy linear teacher, any size, from a seed.

A row is a stationary AR(1) process along the features, g_k = ρ g_{k−1} + z_k, scaled to unit norm:
like Epsilon's standardised features, all have the same variance 1/d. Before the scaling E[g gᵀ]/d
is the Toeplitz matrix ρ^|i−j| / d. As d grows, its largest eigenvalue tends to (1 + ρ)/((1 − ρ) d)
and its condition number to ((1 + ρ)/(1 − ρ))². The scaling shrinks both (`spectrum` is exact):
0.0470 for 0.0495 and 8870 for 9801 with d = 2000, ρ = 0.98.

The label is +1 with probability sigmoid(x · w*), with w* an AR(1) draw along the features (a smooth
teacher), scaled so that g · w* / √d has standard deviation `margin` (x · w* has about 1 % less).
With the default margin 5 every classifier is wrong on about 10 % of the rows or more, and the
logistic loss of w* is about 0.24.

So w* minimises the expected logistic loss F exactly, and on n rows the teacher's mean loss F_n lies
above the minimum by E[F_n(w*) − min F_n] ≈ d/(2n) (Wilks: 2n times the gap is χ² with d degrees of
freedom): 0.0025 at the default size.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from localavg.datasets import progress, writer
from localavg.errors import UserError, at_least

ROWS, FEATURES = 400_000, 2000
RHO, MARGIN = 0.98, 5.0
BLOCK = 1024
"""rows that share one random stream: so the bits do not depend on who draws which rows"""
TILE = 16
"""features computed at a time, so that they stay in cache"""
STREAMS = {"train": 0, "test": 1, "teacher": 2}


def sizes(rows: int) -> dict[str, int]:
    """Return {split: rows}: a quarter as many test rows as training rows, as in Epsilon.

    Below 4 training rows there is no test split.
    """
    return {"train": rows, "test": rows // 4} if rows >= 4 else {"train": rows}


def spectrum(features: int, rho: float = RHO) -> np.ndarray:
    """Return the eigenvalues of E[x xᵀ] [d], descending; they sum to 1.

    Those of the Toeplitz matrix are λ(θ) = (1 − ρ²)/(1 − 2ρ cos θ + ρ²), θ the roots of sin((d+1)θ)
    − 2ρ sin(dθ) + ρ² sin((d−1)θ), one in each ](k−1)π/(d+1), kπ/(d+1)[ (Kac, Murdock, Szegő 1953).
    Scaling rows to unit norm keeps the eigenvectors and turns λ_i into E[λ_i z_i²/Σ λ_j z_j²] =
    ∫₀^∞ λ_i/(1 + 2tλ_i) Π_j (1 + 2tλ_j)^−½ dt, here by the trapezoid rule in log t.
    """
    d = features
    low = np.arange(d) * np.pi / (d + 1)  # [d]
    high = low + np.pi / (d + 1)  # [d]
    sign = (-1.0) ** np.arange(d)  # [d] of the function at the left end
    low, high = low + 1e-9 * (high - low), high - 1e-9 * (high - low)
    for _ in range(60):
        theta = (low + high) / 2  # [d]
        value = sign * (
            np.sin((d + 1) * theta) - 2 * rho * np.sin(d * theta) + rho**2 * np.sin((d - 1) * theta)
        )
        low, high = np.where(value > 0, theta, low), np.where(value > 0, high, theta)
    eigenvalues = (1 - rho**2) / (1 - 2 * rho * np.cos(theta) + rho**2)  # [d]
    result = np.zeros(d)
    step = 0.02
    for u in np.arange(-30, 30, step):
        t = math.exp(u) / d
        scaled = 2 * t * eigenvalues
        result += step * t * math.exp(-0.5 * np.log1p(scaled).sum()) * eigenvalues / (1 + scaled)
    return result


def teacher(
    features: int = FEATURES, seed: int = 0, rho: float = RHO, margin: float = MARGIN
) -> np.ndarray:
    """Return w* [d] float32, with wᵀ T w / d = margin², T the Toeplitz matrix ρ^|i−j|."""
    z = _generator(seed, "teacher", 0).standard_normal(features).tolist()
    w = [z[0] / math.sqrt(1 - rho**2)]
    for value in z[1:]:
        w.append(rho * w[-1] + value)
    quadratic = trail = before = 0.0
    for value in w:  # wᵀ T w = Σ_k w_k (w_k + 2 Σ_{j<k} ρ^{k−j} w_j)
        trail = rho * (trail + before)
        quadratic += value * (value + 2 * trail)
        before = value
    return (np.array(w) * (margin * math.sqrt(features / quadratic))).astype(np.float32)


def generate(
    x: np.ndarray,
    y: np.ndarray,
    first_row: int = 0,
    *,
    teacher: np.ndarray,
    seed: int = 0,
    split: str = "train",
    rho: float = RHO,
) -> None:
    """Fill x [n, d] float32 and y [n] float32 with rows of a split, from `first_row`.

    The split ("train" or "test") is endless, and a row depends on (seed, split, its number,
    teacher, ρ) only: any cut of the rows among callers gives the same bits. Rows are drawn in
    blocks of `BLOCK`; a cut inside a block costs the time of the whole block.
    """
    stop_row = first_row + len(x)
    for start in range(first_row // BLOCK * BLOCK, stop_row, BLOCK):
        begin, end = max(start, first_row), min(start + BLOCK, stop_row)
        to, part = slice(begin - first_row, end - first_row), slice(begin - start, end - start)
        _fill_block(x[to], y[to], part, teacher, _generator(seed, split, start // BLOCK), rho)


def _fill_block(
    x: np.ndarray,
    y: np.ndarray,
    part: slice,
    teacher: np.ndarray,
    random: np.random.Generator,
    rho: float,
) -> None:
    """Draw one block and keep its rows `part`, in x [m, d] and y [m].

    All operations are elementwise float32 sums and products in a fixed order: no library's choice
    of algorithm can change a bit.
    """
    rho32 = np.float32(rho)
    tile = np.empty((TILE, BLOCK), np.float32)  # [features, rows]
    work = np.empty_like(tile)
    scaled = np.empty(BLOCK, np.float32)
    last = np.zeros(BLOCK, np.float32)
    norm_sq = np.zeros(BLOCK, np.float32)
    margin = np.zeros(BLOCK, np.float32)
    for k in range(0, len(teacher), TILE):
        g = tile[: len(teacher) - k]
        random.standard_normal(dtype=np.float32, out=g)
        if k == 0:
            g[0] /= np.sqrt(np.float32(1 - rho**2))  # the stationary start
        for row in g:
            np.multiply(last, rho32, out=scaled)
            row += scaled
            last = row
        last = last.copy()
        part_work = np.multiply(g, g, out=work[: len(g)])
        norm_sq += part_work.sum(axis=0)
        np.multiply(g, teacher[k : k + TILE, None], out=part_work)
        margin += part_work.sum(axis=0)
        x[:, k : k + TILE] = g[:, part].T
    inverse = 1 / np.sqrt(norm_sq)  # [BLOCK]
    x *= inverse[part, None]
    margin *= inverse  # [BLOCK] x · w*
    y[:] = _labels(margin, random)[part]


def _labels(margin: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw the labels ±1 of a block from the margins x · w* of its rows, both [BLOCK]."""
    probability = 1 / (1 + np.exp(-margin.astype(np.float64)))  # [BLOCK] of the label +1
    return np.where(random.random(BLOCK) < probability, 1, -1)


def _generator(seed: int, split: str, block: int) -> np.random.Generator:
    """Return the random numbers of one block of a split."""
    return np.random.Generator(
        np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(STREAMS[split], block)))
    )


def prepare_epsilon_like(
    out: str | Path,
    rows: int = ROWS,
    features: int = FEATURES,
    seed: int = 0,
    rho: float = RHO,
    margin: float = MARGIN,
    comm: writer.Communicator | None = None,
) -> None:
    """Write a prepared file of `rows` training rows, rows // 4 test rows and the teacher [d].

    Rank 0 of `comm` works. `/teacher` carries the attributes `margin`, `rho`, `condition_number`
    (of E[x xᵀ]) and `largest_eigenvalue`. UserError on a bad size or parameter, an existing `out`,
    or a full disk.
    """
    at_least("rows", rows, 1)
    at_least("features", features, 1)
    at_least("seed", seed, 0)
    if not 0 <= rho < 1:
        raise UserError(f"rho {rho} must be at least 0 and below 1")
    if not (margin > 0 and math.isfinite(margin)):
        raise UserError(f"margin {margin} must be positive")
    writer.on_root(comm, lambda: _write(out, rows, features, seed, rho, margin))


def _write(out: str | Path, rows: int, features: int, seed: int, rho: float, margin: float) -> None:
    writer.check_out(out)
    # before the teacher, which may be as large as a row
    writer.need_room(Path(out), writer.dense_bytes(sum(sizes(rows).values()), features))
    weights = teacher(features, seed, rho, margin)  # [d]
    attributes = {
        "name": f"epsilon-like:{rows}x{features}",
        "source": "generated",
        "classes": [-1.0, 1.0],
        "shuffled": True,
        "seed": seed,
    }
    eigenvalues = spectrum(features, rho)  # [d]
    about = {
        "margin": margin,
        "rho": rho,
        "largest_eigenvalue": eigenvalues[0],
        "condition_number": eigenvalues[0] / eigenvalues[-1],
    }
    arrays = {"teacher": (weights, about)}
    total = sum(sizes(rows).values())
    with (
        writer.create(out, features, sizes(rows), attributes, arrays) as target,
        progress.bar(total, f"write {out}", unit="row") as bar,
    ):
        for split, n in sizes(rows).items():
            x = np.empty((min(n, BLOCK), features), np.float32)  # [BLOCK, d]
            y = np.empty(len(x), np.float32)  # [BLOCK]
            for start in range(0, n, BLOCK):
                m = min(BLOCK, n - start)
                generate(x[:m], y[:m], start, teacher=weights, seed=seed, split=split, rho=rho)
                target.write(split, start, x[:m], y[:m])
                bar.update(m)
