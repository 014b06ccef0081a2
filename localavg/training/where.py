"""Where a run computes: on the device that it names, or with `device = auto` where it gains.

auto takes a GPU where every rank sees one and the problem gains by it: a network, or logistic
regression whose updates read at least READ numbers. Otherwise it takes the CPU. Where a rank sees a
GPU, the choice is said.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

from localavg.config import TrainConfig
from localavg.datasets import Dataset
from localavg.errors import UserError
from localavg.interfaces import Device
from localavg.parallel.device import Cpu, Cuda, choose_device
from localavg.parallel.fleet import Fleet
from localavg.parallel.gpus import find_gpus

AUTO = "auto"
"""the name that leaves the choice to this file"""
READ = 1 << 20
"""numbers that a rank reads in an update of logistic regression, L B d, from which on a GPU gains

One CPU core reads this many in about half a millisecond, which is as long as a GPU needs to be told
what to do.
"""


def choose(
    c: TrainConfig, fleet: Fleet, earlier: str | None, load: Callable[[], Dataset]
) -> Device:
    """Return the device of a synchronous run; its `why` is the reason for the choice. Collective.

    earlier: the device of the run that is resumed, which keeps it. load: loads the data, if the
    choice depends on them. Raises UserError on every rank if a device that was asked for does not
    work.
    """
    if c.device != AUTO or earlier:
        device = choose_device(earlier if c.device == AUTO and earlier else c.device, fleet)
        device.why = "asked for" if c.device != AUTO else "that of the run that is resumed"
        return device
    sees = fleet.world.allgather(find_gpus())  # [R]
    reasons = [why for gpus, why in sees if not gpus]
    if len(reasons) == fleet.ranks:
        return Cpu(f"auto: GPUs: {reasons[0]}")
    device, why = _best(c, fleet, load, [bool(gpus) for gpus, _ in sees], reasons)
    device.why = f"auto: {why}"
    if fleet.rank == 0:
        print(f"localavg: device {device.name}, {device.why}", file=sys.stderr)
    return device


def _best(
    c: TrainConfig, fleet: Fleet, load: Callable[[], Dataset], sees: list[bool], reasons: list[str]
) -> tuple[Device, str]:
    """Return the device where the problem gains most, and why, where some rank sees a GPU.

    sees: which ranks see one; reasons: why the others do not.
    """
    if reasons:
        return Cpu(), f"rank {sees.index(False)} sees no GPU ({reasons[0]})"
    if not c.names_network and load().kind != "features":
        return Cpu(), "images need a network"
    x = None if c.names_network else load().train.x  # [n, d]
    read = 0
    if x is not None:
        read = max(fleet.layout.counts) * c.batch_size * x[:1].size
        if read < READ:
            return Cpu(), (
                f"an update reads {read} numbers of the data, and logistic regression gains by a "
                f"GPU from {READ} on; --device cuda takes it"
            )
    try:
        device = choose_device("cuda", fleet)
        assert isinstance(device, Cuda)
        users = Counter(fleet.world.allgather(device.identity))[device.identity]
        if x is None:
            fleet.together(partial(_try_torch, c, fleet, device))
        else:
            fleet.together(partial(_try_room, device, users * x.nbytes))
    except UserError as e:  # on every rank alike
        return Cpu(), str(e).removeprefix("`device = cuda`: ")
    if x is None:
        return device, "a network gains by a GPU"
    return device, f"an update reads {read} numbers of the data, and a GPU gains from {READ} on"


def _try_torch(c: TrainConfig, fleet: Fleet, device: Cuda) -> None:
    """Raise UserError where torch cannot use the GPU."""
    try:
        from localavg.problems.network import set_up_torch
    except ImportError as e:
        raise UserError(f"networks need torch ({e})") from e
    set_up_torch(fleet.threads, device, c.precision, c.deterministic == "yes")


def _try_room(device: Cuda, nbytes: int) -> None:
    """Raise UserError where data of so many bytes take more than half of the GPU's free memory."""
    free = device.xp.cuda.runtime.memGetInfo()[0]
    if 2 * nbytes > free:
        raise UserError(
            f"the data take {nbytes / 1e9:.2g} GB, more than half of the {free / 1e9:.2g} GB free "
            "on the GPU"
        )
