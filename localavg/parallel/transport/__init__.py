"""How a mean travels, and the choice between the transports.

Every transport has a file of its own, and the methods of `mpi.HostMPI`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from localavg.errors import UserError, amount
from localavg.interfaces import Device
from localavg.parallel.device import Cuda
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.shared import SharedMemory

if TYPE_CHECKING:
    from localavg.parallel.probe import Probe

# `auto` takes the first one that works
ON_HOST, ON_DEVICE = ("shared", "mpi"), ("nccl", "cuda_aware", "staged")


def _tightest(a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
    return min(a, b, key=lambda node: node[0] - node[1])


def choose(
    name: str,
    fleet: Fleet,
    S: int | None,
    learner_bytes: int,
    device: Device | None = None,
    aware: Probe | None = None,
) -> HostMPI:
    """Make the transport `name`; `auto` takes the first one that works. Collective.

    S: learners in a cluster, None without clusters. learner_bytes: the bytes of one learner's rows
    in all matrices together. device: where the rows are, the host by default. aware: the result of
    doctor's test of MPI on device memory, on rank 0. `why` of the transport is the reason for the
    choice. Raises UserError if a transport that was asked for by name does not work here.
    """
    if isinstance(device, Cuda):
        return _on_device(name, fleet, S, device, aware)
    return _on_host(name, fleet, S, learner_bytes)


def _on_host(name: str, fleet: Fleet, S: int | None, learner_bytes: int) -> HostMPI:
    """Make a transport of the host's memory; the node's shared memory if it has the room."""
    if name in ON_DEVICE:
        raise UserError(
            f"`transport = {name}`: it averages a GPU's memory; add `device = cuda`, or use auto, "
            "shared or mpi"
        )
    if name == "mpi":
        return HostMPI(fleet, S, why="asked for")
    need = learner_bytes * fleet.sharing
    room, need = fleet.world.allreduce((fleet.shared_memory_room(), need), op=_tightest)
    if need <= room:
        return SharedMemory(
            fleet, S, why="asked for" if name == "shared" else "ranks of a node share its memory"
        )
    short = f"/dev/shm has {amount(room)} free and the learners of a host need {amount(need)}"
    if name == "shared":
        raise UserError(
            f"`transport = shared`: {short}; enlarge it (mount -o remount,size=…) or use "
            "`transport = mpi`"
        )
    _tell(fleet, f"mpi: {short}")
    return HostMPI(fleet, S, why=short)


def _on_device(
    name: str, fleet: Fleet, S: int | None, device: Cuda, aware: Probe | None
) -> HostMPI:
    """Make a transport of a GPU's memory."""
    from localavg.parallel.transport import nccl
    from localavg.parallel.transport.cuda_aware import CudaAware
    from localavg.parallel.transport.staged import Staged

    if name in ON_HOST:
        raise UserError(
            f"`transport = {name}`: it averages the host's memory; with `device = cuda` use auto, "
            "nccl, cuda_aware or staged"
        )
    works, found = fleet.world.bcast(
        (aware.works, aware.why) if aware is not None else (None, "not tried")
    )
    refusals = {
        "nccl": nccl.refusal(fleet, device),
        "staged": "",
        "cuda_aware": "" if works else f"MPI on device memory: {found}",
    }
    if name != "auto":
        if refusals[name]:
            raise UserError(
                f"`transport = {name}`: {refusals[name]}; use `transport = auto`, or see localavg "
                "doctor --fresh"
            )
        chosen, why = name, "asked for"
    else:
        chosen = next(way for way in ON_DEVICE if not refusals[way])
        passed = [f"not {way}: {refusals[way]}" for way in ON_DEVICE[: ON_DEVICE.index(chosen)]]
        why = "; ".join(passed) or "one GPU a rank"
        _tell(fleet, f"{chosen}: {why}")
    return {"nccl": nccl.Nccl, "cuda_aware": CudaAware, "staged": Staged}[chosen](
        fleet, device, S, why
    )


def _tell(fleet: Fleet, text: str) -> None:
    if fleet.rank == 0:
        print(f"localavg: transport {text}", file=sys.stderr)
