"""DenseNet: Huang, Liu, van der Maaten and Weinberger (2016), arXiv:1608.06993.

The paper is Densely connected convolutional networks. Here is DenseNet-121 (DenseNet-BC, growth
rate 32, half the channels kept between stages) for 32×32 images: it starts with a 3×3 convolution
and no pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localavg.models.layers import GlobalMean, bn_relu_conv, conv

GROWTH = 32  # k of the paper
DEPTHS = (6, 12, 24, 16)


class Dense(nn.Module):
    """x [B, C, H, W] with k new channels appended, which are computed from all C."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *bn_relu_conv(inputs, 4 * GROWTH, 1), *bn_relu_conv(4 * GROWTH, GROWTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def densenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """DenseNet-121 for 32×32 images."""
    channels = 2 * GROWTH
    net: list[nn.Module] = [conv(shape[2], channels)]
    for i, depth in enumerate(DEPTHS):
        if i > 0:
            net += [*bn_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            net.append(Dense(channels))
            channels += GROWTH
    net += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*net, GlobalMean(), nn.Linear(channels, classes))
