"""VGG: Simonyan and Zisserman (2014), Very deep convolutional networks for large-scale image
recognition, arXiv:1409.1556.

For 32×32 images: BatchNorm after every convolution; five halvings leave one pixel of 512 channels.

`vgg` is K-AVG's. That paper says no more than VGG on CIFAR-10 with Torch, from a step size of 1
halved every 50 epochs. Such steps ask for BatchNorm; Zagoruyko's CIFAR-10 programs for Torch (2015)
have such a schedule and, as their first model, VGG-16 with BatchNorm and dropout, which is taken
here. `vgg16` and `vgg19`, of the other papers, have a single linear layer and no dropout.
"""

from __future__ import annotations

import math

from torch import nn

from localavg.models.layers import GlobalMean, conv_bn_relu

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions before each halving


def vgg16(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-16, configuration D of the paper."""
    return nn.Sequential(*_convolutions(16, shape[2]), nn.Linear(512, classes))


def vgg19(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-19, configuration E of the paper."""
    return nn.Sequential(*_convolutions(19, shape[2]), nn.Linear(512, classes))


def vgg(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """K-AVG's: VGG-16 with dropout between the convolutions and before each of two linear
    layers.
    """
    net = nn.Sequential(
        *_convolutions(16, shape[2], dropout=True),
        nn.Dropout(0.5), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Linear(512, classes),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(
            module, nn.Conv2d
        ):  # He et al. 2015, as the Torch program: BatchNorm makes γ / ‖w‖² the step
            nn.init.normal_(
                module.weight, 0, math.sqrt(2 / (9 * module.out_channels))
            )  # that counts, and γ = 1 goes
            nn.init.zeros_(module.bias)  # with these norms; torch's are about √6 smaller
    return net


def _convolutions(layers: int, channels: int, dropout: bool = False) -> list[nn.Module]:
    """All up to [B, 512]. dropout: after every convolution but the last before a halving, 0.3 in
    the first stage, else 0.4.
    """
    net: list[nn.Module] = []
    for i, (outputs, depth) in enumerate(zip(WIDTHS, DEPTHS[layers], strict=True)):
        for j in range(depth):
            net += conv_bn_relu(channels, outputs, bias=True)
            if dropout and j < depth - 1:
                net.append(nn.Dropout(0.4 if i else 0.3))
            channels = outputs
        net.append(nn.MaxPool2d(2))
    return [*net, GlobalMean()]
