"""Find the GPUs of a host, and whether MPI takes their memory, before MPI starts.

The code that uses CUDA runs in child processes (``python -m localavg.parallel.probe list``),
because a process must not start CUDA before it knows its device, and must not fork after MPI
has started.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, TypeAlias

from localavg.interfaces import Settings
from localavg.parallel.child import answer, ended, run_child

if TYPE_CHECKING:
    import cupy
    import torch

# Prefixes of the environment variables that describe a rank's job; a child that is a job of its own
# must not inherit them.
LAUNCHED = ("OMPI_", "PRTE_", "PMI", "HYDI_", "MPI_LOCAL", "JSM_", "LSB_", "SLURM_")
# Prefixes among these of the user's own settings, which the child does inherit, ...
SETTINGS = ("OMPI_ALLOW_", "OMPI_MCA_", "PRTE_MCA_")
# ... and prefixes among the settings that belong to the job after all.
JOB = (
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_pmix",
    "OMPI_MCA_initial_wdir",
    "OMPI_MCA_num_procs",
)
ROOMY = {  # allow the child more ranks than cores, not bound
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
LIMIT_S = 120  # after which a child is killed

Gpus: TypeAlias = tuple[tuple[str, str], ...]  # (name, identity) of each


@dataclass(frozen=True)
class Probe:
    """Whether MPI reduced device memory in a trial.

    works: None if the trial was not possible; why: what the trial found, or why there was none;
    tried: the day; cached: whether the result was read from the cache.
    """

    works: bool | None
    why: str
    tried: str = ""
    cached: bool = False


def find_gpus() -> tuple[Gpus, str]:
    """Return the GPUs that torch or CuPy sees in a child, and the reason if there are none."""
    try:
        ctypes.CDLL("libcuda.so.1")  # loads the driver's library and starts nothing
    except OSError:
        return (), "none: no NVIDIA driver (libcuda.so.1) on this host"
    if not any(map(importlib.util.find_spec, ("torch", "cupy"))):
        return (), "unknown: neither torch nor CuPy is installed"
    status, out, err = run_child([sys.executable, "-m", __name__, "list"], os.environ, LIMIT_S)
    if status != 0 or (found := answer(out)) is None:
        return (), f"unknown: {ended(status, err, LIMIT_S)}"
    return tuple((name, identity) for name, identity in found["gpus"]), found["why"]


def probed() -> Probe:
    """Return the cached Probe of MPI on device memory, or try it in a child; then start MPI."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    found = probe(*find_gpus(), fresh=False)
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    return found


def probe(gpus: Gpus, why: str, fresh: bool) -> Probe:
    """Find out whether MPI takes device memory on this host, before MPI starts.

    It is tried once for each MPI library and type of host, and cached. gpus and why: as `find_gpus`
    returns them; fresh: try again.
    """
    from mpi4py import MPI

    if not gpus:
        return Probe(None, f"not tried: GPUs: {why}")
    if (mpirun := which("mpirun")) is None:
        return Probe(None, "not tried: no mpirun on PATH")
    command = [mpirun, "-n", "2", sys.executable, "-m", "mpi4py", "-m", __name__, "allreduce"]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "localavg")
    cards = counted(name for name, _ in gpus)
    key = f"{MPI.Get_library_version().strip(chr(0))} on {platform.machine()} with {cards}"
    return cached(folder / "cuda-aware.json", key, lambda: tried(command, LIMIT_S), fresh)


def print_gpus() -> None:
    """Print the GPUs that torch or CuPy sees, as a line of JSON. Runs in a child."""
    gpus: list[tuple[str, str]] = []
    whys = []
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
                    identity = bytes(properties.get("uuid", _visible(i).encode())).hex()
                    gpus.append((properties["name"].decode(), identity))
    why = "" if gpus else f"none: {' and '.join(whys)} see no device"
    print(json.dumps({"gpus": gpus, "why": why}))


