"""Gather the facts of all ranks: look at hosts and MPI, and try a sum and a mean."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import mpi4py
import numpy as np
from mpi4py import MPI

from localavg.cli import in_flags
from localavg.cli.bench.hiding import trial
from localavg.cli.doctor.facts import STEP_S, Facts, Rank
from localavg.cli.doctor.line import launcher, program
from localavg.errors import UserError
from localavg.interfaces import Transport
from localavg.parallel import transport
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.parallel.link import latency_s, link_bytes_per_s
from localavg.parallel.measure import slowest
from localavg.parallel.probe import Gpus, Probe
from localavg.parallel.transport.mpi import HostMPI
from localavg.scope import Scope

RESNET_50 = 25_557_032  # floats of a row: the largest model of the papers
MATRICES = 2  # weights and gradients, [L, d] each
EIGHTH = 8  # part of it in which an average is measured, for the memory
CHECKED = 100_003  # floats of a row that is checked: odd, so that the ranks' shares differ
LEVELS = {
    MPI.THREAD_SINGLE: "single",
    MPI.THREAD_FUNNELED: "funneled",
    MPI.THREAD_SERIALIZED: "serialized",
    MPI.THREAD_MULTIPLE: "multiple",
}


def gather(
    fleet: Fleet,
    name: str,
    gpus: Gpus,
    why: str,
    found: Probe | None,
    survives: tuple[bool | None, str] | None = None,
    step_s: float | None = None,
) -> Facts:
    """Gather the facts, the same on every rank. Collective.

    name: the transport that was asked for. gpus, why, found, survives: what `find_gpus` returned,
    and on rank 0 `probe` and `losing.tried`, before MPI started. step_s: of an update of ResNet-50.
    Raises UserError on every rank if a transport that was asked for by name cannot be used.
    """
    learner_bytes = 4 * MATRICES * RESNET_50
    ours = transport.choose(name, fleet, (), learner_bytes)
    ranks = tuple(fleet.world.allgather(_rank(fleet, learner_bytes, gpus, why)))
    link = link_bytes_per_s(fleet)
    allreduce_wrong, mean_wrong = _wrong(fleet, ours)
    hidden, hidden_why = _hidden(fleet, ours)
    lives, lives_why = fleet.world.bcast(survives or (None, "not tried"))
    library = MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0")
    return Facts(
        mpi=" ".join(library.split()),
        mpi4py=mpi4py.__version__,
        thread_level=LEVELS[MPI.Query_thread()],
        ranks=ranks,
        nodes=fleet.nodes,
        learners=fleet.P,
        probe=next(filter(None, fleet.world.allgather(found))),
        cuda_flag=fleet.world.bcast(_cuda_flag()),
        memory_bytes_per_s=_memory_bytes_per_s(fleet),
        link_bytes_per_s=None if np.isinf(link) else link,
        latency_s=None if np.isinf(link) else latency_s(fleet),
        transport=ours.name,
        transport_why=ours.why,
        allreduce_wrong=allreduce_wrong,
        mean_wrong=mean_wrong,
        hidden=hidden,
        hidden_why=hidden_why,
        survives=lives,
        survives_why=lives_why,
        average_s=_average_s(fleet, ours),
        step_s=step_s or STEP_S,
        launcher=fleet.world.bcast(launcher()),
        program=fleet.world.bcast(program()),
        srun_nodes=fleet.world.bcast(int(os.environ.get("SLURM_STEP_NUM_NODES") or 0)) or None,
    )


def _average_s(fleet: Fleet, ours: HostMPI) -> float | None:
    """Measure an average of ResNet-50, an eighth of it; None for one rank. Collective."""
    if fleet.ranks == 1:
        return None
    w = ours.zeros((fleet.L, RESNET_50 // EIGHTH))
    times = [slowest(fleet, lambda: ours.mean_(w, Scope.WORLD), Cpu()) for _ in range(4)]
    return EIGHTH * min(times[1:])


def _hidden(fleet: Fleet, ours: HostMPI) -> tuple[dict[str, float] | None, str]:
    """Return what of an average a delay hides, or None and why that is not known. Collective."""
    if fleet.ranks == 1:
        return None, "one rank"
    try:
        return trial(fleet, ours), ""
    except UserError as e:  # the same on all ranks
        return None, in_flags(str(e))


def _wrong(fleet: Fleet, ours: Transport) -> tuple[int, int]:
    """Count wrong numbers, over all ranks, in MPI's sum and in the transport's mean. Collective."""
    # Σ_j (b + 2j) = P (b + P − 1): integers, so exact in float32 in any order, up to 4000 learners
    b = 1 + np.arange(CHECKED, dtype=np.float32) % 61  # [n]
    x = b + np.float32(2 * fleet.rank)
    fleet.world.Allreduce(MPI.IN_PLACE, x)
    w = ours.zeros((fleet.L, CHECKED))
    w[:] = b + 2 * np.array(fleet.learners, np.float32)[:, None]
    ours.mean_(w, Scope.WORLD)
    in_sum = np.count_nonzero(x != fleet.ranks * (b + fleet.ranks - 1))
    in_mean = np.count_nonzero(w != b + (fleet.P - 1))
    return int(fleet.world.allreduce(in_sum)), int(fleet.world.allreduce(in_mean))


def _rank(fleet: Fleet, learner_bytes: int, gpus: Gpus, why: str) -> Rank:
    """Return the facts of this rank; a learner's rows take learner_bytes. Collective."""
    machine = fleet.world.Split_type(MPI.COMM_TYPE_SHARED, key=fleet.rank)
    first = machine.bcast(fleet.rank)
    machine.Free()
    cpus = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
    conf = os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF", "")
    return Rank(
        host=fleet.hosts[fleet.rank],
        machine=first,
        node=fleet.node_of[fleet.rank],
        cpus=cpus,
        cores=_cores(cpus or ()),
        host_cpus=os.cpu_count() or 1,
        threads=fleet.threads,
        omp=os.environ.get("OMP_NUM_THREADS"),
        shm_free_bytes=None if fleet.node.size == 1 else fleet.shared_memory_room(),
        shm_need_bytes=learner_bytes * fleet.layout.node_learners(fleet.rank),
        gpus=gpus,
        gpus_why=why,
        gpu=gpus[fleet.place % len(gpus)][1] if gpus else None,
        mps=mps,
        alloc_conf=conf,
    )


def _cores(cpus: Sequence[int]) -> int | None:
    """Count the physical cores of these hardware threads; None if the system does not show them."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    with suppress(OSError):
        return len({Path(topology.format(i)).read_text() for i in cpus}) or None
    return None


def _memory_bytes_per_s(fleet: Fleet) -> float:
    """Measure the bytes a second of the slowest node while all ranks copy a row. Collective.

    Bytes read and bytes written both count; the row is one of ResNet-50.
    """
    source = np.ones(RESNET_50, np.float32)
    copy = np.ones(RESNET_50, np.float32)  # its pages exist before the clock starts
    times = []
    for _ in range(3):
        fleet.world.Barrier()
        start = perf_counter()
        np.copyto(copy, source)
        times.append(fleet.node.allreduce(perf_counter() - start, MPI.MAX))
    return fleet.world.allreduce(2 * source.nbytes * fleet.node.size / min(times), MPI.MIN)


def _cuda_flag() -> bool | None:
    """Ask the MPI library whether it supports CUDA; None if it has no such function."""
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
    return None
