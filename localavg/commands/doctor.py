"""``localavg doctor``: look at the ranks, the machine and MPI, try what training needs, and say what to mend.

What asks the GPUs runs in children of this module (``python -m localavg.commands.doctor gpus``), before MPI starts: a process
must neither start CUDA before it knows its device nor fork once MPI runs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import TYPE_CHECKING, Any

from localavg.commands import print_table, rank

if TYPE_CHECKING:
    from localavg.doctor import Facts, Probe, Rank
    from localavg.fleet import Fleet

RESNET_50 = 25_557_032  # floats of a row: the largest model of the papers
MATRICES = 2  # weights and gradients, [L, d] each
CHECKED = 100_003  # floats of a row that are checked: odd, so that the ranks' shares differ
LIMIT_S = 120  # for a child
SHOWN = 8  # hosts, or sorts of ranks, in the table

Gpus = tuple[tuple[str, str], ...]  # (name, identity)


def add(commands: Any) -> None:
    p = commands.add_parser("doctor", help="say whether training will work here, and what to mend",
                            description="Look at ranks, machine and MPI, try what training needs, and say what to mend. Exit "
                            "status 0: training will work; 1: a check failed.")
    p.add_argument("--learners", type=int, help="P, a multiple of the ranks (default: one a rank)")
    p.add_argument("--ranks-per-node", type=int, help="split each machine into nodes of so many ranks")
    p.add_argument("--transport", choices=("auto", "shared", "mpi"), default="auto", help="how a mean travels")
    p.add_argument("--fresh", action="store_true", help="try device memory again where an earlier result is cached")
    p.add_argument("--json", metavar="FILE", help="write the facts there")
    p.set_defaults(call=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import mpi4py

    mpi4py.rc.initialize = False  # children first
    from mpi4py import MPI

    found = None
    gpus, why = find_gpus()
    if rank() == 0:
        found = _probe(gpus, why, args.fresh)
    if not MPI.Is_initialized():
        MPI.Init_thread()
    from localavg.doctor import ADVICE, wrong_numbers
    from localavg.fleet import Fleet

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
        told = {**asdict(facts), "warnings": [a._asdict() for a in warnings], "failures": [a._asdict() for a in failures]}
        fleet.together(lambda: Path(args.json).write_text(json.dumps(told, indent=1) + "\n") if fleet.rank == 0 else None)
    return 1 if failures else 0


# -------------------------------------------------------------------------------------------------- before MPI starts


def find_gpus() -> tuple[Gpus, str]:
    """The GPUs that torch or CuPy sees in a child, and why there are none."""
    from localavg import doctor

    try:
        ctypes.CDLL("libcuda.so.1")  # loads the driver's library and starts nothing
    except OSError:
        return (), "none: no NVIDIA driver (libcuda.so.1) on this host"
    if not any(map(importlib.util.find_spec, ("torch", "cupy"))):
        return (), "unknown: neither torch nor CuPy is installed"
    status, out, err = doctor.run_child([sys.executable, "-m", __name__, "gpus"], os.environ, LIMIT_S)
    if status != 0 or (answer := doctor.answer(out)) is None:
        return (), f"unknown: {doctor.ended(status, err, LIMIT_S)}"
    return tuple((name, identity) for name, identity in answer["gpus"]), answer["why"]


def probed() -> Probe:
    """What the doctor found, or now finds in a child, of MPI on device memory. Before MPI starts; it starts after."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    found = _probe(*find_gpus(), fresh=False)
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    return found


def _probe(gpus: Gpus, why: str, fresh: bool) -> Probe:
    """Whether MPI takes device memory on this host, tried once for each MPI library and type of host."""
    from mpi4py import MPI

    from localavg import doctor

    if not gpus:
        return doctor.Probe(None, f"not tried: GPUs: {why}")
    if (mpirun := which("mpirun")) is None:
        return doctor.Probe(None, "not tried: no mpirun on PATH")
    command = [mpirun, "-n", "2", sys.executable, "-m", "mpi4py", "-m", __name__, "allreduce"]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "localavg")
    key = f"{MPI.Get_library_version().strip(chr(0))} on {platform.machine()} with {_counted(name for name, _ in gpus)}"
    return doctor.cached(folder / "cuda-aware.json", key, lambda: doctor.probe(command, LIMIT_S), fresh)


