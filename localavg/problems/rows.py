"""Torch modules over the rows of the flat matrix: their tensors are views into a row.

A row holds the parameters, then the floating-point statistics (BatchNorm's running mean and
variance). Convolution kernels lie as (O, H, W, I) in a row, which torch calls channels_last and
computes with faster.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from localavg.interfaces import Array
from localavg.learner.flat import Places
from localavg.parallel.aligned import ALIGN


class Rows:
    """The places of a module's tensors in a row [d], in the memory of `device`.

    shapes: the tensors by name as they lie in a row; parameters: how many of them are trained, the
    first ones; n: the columns of those; d: the length of a row.
    """

    def __init__(self, module: nn.Module, device: str) -> None:
        self.device = device
        self.shapes = {name: _in_memory(x) for name, x in floating(module).items()}
        self.parameters = len(list(module.parameters()))
        places = Places(self.shapes, self.parameters, ALIGN)
        self.segments, self.n, self.d = places.segments, places.d_trained, places.d

    def tensor(self, row: Array | Tensor) -> Tensor:
        """Return a row as a tensor in the same memory."""
        return tensor(row, self.device)

    def views(self, row: Array | Tensor) -> dict[str, Tensor]:
        """Return the tensors of a row [d] by name, in the module's shapes."""
        return {name: _as_seen(x) for name, x in self.lying(self.tensor(row)).items()}

    def lying(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the tensors of rows [d] or [L, d] by name, as they lie in a row."""
        return {
            name: rows[..., segment].view((*rows.shape[:-1], *self.shapes[name]))
            for name, segment in self.segments.items()
        }


class Bound:
    """A module over one row w [d], and the row's parameters w and gradients g [n] as tensors.

    `module` becomes the one whose tensors are views into the row. With g [d] it trains and its
    gradients are kept there; without, it evaluates. l2: weight decay. autocast: the context that
    the forward pass runs in. compiled: compile the module by torch. at_once: add the gradients of
    all tensors to g after a backward pass, by a few kernels of a GPU, not one by one in it; the
    bits are the same, and the gradients take their memory twice until then.
    """

    def __init__(
        self,
        module: nn.Module,
        rows: Rows,
        w: Array,
        g: Array | None,
        l2: float,
        autocast: AbstractContextManager[object],
        compiled: bool,
        at_once: bool = False,
    ) -> None:
        self.module, self.rows, self.l2, self.autocast = module, rows, l2, autocast
        self.at_once = at_once
        tensors = rows.views(w)
        for prefix, part in module.named_modules():
            for name in [name for name, p in part._parameters.items() if p is not None]:
                part._parameters[name] = nn.Parameter(tensors[f"{prefix}.{name}".lstrip(".")])
            for name in part._buffers:  # num_batches_tracked has no place in a row and becomes None
                part._buffers[name] = tensors.get(f"{prefix}.{name}".lstrip("."))
        self.w = rows.tensor(w)[: rows.n]  # [n]
        self.g = None if g is None else self._point_gradients(g)  # [n]
        if self.at_once and g is not None:
            self._forget()
        module.train(g is not None)
        if compiled:
            module.compile()

    def gradient_(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradient of the loss on x [B, C, H, W], y [B] and the weight decay into g.

        Return the loss.
        """
        torch.mul(self.w, self.l2, out=self.g)  # to which the gradients are added
        with self.autocast:
            loss = cross_entropy(self.module(x), y)
        loss.backward()
        if self.at_once:
            found = [(g, p.grad) for p, g in self.views.items() if p.grad is not None]
            torch._foreach_add_([g for g, _ in found], [more for _, more in found])
            self._forget()  # whose memory the next learner takes
        return loss.detach()

    def _forget(self) -> None:
        """Give the gradients of single tensors up."""
        for parameter in self.views:
            parameter.grad = None

    def accumulate_(self) -> Tensor:
        """Set g to zero and return it; later backward passes accumulate into it."""
        if self.g is None:
            self.g = self._point_gradients(torch.zeros(self.rows.d, device=self.rows.device))
        return self.g.zero_()

    def _point_gradients(self, row: Array | Tensor) -> Tensor:
        """Have backward passes write into a row [d]; return its gradients [n]."""
        views = self.rows.views(row)
        self.views = {p: views[name] for name, p in self.module.named_parameters()}
        for parameter, view in self.views.items():
            parameter.grad = view
        return self.rows.tensor(row)[: self.rows.n]


def tensor(row: Array | Tensor, device: str | torch.device) -> Tensor:
    """Return a row as a tensor in the same memory, which is that of `device`.

    NumPy's memory is on the host, CuPy's is found by its __cuda_array_interface__. A tensor is
    returned as it is.
    """
    if isinstance(row, np.ndarray):
        return torch.from_numpy(row)
    return torch.as_tensor(row, device=device)


def floating(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, then the floating-point statistics, by name."""
    statistics = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    return dict(module.named_parameters()) | statistics


def _in_memory(x: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor as it lies in a row: kernels have their input channels last."""
    return tuple(x.permute(0, 2, 3, 1).shape if x.dim() == 4 else x.shape)


def _as_seen(x: Tensor) -> Tensor:
    """Return a tensor that lies in a row in the shape that its module uses."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
