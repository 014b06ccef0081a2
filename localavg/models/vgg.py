"""VGG: Simonyan and Zisserman (2014), arXiv:1409.1556.

The paper is Very deep convolutional networks for large-scale image recognition. For 32×32 images:
BatchNorm after every convolution; five halvings leave one pixel of 512 channels.

`vgg` is K-AVG's. That paper names VGG on CIFAR-10 with Torch from a step size of 1, halved every 50
epochs, and gives no more details. Such steps need BatchNorm. Zagoruyko's CIFAR-10 programs for
Torch (2015) have such step sizes and, as their first model, VGG-16 with BatchNorm and dropout,
which is used here. `vgg16` and `vgg19`, of the other papers, have a single linear layer and no
dropout.
"""

from __future__ import annotations

import math

from torch import nn

from localavg.models.layers import GlobalMean, conv_bn_relu

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""convolutions before each halving, by the number of layers"""


def vgg16(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-16, configuration D of the paper."""
    return nn.Sequential(*_convolutions(16, shape[2]), nn.Linear(512, classes))


def vgg19(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-19, configuration E of the paper."""
    return nn.Sequential(*_convolutions(19, shape[2]), nn.Linear(512, classes))


def vgg(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-16 of K-AVG: with dropout between convolutions and before each of two linear layers."""
    net = nn.Sequential(
        *_convolutions(16, shape[2], dropout=True),
        nn.Dropout(0.5), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Linear(512, classes),
    )  # fmt: skip
    for module in net.modules():
        # He et al. 2015, as in the Torch program: with BatchNorm the effective step is γ / ‖w‖²,
        # and γ = 1 suits these norms; those of torch's initialisation are about √6 smaller.
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / (9 * module.out_channels)))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return net


def _convolutions(layers: int, channels: int, dropout: bool = False) -> list[nn.Module]:
    """Make all layers up to [B, 512].

    dropout: whether dropout follows every convolution except the last before a halving, with
    probability 0.3 in the first stage and 0.4 in the others.
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
