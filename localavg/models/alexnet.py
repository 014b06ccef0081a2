"""AlexNet: Krizhevsky, Sutskever and Hinton (2012) and, for the form used here, Krizhevsky (2014).

The papers are ImageNet classification with deep convolutional neural networks, NIPS, and One weird
trick for parallelizing convolutional neural networks, arXiv:1404.5997. The form is that of the
second: one column, dropout, no local response normalisation.

Weights start with torch's initialisation, as is usual today, in place of the paper's
normal(0, 0.01), which trains only with biases of 1.
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
