"""AlexNet: Krizhevsky, Sutskever and Hinton (2012), ImageNet classification with deep convolutional
neural networks, NIPS; in the one-column form of Krizhevsky (2014), One weird trick for
parallelizing convolutional neural networks, arXiv:1404.5997, with its dropout and without local
response normalisation.

Torch's initialisation, not the paper's normal(0, 0.01): that needs biases of 1 to get going; this
is what is trained today.
"""

from __future__ import annotations

from torch import nn


def alexnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """AlexNet for ImageNet."""
    return nn.Sequential(
        nn.Conv2d(shape[2], 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6), nn.Flatten(),  # 6×6 as it is at 224×224
        nn.Dropout(0.5), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(inplace=True),
        nn.Linear(4096, classes),
    )  # fmt: skip
