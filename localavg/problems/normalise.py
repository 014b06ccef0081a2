"""Images as networks see them: (x − mean)/std, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from localavg.datasets import Dataset


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

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised images, in a buffer.

        The next call with as many images overwrites them.
        """
        if len(self._out) != len(x):
            self._out = torch.empty(x.shape, device=x.device)
        self._out.copy_(x)
        return torch.addcmul(self._shift, self._out, self._scale, out=self._out)


def moved(x: Tensor, device: str) -> Tensor:
    """Return x on the device; it goes to a GPU by pinned memory, so that no copy has to wait."""
    return x if device == "cpu" else x.pin_memory().to(device, non_blocking=True)
