"""Pieces that several networks are made of. Images are [B, C, H, W]; a bias before BatchNorm is
dropped, as it cancels, except where the network that everybody compares with has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution padded so that stride 1 keeps height and width (odd kernels)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution and BatchNorm, to be spliced into a Sequential."""
    return [conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)]


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """Convolution, BatchNorm and ReLU, to be spliced into a Sequential."""
    return [
        conv(inputs, outputs, kernel, stride, groups, bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def bn_relu_conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """BatchNorm, ReLU and convolution, to be spliced into a Sequential."""
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
    """The blocks block(inputs, outputs, stride) of a residual network: depths[i] of widths[i]
    outputs in stage i.

    Every stage but the first opens with stride 2.
    """
    for i, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
        for j in range(depth):
            yield block(inputs, outputs, 2 if i > 0 and j == 0 else 1)
            inputs = outputs
