"""Advice that follows from the facts of `localavg doctor`.

Each function of ADVICE, and `wrong_numbers`, takes Facts and returns its advice, or nothing. They
are pure. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from localavg.cli.doctor.facts import Facts, Rank


class Advice(NamedTuple):
    """What is wrong, and how to correct it."""

    what: str
    remedy: str


def one_core(f: Facts) -> list[Advice]:
    """Warn of ranks that are bound to one core while others of their host are idle.

    One core is right if one thread a rank was asked for.
    """
    for here in f.machines():
        idle = here[0].host_cpus - _cpus(here)
        if idle > 0 and any((r.cores or len(r.cpus or ())) == 1 and r.omp != "1" for r in here):
            return [
                Advice(
                    f"ranks on {here[0].host} are bound to one core each while {idle} of "
                    f"{here[0].host_cpus} are idle",
                    "give a rank more: mpirun --map-by slot:PE=N (Open MPI), -bind-to core:N "
                    "(MPICH), srun --cpus-per-task=N --cpu-bind=cores; or set OMP_NUM_THREADS=1 if "
                    "one thread is meant",
                )
            ]
    return []


def oversubscribed(f: Facts) -> list[Advice]:
    """Warn of more ranks on a host than cores that they may run on."""
    for here in f.machines():
        if len(here) > (cpus := _cpus(here)):
            return [
                Advice(
                    f"{len(here)} ranks share {cpus} core{'s' * (cpus > 1)} on {here[0].host} and "
                    "wait for each other",
                    f"start at most {cpus} there and let each have several learners (--learners); "
                    "where the host has more cores, undo the binding (mpirun --bind-to none)",
                )
            ]
    return []


def threads_above_cores(f: Facts) -> list[Advice]:
    """Warn of OMP_NUM_THREADS above a rank's share of the cores that it may run on."""
    for here in f.machines():
        for r in here:
            if r.omp is None or not r.omp.isdigit():
                continue
            cpus = r.host_cpus if r.cpus is None else len(r.cpus)
            share = max(1, cpus // sum(_overlap(r, other) for other in here))
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
    """Warn of too little room in /dev/shm for the matrices of a node's ranks.

    There is no warning if --transport mpi was asked for.
    """
    for r in f.ranks:
        if r.shm_free_bytes is None or f.transport_why == "asked for":
            continue
        if r.shm_free_bytes < r.shm_need_bytes:
            return [
                Advice(
                    f"/dev/shm on {r.host} has {r.shm_free_bytes / 1e9:.2f} GB free and matrices "
                    f"of ResNet-50's size need {r.shm_need_bytes / 1e9:.2f} GB there, so means "
                    "take the slower way through MPI",
                    "enlarge it (mount -o remount,size=…; docker run --shm-size=…) or delete what "
                    "old jobs left there",
                )
            ]
    return []


def expandable_segments(f: Facts) -> list[Advice]:
    """Warn of torch's expandable segments on ranks that see a GPU."""
    used = any(
        r.gpus and "expandable_segments:true" in r.alloc_conf.lower().replace(" ", "")
        for r in f.ranks
    )
    if not used:
        return []
    return [
        Advice(
            "PYTORCH_CUDA_ALLOC_CONF has expandable_segments:True: CUDA IPC between a node's ranks "
            "cannot share such memory",
            "leave expandable_segments out of PYTORCH_CUDA_ALLOC_CONF",
        )
    ]


def shared_gpu(f: Facts) -> list[Advice]:
    """Warn of several ranks on one GPU without MPS."""
    users = Counter((r.machine, r.host, r.gpu) for r in f.ranks if r.gpu is not None and not r.mps)
    for (_, host, _), n in users.items():
        if n > 1:
            return [
                Advice(
                    f"{n} ranks take one GPU of {host} without MPS, so their kernels run in turns",
                    "start one rank a GPU and let it have several learners (--learners), or first "
                    "nvidia-cuda-mps-control -d",
                )
            ]
    return []


def cuda_flag_lies(f: Facts) -> list[Advice]:
    """Warn of a library that claims CUDA support where the probe found none."""
    if not f.cuda_flag or f.probe.works is not False:
        return []
    return [
        Advice(
            f"{f.mpi} claims CUDA support (MPIX_Query_cuda_support() is 1), but the probe failed: "
            f"{f.probe.why}",
            "load the CUDA-aware build of MPI and UCX that fits this host's driver, and try again "
            "(--fresh)",
        )
    ]


def wrong_numbers(f: Facts) -> list[Advice]:
    """Return a failure for a sum or a mean of small integers that is not exact.

    It is not a warning, because training would give wrong results.
    """
    found = []
    if f.allreduce_wrong:
        found.append(
            Advice(
                f"MPI's Allreduce: wrong numbers: {f.allreduce_wrong}",
                "use the mpirun of the library that mpi4py loads (python -m mpi4py "
                "--mpi-library), or another build of it",
            )
        )
    if f.mean_wrong:
        other = "shared" if f.transport == "mpi" else "mpi"
        found.append(
            Advice(
                f"the mean through transport {f.transport}: wrong numbers: {f.mean_wrong}",
                f"try --transport {other}, and report the table above",
            )
        )
    return found


def strangers(f: Facts) -> list[Advice]:
    """Warn of ranks that srun started on one node and MPI takes for ranks of several."""
    seen = len(f.machines())
    if f.srun_nodes is None or seen <= f.srun_nodes:
        return []
    return [
        Advice(
            f"srun started these ranks on {_nodes(f.srun_nodes)}, and MPI sees {seen}: ranks of a "
            "node do not find each other, so that their averages go over the network",
            "try another srun --mpi, or start the ranks by mpirun in the batch script; if the node "
            "is right, ask your site whether its PMIx tells ranks who shares it",
        )
    ]


def _nodes(n: int) -> str:
    return f"{n} node{'s' * (n > 1)}"


ADVICE = (
    strangers,
    one_core,
    oversubscribed,
    threads_above_cores,
    little_shared_memory,
    expandable_segments,
    shared_gpu,
    cuda_flag_lies,
)


def _cpus(here: Sequence[Rank]) -> int:
    """Count the cores that any of these ranks of one host may run on.

    If a rank's cores are not known, it may run on all.
    """
    known = [r.cpus for r in here if r.cpus is not None]
    if len(known) < len(here):
        return here[0].host_cpus
    return len({cpu for cpus in known for cpu in cpus})


def _overlap(r: Rank, other: Rank) -> bool:
    """Return whether another rank may run on cores of r; if r's are not known, it may."""
    return r.cpus is None or not set(r.cpus).isdisjoint(other.cpus or ())
