"""MobileNet: Howard et al. (2017), arXiv:1704.04861.

The paper is MobileNets: Efficient convolutional neural networks for mobile vision applications. For
32×32 images: the first convolution keeps the size.
"""

from __future__ import annotations

from torch import nn

from localavg.models.layers import GlobalMean, conv_bn_relu

BLOCKS = (  # outputs, stride
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1),
    (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Make MobileNet for 32×32 images.

    It has thirteen blocks: a 3×3 convolution of each channel, then a 1×1 convolution over all.
    """
    channels = 32
    net = conv_bn_relu(shape[2], channels)
    for outputs, stride in BLOCKS:
        net += conv_bn_relu(channels, channels, 3, stride, groups=channels)
        net += conv_bn_relu(channels, outputs, 1)
        channels = outputs
    return nn.Sequential(*net, GlobalMean(), nn.Linear(channels, classes))
