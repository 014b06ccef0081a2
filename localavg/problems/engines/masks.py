"""The dropout masks of several learners, each learner's drawn as `loop` draws them."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localavg.interfaces import Array
from localavg.problems.engines.dropout import DROPOUTS
from localavg.problems.rows import Bound, Rows


class Draw(NamedTuple):
    """One mask: each entry is 0 with probability p, else 1 / (1 − p)."""

    p: float
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    size: int
    """entries of memory"""


class Masks:
    """What the dropouts of a network draw in one gradient of a learner, in their order.

    A dropout fills a mask that lies in memory as its input does. These places are taken from one
    forward pass of the module on x [B, C, H, W] at a copy of the row w [d].
    """

    def __init__(
        self,
        skeleton: nn.Module,
        rows: Rows,
        w: Array,
        x: Tensor,
        autocast: AbstractContextManager[object],
    ) -> None:
        self.device = rows.device
        self.draws: list[Draw] = []
        module = Bound(copy.deepcopy(skeleton), rows, w.copy(), None, 0, autocast, False).module
        for part in module.train().modules():
            if isinstance(part, DROPOUTS) and part.p:
                part.register_forward_pre_hook(self._note)
        with torch.no_grad(), autocast:
            module(x)

    def draw(self, seeds: list[int]) -> list[Tensor]:
        """Return the masks [L, …] of L learners, whose draws begin with these seeds."""
        masks = []
        for draw in self.draws:
            shape, stride = (len(seeds), *draw.shape), (draw.size, *draw.stride)
            masks.append(torch.empty_strided(shape, stride, dtype=draw.dtype, device=self.device))
        for l, seed in enumerate(seeds):
            torch.manual_seed(seed)
            for draw, mask in zip(self.draws, masks, strict=True):
                mask[l].bernoulli_(1 - draw.p)
        for draw, mask in zip(self.draws, masks, strict=True):
            mask /= max(1 - draw.p, 1e-30)  # p = 1: 0, as torch's
        return masks

    def _note(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        noise = torch.empty_like(x)
        if isinstance(module, nn.Dropout2d):  # a number for each channel of an example
            noise = x.new_empty(*x.shape[:2], *(1 for _ in x.shape[2:]))
        self.draws.append(
            Draw(module.p, tuple(noise.shape), noise.stride(), x.dtype, noise.numel())
        )
