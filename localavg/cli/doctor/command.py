"""``localavg doctor``: look at the ranks, the machine and MPI, try what training needs, and say
what to mend.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from localavg.cli import print_table, rank
from localavg.parallel.probe import Gpus, counted, find_gpus, probe

if TYPE_CHECKING:
    from localavg.cli.doctor.advice import Facts, Rank
    from localavg.parallel.fleet import Fleet
    from localavg.parallel.probe import Probe

RESNET_50 = 25_557_032  # floats of a row: the largest model of the papers
MATRICES = 2  # weights and gradients, [L, d] each
CHECKED = 100_003  # floats of a row that are checked: odd, so that the ranks' shares differ
SHOWN = 8  # hosts, or sorts of ranks, in the table


def add(commands: Any) -> None:
    p = commands.add_parser(
        "doctor",
        help="say whether training will work here, and what to mend",
        description="Look at ranks, machine and MPI, try what training needs, and say what to "
        "mend. Exit "
        "status 0: training will work; 1: a check failed.",
    )
    p.add_argument("--learners", type=int, help="P, one a rank at least (default: one a rank)")
    p.add_argument(
        "--ranks-per-node", type=int, help="split each machine into nodes of so many ranks"
    )
    p.add_argument(
        "--transport", choices=("auto", "shared", "mpi"), default="auto", help="how a mean travels"
    )
    p.add_argument(
        "--fresh",
        action="store_true",
        help="try device memory again where an earlier result is cached",
    )
    p.add_argument("--json", metavar="FILE", help="write the facts there")
    p.set_defaults(call=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import mpi4py

    mpi4py.rc.initialize = False  # children first
    from mpi4py import MPI

    found = None
    gpus, why = find_gpus()
    if rank() == 0:
        found = probe(gpus, why, args.fresh)
    if not MPI.Is_initialized():
        MPI.Init_thread()
    from localavg.cli.doctor.advice import ADVICE, wrong_numbers
    from localavg.parallel.fleet import Fleet

    fleet = Fleet(MPI.COMM_WORLD, args.learners, args.ranks_per_node)
    facts = _gather(fleet, args.transport, gpus, why, found)
    warnings = [advice for check in ADVICE for advice in check(facts)]
    failures = wrong_numbers(facts)
    if fleet.rank == 0:
        print_table("doctor", [{"fact": name, "found": text} for name, text in _rows(facts)])
        for word, advices in (("warning", warnings), ("failed", failures)):
            for advice in advices:
                print(f"\n{word}: {advice.what}\n  remedy: {advice.remedy}")
        print(f"\ntraining will {'not ' * bool(failures)}work here", flush=True)
    if args.json:
        told = {
            **asdict(facts),
            "warnings": [a._asdict() for a in warnings],
            "failures": [a._asdict() for a in failures],
        }
        fleet.together(
            lambda: (
                Path(args.json).write_text(json.dumps(told, indent=1) + "\n")
                if fleet.rank == 0
                else None
            )
        )
    return 1 if failures else 0


# --------------------------------------------------------------------------------------------------


def _gather(fleet: Fleet, name: str, gpus: Gpus, why: str, found: Probe | None) -> Facts:
    """The facts, the same on every rank, with those found before MPI started; `name`: the transport
    asked for. Collective.

    Raises UserError on every rank where a transport that was asked for by name cannot serve.
    """
    import mpi4py
    import numpy as np
    from mpi4py import MPI

    from localavg.cli.doctor.advice import Facts
    from localavg.parallel import transport
    from localavg.parallel.measure import link_bytes_per_s
    from localavg.scope import Scope

    learner_bytes = 4 * MATRICES * RESNET_50
    ours = transport.choose(name, fleet, None, learner_bytes)
    ranks = tuple(fleet.world.allgather(_rank(fleet, learner_bytes, gpus, why)))
    link = link_bytes_per_s(fleet)
    # Σ_j (b + 2j) = P (b + P − 1): integers, so exact in float32 and in any order up to 4000
    # learners
    b = 1 + np.arange(CHECKED, dtype=np.float32) % 61  # [n]
    x = b + np.float32(2 * fleet.rank)
    fleet.world.Allreduce(MPI.IN_PLACE, x)
    w = ours.zeros((fleet.L, CHECKED))
    w[:] = b + 2 * np.array(fleet.learners, np.float32)[:, None]
    ours.mean_(w, Scope.WORLD)
    wrong = (
        np.count_nonzero(x != fleet.ranks * (b + fleet.ranks - 1)),
        np.count_nonzero(w != b + (fleet.P - 1)),
    )
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    return Facts(
        mpi=" ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0").split()),
        mpi4py=mpi4py.__version__,
        thread_level=levels[MPI.Query_thread()],
        ranks=ranks,
        nodes=fleet.nodes,
        learners=fleet.P,
        probe=next(filter(None, fleet.world.allgather(found))),
        cuda_flag=fleet.world.bcast(_cuda_flag()),
        memory_bytes_per_s=_memory_bytes_per_s(fleet),
        link_bytes_per_s=None if np.isinf(link) else link,
        transport=ours.name,
        transport_why=ours.why,
        allreduce_wrong=int(fleet.world.allreduce(wrong[0])),
        mean_wrong=int(fleet.world.allreduce(wrong[1])),
    )


def _rank(fleet: Fleet, learner_bytes: int, gpus: Gpus, why: str) -> Rank:
    """What this rank knows of itself; a learner's rows take learner_bytes. Collective."""
    from mpi4py import MPI

    from localavg.cli.doctor.advice import Rank

    machine = fleet.world.Split_type(MPI.COMM_TYPE_SHARED, key=fleet.rank)
    first = machine.bcast(fleet.rank)
    machine.Free()
    cpus = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
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
        alloc_conf=os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
        or os.environ.get("PYTORCH_ALLOC_CONF", ""),
    )


