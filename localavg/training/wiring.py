"""The wire of a run: which transport codes its averages, and what of its rows."""

from __future__ import annotations

from localavg.algorithms.base import Algorithm
from localavg.algorithms.wire import Wire
from localavg.learner.flat import Flat
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.in_code import Coding, InCode
from localavg.parallel.transport.mpi import HostMPI


def coding(wire: Wire, flat: Flat, seed: int) -> Coding:
    """Return what of the rows flat.w is coded: the tensors that are trained."""
    n = flat.d_trained
    tensors = [
        (segment, flat.shapes[name]) for name, segment in flat.segments.items() if segment.stop <= n
    ]
    return Coding(n, tensors, wire.code, wire.r, seed)


def use(algorithm: Algorithm, transport: HostMPI, fleet: Fleet, flat: Flat, seed: int) -> None:
    """Let the transport code averages by the algorithm's wire, if it has one.

    Raises UserError on all ranks if it cannot.
    """
    wire = algorithm.wire
    if wire is not None:
        assert isinstance(transport, InCode), "made by `in_code`"
        transport.pieces = algorithm.average.pieces
        fleet.together(lambda: transport.use(coding(wire, flat, seed)))


def wired(transport: object) -> InCode | None:
    """Return a transport that codes averages; None if this one does not."""
    return transport if isinstance(transport, InCode) and transport.coding is not None else None
