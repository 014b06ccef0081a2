"""Images as networks see them: (x − mean)/std, on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from localavg.datasets import Dataset
from localavg.parallel.aligned import ALIGN


class Normalise:
    """(x − mean)/std by the channels of a dataset, as x · scale + shift.

    x: [m, H, W, C] uint8; the result is float32.
    """

    def __init__(self, data: Dataset, device: str) -> None:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (data.mean, data.std))
        shape = data.image_shape
        # A number for each pixel, not each channel: an inner loop of three is ten times slower.
        self._scale, self._shift = (  # [H, W, C]
            values.to(torch.float32).expand(shape).contiguous().to(device)
            for values in (1 / std, -mean / std)
        )
        self._out = torch.empty((0, *shape), device=device)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the normalised images, in `out` float32 or in a buffer.

        The next call with as many images overwrites those in a buffer.
        """
        if out is None:
            if len(self._out) != len(x):
                self._out = torch.empty(x.shape, device=x.device)
            out = self._out
        out.copy_(x)
        return torch.addcmul(self._shift, out, self._scale, out=out)


def batches(L: int, B: int, shape: tuple[int, int, int], device: str) -> Tensor:
    """Make memory for the images of L learners, float32 [L, B, H, W, C].

    Each learner's begin at a multiple of 256 bytes, as cuDNN and vectorised kernels want it.
    """
    n = B * math.prod(shape)
    return torch.empty((L, -(-n // ALIGN) * ALIGN), device=device)[:, :n].view(L, B, *shape)


def moved(x: Tensor, device: str) -> Tensor:
    """Return x on the device; it goes to a GPU by pinned memory, so that no copy has to wait."""
    return x if device == "cpu" else x.pin_memory().to(device, non_blocking=True)


def stacked(made: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return x [L, B, C, H, W], y [L, B] of batches each of which is valid until the next."""
    copies = [(x.permute(0, 2, 3, 1).clone(), y.clone()) for x, y in made]
    x, y = zip(*copies, strict=True)
    return torch.stack(x).permute(0, 1, 4, 2, 3), torch.stack(y)