def _child_gpus() -> None:
    """Child: print the GPUs that torch or CuPy sees."""
    gpus, whys = [], []
    with suppress(ImportError):
        import torch

        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            gpus.append((properties.name, str(getattr(properties, "uuid", _visible(i)))))
        whys.append("torch")
    with suppress(ImportError):
        if not gpus:
            import cupy

            whys.append("CuPy")
            with suppress(cupy.cuda.runtime.CUDARuntimeError):  # no device
                for i in range(cupy.cuda.runtime.getDeviceCount()):
                    properties = cupy.cuda.runtime.getDeviceProperties(i)
                    gpus.append((properties["name"].decode(), bytes(properties.get("uuid", _visible(i).encode())).hex()))
    print(json.dumps({"gpus": gpus, "why": "" if gpus else f"none: {' and '.join(whys)} see no device"}))


def _visible(i: int) -> str:
    """What the i-th visible device is called on the host."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[i] if i < len(names) else str(i)


def _child_allreduce() -> None:
    """Child on two ranks: sum device memory in place and print {"ranks", "wrong", "numbers"} on the first."""
    signal.alarm(LIMIT_S)  # a rank that hangs where its launcher cannot reach it ends by itself
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    R, wrong, sizes = world.size, 0, (5, 1 << 20)  # sent at once; by rendezvous or CUDA IPC
    for n in sizes:
        x, ready, host = _on_device(n, world.rank)  # [n]
        ready()
        world.Allreduce(MPI.IN_PLACE, x)
        wrong += sum(value != R * (1 + i % 61 + R - 1) for i, value in enumerate(host(x)))
    wrong = world.allreduce(wrong)
    if world.rank == 0:
        print(json.dumps({"ranks": R, "wrong": wrong, "numbers": R * sum(sizes)}), flush=True)


def _on_device(n: int, rank: int) -> tuple[Any, Any, Any]:
    """x = 1 + i mod 61 + 2·rank, float32 [n] on this rank's device; a wait for the device; the way to a list on the host."""
    with suppress(ImportError):
        import torch

        if count := torch.cuda.device_count():
            torch.cuda.set_device(rank % count)
            x = (torch.arange(n, device="cuda") % 61 + 1 + 2 * rank).to(torch.float32)
            return x, torch.cuda.synchronize, torch.Tensor.tolist
    import cupy

    cupy.cuda.Device(rank % cupy.cuda.runtime.getDeviceCount()).use()
    x = (cupy.arange(n) % 61 + 1 + 2 * rank).astype(cupy.float32)
    return x, cupy.cuda.get_current_stream().synchronize, cupy.ndarray.tolist


# ---------------------------------------------------------------------------------------------------------- under MPI


def _gather(fleet: Fleet, name: str, gpus: Gpus, why: str, found: Probe | None) -> Facts:
    """The facts, the same on every rank, with those found before MPI started; `name`: the transport asked for. Collective.

    Raises UserError on every rank where a transport that was asked for by name cannot serve.
    """
    import mpi4py
    import numpy as np
    from mpi4py import MPI

    from localavg import transport
    from localavg.bench.average import link_bytes_per_s
    from localavg.doctor import Facts
    from localavg.schedules import Scope

    nbytes = 4 * MATRICES * fleet.L * RESNET_50
    ours = transport.choose(name, fleet, None, nbytes)
    ranks = tuple(fleet.world.allgather(_rank(fleet, nbytes, gpus, why)))
    link = link_bytes_per_s(fleet)
    # Σ_j (b + 2j) = P (b + P − 1): integers, so exact in float32 and in any order up to 4000 learners
    b = 1 + np.arange(CHECKED, dtype=np.float32) % 61  # [n]
    x = b + np.float32(2 * fleet.rank)
    fleet.world.Allreduce(MPI.IN_PLACE, x)
    w = ours.zeros((fleet.L, CHECKED))
    w[:] = b + 2 * np.array(fleet.learners, np.float32)[:, None]
    ours.mean_(w, Scope.WORLD)
    wrong = np.count_nonzero(x != fleet.ranks * (b + fleet.ranks - 1)), np.count_nonzero(w != b + (fleet.P - 1))
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized",
              MPI.THREAD_MULTIPLE: "multiple"}
    return Facts(
        mpi=" ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0").split()), mpi4py=mpi4py.__version__,
        thread_level=levels[MPI.Query_thread()], ranks=ranks, nodes=fleet.nodes, learners=fleet.P,
        probe=next(filter(None, fleet.world.allgather(found))), cuda_flag=fleet.world.bcast(_cuda_flag()),
        memory_bytes_per_s=_memory_bytes_per_s(fleet), link_bytes_per_s=None if np.isinf(link) else link,
        transport=ours.name, transport_why=ours.why,
        allreduce_wrong=int(fleet.world.allreduce(wrong[0])), mean_wrong=int(fleet.world.allreduce(wrong[1])))


