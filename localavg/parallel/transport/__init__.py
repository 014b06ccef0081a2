"""How a mean travels, and the choice between the transports.

Every transport has a file of its own, and the methods of `mpi.HostMPI`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from mpi4py import MPI

from localavg.errors import UserError, amount
from localavg.interfaces import Device, Transport
from localavg.parallel.device import Cuda
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import nccl
from localavg.parallel.transport.cuda_aware import CudaAware
from localavg.parallel.transport.in_code import InCode
from localavg.parallel.transport.in_code_on_device import InCodeOnDevice
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.nccl import Nccl
from localavg.parallel.transport.on_device import OnDevice
from localavg.parallel.transport.shared import SharedMemory
from localavg.parallel.transport.staged import Staged
from localavg.parallel.transport.trial import fastest

if TYPE_CHECKING:
    from localavg.parallel.probe import Probe

AUTO = "auto"
"""the name that leaves the choice to this file"""
ON_HOST = ("shared", "mpi")
BETWEEN_GPUS: tuple[type[OnDevice], ...] = (Nccl, CudaAware, Staged)


def _tightest(a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
    return min(a, b, key=lambda node: node[0] - node[1])


def choose(
    name: str,
    fleet: Fleet,
    clusters: Sequence[int],
    learner_bytes: int,
    device: Device | None = None,
    aware: Probe | None = None,
    n: int | None = None,
    earlier: str | None = None,
) -> HostMPI:
    """Make the transport `name`. Collective.

    On the host `auto` takes the node's shared memory if it has the room. Between GPUs it times an
    average by each way that works, and takes the fastest.

    clusters: learners in a cluster of each level, innermost first; none without clusters.
    learner_bytes: the bytes of one learner's rows in all matrices together. device: where the rows
    are, the host by default. aware: the result of doctor's test of MPI on device memory, on rank 0.
    n: the floats of a row that is averaged, by default all of learner_bytes. earlier: the transport
    of the run that is resumed, which `auto` keeps between GPUs if it works, for the same rounding.
    `why` of the transport is the reason for the choice. Raises UserError if a transport that was
    asked for by name does not work here.
    """
    if isinstance(device, Cuda):
        ways, passed = _on_device(name, fleet, clusters, device, aware)
        if name == AUTO and fleet.ranks > 1:
            n = learner_bytes // 4 if n is None else n
            return _best(ways, passed, fleet, device, n, earlier)
        (chosen,) = ways.values()
        return chosen
    return _on_host(name, fleet, clusters, learner_bytes)


def in_background(transport: HostMPI, fleet: Fleet) -> HostMPI:
    """Make a transport like this one that another thread may use. Collective.

    Raises UserError where the MPI library takes calls from one thread only.
    """
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            "`delay` needs an MPI library that takes calls from several threads "
            "(MPI_THREAD_MULTIPLE); leave `delay` out, or use another library"
        )
    return transport.again(fleet.again())


def in_code(transport: Transport, fleet: Fleet, crossed: bool = False) -> InCode:
    """Make a transport like this one, whose averages can cross nodes in code. Collective.

    crossed: whether the run had several nodes before ranks were lost. Raises UserError where
    nothing crosses nodes, and on the host for a transport of other memory than that which a node
    shares.
    """
    if fleet.nodes == 1 and not crossed:
        raise UserError(
            "`wire`: all ranks are on one node, so nothing crosses nodes; leave `wire` out, or "
            "make nodes of some ranks each with `ranks_per_node`"
        )
    if isinstance(transport, OnDevice):
        return InCodeOnDevice(transport, fleet)
    if not isinstance(transport, SharedMemory):
        raise UserError(
            f"`wire`: sums of a node are made in memory that its ranks share, and the transport is "
            f"{transport.name} ({transport.why}); use `transport = shared`, or leave `wire` out"
        )
    return InCode(fleet, transport.clusters, transport.why, transport.dtype)


def _on_host(name: str, fleet: Fleet, clusters: Sequence[int], learner_bytes: int) -> HostMPI:
    """Make a transport of the host's memory; the node's shared memory if it has the room."""
    if name in (way.name for way in BETWEEN_GPUS):
        raise UserError(
            f"`transport = {name}`: it averages a GPU's memory; add `device = cuda`, or use auto, "
            "shared or mpi"
        )
    if name == "mpi":
        return HostMPI(fleet, clusters, why="asked for")
    need = learner_bytes * fleet.sharing
    room, need = reduce(_tightest, fleet.world.allgather((fleet.shared_memory_room(), need)))
    if need <= room:
        return SharedMemory(
            fleet,
            clusters,
            why="asked for" if name == "shared" else "ranks of a node share its memory",
        )
    short = f"/dev/shm has {amount(room)} free and the learners of a host need {amount(need)}"
    if name == "shared":
        raise UserError(
            f"`transport = shared`: {short}; enlarge it (mount -o remount,size=…) or use "
            "`transport = mpi`"
        )
    _tell(fleet, f"mpi: {short}")
    return HostMPI(fleet, clusters, why=short)


def _on_device(
    name: str, fleet: Fleet, clusters: Sequence[int], device: Cuda, aware: Probe | None
) -> tuple[dict[str, OnDevice], list[str]]:
    """Make the transports of a GPU's memory that `name` leaves, and say why not the others."""
    if name in ON_HOST:
        raise UserError(
            f"`transport = {name}`: it averages the host's memory; with `device = cuda` use auto, "
            "nccl, cuda_aware or staged"
        )
    if name == AUTO and fleet.ranks == 1:
        return {OnDevice.name: OnDevice(fleet, device, clusters, "one rank: nothing travels")}, []
    refusals = {
        Nccl.name: nccl.refusal(fleet, device),
        CudaAware.name: _unaware(fleet, aware, name) if fleet.ranks > 1 else "",
        Staged.name: "",
    }
    if name == AUTO:
        ways = {
            way.name: way(fleet, device, clusters) for way in BETWEEN_GPUS if not refusals[way.name]
        }
        return ways, [f"not {way}: {why}" for way, why in refusals.items() if why]
    if refusals[name]:
        raise UserError(
            f"`transport = {name}`: {refusals[name]}; use `transport = auto`, or see localavg "
            "doctor --fresh"
        )
    (way,) = (way for way in BETWEEN_GPUS if way.name == name)
    return {name: way(fleet, device, clusters)}, []


