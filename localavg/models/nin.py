"""Network in Network: Lin, Chen and Yan (2013), arXiv:1312.4400.

K-AVG trains it with Torch from a step size of 1, halved every 50 epochs, and gives no more details.
Zagoruyko's CIFAR-10 programs for Torch (2015) have such step sizes, and a NIN with BatchNorm, which
makes such steps possible. The network here therefore has the paper's three "mlpconv" layers and two
dropouts, and BatchNorm after every convolution.
"""

from __future__ import annotations

from torch import nn

from localavg.models.layers import GlobalMean, conv, conv_bn_relu


def nin(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Make the paper's CIFAR-10 network; below 32×32 pixels (the 8×8 digits) a little one."""
    height, width, channels = shape
    return _little(channels, classes) if min(height, width) < 32 else _cifar(channels, classes)


def _cifar(channels: int, classes: int) -> nn.Module:
    """Make three mlpconv layers with dropout between them."""
    net = nn.Sequential(
        *_mlpconv(channels, (192, 160, 96), 5),
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5),
        *_mlpconv(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5),
        *_mlpconv(192, (192, 192, classes), 3),
        GlobalMean(),
    )  # fmt: skip
    for module in net.modules():
        # The Torch program's: with BatchNorm the effective step is γ / ‖w‖², and γ = 1 suits
        # these norms.
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.05)
    return net


def _mlpconv(inputs: int, outputs: tuple[int, int, int], kernel: int) -> list[nn.Module]:
    """Make a convolution and a perceptron of two layers that slides over it."""
    a, b, c = outputs
    return [*conv_bn_relu(inputs, a, kernel), *conv_bn_relu(a, b, 1), *conv_bn_relu(b, c, 1)]


def _little(channels: int, classes: int) -> nn.Module:
    """Make two mlpconv layers without dropout: they learn the digits in seconds on one core."""
    return nn.Sequential(
        *conv_bn_relu(channels, 32), *conv_bn_relu(32, 32, 1),
        nn.MaxPool2d(2),
        *conv_bn_relu(32, 64), *conv_bn_relu(64, 64, 1), conv(64, classes, 1, bias=True),
        GlobalMean(),
    )  # fmt: skip
