"""The papers' networks. The table imports no torch: a network's file is loaded when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from localavg.errors import UserError, check_choice

if TYPE_CHECKING:
    from torch.nn import Module


@dataclass(frozen=True)
class Model:
    """One row of the table."""

    where: str
    """module:function, called with the (H, W, C) of an image and the number of classes"""
    side: int
    """height and width of the images it was made for"""
    least: int
    """the smallest height and width it takes, which its halvings leave a pixel of; any number of
    channels will do
    """
    batchnorm: bool
    """it has BatchNorm, whose running statistics are averaged or kept beside the weights"""
    about: str
    """one line: what it is, whose, and for which images"""


def _row(where: str, side: int, least: int, batchnorm: bool, about: str) -> Model:
    return Model(f"localavg.models.{where}", side, least, batchnorm, about)


MODELS: dict[str, Model] = {
    "mlp": _row("mlp:mlp", 8, 1, False, "two hidden layers (Rumelhart et al. 1986), any size"),
    "resnet8": _row(
        "resnet:resnet8", 8, 4, True, "the smallest CIFAR ResNet (He et al. 2015), for 8×8"
    ),
    "nin": _row(
        "nin:nin",
        32,
        8,
        True,
        "Network in Network (Lin et al. 2013), as in kavg for 32×32; a little one below",
    ),
    "vgg": _row(
        "vgg:vgg",
        32,
        32,
        True,
        "VGG-16 with dropout (Simonyan and Zisserman 2014), as in kavg, for 32×32",
    ),
    "vgg16": _row(
        "vgg:vgg16",
        32,
        32,
        True,
        "VGG-16, one linear layer (Simonyan and Zisserman 2014), for 32×32",
    ),
    "vgg19": _row(
        "vgg:vgg19",
        32,
        32,
        True,
        "VGG-19, one linear layer (Simonyan and Zisserman 2014), for 32×32",
    ),
    "googlenet": _row(
        "googlenet:googlenet", 32, 4, True, "GoogLeNet (Szegedy et al. 2014) for 32×32"
    ),
    "resnet18": _row("resnet:resnet18", 32, 8, True, "ResNet-18 (He et al. 2015) for 32×32"),
    "preactresnet18": _row(
        "preactresnet:preactresnet18",
        32,
        8,
        True,
        "pre-activation ResNet-18 (He et al. 2016) for 32×32",
    ),
    "senet18": _row(
        "senet:senet18", 32, 8, True, "squeeze-and-excitation ResNet-18 (Hu et al. 2017) for 32×32"
    ),
    "densenet": _row(
        "densenet:densenet", 32, 8, True, "DenseNet-121 (Huang et al. 2016) for 32×32"
    ),
    "mobilenet": _row(
        "mobilenet:mobilenet", 32, 16, True, "MobileNet (Howard et al. 2017) for 32×32"
    ),
    "dpn26": _row(
        "dpn:dpn26", 32, 8, True, "Dual Path Network of 26 layers (Chen et al. 2017) for 32×32"
    ),
    "dpn92": _row(
        "dpn:dpn92", 32, 8, True, "Dual Path Network of 92 layers (Chen et al. 2017) for 32×32"
    ),
    "resnet50": _row(
        "resnet:resnet50", 224, 32, True, "ResNet-50 (He et al. 2015) for ImageNet, 224×224"
    ),
    "alexnet": _row(
        "alexnet:alexnet",
        224,
        63,
        False,
        "AlexNet, one column (Krizhevsky 2014) for ImageNet, 224×224",
    ),
}
"""THE table: name → network, small ones first."""


def make(name: str, shape: tuple[int, int, int], classes: int) -> Module:
    """The network `name` with torch's random weights: images [B, C, H, W] float32 → logits [B,
    classes].

    shape: (H, W, C) of an image. Raises UserError for a name that is not in the table and for
    images it cannot take.
    """
    check_choice("model", name, tuple(MODELS))
    model, (height, width, channels) = MODELS[name], shape
    if min(height, width) < model.least:
        fitting = ", ".join(
            other for other, row in MODELS.items() if row.least <= min(height, width)
        )
        raise UserError(
            f"--model {name} takes images from {model.least}×{model.least} pixels on, not "
            f"{height}×{width}; "
            f"these fit: {fitting or 'none'}"
        )
    if channels < 1:
        raise UserError(
            f"--model {name} takes images of 1 channel or more, not {channels}: give the shape as "
            "(H, W, C)"
        )
    module, _, function = model.where.partition(":")
    return getattr(import_module(module), function)(shape, classes)
