"""Means over ranks by NCCL, queued in the stream of the kernels, with no wait. One GPU a rank."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from localavg.interfaces import Array
from localavg.parallel.device import Cuda, address
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.mpi import CHUNK
from localavg.parallel.transport.on_device import OnDevice


class Nccl(OnDevice):
    """Means by one NCCL communicator for each group that spans ranks.

    The first rank of a group makes the communicator's id and broadcasts it over MPI.

    background: the transport of another thread. Two sums that are on a GPU at once may each wait
    for the other's end, if another rank's GPU began them in another order (NCCL's guide, "Using
    multiple NCCL communicators concurrently"). So all ranks wait for that in the background, until
    it has `landed`, before they begin another one.
    """

    name = "nccl"
    background: Nccl | None = None

    def __init__(
        self, fleet: Fleet, device: Cuda, clusters: Sequence[int] = (), why: str = "asked for"
    ) -> None:
        super().__init__(fleet, device, clusters, why)
        nccl = device.nccl
        assert nccl is not None, "ask `refusal` first"
        self.nccl = nccl
        self.landed = threading.Event()
        self.landed.set()
        self._of: dict[int, Any] = {}  # id of an MPI communicator -> CuPy's NcclCommunicator
        for groups in self.groups.values():
            for comm in (group.comm for group in groups if group.comm is not None):
                key = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
                self._of[id(comm)] = nccl.NcclCommunicator(comm.size, key, comm.rank)

    def again(self, fleet: Fleet) -> Nccl:
        self.background = made = type(self)(fleet, self.device, self.clusters, "in the background")
        return made

    def aside(self) -> AbstractContextManager[None]:
        self.landed = landed = threading.Event()
        return _landing(super().aside(), landed)

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        if group.comm is None:
            return
        if self.background is not None:
            self.background.landed.wait()
        comm, stream = self._of[id(group.comm)], self.device.stream()
        kind = self.nccl.NCCL_FLOAT32, self.nccl.NCCL_SUM
        for i in range(0, len(x), CHUNK):
            piece = x[i : i + CHUNK]
            start = address(piece)  # of what is sent and of what is received
            comm.allReduce(start, start, len(piece), *kind, stream.ptr)


@contextmanager
def _landing(aside: AbstractContextManager[None], landed: threading.Event) -> Iterator[None]:
    """Set `landed` at the end of the context `aside`, whatever happened in it."""
    try:
        with aside:
            yield
    finally:
        landed.set()


def refusal(fleet: Fleet, device: Cuda) -> str:
    """Return why NCCL cannot be used here, "" if it can; the same on every rank. Collective."""
    if not all(fleet.world.allgather(device.nccl is not None)):
        return "CuPy here comes without NCCL"
    return _crowded(fleet.world.allgather(device.identity))


def _crowded(identities: Sequence[tuple[str, str]]) -> str:
    """Return which GPU several ranks share, "" if each rank has its own; identities [R]."""
    for (host, gpu), users in Counter(identities).items():
        if users > 1:
            return f"{users} ranks share GPU {gpu} of {host}, and NCCL takes one rank a GPU"
    return ""
