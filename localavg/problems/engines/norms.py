"""BatchNorm of L learners at once, as an autograd function; see `layers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from localavg.problems.engines.layers import Into, matrix, new_images


class Norm(Function):
    """BatchNorm of x [L, B, C, …] over all but L and C; it updates the running statistics.

    mean and var [L, C] are these statistics, as torch keeps them in training.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor,
        into: Into,
        mean: Tensor,
        var: Tensor,
        eps: float,
        momentum: float,
    ) -> Tensor:
        y = new_images(x, x.shape[2], x.shape[3:])
        x = matrix(x).float()
        m = x.shape[1]
        middle = x.mean(1, keepdim=True)  # [L, 1, C]
        x = x - middle
        square = (x * x).mean(1, keepdim=True)
        mean.lerp_(middle[:, 0], momentum)
        var.lerp_(square[:, 0] * (m / (m - 1)), momentum)
        rate = torch.rsqrt(square + eps)
        ctx.save_for_backward(x, w, rate)
        ctx.into = into
        if y.dtype == x.dtype:
            torch.addcmul(b[:, None], x, rate * w[:, None], out=matrix(y))
        else:
            matrix(y).copy_(torch.addcmul(b[:, None], x, rate * w[:, None]))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, rate = ctx.saved_tensors  # x without its mean
        dw, db = ctx.into
        dx = new_images(dy, dy.shape[2], dy.shape[3:])
        dy, m = matrix(dy).to(x.dtype), x.shape[1]
        total = dy.sum(1, keepdim=True)  # [L, 1, C]
        slope = dy * x
        inner = slope.sum(1, keepdim=True)
        db += total[:, 0]
        dw += (inner * rate)[:, 0]
        scale = rate * w[:, None]
        torch.addcmul(scale * total / -m, x, scale * rate * rate * inner / -m, out=slope)
        matrix(dx).copy_(slope.addcmul_(dy, scale))
        return dx, *[None] * 7