def _best(
    ways: Mapping[str, OnDevice],
    passed: Sequence[str],
    fleet: Fleet,
    device: Cuda,
    n: int,
    earlier: str | None,
) -> OnDevice:
    """Return the `earlier` way, or else the fastest for rows of n floats, and say why. Collective.

    passed: why not the others.
    """
    if earlier is not None and earlier in ways:
        name, why = earlier, "that of the run that is resumed"
    elif len(ways) == 1:
        (name,), why = ways, "; ".join(passed)
    else:
        name, seconds, m = fastest(ways, fleet, device, n)
        times = [f"{way} {1e3 * took:.3g} ms" for way, took in seconds.items()]
        short = f", by {m} of them, for want of memory" if m < n else ""
        why = f"the fastest for an average of {n} floats{short} ({'; '.join([*times, *passed])})"
    ways[name].why = why
    _tell(fleet, f"{name}: {why}")
    return ways[name]


def _unaware(fleet: Fleet, aware: Probe | None, name: str) -> str:
    """Return why MPI must not be given device memory, "" if it may; aware: on rank 0. Collective.

    What was tried on one node alone says nothing about the path between nodes: there only a user
    who asks for it by name takes the risk.
    """
    aware = fleet.world.bcast(aware)
    if aware is None or not aware.works:
        return f"MPI on device memory: {aware.why if aware else 'not tried'}"
    if name == AUTO and len(set(fleet.hosts)) > 1 and aware.nodes < 2:
        return f"MPI on device memory: not tried between nodes ({aware.why})"
    return ""


def _tell(fleet: Fleet, text: str) -> None:
    if fleet.rank == 0:
        print(f"localavg: transport {text}", file=sys.stderr)
