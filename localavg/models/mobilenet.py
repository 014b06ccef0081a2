"""MobileNet: Howard et al. (2017), MobileNets: Efficient convolutional neural networks for mobile
vision applications, arXiv:1704.04861. For 32×32 images: the first convolution keeps the size."""

from __future__ import annotations

from torch import nn

from localavg.models.layers import GlobalMean, conv_bn_relu

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)  # outputs, stride


def mobilenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """MobileNet for 32×32 images: a 3×3 convolution a channel, then a 1×1 convolution over
    channels, thirteen times.
    """
    channels = 32
    net = conv_bn_relu(shape[2], channels)
    for outputs, stride in BLOCKS:
        net += [
            *conv_bn_relu(channels, channels, 3, stride, groups=channels),
            *conv_bn_relu(channels, outputs, 1),
        ]
        channels = outputs
    return nn.Sequential(*net, GlobalMean(), nn.Linear(channels, classes))
