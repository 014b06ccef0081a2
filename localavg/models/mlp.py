"""A multilayer perceptron: Rumelhart, Hinton and Williams (1986), Learning representations by
back-propagating errors, Nature 323; with ReLU, as is usual since. No BatchNorm: every tensor of it
is trained."""

from __future__ import annotations

import math

from torch import nn

HIDDEN = 128  # units a hidden layer


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two hidden layers over all pixels."""
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), HIDDEN), nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, classes),
    )  # fmt: skip
    for layer in net.modules():
        if isinstance(
            layer, nn.Linear
        ):  # He et al. 2015: torch's are smaller by √6, and without BatchNorm
            nn.init.kaiming_normal_(
                layer.weight, nonlinearity="relu"
            )  # plain SGD is slow to get going from there
            nn.init.zeros_(layer.bias)
    return net