def _cores(cpus: Sequence[int]) -> int | None:
    """Physical cores of these hardware threads; None where the system does not tell."""
    with suppress(OSError):
        return (
            len(
                {
                    Path(
                        f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list"
                    ).read_text()
                    for i in cpus
                }
            )
            or None
        )
    return None


def _memory_bytes_per_s(fleet: Fleet) -> float:
    """Bytes a second that a node reads and writes while all ranks copy a row of ResNet-50; the
    slowest node's. Collective.
    """
    import numpy as np
    from mpi4py import MPI

    source, copy = (
        np.ones(RESNET_50, np.float32),
        np.ones(RESNET_50, np.float32),
    )  # written before the clock starts
    times = []
    for _ in range(3):
        fleet.world.Barrier()
        start = perf_counter()
        np.copyto(copy, source)
        times.append(fleet.node.allreduce(perf_counter() - start, MPI.MAX))
    return fleet.world.allreduce(2 * source.nbytes * fleet.node.size / min(times), MPI.MIN)


def _cuda_flag() -> bool | None:
    """What the MPI library says of itself; None if it does not."""
    from mpi4py import MPI

    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
    return None


# --------------------------------------------------------------------------------------------------


def _rows(f: Facts) -> list[tuple[str, str]]:
    """The facts as (name, text)."""
    machines = [
        f"{h[0].host}: {_count(len(h), 'rank')}, {_count(h[0].host_cpus, 'core')}"
        for h in f.machines()
    ]
    rooms = {
        r.node: "not needed: one rank a node"
        if r.shm_free_bytes is None
        else f"{r.shm_free_bytes / 1e9:.2f} GB free, {r.shm_need_bytes / 1e9:.2f} GB needed for "
        "ResNet-50"
        for r in f.ranks
    }
    aware = {True: "yes: ", False: "no: ", None: ""}[f.probe.works] + f.probe.why
    if f.probe.works is not None:
        cached = ("cached, ", "; --fresh tries again") if f.probe.cached else ("", "")
        aware += f" ({cached[0]}tried {f.probe.tried}{cached[1]})"
    exact = {0: "exact"}
    return [
        ("MPI library", f.mpi),
        ("mpi4py", f"version {f.mpi4py}"),
        ("thread level", f.thread_level),
        (
            "size",
            ", ".join(
                [
                    _count(len(f.ranks), "rank"),
                    _count(f.nodes, "node"),
                    _count(len(f.machines()), "machine"),
                    _count(f.learners, "learner"),
                ]
            ),
        ),
        ("machines", _lines(machines)),
        ("binding", _by_rank([_binding(r) for r in f.ranks])),
        (
            "threads a rank",
            _by_rank([f"{r.threads} (OMP_NUM_THREADS {r.omp or 'not set'})" for r in f.ranks]),
        ),
        ("GPUs", _by_rank([counted(name for name, _ in r.gpus) or r.gpus_why for r in f.ranks])),
        ("MPI on device memory", aware),
        (
            "MPI's own CUDA flag",
            {True: "set", False: "not set", None: "unknown: no MPIX_Query_cuda_support()"}[
                f.cuda_flag
            ],
        ),
        ("/dev/shm", _lines(list(Counter(rooms.values())))),
        (
            "memory",
            f"{f.memory_bytes_per_s / 1e9:.3g} GB/s a node, read and written, all ranks copying",
        ),
        (
            "link",
            f"{f.link_bytes_per_s / 1e9:.3g} GB/s each way"
            if f.link_bytes_per_s
            else "unknown: one node",
        ),
        ("Allreduce", exact.get(f.allreduce_wrong, f"wrong numbers: {f.allreduce_wrong}")),
        ("mean", exact.get(f.mean_wrong, f"wrong numbers: {f.mean_wrong}")),
        ("transport", f"{f.transport}: {f.transport_why}"),
    ]


def _binding(r: Rank) -> str:
    if r.cpus is None:
        return "unknown: this system does not tell affinities"
    bound = "not bound" if len(r.cpus) == r.host_cpus else f"cores {_ranges(r.cpus)}"
    return f"{bound} ({len(r.cpus)} of {r.host_cpus})"


def _by_rank(texts: Sequence[str]) -> str:
    """One line for each text that differs, with its ranks."""
    ranks: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        ranks.setdefault(text, []).append(i)
    return (
        texts[0]
        if len(ranks) == 1
        else _lines([f"rank {_ranges(group)}: {text}" for text, group in ranks.items()])
    )


def _lines(texts: list[str]) -> str:
    more = [f"and {len(texts) - SHOWN} more (--json FILE has all)"] if len(texts) > SHOWN else []
    return "\n".join(texts[:SHOWN] + more)


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    found: list[list[int]] = []
    for i in numbers:
        if found and i == found[-1][1] + 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in found)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
