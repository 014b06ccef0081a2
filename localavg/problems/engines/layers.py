"""Layers of L learners at once, as autograd functions: linear layers and convolutions.

Images are [L, B, C, H, W]. They lie in memory as [L, B, H, W, C], so that [L, B · H · W, C] is a
view of them, a matrix for each learner. Gradients of parameters are added to their places in the
learners' rows, `into`, and not handed to autograd, which would make a second matrix of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

Pair = Sequence[int]
"""of height and width"""
PIECE_BYTES = 2 << 20
"""what a convolution gathers at a time on a CPU: a core has it in its cache for the product"""
Into = tuple[Tensor, Tensor | None]
"""places of the gradients of weight and bias"""


class Linear(Function):
    """y [L, m, O] = x [L, m, K] w [L, O, K]ᵀ + b [L, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, into: Into) -> Tensor:
        w = w.to(x.dtype)
        ctx.save_for_backward(x, w)
        ctx.into = into
        return _product_(x.new_empty(*x.shape[:2], w.shape[1]), x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        _collect_(ctx.into, dy, x)
        return (torch.bmm(dy, w) if ctx.needs_input_grad[0] else None), None, None, None


class Convolution(Function):
    """y [L, B, O, H', W'] of x [L, B, C, H, W] and kernels w [L, O, h, v, C], as one product.

    The pixels under a kernel at each place are gathered in rows [L, B · H' · W', h · v · C], for
    some learners at a time. They are gathered again for the gradient, since they take h · v times
    the memory of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, into: Into, stride: Pair, padding: Pair
    ) -> Tensor:
        x, w = _channels_last(x), w.to(x.dtype)
        ctx.save_for_backward(x, w)
        ctx.into, ctx.how = into, (stride, padding)
        y = new_images(x, w.shape[1], places(x.shape[2:4], w.shape[2:4], stride, padding))
        rows_y, rows_w = matrix(y), w.flatten(2)
        for l, rows in _gathered(x, w.shape[2:4], stride, padding):
            _product_(rows_y[l], rows, rows_w[l], None if b is None else b[l])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        (stride, padding), (dw, db) = ctx.how, ctx.into
        kernel, dy = w.shape[2:4], _channels_last(dy)
        rows_dw, rows_dy = dw.flatten(2), dy.flatten(1, 3)
        for l, rows in _gathered(x, kernel, stride, padding):
            _collect_((rows_dw[l], None if db is None else db[l]), rows_dy[l], rows)
        if not ctx.needs_input_grad[0]:
            return (None,) * 6
        if tuple(stride) == (1, 1) and padding[0] < kernel[0] and padding[1] < kernel[1]:
            dx = _correlated(dy, w, padding)
        else:
            dx = _scattered(torch.bmm(rows_dy, w.flatten(2)), x.shape, kernel, *ctx.how)
        return dx.permute(0, 1, 4, 2, 3), None, None, None, None, None


class Each(Function):
    """The same, and in groups, as a convolution for each learner: fast where images are large."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, into: Into, how: tuple[Any, ...]
    ) -> Tensor:
        """Compute with w [L, O, C, h, v]. how: stride, padding, dilation and groups."""
        w, b = w.to(x.dtype), b if b is None else b.to(x.dtype)
        ctx.save_for_backward(x, w)
        ctx.into, ctx.how = into, how
        learners = [
            torch.conv2d(x[l], w[l], None if b is None else b[l], *how) for l in range(len(x))
        ]
        y = new_images(x, learners[0].shape[1], learners[0].shape[2:])
        return torch.stack(learners, out=y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        (dw, db), (stride, padding, dilation, groups) = ctx.into, ctx.how
        which = ctx.needs_input_grad[0], True, False
        dx = new_images(x, x.shape[2], x.shape[3:]) if which[0] else None
        for l in range(len(x)):
            dx_l, dw_l, _ = torch.ops.aten.convolution_backward(
                dy[l], x[l], w[l], None, stride, padding, dilation, False, (0, 0), groups, which
            )
            dw[l] += dw_l
            if dx is not None:
                dx[l] = dx_l
        if db is not None:
            db += matrix(dy).sum(1)
        return dx, None, None, None, None


def places(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, int]:
    """Return the height and width of what a convolution makes."""
    h, w = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    )
    return h, w


