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
    """module:function in this folder, called with an image's (H, W, C) and the number of classes"""
    side: int
    """height and width of the images that it was made for"""
    least: int
    """smallest height and width that it takes: its halvings leave one pixel of them"""


MODELS: dict[str, Model] = {
    # two hidden layers (Rumelhart et al. 1986), any size
    "mlp": Model("mlp:mlp", 8, 1),
    # the smallest CIFAR ResNet (He et al. 2015), for 8×8
    "resnet8": Model("resnet:resnet8", 8, 4),
    # Network in Network (Lin et al. 2013), as in kavg; a small one below 32×32
    "nin": Model("nin:nin", 32, 8),
    # VGG-16 with dropout (Simonyan and Zisserman 2014), as in kavg, for 32×32
    "vgg": Model("vgg:vgg", 32, 32),
    # VGG-16, one linear layer (Simonyan and Zisserman 2014), for 32×32
    "vgg16": Model("vgg:vgg16", 32, 32),
    # VGG-19, one linear layer (Simonyan and Zisserman 2014), for 32×32
    "vgg19": Model("vgg:vgg19", 32, 32),
    # GoogLeNet (Szegedy et al. 2014) for 32×32
    "googlenet": Model("googlenet:googlenet", 32, 4),
    # ResNet-18 (He et al. 2015) for 32×32
    "resnet18": Model("resnet:resnet18", 32, 8),
    # ResNet-18 with pre-activation (He et al. 2016)
    "preactresnet18": Model("preactresnet:preactresnet18", 32, 8),
    # squeeze-and-excitation ResNet-18 (Hu et al. 2017) for 32×32
    "senet18": Model("senet:senet18", 32, 8),
    # DenseNet-121 (Huang et al. 2016) for 32×32
    "densenet": Model("densenet:densenet", 32, 8),
    # MobileNet (Howard et al. 2017) for 32×32
    "mobilenet": Model("mobilenet:mobilenet", 32, 16),
    # Dual Path Network of 26 layers (Chen et al. 2017) for 32×32
    "dpn26": Model("dpn:dpn26", 32, 8),
    # Dual Path Network of 92 layers (Chen et al. 2017) for 32×32
    "dpn92": Model("dpn:dpn92", 32, 8),
    # ResNet-50 (He et al. 2015) for ImageNet, 224×224
    "resnet50": Model("resnet:resnet50", 224, 32),
    # AlexNet, one column (Krizhevsky 2014) for ImageNet, 224×224
    "alexnet": Model("alexnet:alexnet", 224, 63),
}
"""the table of networks: name → network, small ones first"""


def make(name: str, shape: tuple[int, int, int], classes: int) -> Module:
    """Make the network `name`, images [B, C, H, W] float32 → logits [B, classes].

    shape: (H, W, C) of an image. Its weights are random, by torch's generator. Raises UserError for
    a name that is not in the table and for images that the network cannot take.
    """
    check_choice("model", name, tuple(MODELS))
    model, (height, width, channels) = MODELS[name], shape
    if min(height, width) < model.least:
        fitting = [other for other, row in MODELS.items() if row.least <= min(height, width)]
        raise UserError(
            f"`model = {name}` takes images from {model.least}×{model.least} pixels on, not "
            f"{height}×{width}; these fit: {', '.join(fitting) or 'none'}"
        )
    if channels < 1:
        raise UserError(
            f"`model = {name}` takes images of 1 channel or more, not {channels}: give the shape "
            "as (H, W, C)"
        )
    module, _, function = model.where.partition(":")
    network: Module = getattr(import_module(f"localavg.models.{module}"), function)(shape, classes)
    return network
