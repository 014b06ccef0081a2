"""Pre-activation ResNet: He, Zhang, Ren and Sun (2016), arXiv:1603.05027.

The paper is Identity mappings in deep residual networks. For 32×32 images, in the form usual on
CIFAR-10: a 3×3 convolution first, and no BatchNorm after the last block.
"""

from __future__ import annotations

from torch import Tensor, nn

from localavg.models.layers import GlobalMean, bn_relu_conv, conv, stages


class PreActivation(nn.Module):
    """x + body(a) with a = relu(BatchNorm(x)).

    body: two 3×3 convolutions, then the modules `after`. Where the body changes the size of x, a
    1×1 convolution of a takes the place of x.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *after: nn.Module) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            conv(inputs, outputs, 3, stride), *bn_relu_conv(outputs, outputs), *after
        )
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(x)
        y = self.body(a)
        y += x if self.shortcut is None else self.shortcut(a)
        return y


def preactresnet18(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Pre-activation ResNet-18 for 32×32 images."""
    blocks = stages(PreActivation, 64, (64, 128, 256, 512), (2, 2, 2, 2))
    return nn.Sequential(conv(shape[2], 64), *blocks, GlobalMean(), nn.Linear(512, classes))
