"""The start of `attach`: the model moves into its row, and all ranks start from equal weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from localavg.attaching.asked import Asked
from localavg.attaching.covered import parts
from localavg.attaching.gradients import Gradients
from localavg.attaching.place import Place
from localavg.attaching.row import Row, by_type
from localavg.attaching.state import TorchState, words
from localavg.errors import at_least, whole
from localavg.interfaces import Transport
from localavg.parallel.aligned import ALIGN
from localavg.parallel.device import Cuda, on_host, put_
from localavg.parallel.probe import known
from localavg.parallel.transport import choose, in_background, in_code
from localavg.training import wiring

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Rows(NamedTuple):
    """The rows of a model: its tensors, their gradients (none where weights travel), its state.

    background: the transport of means that travel while the learner goes on, None without a delay.
    """

    transport: Transport
    background: Transport | None
    flat: Row
    gradients: Gradients
    state: TorchState


def start(asked: Asked, tensors: Mapping[str, Tensor], place: Place, again: bool = False) -> Rows:
    """Move these tensors into a row, equal on all ranks, and make the other rows. Collective.

    again: whether ranks were lost before.
    """
    start_rounds(asked)
    fleet, algorithm, where = asked.fleet, asked.algorithm, place.where
    floats = sum(-(-x.numel() // ALIGN) * ALIGN for x in tensors.values())
    rows = (
        1 + bool(algorithm.exchange.scope) + 2 * ("average" in words(asked.state))
    )  # Adam's at most
    rows += algorithm.delay is not None  # the copies
    kept = algorithm.average.kept + (algorithm.wire is not None)
    share = kept / max(1, fleet.sharing)  # once for all learners
    nbytes = int(4 * (rows + share) * floats)
    between = isinstance(place.device, Cuda) and fleet.ranks > 1
    aware = known() if between and fleet.rank == 0 else None
    transport = choose("auto", fleet, algorithm.clusters, nbytes, place.device, aware, n=floats)
    if algorithm.wire is not None:
        transport = in_code(transport, fleet, crossed=again)
    flat = start_equal_(asked, tensors, transport, where)
    fleet.together(lambda: algorithm.average.cut(flat.d))
    held = parts(by_type(dict(asked.model.named_parameters())), asked.optimizers)
    gradients = Gradients(held if algorithm.exchange.scope else [], transport, where)
    state = TorchState(asked.state, asked.optimizers, held, fleet, transport, where)
    background = in_background(transport, fleet) if algorithm.delay else None
    wiring.use(algorithm, background or transport, fleet, flat, asked.seed)
    return Rows(transport, background, flat, gradients, state)


def start_rounds(asked: Asked) -> None:
    """Draw the learners of the first round. Collective.

    Raises UserError on every rank for numbers of learners, or of their rows, that cannot be.
    """
    fleet, participants, rows = asked.fleet, asked.algorithm.participants, asked.rows

    def checked() -> int | None:
        if rows is not None:
            whole("rows", rows)
        at_least("rows", rows, 1)
        return rows

    found = fleet.world.allgather(fleet.together(checked))
    known = None if None in found else found
    fleet.together(lambda: participants.start(fleet.learners, fleet.P, asked.seed, known))


def start_equal_(
    asked: Asked, tensors: Mapping[str, Tensor], transport: Transport, device: torch.device
) -> Row:
    """Move these tensors of the model into a row, and return the row. Collective.

    The row, and the model's buffers that are not in it, get the values of rank 0.
    """
    model, world = asked.model, asked.fleet.world
    parameters = len(dict(model.named_parameters()))
    flat = asked.fleet.together(
        lambda: Row(tensors, transport.zeros, parameters, device, asked.master)
    )
    flat.adopt(tensors)
    flat.load_()
    values = on_host(flat.w[0])
    world.Bcast(values)
    put_(flat.w[0], values)
    flat.store_()
    for name, b in model.named_buffers():
        if name not in tensors:
            first = world.bcast(b.cpu())  # whose device may have another number elsewhere
            if any(stride == 0 and n > 1 for n, stride in zip(b.shape, b.stride(), strict=True)):
                # of an expanded tensor, whose entries cannot be written
                b.data = first.to(b.device)
            else:
                b.copy_(first)
    return flat
