"""What one average costs: ours, MPI Allreduce + scale, torch's PeriodicModelAverager, and the floor
of memory and link.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg.cli.bench import CIFAR10, images, medians
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.files.record import Record
from localavg.models import MODELS
from localavg.parallel import transport
from localavg.parallel.device import Cpu, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.measure import link_bytes_per_s
from localavg.parallel.transport import nccl
from localavg.scope import Scope
from localavg.training.resume import gpus, where

SIZES = (
    2_000,
    20_000,
    200_000,
    1_000_000,
    4_000_000,
    11_173_962,
    25_557_032,
)  # Epsilon, …, ResNet-18, ResNet-50
LONG, MORE = 1_000_000, 10  # shorter rows take microseconds, which scatter
TENSORS = 62  # of ResNet-18: what torch's averager has to pack and unpack


def floats(sizes: Sequence[str]) -> list[int]:
    """Floats in a row for each of `sizes`: a number, a network's name, or cifar10 for every network
    made for its images.

    A network's row holds its parameters and BatchNorm's statistics, for images as it was made for.
    Raises UserError for what is none of these, and for a network without torch.
    """
    every = [name for name, model in MODELS.items() if model.side == CIFAR10]
    names = [name for size in sizes for name in (every if size == "cifar10" else [size])]
    for name in names:
        if name not in MODELS and not (name.isdecimal() and int(name)):
            raise UserError(
                f"--sizes {name}: must be a number of floats from 1 on, cifar10 for all networks "
                "of its images, or "
                f"one of {', '.join(MODELS)}"
            )
    return [_row_of(name) if name in MODELS else int(name) for name in names]


def _row_of(model: str) -> int:
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"--sizes {model}: the size of a network needs torch ({e}); pip install "
            "'localavg[torch]', or give "
            f"numbers of floats"
        ) from e
    from localavg.problems.network import Network

    shape, classes = images(MODELS[model].side)
    none = Split(np.empty((0, *shape), np.uint8), np.empty(0, int))
    return Network(
        Dataset("none", "images", none, None, tuple(map(str, range(classes))), True, shape),
        model,
        l2=0.0,
        seed=0,
    ).d


def new_file(
    fleet: Fleet,
    name: str,
    sizes: Sequence[int],
    repeats: int,
    path: str,
    provenance: Mapping[str, Any],
    device: Cpu,
    aware: Any = None,
) -> Record | None:
    """On rank 0 the file that `bench_average` of these settings writes its rows to. Collective.

    provenance: `provenance.provenance()`, made on rank 0 before MPI started. Its transport is that
    of the longest row. Raises UserError where the file exists or cannot be written.
    """
    longest = transport.choose(name, fleet, None, 4 * max(sizes), device, aware)
    config = {
        "bench": "average",
        "sizes": list(sizes),
        "repeats": repeats,
        "transport": name,
        "learners": fleet.P,
        "device": device.name,
    }
    origin = {**provenance, **where(fleet, longest), **gpus(fleet, device)}
    return fleet.together(lambda: Record.create(path, config, origin) if fleet.rank == 0 else None)


def bench_average(
    fleet: Fleet,
    name: str,
    sizes: Sequence[int],
    repeats: int,
    file: Record | None = None,
    device: Cpu | None = None,
    aware: Any = None,
) -> list[dict[str, Any]]:
    """Rows with the columns of `record.BENCHES`, one a size: medians of `repeats` turns, MORE times
    as many for rows shorter than LONG. They go to `file` as they are found.

    Every learner has a row of so many floats; the times are those of the slowest rank. floor_s:
    every rank copies a row of the same size at once, the memory traffic of any mean in place;
    between nodes, the time one row takes over the measured link if that is longer. Rows lie on
    `device`; where MPI cannot take its memory (aware, as `transport.choose` has it), Allreduce goes
    by way of the host.
    """
    device = device or Cpu()
    direct = device.name == "cpu" or fleet.world.bcast(bool(aware and aware.works))
    link = link_bytes_per_s(fleet)
    rows = []
    for n in sizes:
        ours = transport.choose(name, fleet, None, 4 * n, device, aware)
        w = ours.zeros((fleet.L, n))
        flat, copy = device.zeros((n,)), device.zeros((n,))
        ways: dict[str, Callable[[], Any]] = {
            "ours_s": lambda ours=ours, w=w: ours.mean_(w, Scope.WORLD),
            "allreduce_s": lambda flat=flat: _allreduce(fleet, flat, direct),
            "floor_s": lambda flat=flat, copy=copy: device.xp.copyto(copy, flat),
        }
        if (averager := _torch_averager(fleet, n, device)) is not None:
            ways["torch_s"] = averager
        turns = repeats * (MORE if n < LONG else 1)
        timed = {
            way: lambda average=average: _slowest(fleet, average, device)
            for way, average in ways.items()
        }
        row = medians(timed, turns, warm=2)
        if fleet.nodes > 1:
            row["floor_s"] = max(row["floor_s"], 4 * n / link)
        what = {
            "elements": n,
            "ranks": fleet.ranks,
            "nodes": fleet.nodes,
            "learners": fleet.P,
            "transport": ours.name,
        }
        rows.append({**what, "torch_s": np.nan, **row})
        if file:
            file.append("average", **rows[-1])
            file.flush(force=True)
    if file:
        file.finish("finished")
    return rows


def _allreduce(fleet: Fleet, flat: Any, direct: bool) -> None:
    x = flat if direct else on_host(flat)
    fleet.world.Allreduce(MPI.IN_PLACE, x)  # nothing is queued: `_slowest` waited
    if x is not flat:
        put_(flat, x)
    flat /= fleet.ranks


def _slowest(fleet: Fleet, work: Callable[[], Any], device: Cpu) -> float:
    fleet.world.Barrier()
    start = perf_counter()
    work()
    device.settle()
    return fleet.world.allreduce(perf_counter() - start, MPI.MAX)


def _torch_averager(fleet: Fleet, n: int, device: Cpu) -> Callable[[], Any] | None:
    """torch's PeriodicModelAverager over gloo on n parameters in as many tensors as ResNet-18 has;
    None without torch.

    Over NCCL for GPUs, if every rank has its own.
    """
    torch = None
    with suppress(ImportError):
        import torch
        import torch.distributed as dist
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    if torch is None or fleet.ranks == 1:
        return None
    if not dist.is_initialized():
        from localavg.problems.network import set_up_torch

        set_up_torch(fleet.threads, device, "float32")
        with socket.socket() as s:
            s.bind(("", 0))
            port = s.getsockname()[1]
        host, port = fleet.world.bcast((socket.gethostbyname(socket.gethostname()), port))
        if len(set(fleet.hosts)) == 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        backend = "gloo" if device.name == "cpu" or nccl.refusal(fleet, device) else "nccl"
        dist.init_process_group(
            backend, init_method=f"tcp://{host}:{port}", rank=fleet.rank, world_size=fleet.ranks
        )
    cuts = np.linspace(0, n, min(TENSORS, n) + 1).astype(int)
    parameters = [
        torch.nn.Parameter(torch.zeros(int(b - a), device=device.name))
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    for p in parameters:
        p.grad = torch.zeros_like(p)  # it averages what has a gradient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "when period is 1 …": here every call shall average
        averager = PeriodicModelAverager(period=1, warmup_steps=0)
    return lambda: averager.average_parameters(iter(parameters))
