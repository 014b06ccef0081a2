"""Will training work here, and what holds it back: facts of ranks, machine and MPI, and the advice
that follows from them.

Advice is pure: each function of ADVICE, and `wrong_numbers`, takes Facts and returns what it has to
say. What cannot be known is None, with the reason beside it. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from localavg.parallel.probe import Probe


@dataclass(frozen=True)
class Rank:
    """One rank and what it may use."""

    host: str
    machine: int  # the first rank on it
    node: int  # a machine, or the part of it that --ranks-per-node makes
    cpus: (
        tuple[int, ...] | None
    )  # hardware threads it may run on; None where the system does not tell
    cores: int | None  # of which so many physical cores
    host_cpus: int  # hardware threads of the machine
    threads: int  # that it will use
    omp: str | None  # OMP_NUM_THREADS
    shm_free_bytes: float | None  # None: alone on its node, it needs none
    shm_need_bytes: int  # by all ranks of its node
    gpus: tuple[tuple[str, str], ...]  # (name, identity) of those it sees
    gpus_why: str  # why it sees none
    gpu: str | None  # identity of the one it would take
    mps: bool  # whether CUDA's Multi-Process Service runs there
    alloc_conf: str  # of torch's CUDA allocator


@dataclass(frozen=True)
class Facts:
    """All that `localavg doctor` knows."""

    mpi: str
    mpi4py: str
    thread_level: str
    ranks: tuple[Rank, ...]
    nodes: int
    learners: int
    probe: Probe
    cuda_flag: bool | None  # MPIX_Query_cuda_support(); None: the library has no such function
    memory_bytes_per_s: float  # read and written, of the slowest node, all ranks copying at once
    link_bytes_per_s: float | None  # each way, between the first two nodes; None: there is one node
    transport: str
    transport_why: str
    allreduce_wrong: int  # numbers of MPI's sum that are wrong, over all ranks
    mean_wrong: int  # numbers of the transport's mean that are wrong, over all ranks

    def machines(self) -> list[list[Rank]]:
        """The ranks of each machine."""
        return [
            [r for r in self.ranks if r.machine == m]
            for m in sorted({r.machine for r in self.ranks})
        ]


class Advice(NamedTuple):
    """What is amiss, and what to do about it."""

    what: str
    remedy: str


# ------------------------------------------------------------------------------------------------ f


def one_core(f: Facts) -> list[Advice]:
    """Ranks bound to one core while nobody uses others of the machine, unless one thread a rank was
    asked for.
    """
    for here in f.machines():
        idle = here[0].host_cpus - _cpus(here)
        if idle > 0 and any((r.cores or len(r.cpus or ())) == 1 and r.omp != "1" for r in here):
            return [
                Advice(
                    f"ranks on {here[0].host} are bound to one core each while {idle} of "
                    f"{here[0].host_cpus} are idle",
                    "give a rank more: mpirun --map-by slot:PE=N (Open MPI), -bind-to core:N "
                    "(MPICH), "
                    "srun --cpus-per-task=N --cpu-bind=cores; or set OMP_NUM_THREADS=1 if one "
                    "thread is meant",
                )
            ]
    return []


def oversubscribed(f: Facts) -> list[Advice]:
    """More ranks on a machine than cores that they may run on."""
    for here in f.machines():
        if len(here) > (cpus := _cpus(here)):
            return [
                Advice(
                    f"{len(here)} ranks share {cpus} core{'s' * (cpus > 1)} on {here[0].host} and "
                    "wait for each other",
                    f"start at most {cpus} there and let each have several learners (--learners); "
                    "where the machine "
                    "has more cores, undo the binding (mpirun --bind-to none)",
                )
            ]
    return []


def threads_above_cores(f: Facts) -> list[Advice]:
    """OMP_NUM_THREADS above a rank's share of the cores it may run on."""
    for here in f.machines():
        for r in (r for r in here if (r.omp or "").isdigit()):
            sharing = [
                other
                for other in here
                if r.cpus is None or not set(r.cpus).isdisjoint(other.cpus or ())
            ]
            share = max(1, (r.host_cpus if r.cpus is None else len(r.cpus)) // len(sharing))
            if int(r.omp) > share:
                return [
                    Advice(
                        f"OMP_NUM_THREADS={r.omp}, but a rank on {r.host} has {share} "
                        f"core{'s' * (share > 1)} to itself",
                        f"set OMP_NUM_THREADS={share}, or bind each rank to {r.omp} cores",
                    )
                ]
    return []


def little_shared_memory(f: Facts) -> list[Advice]:
    """No room in /dev/shm for the matrices of a node's ranks, unless --transport mpi was asked
    for.
    """
    for r in f.ranks:
        if (
            r.shm_free_bytes is not None
            and r.shm_free_bytes < r.shm_need_bytes
            and f.transport_why != "asked for"
        ):
            return [
                Advice(
                    f"/dev/shm on {r.host} has {r.shm_free_bytes / 1e9:.2f} GB free and "
                    "ResNet-50-size matrices need "
                    f"{r.shm_need_bytes / 1e9:.2f} GB there, so means take the slower way through "
                    "MPI",
                    "enlarge it (mount -o remount,size=…; docker run --shm-size=…) or clear what "
                    "old jobs left there",
                )
            ]
    return []


def expandable_segments(f: Facts) -> list[Advice]:
    """torch's expandable segments on ranks that see a GPU."""
    there = any(
        r.gpus and "expandable_segments:true" in r.alloc_conf.lower().replace(" ", "")
        for r in f.ranks
    )
    return [
        Advice(
            "PYTORCH_CUDA_ALLOC_CONF has expandable_segments:True: CUDA IPC between a node's ranks "
            "cannot share such "
            "memory",
            "leave expandable_segments out of PYTORCH_CUDA_ALLOC_CONF",
        )
    ] * there


def shared_gpu(f: Facts) -> list[Advice]:
    """Several ranks on one GPU without MPS."""
    users = Counter((r.machine, r.host, r.gpu) for r in f.ranks if r.gpu is not None and not r.mps)
    return [
        Advice(
            f"{n} ranks take one GPU of {host} without MPS, so their kernels run in turns",
            "start one rank a GPU and let it have several learners (--learners), or first "
            "nvidia-cuda-mps-control -d",
        )
        for (_, host, _), n in users.items()
        if n > 1
    ][:1]


def cuda_flag_lies(f: Facts) -> list[Advice]:
    """The library claims CUDA support and the probe found none."""
    return [
        Advice(
            f"{f.mpi} claims CUDA support (MPIX_Query_cuda_support() is 1), but the probe failed: "
            f"{f.probe.why}",
            "load the CUDA-aware build of MPI and UCX that fits this host's driver, and try again "
            "(--fresh)",
        )
    ] * bool(f.cuda_flag and f.probe.works is False)


def wrong_numbers(f: Facts) -> list[Advice]:
    """A sum or a mean of small integers that is not exact: training would go wrong, so this is no
    warning but a failure.
    """
    checks = [
        (
            f.allreduce_wrong,
            "MPI's Allreduce",
            "use the mpirun of the library that mpi4py loads (python -m mpi4py "
            "--mpi-library), or another build of it",
        ),
        (
            f.mean_wrong,
            f"the mean through transport {f.transport}",
            "try --transport "
            f"{'shared' if f.transport == 'mpi' else 'mpi'}, and report the table above",
        ),
    ]
    return [
        Advice(f"{what}: wrong numbers: {wrong}", remedy) for wrong, what, remedy in checks if wrong
    ]


ADVICE = (
    one_core,
    oversubscribed,
    threads_above_cores,
    little_shared_memory,
    expandable_segments,
    shared_gpu,
    cuda_flag_lies,
)


def _cpus(here: Sequence[Rank]) -> int:
    """Cores that any of these ranks of one machine may run on: all of them if a rank's are not
    known.
    """
    return (
        here[0].host_cpus
        if any(r.cpus is None for r in here)
        else len({cpu for r in here for cpu in r.cpus})
    )
