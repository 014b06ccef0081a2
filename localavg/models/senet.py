"""SENet: Hu, Shen and Sun (2017), Squeeze-and-excitation networks, arXiv:1709.01507.

For 32×32 images: the pre-activation ResNet-18, whose channels are rescaled at the end of every
block.
"""

from __future__ import annotations

from torch import Tensor, nn

from localavg.models.layers import GlobalMean, conv_bn_relu, stages
from localavg.models.preactresnet import PreActivation

REDUCTION = 16  # r of the paper


class SqueezeExcitation(nn.Module):
    """Multiply every channel by a number in (0, 1).

    Two linear layers compute these numbers from the means of all channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // REDUCTION
        self.scale = nn.Sequential(
            GlobalMean(),
            nn.Linear(channels, inner), nn.ReLU(inplace=True),
            nn.Linear(inner, channels), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)[:, :, None, None]


def block(inputs: int, outputs: int, stride: int) -> PreActivation:
    """Make a pre-activation block that ends with squeeze and excitation."""
    return PreActivation(inputs, outputs, stride, SqueezeExcitation(outputs))


def senet18(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """SENet-18 for 32×32 images."""
    blocks = stages(block, 64, (64, 128, 256, 512), (2, 2, 2, 2))
    return nn.Sequential(
        *conv_bn_relu(shape[2], 64), *blocks, GlobalMean(), nn.Linear(512, classes)
    )
