"""The tensors of a torch model as views into one flat row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from localavg.errors import UserError
from localavg.learner.flat import Flat
from localavg.parallel.aligned import ALIGN

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Row(Flat):
    """One learner's flat row [1, d] for tensors with the shapes of `like`.

    tensors: the views into the row, by name.
    """

    def __init__(
        self, like: Mapping[str, Tensor], allocate: Callable, parameters: int | None = None
    ) -> None:
        import torch

        super().__init__(
            {name: tuple(x.shape) for name, x in like.items()}, 1, parameters, allocate, ALIGN
        )
        self.tensors = {name: torch.from_numpy(view) for name, view in self.views(0).items()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Move each tensor's memory and contents to the view of its name, if not there yet.

        This is repeated at every average, because a tensor may have been replaced since the last
        one: a module assigns a new buffer, or the user calls load_state_dict(assign=True).
        """
        for name, x in tensors.items():
            view = self.tensors.get(name)
            if view is None or x.shape != view.shape:
                raise UserError(
                    f"attach: {name} is new or has another shape now; attach when the model is "
                    "complete"
                )
            if x.data_ptr() != view.data_ptr() and x.numel():
                check_tensor(name, x)
                view.copy_(x.detach())
                x.data = view


def averaged(model: Module, statistics: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a model that are averaged, by name.

    These are the parameters and, with `statistics`, the floating-point buffers after them.
    """
    buffers = {name: b for name, b in model.named_buffers() if statistics and b.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def check_tensor(name: str, x: Tensor) -> None:
    """Raise UserError if a tensor is not float32 on the CPU."""
    if str(x.dtype) != "torch.float32" or x.device.type != "cpu":
        raise UserError(
            f"attach: {name} is {x.dtype} on {x.device}; weights must be torch.float32 on the CPU "
            "so far"
        )
