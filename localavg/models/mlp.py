"""A multilayer perceptron: Rumelhart, Hinton and Williams (1986), Nature 323.

The paper is Learning representations by back-propagating errors. The units are ReLUs, as is usual
since. There is no BatchNorm: all its tensors are trained.
"""

from __future__ import annotations

import math

from torch import nn

HIDDEN = 128
"""units in a hidden layer"""


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Make two hidden layers over all pixels."""
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), HIDDEN), nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, classes),
    )  # fmt: skip
    for layer in net.modules():
        # He et al. 2015. Torch's weights are smaller by √6; without BatchNorm plain SGD starts
        # slowly from them.
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net
