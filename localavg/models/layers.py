"""Pieces that several networks are made of. Images are [B, C, H, W].

A bias before BatchNorm cancels and is left out, except where the usual form of the network has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Make a convolution padded so that stride 1 keeps height and width (odd kernels)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Make a convolution and BatchNorm, as modules of a Sequential."""
    return [conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)]


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """Make a convolution, BatchNorm and ReLU, as modules of a Sequential."""
    return [
        conv(inputs, outputs, kernel, stride, groups, bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def bn_relu_conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Make BatchNorm, ReLU and a convolution, as modules of a Sequential."""
    return [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv(inputs, outputs, kernel, stride)]


class GlobalMean(nn.Module):
    """Global average pooling, [B, C, H, W] → [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def stages(
    block: Callable[[int, int, int], nn.Module],
    inputs: int,
    widths: Sequence[int],
    depths: Sequence[int],
) -> Iterator[nn.Module]:
    """Yield the blocks of a residual network, depths[i] blocks of widths[i] outputs in stage i.

    block: (inputs, outputs, stride) → module. Every stage but the first starts with stride 2.
    """
    for i, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
        for j in range(depth):
            yield block(inputs, outputs, 2 if i > 0 and j == 0 else 1)
            inputs = outputs
