"""Means over ranks by NCCL, in the stream of the kernels: nothing to wait for. One GPU a rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from localavg.parallel.device import Cuda
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.mpi import CHUNK
from localavg.parallel.transport.on_device import OnDevice
from localavg.scope import Scope


class Nccl(OnDevice):
    """A communicator of NCCL for each group that spans ranks, made from an id that its first rank
    broadcasts over MPI.
    """

    name = "nccl"

    def __init__(
        self, fleet: Fleet, device: Cuda, S: int | None = None, why: str = "asked for"
    ) -> None:
        super().__init__(fleet, device, S, why)
        nccl = self.nccl = device.nccl
        self._of: dict[int, Any] = {}  # by the MPI communicator's id
        for scope in (Scope.CLUSTER, Scope.WORLD):
            for comm in (group.comm for group in self.groups[scope] if group.comm is not None):
                key = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
                self._of[id(comm)] = nccl.NcclCommunicator(comm.size, key, comm.rank)

    def _sum_over_ranks_(self, x: Any, group: Group) -> None:
        if group.comm is None:
            return
        comm, stream = self._of[id(group.comm)], self.device.stream()
        for i in range(0, len(x), CHUNK):
            piece = x[i : i + CHUNK]
            comm.allReduce(
                piece.data.ptr,
                piece.data.ptr,
                len(piece),
                self.nccl.NCCL_FLOAT32,
                self.nccl.NCCL_SUM,
                stream.ptr,
            )


def refusal(fleet: Fleet, device: Cuda) -> str:
    """Why NCCL cannot serve, "" if it can; the same on every rank. Collective."""
    if not all(fleet.world.allgather(device.nccl is not None)):
        return "CuPy here comes without NCCL"
    return _crowded(fleet.world.allgather(device.identity))


def _crowded(identities: Sequence[tuple[str, str]]) -> str:
    for (host, gpu), users in Counter(identities).items():
        if users > 1:
            return f"{users} ranks share GPU {gpu} of {host}, and NCCL takes one rank a GPU"
    return ""
