"""Fused kernels for rows on a GPU: one pass over memory where NumPy's operators need several.

Each kernel is CUDA text for CuPy's ElementwiseKernel. `i` is a column, `width` the number of
columns and `l` the number of rows; `raw` arrays are indexed row by row, k · width + i, whatever
their strides are. Sums add the rows in the order of the learners.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType

import numpy as np

from localavg.interfaces import Array
from localavg.parallel.aligned import address

ELEMENTWISE = {  # name: (inputs, outputs, CUDA text for one element)
    "sum": (
        "raw T rows, int64 l, int64 width",
        "T total",
        "T s = rows[i]; for (long long k = 1; k < l; ++k) s += rows[k * width + i]; total = s",
    ),
    "finish": (
        "T total, T P, int64 l, int64 width",
        "raw T rows",
        "const T mean = total / P; for (long long k = 0; k < l; ++k) rows[k * width + i] = mean",
    ),
    # Loads of eight rows are on their way together: one after the other they wait for memory.
    "mean": (
        "T P, int64 l, int64 width",
        "raw T rows",
        """T s = rows[i];
        #pragma unroll 8
        for (long long k = 1; k < l; ++k) s += rows[k * width + i];
        s /= P;
        #pragma unroll 8
        for (long long k = 0; k < l; ++k) rows[k * width + i] = s""",
    ),
    # The same for four columns at a time; width in float4.
    "mean4": (
        "T P, int64 l, int64 width",
        "raw T rows",
        """float4* const p = reinterpret_cast<float4*>(&rows[0]) + i; float4 s = p[0];
        #pragma unroll 8
        for (long long k = 1; k < l; ++k) {
            const float4 x = p[k * width]; s.x += x.x; s.y += x.y; s.z += x.z; s.w += x.w;
        }
        s.x /= P; s.y /= P; s.z /= P; s.w /= P;
        #pragma unroll 8
        for (long long k = 0; k < l; ++k) p[k * width] = s""",
    ),
    # row j: the terms first[j] … first[j + 1] − 1, rows of `own` or, from l on, of `come`
    "mix": (
        "raw T own, raw T come, raw T first, raw T source, raw T weight, int64 l, int64 width",
        "T mixed",
        """const long long j = i / width, c = i % width; T s = 0;
        for (long long k = (long long)first[j]; k < (long long)first[j + 1]; ++k) {
            const long long r = (long long)source[k];
            s += weight[k] * (r < l ? own[r * width + c] : come[(r - l) * width + c]);
        } mixed = s""",
    ),
    # the rules of algorithms/outer.py
    "outer_momentum": (
        "T mean, T lr, T mu",
        "T w_tilde, T v",
        "const T D = mean - w_tilde; v = mu * v + D; w_tilde += lr * v",
    ),
    "outer_nesterov": (
        "T mean, T lr, T mu",
        "T w_tilde, T v",
        "const T D = mean - w_tilde; v = mu * v + D; w_tilde += lr * (D + mu * v)",
    ),
    "outer_adam": (
        "T mean, T lr, T beta1, T beta2, T tau",
        "T w_tilde, T m, T v",
        "const T D = mean - w_tilde; m = beta1 * m + (1 - beta1) * D; "
        "v = beta2 * v + (1 - beta2) * D * D; w_tilde += lr * m / (sqrt(v) + tau)",
    ),
    "outer_yogi": (
        "T mean, T lr, T beta1, T beta2, T tau",
        "T w_tilde, T m, T v",
        "const T D = mean - w_tilde; m = beta1 * m + (1 - beta1) * D; "
        "const T s = D * D, sign = (v > s) - (v < s); "
        "v -= (1 - beta2) * s * sign; w_tilde += lr * m / (sqrt(v) + tau)",
    ),
    "outer_slowmo": (
        "T mean, T alpha, T beta, T gamma",
        "T w_tilde, T u",
        "u = beta * u + (w_tilde - mean) / gamma; w_tilde -= alpha * gamma * u",
    ),
    "spread": (
        "raw T rows, raw T mean, int64 l, int64 width, int64 m",
        "float64 s",
        "double sum = 0; "
        "for (long long c = i; c < width; c += m) for (long long k = 0; k < l; ++k) "
        "{ const T o = rows[k * width + c] - mean[c]; sum += (double)o * o; } s = sum",
    ),
    # −m comes first: log(1 + exp(−m)) without overflow, and the slope 1 − exp(−loss).
    "logistic": (
        "raw T y, int32 row, T B",
        "T z, T slope",
        "const T label = y[row], o = -label * z; "
        "z = o > 0 ? o + log1p(exp(-o)) : log1p(exp(o)); slope = expm1(-z) * label / B",
    ),
    "ridge": (
        "T w, T l2, raw T total, T B, raw T square, int64 width",
        "T g, raw T loss",
        "g += l2 * w; "
        "if (i % width == 0) loss[i / width] = total[i / width] / B + l2 * square[i / width] / 2",
    ),
    # the merges of algorithms/delay.py
    "follow": ("T z, T own", "T w", "w = (w - own) + z"),
    "pull": ("T z, T a", "T w", "w += a * (z - w)"),
    "sgd": ("T g, T gamma", "T w", "w -= gamma * g"),
    "momentum": ("T g, T gamma, T m", "T w, T v", "v = m * v + g; w -= gamma * v"),
    "nesterov": ("T g, T gamma, T m", "T w, T v", "v = m * v + g; w -= gamma * (g + m * v)"),
    "adam": (
        "T g, T gamma, T beta1, T beta2, T unbias, T eps",
        "T w, T m, T u",
        "m = beta1 * m + (1 - beta1) * g; u = beta2 * u + (1 - beta2) * g * g; "
        "w -= gamma * m / (sqrt(u) * unbias + eps)",
    ),
}
# w shrinks before the step of adam
_inputs, _outputs, _adam = ELEMENTWISE["adam"]
ELEMENTWISE["adamw"] = f"{_inputs}, T shrink", _outputs, f"w *= shrink; {_adam}"
PARTS = 1 << 17  # partial sums of `spread`, one a GPU thread


@cache
def kernel(xp: ModuleType, name: str) -> Callable[..., None]:
    """Return the kernel of this name, of the array module xp; its first call compiles it."""
    return xp.ElementwiseKernel(*ELEMENTWISE[name], f"localavg_{name}")


def array_module(x: Array) -> ModuleType | None:
    """Return the array module of x, or None for NumPy, which has no kernels."""
    top = type(x).__module__.partition(".")[0]
    return None if top == "numpy" else sys.modules[top]


def sum_rows_(xp: ModuleType, rows: Array, total: Array) -> None:
    """Write the sum of rows [l, n] into total [n]."""
    kernel(xp, "sum")(rows, *rows.shape, total)


def mean_(xp: ModuleType, rows: Array) -> None:
    """Set every row of rows [l, n] to their mean: each number is read once and written once."""
    l, n = rows.shape
    fours = n % 4 == 0 and address(rows) % 16 == 0 and rows.flags.c_contiguous
    name, width = ("mean4", n // 4) if fours else ("mean", n)
    kernel(xp, name)(np.float32(l), l, width, rows, size=width)


def finish_(xp: ModuleType, total: Array, P: int, rows: Array) -> None:
    """Write total [n] / P into every row of rows [l, n]; total may be one of the rows."""
    kernel(xp, "finish")(total, np.float32(P), *rows.shape, rows)


def mix_(xp: ModuleType, own: Array, come: Array, terms: Sequence[Array], mixed: Array) -> None:
    """Write the sums of rows of own [l, n] and come [m, n] into mixed [l, n].

    terms: (where the terms of each row begin, and the end [l + 1]; the rows [terms]; the weights
    [terms]).
    """
    kernel(xp, "mix")(own, come, *terms, *own.shape, mixed)


def spread(xp: ModuleType, rows: Array, mean: Array) -> float:
    """Return Σ ‖w̄ − w_j‖² over the rows [l, n], where w̄ is mean [n]; the sum is in float64."""
    # partial sums, because a reduction of two arrays would use a single block of threads
    parts = xp.empty(min(len(mean), PARTS), np.float64)
    kernel(xp, "spread")(rows, mean, *rows.shape, len(parts), parts)
    return float(parts.sum())


def outer_(
    xp: ModuleType,
    name: str,
    mean: Array,
    numbers: Sequence[float],
    w_tilde: Array,
    moments: Sequence[Array],
) -> None:
    """Step w̃ [n] and the moments [n] each, given w̄ = mean [n]; numbers: parameters in order."""
    kernel(xp, name)(mean, *map(np.float32, numbers), w_tilde, *moments)


def update_(
    xp: ModuleType, name: str, w: Array, g: Array, state: list[Array], *numbers: float
) -> None:
    """Do the local update `name` of w [L, n] by g [L, n]; numbers: its parameters in order."""
    kernel(xp, name)(g, *map(np.float32, numbers), w, *state)


def follow_(xp: ModuleType, w: Array, z: Array, own: Array) -> None:
    """Set w [L, n] to z + (w − own)."""
    kernel(xp, "follow")(z, own, w)


def pull_(xp: ModuleType, w: Array, z: Array, a: float) -> None:
    """Set w [L, n] to (1 − a) w + a z."""
    kernel(xp, "pull")(z, np.float32(a), w)


def logistic_(xp: ModuleType, y: Array, rows: Array, z: Array, slope: Array) -> None:
    """Replace x·w in z [L, B] by the losses log(1 + exp(−y x·w)), and write the slopes [L, B].

    Those are the derivatives of a learner's mean loss by x·w. rows: int32 [L, B], in the labels y.
    """
    kernel(xp, "logistic")(y, rows, np.float32(rows.shape[1]), z, slope)


def ridge_(
    xp: ModuleType, w: Array, l2: float, total: Array, B: int, square: Array, g: Array, loss: Array
) -> None:
    """Add λw to g [L, d], and write the losses [L]: total / B + λ/2 square, ‖w‖² each."""
    kernel(xp, "ridge")(w, np.float32(l2), total, np.float32(B), square, w.shape[1], g, loss)
