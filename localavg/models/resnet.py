"""ResNet: He, Zhang, Ren and Sun (2015), arXiv:1512.03385.

The paper is Deep residual learning for image recognition. ResNet-50 is the paper's, with the stride
in the 3×3 convolution of a bottleneck, the usual form. ResNet-18 for 32×32 images starts with a 3×3
convolution and no pooling. ResNet-8 is the paper's CIFAR-10 network (§4.2) of 6n + 2 layers, n = 1,
with projections where the size changes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from localavg.models.layers import GlobalMean, conv_bn, conv_bn_relu, stages


class Residual(nn.Module):
    """relu(body(x) + x), with x projected by a 1×1 convolution where the body changes its size."""

    def __init__(self, inputs: int, outputs: int, stride: int, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x if self.shortcut is None else self.shortcut(x)
        return relu(y, inplace=True)


def basic(inputs: int, outputs: int, stride: int) -> Residual:
    """Make a block of two 3×3 convolutions."""
    body = nn.Sequential(*conv_bn_relu(inputs, outputs, 3, stride), *conv_bn(outputs, outputs))
    return Residual(inputs, outputs, stride, body)


def bottleneck(inputs: int, outputs: int, stride: int) -> Residual:
    """Make a block of 1×1, 3×3 and 1×1 convolutions, the inner width a quarter of `outputs`."""
    width = outputs // 4
    body = nn.Sequential(
        *conv_bn_relu(inputs, width, 1),
        *conv_bn_relu(width, width, 3, stride),
        *conv_bn(width, outputs, 1),
    )
    return Residual(inputs, outputs, stride, body)


def resnet8(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-8 for small images."""
    blocks = stages(basic, 16, (16, 32, 64), (1, 1, 1))
    return nn.Sequential(*conv_bn_relu(shape[2], 16), *blocks, GlobalMean(), nn.Linear(64, classes))


def resnet18(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-18 for 32×32 images."""
    blocks = stages(basic, 64, (64, 128, 256, 512), (2, 2, 2, 2))
    return nn.Sequential(
        *conv_bn_relu(shape[2], 64), *blocks, GlobalMean(), nn.Linear(512, classes)
    )


def resnet50(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-50 for ImageNet."""
    blocks = stages(bottleneck, 64, (256, 512, 1024, 2048), (3, 4, 6, 3))
    stem = [*conv_bn_relu(shape[2], 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, GlobalMean(), nn.Linear(2048, classes))
