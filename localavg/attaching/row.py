"""The tensors of a torch model as views into one flat row, or into memory that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from localavg.errors import UserError
from localavg.learner.flat import Flat
from localavg.parallel.aligned import ALIGN
from localavg.problems.rows import tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

X = TypeVar("X", bound="Tensor")
TYPES = ("torch.float32", "torch.bfloat16", "torch.float16")  # float64 would lose half its digits


class Row(Flat):
    """One learner's flat row w [1, d], float32, for tensors with the shapes and types of `like`.

    A float32 tensor is a view into the row. Neighbours of a smaller type are views into a memory of
    their own: `load_` writes it into the row and `store_` writes the row back, rounded once, each
    with one kernel for all neighbours. Views have the strides of `like`, such as channels_last.

    device: torch's name of the memory that `allocate` gives. master: the row keeps its own values,
    which smaller types cannot hold; `load_` adds to them what the tensors changed since `store_`.

    tensors: the views by name. numbers [d]: the row as a tensor. smaller: for neighbours of a
    smaller type, their part of the row and their memory.
    """

    def __init__(
        self,
        like: Mapping[str, Tensor],
        allocate: Callable,
        parameters: int | None = None,
        device: str | torch.device = "cpu",
        master: bool = False,
    ) -> None:
        import torch

        shapes = {name: tuple(x.shape) for name, x in like.items()}
        super().__init__(shapes, 1, parameters, allocate, ALIGN)
        self.master = master
        self.numbers = tensor(self.w[0], device)
        self.tensors: dict[str, Tensor] = {}
        self.smaller: list[tuple[Tensor, Tensor]] = []
        end = 0
        for dtype, group in groupby(like, lambda name: like[name].dtype):
            names, start = list(group), end
            end = -(-self.segments[names[-1]].stop // ALIGN) * ALIGN
            memory = part = self.numbers[start:end]
            if dtype != torch.float32:
                memory = torch.zeros(end - start, dtype=dtype, device=device)
                self.smaller.append((part, memory))
            for name in names:
                segment = self.segments[name]
                place = memory[segment.start - start : segment.stop - start]
                self.tensors[name] = _laid(place, like[name])

    def load_(self) -> None:
        """Write the tensors of smaller types into the row; with `master`, add their changes."""
        for part, memory in self.smaller:
            if self.master:
                change = memory.float()
                change -= part.to(memory.dtype)  # what `store_` wrote
                part.add_(change)
            else:
                part.copy_(memory)

    def store_(self) -> None:
        """Write the row into the tensors of smaller types, rounded once."""
        for part, memory in self.smaller:
            memory.copy_(part)

    def copied(self, into: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return copies of the row and of the tensors, for `restore_`.

        into: earlier copies, whose memory is used again.
        """
        if into is None:
            return [x.clone() for x in self._memories()]
        return [copy.copy_(x) for copy, x in zip(into, self._memories(), strict=True)]

    def restore_(self, copies: Sequence[Tensor]) -> None:
        """Write the values back that `copied` returned."""
        for memory, x in zip(self._memories(), copies, strict=True):
            memory.copy_(x)

    def masters(self) -> dict[str, Tensor]:
        """Return by name, as views, what the row keeps for tensors of smaller types."""
        kept = {name: x for name, x in self.tensors.items() if str(x.dtype) != TYPES[0]}
        if not self.master:
            return {}
        return {name: _laid(self.numbers[self.segments[name]], x) for name, x in kept.items()}

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
                if (x.dtype, x.device) != (view.dtype, view.device):
                    raise UserError(
                        f"attach: {name} is {x.dtype} on {x.device} now, and was {view.dtype} on "
                        f"{view.device}; convert and move the model before attach"
                    )
                view.copy_(x.detach())
                x.data = view

    def _memories(self) -> list[Tensor]:
        return [self.numbers, *(memory for _, memory in self.smaller)]


def _laid(memory: Tensor, like: Tensor) -> Tensor:
    """Return contiguous memory as a tensor with the shape of `like`, and its strides if dense."""
    import torch

    return memory.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def averaged(model: Module, statistics: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a model that are averaged, by name.

    These are the parameters and, with `statistics`, the floating-point buffers after them.
    """
    buffers = {name: b for name, b in model.named_buffers() if statistics and b.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def by_type(tensors: Mapping[str, X]) -> dict[str, X]:
    """Return the tensors of one type as neighbours; parameters stay before all others."""
    from torch.nn import Parameter

    def order(item: tuple[str, X]) -> tuple[bool, str]:
        return not isinstance(item[1], Parameter), str(item[1].dtype)

    return dict(sorted(tensors.items(), key=order))


def check_tensor(name: str, x: Tensor) -> None:
    """Raise UserError if a tensor is of another type, or elsewhere, than rows can hold."""
    if str(x.dtype) not in TYPES or x.device.type not in ("cpu", "cuda"):
        wide = x.is_floating_point() and str(x.dtype) not in TYPES
        raise UserError(
            f"attach: {name} is {x.dtype} on {x.device}; weights must be {TYPES[0]}, bfloat16 or "
            "float16, on the CPU or on a CUDA GPU"
            + ("; call model.float() before attach" if wide else "")
        )
