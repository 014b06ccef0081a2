"""Time one average: ours, MPI Allreduce + scale, torch's averager, and the floor.

The floor is the time that memory and the link between nodes need.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle

import numpy as np
from mpi4py import MPI

from localavg.algorithms.base import Due
from localavg.algorithms.outer import RULES
from localavg.cli.bench import CIFAR10, Row, images, medians
from localavg.cli.bench.gossip import ROUNDS, Gossips
from localavg.cli.bench.wire import Wired
from localavg.datasets import Dataset, Split
from localavg.errors import UserError, pip_install
from localavg.files.record import Record
from localavg.interfaces import Array, Device, Transport
from localavg.models import MODELS
from localavg.parallel import transport
from localavg.parallel.device import Cpu, Cuda, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.link import link_bytes_per_s
from localavg.parallel.measure import slowest
from localavg.parallel.probe import Probe
from localavg.parallel.transport import nccl
from localavg.scope import Scope
from localavg.training.copies import copy_lane
from localavg.training.header import gpus, hosts

RESNET_18, RESNET_50 = 11_173_962, 25_557_032  # floats of a row
SIZES = (2_000, 20_000, 200_000, 1_000_000, 4_000_000, RESNET_18, RESNET_50)  # 2000: Epsilon
LONG, MORE = 1_000_000, 10  # rows shorter than LONG have MORE times the turns: their times scatter
# NaN where they are not timed
SOMETIMES = (
    *("torch_s", "outer_s", "gossip_s", "gossip_floor_s"),
    *("wire_s", "wire_bytes", "plain_bytes", "kept_s"),
)
TENSORS = 62  # of ResNet-18: torch's averager packs and unpacks this many


def floats(sizes: Sequence[str]) -> list[int]:
    """Return the floats in a row for each of `sizes`.

    A size is a number, a network's name, or cifar10 for all networks made for its images. A
    network's row holds its parameters and BatchNorm's statistics, for images of the size it was
    made for. Raises UserError for another size, and for a network without torch.
    """
    of_cifar10 = [name for name, model in MODELS.items() if model.side == CIFAR10]
    names = [name for size in sizes for name in (of_cifar10 if size == "cifar10" else [size])]
    for name in names:
        if name not in MODELS and not (name.isdecimal() and int(name)):
            raise UserError(
                f"--sizes {name}: must be a number of floats from 1 on, cifar10 for all networks "
                f"of its images, or one of {', '.join(MODELS)}"
            )
    return [_row_of(name) if name in MODELS else int(name) for name in names]


def _row_of(model: str) -> int:
    """Return the floats in a row of a network."""
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"--sizes {model}: the size of a network needs torch ({e}); "
            f"{pip_install('torch')}, or give numbers of floats"
        ) from e
    from localavg.problems.network import Network

    shape, classes = images(MODELS[model].side)
    none = Split(np.empty((0, *shape), np.uint8), np.empty(0, int))
    names = tuple(map(str, range(classes)))
    data = Dataset("none", "images", none, None, names, True, shape)
    return Network(data, model, l2=0.0, seed=0).d


def new_file(
    fleet: Fleet,
    name: str,
    sizes: Sequence[int],
    repeats: int,
    path: str,
    provenance: Mapping[str, object],
    device: Device,
    aware: Probe | None = None,
    outer: str | None = None,
    graph: str | None = None,
    wire: str | None = None,
    kept: bool = False,
) -> Record | None:
    """Create, on rank 0, the file for the rows of `bench_average` with these settings. Collective.

    provenance: that of rank 0, made before MPI started; the transport of the longest row is added.
    Raises UserError if the file exists or cannot be written.
    """
    longest = transport.choose(name, fleet, (), 4 * max(sizes), device, aware)
    config = {
        "bench": "average",
        "sizes": list(sizes),
        "repeats": repeats,
        "transport": name,
        "learners": fleet.P,
        "device": device.name,
        "outer": outer,
        "graph": graph,
        "wire": wire,
        "kept": kept,
    }
    origin = {**provenance, **hosts(fleet, longest), **gpus(fleet, device)}
    return fleet.together(lambda: Record.create(path, config, origin) if fleet.rank == 0 else None)


def bench_average(
    fleet: Fleet,
    name: str,
    sizes: Sequence[int],
    repeats: int,
    file: Record | None = None,
    device: Device | None = None,
    aware: Probe | None = None,
    outer: str | None = None,
    graph: str | None = None,
    wire: str | None = None,
    kept: bool = False,
) -> list[Row]:
    """Time averages of rows of every size; return rows with the columns of `schema.BENCHES`.

    Every learner has one row on `device`. The times are medians of `repeats` turns (MORE times as
    many for rows shorter than LONG), each that of the slowest rank. floor_s: all ranks copy their
    rows at once, the memory traffic of any mean in place; or what the measured link of H nodes must
    carry, 2 (H − 1)/H of a row each way (Patarasuk and Yuan 2009), if that takes longer. aware: as
    in `transport.choose`; if MPI cannot take the device's memory, Allreduce goes through the host.
    outer: also time an average with a step of this outer optimiser. graph: also time a gossip on
    it. wire: also time an average that crosses nodes by it. kept: also time an average that is
    copied, as runs do whose ranks may die. Each row is written to `file` at once.
    """
    device = device or Cpu()
    direct = device.name == "cpu" or fleet.world.bcast(bool(aware and aware.works))
    link = link_bytes_per_s(fleet) if fleet.nodes > 1 else None
    rows: list[Row] = []
    for n in sizes:
        ours = transport.choose(name, fleet, (), 4 * n, device, aware)
        turns = repeats * (MORE if n < LONG else 1)
        row = _time(fleet, ours, n, turns, device, direct, outer, graph, link, wire, kept)
        if link is not None:
            share = 2 * (fleet.nodes - 1) / fleet.nodes  # of a row, that each link must carry
            row["floor_s"] = max(row["floor_s"], share * 4 * n / link)
        about = _about(n, fleet, ours)
        rows.append({**about, **dict.fromkeys(SOMETIMES, np.nan), **row})
        if file:
            file.append("average", **about, **row)
            file.flush(force=True)
    if file:
        file.finish("finished")
    return rows


def _about(n: int, fleet: Fleet, ours: Transport) -> dict[str, float | str]:
    """Return the columns that say what is averaged, and where."""
    return {
        "elements": n,
        "ranks": fleet.ranks,
        "nodes": fleet.nodes,
        "learners": fleet.P,
        "transport": ours.name,
    }


def _time(
    fleet: Fleet,
    ours: Transport,
    n: int,
    turns: int,
    device: Device,
    direct: bool,
    outer: str | None,
    graph: str | None,
    link: float | None,
    wire: str | None,
    kept: bool,
) -> dict[str, float]:
    """Return the median seconds of every way to average rows of n floats."""
    w = ours.zeros((fleet.L, n))
    copied, flat = ours.zeros((fleet.L, n)), device.zeros((n,))
    ways: dict[str, Callable[[], object]] = {
        "ours_s": lambda: ours.mean_(w, Scope.WORLD),
        "allreduce_s": lambda: _allreduce(fleet, flat, direct),
        "floor_s": lambda: device.xp.copyto(copied, w),
    }
    if outer is not None:
        step = RULES[outer]()
        step.start(w, n, ours)
        ways["outer_s"] = lambda: step.average_(w, Due(Scope.WORLD, gamma=1.0), ours)
    if graph is not None:
        ways["gossip_s"] = gossips = Gossips(fleet, ours, w, graph)
    if wire is not None:
        ways["wire_s"] = wired = Wired(fleet, ours, n, wire)
    if kept:
        ways["kept_s"] = _kept(fleet, ours, w)
    if (averager := _torch_averager(fleet, n, device)) is not None:
        ways["torch_s"] = averager
    timed = {name: partial(slowest, fleet, way, device) for name, way in ways.items()}
    found = medians(timed, turns, warm=2)
    if graph is not None:
        found["gossip_s"] /= ROUNDS
        found["gossip_floor_s"] = gossips.floor_s(found["floor_s"], link)
    if wire is not None:
        found |= {"wire_bytes": wired.coded_bytes, "plain_bytes": wired.plain_bytes}
    return found


def _kept(fleet: Fleet, ours: Transport, w: Array) -> Callable[[], None]:
    """Return a call that averages the rows w [L, n] and copies the mean for a recovery."""
    copies, slots = fleet.node_array((2, w.shape[1])), cycle((0, 1))

    def average_() -> None:
        ours.mean_(w, Scope.WORLD)
        copy_lane(w[0], copies[next(slots)], fleet)

    return average_


def _allreduce(fleet: Fleet, flat: Array, direct: bool) -> None:
    """Set flat [n] to its mean over the ranks, as one would by hand."""
    x = flat if direct else on_host(flat)
    fleet.world.Allreduce(MPI.IN_PLACE, x)  # no work is queued: `slowest` waited for it
    if x is not flat:
        put_(flat, x)
    flat /= fleet.ranks


def _torch_averager(fleet: Fleet, n: int, device: Device) -> Callable[[], None] | None:
    """Return a call of torch's PeriodicModelAverager; None without torch or on one rank.

    It averages n parameters, in as many tensors as ResNet-18 has.
    """
    try:
        import torch
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    except ImportError:
        return None
    if fleet.ranks == 1:
        return None
    _start_torch(fleet, device)
    cuts = np.linspace(0, n, min(TENSORS, n) + 1).astype(int)
    parameters = [
        torch.nn.Parameter(torch.zeros(int(b - a), device=device.name))
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    for p in parameters:
        p.grad = torch.zeros_like(p)  # the averager leaves out parameters without a gradient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of period 1, but every call must average
        averager = PeriodicModelAverager(period=1, warmup_steps=0)
    return lambda: averager.average_parameters(iter(parameters))


def _start_torch(fleet: Fleet, device: Device) -> None:
    """Start torch.distributed once: over gloo, or over NCCL if every rank has a GPU of its own."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    from localavg.problems.network import set_up_torch

    set_up_torch(fleet.threads, device, "float32")
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    host, port = fleet.world.bcast((socket.gethostbyname(socket.gethostname()), port))
    if len(set(fleet.hosts)) == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    own = isinstance(device, Cuda) and not nccl.refusal(fleet, device)
    dist.init_process_group(
        "nccl" if own else "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=fleet.rank,
        world_size=fleet.ranks,
    )