def _rank(fleet: Fleet, nbytes: int, gpus: Gpus, why: str) -> Rank:
    """What this rank knows of itself; its matrices take nbytes. Collective."""
    from mpi4py import MPI

    from localavg.doctor import Rank

    machine = fleet.world.Split_type(MPI.COMM_TYPE_SHARED, key=fleet.rank)
    first = machine.bcast(fleet.rank)
    machine.Free()
    cpus = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
    return Rank(
        host=fleet.hosts[fleet.rank], machine=first, node=fleet.node_of[fleet.rank], cpus=cpus, cores=_cores(cpus or ()),
        host_cpus=os.cpu_count() or 1, threads=fleet.threads, omp=os.environ.get("OMP_NUM_THREADS"),
        shm_free_bytes=None if fleet.node.size == 1 else fleet.shared_memory_room(), shm_need_bytes=nbytes * fleet.node.size,
        gpus=gpus, gpus_why=why, gpu=gpus[fleet.node.rank % len(gpus)][1] if gpus else None, mps=mps,
        alloc_conf=os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF", ""))


def _cores(cpus: Sequence[int]) -> int | None:
    """Physical cores of these hardware threads; None where the system does not tell."""
    with suppress(OSError):
        return len({Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list").read_text() for i in cpus}) or None
    return None


def _memory_bytes_per_s(fleet: Fleet) -> float:
    """Bytes a second that a node reads and writes while all ranks copy a row of ResNet-50; the slowest node's. Collective."""
    import numpy as np
    from mpi4py import MPI

    source, copy = np.ones(RESNET_50, np.float32), np.ones(RESNET_50, np.float32)  # written before the clock starts
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


# ---------------------------------------------------------------------------------------------------------- the table


def _rows(f: Facts) -> list[tuple[str, str]]:
    """The facts as (name, text)."""
    machines = [f"{h[0].host}: {_count(len(h), 'rank')}, {_count(h[0].host_cpus, 'core')}" for h in f.machines()]
    rooms = {r.node: "not needed: one rank a node" if r.shm_free_bytes is None else
             f"{r.shm_free_bytes / 1e9:.2f} GB free, {r.shm_need_bytes / 1e9:.2f} GB needed for ResNet-50" for r in f.ranks}
    aware = {True: "yes: ", False: "no: ", None: ""}[f.probe.works] + f.probe.why
    if f.probe.works is not None:
        aware += f" ({'cached, ' * f.probe.cached}tried {f.probe.tried}{'; --fresh tries again' * f.probe.cached})"
    exact = {0: "exact"}
    return [
        ("MPI library", f.mpi),
        ("mpi4py", f"version {f.mpi4py}"),
        ("thread level", f.thread_level),
        ("size", ", ".join([_count(len(f.ranks), "rank"), _count(f.nodes, "node"), _count(len(f.machines()), "machine"),
                            _count(f.learners, "learner")])),
        ("machines", _lines(machines)),
        ("binding", _by_rank([_binding(r) for r in f.ranks])),
        ("threads a rank", _by_rank([f"{r.threads} (OMP_NUM_THREADS {r.omp or 'not set'})" for r in f.ranks])),
        ("GPUs", _by_rank([_counted(name for name, _ in r.gpus) or r.gpus_why for r in f.ranks])),
        ("MPI on device memory", aware),
        ("MPI's own CUDA flag", {True: "set", False: "not set", None: "unknown: no MPIX_Query_cuda_support()"}[f.cuda_flag]),
        ("/dev/shm", _lines(list(Counter(rooms.values())))),
        ("memory", f"{f.memory_bytes_per_s / 1e9:.3g} GB/s a node, read and written, all ranks copying"),
        ("link", f"{f.link_bytes_per_s / 1e9:.3g} GB/s each way" if f.link_bytes_per_s else "unknown: one node"),
        ("Allreduce", exact.get(f.allreduce_wrong, f"wrong numbers: {f.allreduce_wrong}")),
        ("mean", exact.get(f.mean_wrong, f"wrong numbers: {f.mean_wrong}")),
        ("transport", f"{f.transport}: {f.transport_why}"),
    ]


def _binding(r: Rank) -> str:
    if r.cpus is None:
        return "unknown: this system does not tell affinities"
    return f"{'not bound' if len(r.cpus) == r.host_cpus else 'cores ' + _ranges(r.cpus)} ({len(r.cpus)} of {r.host_cpus})"


def _by_rank(texts: Sequence[str]) -> str:
    """One line for each text that differs, with its ranks."""
    ranks: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        ranks.setdefault(text, []).append(i)
    return texts[0] if len(ranks) == 1 else _lines([f"rank {_ranges(group)}: {text}" for text, group in ranks.items()])


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


def _counted(names: Any) -> str:
    return ", ".join(f"{n} × {name}" for name, n in Counter(names).items())


if __name__ == "__main__":
    {"gpus": _child_gpus, "allreduce": _child_allreduce}[sys.argv[1]]()
