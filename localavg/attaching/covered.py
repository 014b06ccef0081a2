"""Which parameters of a model its optimisers train, and which tensors they should not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from localavg.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer


def parts(
    parameters: Mapping[str, Parameter], optimizers: Sequence[Optimizer]
) -> list[dict[str, Parameter]]:
    """Return the model's parameters that each optimiser has, by name.

    Raises UserError for a parameter that two optimisers have.
    """
    held = [covered([optimizer]) for optimizer in optimizers]
    for name, p in parameters.items():
        if sum(id(p) in ids for ids in held) > 1:
            raise UserError(
                f"attach: {name} is in two of the optimizers given; leave it in one of them"
            )
    return [{name: p for name, p in parameters.items() if id(p) in ids} for ids in held]


def covered(optimizers: Sequence[Optimizer]) -> set[int]:
    """Return the identities of the parameters that some optimiser has."""
    return {id(p) for x in optimizers for group in x.param_groups for p in group["params"]}


def uncovered(model: Module, known: set[int]) -> str:
    """Return what is wrong if a trainable parameter is not among the `known` ones, else ""."""
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in known:
            return (
                f"attach: {name} is trainable and in none of the optimizers given at attach; give "
                "all of them when the model is complete, or freeze it (requires_grad_(False))"
            )
    return ""


def foreign(model: Module, optimizers: Sequence[Optimizer], known: Collection[int] = ()) -> str:
    """Return what is wrong if an optimiser trains a tensor that is not in the model, else "".

    known: the identities of tensors that are left out.
    """
    mine = {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            names = group.get("param_names") or [""] * len(group["params"])
            for p, name in zip(group["params"], names, strict=True):
                if p.requires_grad and id(p) not in mine and id(p) not in known:
                    what = name or f"a tensor {tuple(p.shape)}"
                    return (
                        f"attach: {type(optimizer).__name__} trains {what} (group {number}), which "
                        "is not in the model and would never be averaged; attach one module that "
                        "has everything, as nn.ModuleList([model, head])"
                    )
    return ""
