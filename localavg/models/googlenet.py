"""GoogLeNet: Szegedy et al. (2014), Going deeper with convolutions, arXiv:1409.4842.

In the form usual for 32×32 images: BatchNorm after every convolution and two 3×3 convolutions in
place of a 5×5, both from Ioffe and Szegedy (2015), arXiv:1502.03167; a single 3×3 convolution
first; no auxiliary classifiers and no dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localavg.models.layers import GlobalMean, conv_bn_relu

STAGES = (  # Table 1 of the paper: 1×1, 3×3 (reduce, out), 5×5 (reduce, out), pool
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    ((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
     (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)  # fmt: skip


class Inception(nn.Module):
    """Four branches side by side: 1×1, 3×3, 5×5 and pooling."""

    def __init__(
        self, inputs: int, one: int, three_in: int, three: int, five_in: int, five: int, pool: int
    ) -> None:
        super().__init__()
        branches = (
            _conv(inputs, one, 1),
            [*_conv(inputs, three_in, 1), *_conv(three_in, three, 3)],
            [*_conv(inputs, five_in, 1), *_conv(five_in, five, 3), *_conv(five, five, 3)],
            [nn.MaxPool2d(3, 1, 1), *_conv(inputs, pool, 1)],
        )
        self.branches = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        self.outputs = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return conv_bn_relu(inputs, outputs, kernel, bias=True)


def googlenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """GoogLeNet for 32×32 images."""
    channels = 192
    net = _conv(shape[2], channels, 3)
    for i, rows in enumerate(STAGES):
        if i > 0:
            net.append(nn.MaxPool2d(3, 2, 1))
        for row in rows:
            net.append(module := Inception(channels, *row))
            channels = module.outputs
    return nn.Sequential(*net, GlobalMean(), nn.Linear(channels, classes))
