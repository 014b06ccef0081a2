"""Dual Path Networks: Chen, Li, Xiao, Jin, Yan and Feng (2017), arXiv:1707.01629.

For 32×32 images, in the form usual on CIFAR-10: the first layer is a 3×3 convolution without
pooling, and BatchNorm and ReLU follow the convolutions. DPN-26 has the widths of the paper's DPN-92
and two blocks a stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from localavg.models.layers import GlobalMean, conv_bn, conv_bn_relu

GROUPS = 32
STAGES = ((96, 256, 16), (192, 512, 32), (384, 1024, 24), (768, 2048, 128))
"""(width, residual channels, growth) of each stage: Table 1"""


class DualPath(nn.Module):
    """A bottleneck of two paths.

    Its first `residual` output channels are added to those of x, the other `growth` are appended.
    """

    def __init__(
        self, inputs: int, width: int, residual: int, growth: int, stride: int, project: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.body = nn.Sequential(
            *conv_bn_relu(inputs, width, 1),
            *conv_bn_relu(width, width, 3, stride, GROUPS),
            *conv_bn(width, residual + growth, 1),
        )
        projection = conv_bn(inputs, residual + growth, 1, stride) if project else None
        self.shortcut = None if projection is None else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        y, r = self.body(x), self.residual
        x = x if self.shortcut is None else self.shortcut(x)
        return relu(torch.cat((x[:, :r] + y[:, :r], x[:, r:], y[:, r:]), 1), inplace=True)


def dpn26(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """DPN-26 for 32×32 images."""
    return _dpn(shape[2], classes, (2, 2, 2, 2))


def dpn92(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """DPN-92 for 32×32 images."""
    return _dpn(shape[2], classes, (3, 4, 20, 3))


def _dpn(channels: int, classes: int, depths: tuple[int, ...]) -> nn.Module:
    net, inputs = conv_bn_relu(channels, 64), 64
    for i, (depth, (width, residual, growth)) in enumerate(zip(depths, STAGES, strict=True)):
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            net.append(DualPath(inputs, width, residual, growth, stride, project=j == 0))
            inputs = residual + (j + 2) * growth
    return nn.Sequential(*net, GlobalMean(), nn.Linear(inputs, classes))