def _visible(i: int) -> str:
    """Return the host's number of the i-th visible device."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[i] if i < len(names) else str(i)


def try_allreduce() -> None:
    """Sum device memory over the ranks in place, and check it. Runs in a child, on two ranks.

    The first rank prints {"ranks", "wrong", "numbers"} as a line of JSON.
    """
    signal.alarm(LIMIT_S)  # ends a rank that hangs where its launcher cannot reach it
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    R, wrong = world.size, 0
    sizes = (5, 1 << 20)  # floats: one message sent at once, one by rendezvous or CUDA IPC
    for n in sizes:
        x, synchronize, to_list = _on_device(n, world.rank)  # [n]
        synchronize()
        world.Allreduce(MPI.IN_PLACE, x)
        wrong += sum(value != R * (1 + i % 61 + R - 1) for i, value in enumerate(to_list(x)))
    wrong = world.allreduce(wrong)
    if world.rank == 0:
        print(json.dumps({"ranks": R, "wrong": wrong, "numbers": R * sum(sizes)}), flush=True)


def _on_device(
    n: int, rank: int
) -> tuple[cupy.ndarray | torch.Tensor, Callable[[], None], Callable[..., list[float]]]:
    """Return x = 1 + i mod 61 + 2·rank, float32 [n] on this rank's device, and two functions.

    The first waits for the device; the second makes a list on the host of x.
    """
    with suppress(ImportError):
        import cupy  # CuPy first: training sends its memory

        cupy.cuda.Device(rank % cupy.cuda.runtime.getDeviceCount()).use()
        x = (cupy.arange(n) % 61 + 1 + 2 * rank).astype(cupy.float32)
        return x, cupy.cuda.get_current_stream().synchronize, cupy.ndarray.tolist
    import torch

    torch.cuda.set_device(rank % torch.cuda.device_count())
    x = (torch.arange(n, device="cuda") % 61 + 1 + 2 * rank).to(torch.float32)
    return x, torch.cuda.synchronize, torch.Tensor.tolist


def counted(names: Iterable[str]) -> str:
    """Write equal names once, with their number: 2 × NVIDIA H100."""
    return ", ".join(f"{n} × {name}" for name, n in Counter(names).items())


def tried(command: Sequence[str], limit_s: float) -> Probe:
    """Run `command`, which reduces device memory over two ranks, and judge its answer.

    The command prints {"ranks", "wrong", "numbers"} as a line of JSON. If it fails, crashes or
    takes more than limit_s seconds, that is the result; nothing is raised.
    """
    job = {
        k
        for k in os.environ
        if k.startswith(JOB) or (k.startswith(LAUNCHED) and not k.startswith(SETTINGS))
    }
    alone = ("OMPI_MCA_btl", "self")  # set by `__main__` for one process; two could not talk
    own = {k: v for k, v in os.environ.items() if k not in job and (k, v) != alone}
    try:
        status, out, err = run_child(command, ROOMY | own, limit_s)
    except OSError as e:
        return Probe(None, f"not tried: {e}")
    found = answer(out)
    if status != 0 or found is None:
        return Probe(False, ended(status, err, limit_s))
    if found["ranks"] != 2:
        return Probe(
            None, f"not tried: {command[0]} is not of the MPI that mpi4py loads: each rank is alone"
        )
    if found["wrong"]:
        return Probe(False, f"{found['wrong']} of {found['numbers']} numbers were wrong")
    return Probe(True, "device memory was reduced in place, every number right")


def cached(path: Path, key: str, try_: Callable[[], Probe], fresh: bool = False) -> Probe:
    """Return the Probe that the file `path` holds for `key`; if none or `fresh`, that of `try_`.

    A new Probe is written to the file if it decided whether MPI takes device memory.
    """
    known: dict[str, Settings] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(path.read_text()))
    if not fresh:
        with suppress(KeyError, TypeError):
            return replace(Probe(**known[key]), cached=True)
    found = replace(try_(), tried=date.today().isoformat())
    if found.works is not None:
        with suppress(OSError):  # if the file cannot be written, the next call tries again
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
                json.dump({**known, key: asdict(found)}, file, indent=1)
            os.replace(file.name, path)
    return found


if __name__ == "__main__":
    {"list": print_gpus, "allreduce": try_allreduce}[sys.argv[1]]()