def new_images(x: Tensor, C: int, size: Sequence[int]) -> Tensor:
    """Make images [L, B, C, *size] that lie as [L, B, *size, C], with x's L, B, type and device.

    They are no view of another tensor, so that a module may change them in place.
    """
    L, B = x.shape[:2]
    spatial = [C * prod(size[i + 1 :]) for i in range(len(size))]
    each = C * prod(size)
    return x.new_empty_strided((L, B, C, *size), (B * each, each, 1, *spatial))


def matrix(x: Tensor) -> Tensor:
    """Return images [L, B, C, …] as [L, B · …, C], a view if they lie so."""
    return x.movedim(2, -1).contiguous().flatten(1, -2)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 1, 3, 4, 2).contiguous()


def _product_(y: Tensor, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Set y [L, m, O] to x [L, m, K] w [L, O, K]ᵀ + b [L, O]."""
    if b is None:
        return torch.bmm(x, w.transpose(1, 2), out=y)
    y.copy_(b[:, None].expand(y.shape))
    return y.baddbmm_(x, w.transpose(1, 2))


def _collect_(into: Into, dy: Tensor, x: Tensor) -> None:
    """Add the gradients of w and b in y = x wᵀ + b to their places."""
    dw, db = into
    dw += torch.bmm(dy.transpose(1, 2), x)  # faster than baddbmm_ into rows
    if db is not None:
        db += dy.sum(1)


def _gathered(
    x: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the pixels under the kernel at each place, for some learners l at a time.

    x: [L, B, H, W, C]. Each item is (l, rows [l, B · H' · W', h · v · C]), valid until the next.
    """
    (h, v), (a, b), (p, q) = kernel, stride, padding
    if (h, v, a, b, p, q) == (1, 1, 1, 1, 0, 0):
        yield slice(None), x.flatten(1, 3)
        return
    size = places(x.shape[2:4], kernel, stride, padding)
    if p or q:
        x = pad(x, (0, 0, q, q, p, p))
    L, B, _, _, C = x.shape
    l, n, r, c, _ = x.stride()
    under = x.as_strided((L, B, *size, h, v * C), (l, n, a * r, b * c, r, 1))
    each = under[0].numel() * x.element_size()
    step = min(L, max(1, PIECE_BYTES // each)) if x.device.type == "cpu" else L
    gathered = x.new_empty(step, *under.shape[1:])
    for i in range(0, L, step):
        piece = under[i : i + step]
        rows = gathered[: len(piece)].copy_(piece)
        yield slice(i, i + step), rows.view(len(piece), -1, h * v * C)


def _correlated(dy: Tensor, w: Tensor, padding: Pair) -> Tensor:
    """Return the gradient [L, B, H, W, C] of a convolution of stride 1, itself a convolution."""
    L, _, h, v, C = w.shape
    around = h - 1 - padding[0], v - 1 - padding[1]
    turned = w.flip(2, 3).permute(0, 2, 3, 1, 4).reshape(L, -1, C)  # [L, h · v · O, C]
    size = places(dy.shape[2:4], (h, v), (1, 1), around)
    dx = dy.new_empty(L, dy.shape[1], *size, C)
    rows_dx = dx.flatten(1, 3)
    for l, rows in _gathered(dy, (h, v), (1, 1), around):
        torch.bmm(rows, turned[l], out=rows_dx[l])
    return dx


def _scattered(rows: Tensor, shape: Any, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Return the sum of rows [L, B · H' · W', h · v · C] at the places, [L, B, H, W, C]."""
    (L, B, H, W, C), (h, v), (a, b), (p, q) = shape, kernel, stride, padding
    Ho, Wo = places((H, W), kernel, stride, padding)
    rows = rows.view(L, B, Ho, Wo, h, v, C)
    x = rows.new_zeros(L, B, H + 2 * p, W + 2 * q, C)
    for i in range(h):
        for j in range(v):
            x[:, :, i : i + a * Ho : a, j : j + b * Wo : b] += rows[..., i, j, :]
    return x[:, :, p : p + H, q : q + W].contiguous()
