"""Dropout whose random numbers are drawn before the forward pass, into memory that stays.

A CUDA graph reads the seed of all its random numbers from one place, so one graph for many learners
cannot draw each learner's own. Here it draws nothing: a dropout multiplies by a mask that was drawn
before. The masks are those that torch would have drawn, because the same functions draw them, in
the same order, from the same seed, for tensors of the same shape, type and strides. (Tested on the
CPU; a module that drops in place may draw others on a GPU, from the same seed.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

DROPOUTS = (nn.Dropout, nn.Dropout2d)


@dataclass(eq=False)
class Drop:
    """One dropout of a forward pass: the module, what it drops from, and what it keeps."""

    module: nn.Dropout | nn.Dropout2d
    ones: Tensor
    """ones like what a mask is drawn for: all elements, or those of one place per channel"""
    mask: Tensor
    """bool, like `ones`: whether an element is kept"""


@dataclass(eq=False)
class Dropouts:
    """The dropouts of one learner's network, in the order of the forward pass.

    A pass that is not `recorded` lets torch draw, and records what a mask has to look like.
    """

    drops: list[Drop] = field(default_factory=list)
    recorded: bool = False
    place: int = 0
    """which of the drops comes next"""
    _seen: list[tuple[nn.Dropout | nn.Dropout2d, Tensor]] = field(default_factory=list)

    def apply(self, module: nn.Dropout | nn.Dropout2d, x: Tensor) -> Tensor:
        """Return what the dropout `module` makes of x."""
        if not self.recorded:
            self._seen.append((module, torch.empty_like(x, device="meta")))
            return module(x)
        drop = self.drops[self.place]
        self.place = (self.place + 1) % len(self.drops)
        return x * drop.mask * (1 / (1 - module.p))

    def record(self, device: torch.device) -> None:
        """Make the memory for what the first pass has shown."""
        for module, like in self._seen:
            if isinstance(module, nn.Dropout2d):  # torch draws one number for each channel
                like = like.new_empty((*like.shape[:2], 1, 1))
            ones = torch.empty_like(like, device=device).fill_(1)
            self.drops.append(Drop(module, ones, torch.empty_like(ones, dtype=torch.bool)))
        self._seen.clear()
        self.recorded = True

    def draw_(self, seed: int) -> None:
        """Draw all masks of a forward pass."""
        torch.manual_seed(seed)
        for drop in self.drops:
            torch.ne(drop.module(drop.ones), 0, out=drop.mask)


class Masked(nn.Module):
    """Takes the place of a dropout module."""

    def __init__(self, module: nn.Dropout | nn.Dropout2d, masks: Dropouts) -> None:
        super().__init__()
        self.dropout, self.masks = type(module)(module.p), masks

    def forward(self, x: Tensor) -> Tensor:
        return self.masks.apply(self.dropout, x)


def masked_(module: nn.Module, masks: Dropouts) -> nn.Module:
    """Replace the dropouts of a module by those that take their masks from `masks`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DROPOUTS) and child.p:
                setattr(parent, name, Masked(child, masks))
    return module
