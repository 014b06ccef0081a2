"""The start of `attach`: the model moves into its row, and all ranks start from equal weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from localavg.attaching.checks import Asked
from localavg.attaching.row import Row
from localavg.interfaces import Transport
from localavg.parallel.aligned import ALIGN

if TYPE_CHECKING:
    from torch import Tensor


def row_bytes(asked: Asked, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of one learner's rows: weights, gradients, and the state of Adam at most."""
    rows = 1 + bool(asked.algorithm.exchange.scope) + 2 * (asked.state == "average")
    share = asked.algorithm.average.kept / max(1, asked.fleet.sharing)  # once for all learners
    return int(4 * (rows + share) * sum(-(-x.numel() // ALIGN) * ALIGN for x in tensors.values()))


def start_equal_(asked: Asked, tensors: Mapping[str, Tensor], transport: Transport) -> Row:
    """Move these tensors of the model into a row, and return the row. Collective.

    The row, and the model's buffers that are not in it, get the values of rank 0.
    """
    model, world = asked.model, asked.fleet.world
    flat = Row(tensors, transport.zeros, len(dict(model.named_parameters())))
    flat.adopt(tensors)
    world.Bcast(flat.w[0])
    for name, b in model.named_buffers():
        if name not in tensors:
            first = world.bcast(b)
            if any(stride == 0 and n > 1 for n, stride in zip(b.shape, b.stride(), strict=True)):
                b.data = first  # of an expanded tensor, whose entries cannot be written
            else:
                b.copy_(first)
    return flat
