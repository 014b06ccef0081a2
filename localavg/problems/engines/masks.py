"""Dropout whose masks are drawn before the forward pass, each learner's as `loop` draws them.

Several learners at once, or in one CUDA graph, cannot draw each learner's own numbers: torch has
one generator, and a graph reads its seed from one place. So they draw nothing: a dropout multiplies
by a mask. The masks are those that torch would have drawn, because its own dropouts draw them, in
the same order, from the same seed, for tensors of the same shape, type and strides. (Tested on the
CPU; a module that drops in place may draw others on a GPU, from the same seed.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localavg.interfaces import Array
from localavg.problems.rows import Bound, Rows

DROPOUTS = (nn.Dropout, nn.Dropout2d)


class Draw(NamedTuple):
    """A dropout of a forward pass."""

    module: nn.Module
    ones: Tensor
    """ones like what the mask is drawn for: all elements, or one place of each channel"""


class Masks:
    """What the dropouts of a network draw in one gradient of a learner, in their order.

    The places of the draws are taken from one forward pass of the module on x [B, C, H, W] at a
    copy of the row w [d].
    """

    def __init__(
        self,
        skeleton: nn.Module,
        rows: Rows,
        w: Array,
        x: Tensor,
        autocast: AbstractContextManager[object],
    ) -> None:
        self.draws: list[Draw] = []
        module = Bound(copy.deepcopy(skeleton), rows, w.copy(), None, 0, autocast, False).module
        for part in module.train().modules():
            if isinstance(part, DROPOUTS) and part.p:
                part.register_forward_pre_hook(self._note)
        with torch.no_grad(), autocast:
            module(x)

    def places(self, L: int) -> list[Tensor]:
        """Make memory for the masks [L, …] of L learners."""
        return [
            torch.empty_strided(
                (L, *ones.shape), (ones.numel(), *ones.stride()), dtype=ones.dtype,
                device=ones.device,
            )
            for _, ones in self.draws
        ]  # fmt: skip

    def draw_(self, seeds: Sequence[int], masks: list[Tensor]) -> list[Tensor]:
        """Draw the masks of learners whose draws begin with these seeds; return them."""
        with torch.no_grad():
            for l, seed in enumerate(seeds):
                torch.manual_seed(seed)
                for draw, mask in zip(self.draws, masks, strict=True):
                    mask[l].copy_(draw.module(draw.ones))
        return masks

    def _note(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        like = torch.empty_like(x)
        if isinstance(module, nn.Dropout2d):  # a number for each channel of an example
            like = x.new_empty(*x.shape[:2], *(1 for _ in x.shape[2:]))
        self.draws.append(Draw(type(module)(module.p), like.fill_(1)))


class Masked(nn.Module):
    """Takes the place of a dropout: multiplies by the next mask."""

    def __init__(self, masks: cycle[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        return x * next(self.masks)


def masked_(module: nn.Module, masks: Sequence[Tensor]) -> nn.Module:
    """Replace the dropouts of a module, whose passes use these masks in turn."""
    turns = cycle(masks)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DROPOUTS) and child.p:
                setattr(parent, name, Masked(turns))
    return module
