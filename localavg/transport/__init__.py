"""How a mean travels: one file a transport, all with the methods of `mpi.HostMPI`, and the choice between them."""

from __future__ import annotations

import sys

from localavg.config import UserError
from localavg.fleet import Fleet
from localavg.transport.mpi import HostMPI
from localavg.transport.shared import SharedMemory


def _tightest(a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
    return min(a, b, key=lambda node: node[0] - node[1])


def choose(name: str, fleet: Fleet, S: int | None, nbytes: int) -> HostMPI:
    """The transport `name` for matrices of nbytes a rank in all; `auto` takes shared memory where they fit. Collective.

    S: learners in a cluster, where the algorithm has clusters. `why` of the result says what decided.
    Raises UserError where a transport that was asked for by name cannot serve.
    """
    if name == "mpi":
        return HostMPI(fleet, S, why="asked for")
    room, need = fleet.world.allreduce((fleet.shared_memory_room(), nbytes * fleet.node.size), op=_tightest)
    if need <= room:
        return SharedMemory(fleet, S, why="asked for" if name == "shared" else "ranks of a node share its memory")
    short = f"/dev/shm has {room / 1e9:.2f} GB free and the learners of a node need {need / 1e9:.2f} GB"
    if name == "shared":
        raise UserError(f"--transport shared: {short}; enlarge it (mount -o remount,size=…) or use --transport mpi")
    if fleet.rank == 0:
        print(f"localavg: transport mpi: {short}", file=sys.stderr)
    return HostMPI(fleet, S, why=short)
