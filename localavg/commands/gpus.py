"""The GPUs of a host and whether MPI takes their memory, found out before MPI starts.

What asks the GPUs runs in children of this module (``python -m localavg.commands.gpus list``): a process must neither start
CUDA before it knows its device nor fork once MPI runs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localavg.doctor import Probe

LIMIT_S = 120  # for a child

Gpus = tuple[tuple[str, str], ...]  # (name, identity)


def find_gpus() -> tuple[Gpus, str]:
    """The GPUs that torch or CuPy sees in a child, and why there are none."""
    from localavg import doctor

    try:
        ctypes.CDLL("libcuda.so.1")  # loads the driver's library and starts nothing
    except OSError:
        return (), "none: no NVIDIA driver (libcuda.so.1) on this host"
    if not any(map(importlib.util.find_spec, ("torch", "cupy"))):
        return (), "unknown: neither torch nor CuPy is installed"
    status, out, err = doctor.run_child([sys.executable, "-m", __name__, "list"], os.environ, LIMIT_S)
    if status != 0 or (answer := doctor.answer(out)) is None:
        return (), f"unknown: {doctor.ended(status, err, LIMIT_S)}"
    return tuple((name, identity) for name, identity in answer["gpus"]), answer["why"]


def probed() -> Probe:
    """What the doctor found, or now finds in a child, of MPI on device memory. Before MPI starts; it starts after."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    found = probe(*find_gpus(), fresh=False)
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    return found


def probe(gpus: Gpus, why: str, fresh: bool) -> Probe:
    """Whether MPI takes device memory on this host, tried once for each MPI library and type of host."""
    from mpi4py import MPI

    from localavg import doctor

    if not gpus:
        return doctor.Probe(None, f"not tried: GPUs: {why}")
    if (mpirun := which("mpirun")) is None:
        return doctor.Probe(None, "not tried: no mpirun on PATH")
    command = [mpirun, "-n", "2", sys.executable, "-m", "mpi4py", "-m", __name__, "allreduce"]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "localavg")
    key = f"{MPI.Get_library_version().strip(chr(0))} on {platform.machine()} with {counted(name for name, _ in gpus)}"
    return doctor.cached(folder / "cuda-aware.json", key, lambda: doctor.probe(command, LIMIT_S), fresh)


def print_gpus() -> None:
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


def try_allreduce() -> None:
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
        import cupy  # whose memory training sends

        cupy.cuda.Device(rank % cupy.cuda.runtime.getDeviceCount()).use()
        x = (cupy.arange(n) % 61 + 1 + 2 * rank).astype(cupy.float32)
        return x, cupy.cuda.get_current_stream().synchronize, cupy.ndarray.tolist
    import torch

    torch.cuda.set_device(rank % torch.cuda.device_count())
    x = (torch.arange(n, device="cuda") % 61 + 1 + 2 * rank).to(torch.float32)
    return x, torch.cuda.synchronize, torch.Tensor.tolist


def counted(names: Iterable[str]) -> str:
    """Equal names together, with how many there are."""
    return ", ".join(f"{n} × {name}" for name, n in Counter(names).items())


if __name__ == "__main__":
    {"list": print_gpus, "allreduce": try_allreduce}[sys.argv[1]]()
