"""The GPUs of a host and whether MPI takes their memory, found out before MPI starts.

What asks the GPUs runs in children of this module (``python -m localavg.parallel.probe list``): a
process must neither start CUDA before it knows its device nor fork once MPI runs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from shutil import which
from typing import Any

from localavg.files import atomic

LAUNCHED = (
    "OMPI_",
    "PRTE_",
    "PMI",
    "HYDI_",
    "MPI_LOCAL",
    "JSM_",
    "LSB_",
    "SLURM_",
)  # variables by which ranks know their job
SETTINGS = ("OMPI_ALLOW_", "OMPI_MCA_", "PRTE_MCA_")  # but these are the user's, save for
JOB = (
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_pmix",
    "OMPI_MCA_initial_wdir",
    "OMPI_MCA_num_procs",
)
ROOMY = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
LIMIT_S = 120  # for a child

Gpus = tuple[tuple[str, str], ...]  # (name, identity)


@dataclass(frozen=True)
class Probe:
    """Whether MPI reduced device memory when it was tried; works is None where it could not be
    tried.
    """

    works: bool | None
    why: str
    tried: str = ""  # the day
    cached: bool = False


def find_gpus() -> tuple[Gpus, str]:
    """The GPUs that torch or CuPy sees in a child, and why there are none."""
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
    """What the doctor found, or now finds in a child, of MPI on device memory. Before MPI starts;
    it starts after.
    """
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    found = probe(*find_gpus(), fresh=False)
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    return found


def probe(gpus: Gpus, why: str, fresh: bool) -> Probe:
    """Whether MPI takes device memory on this host, tried once for each MPI library and type of
    host.
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
                    gpus.append(
                        (
                            properties["name"].decode(),
                            bytes(properties.get("uuid", _visible(i).encode())).hex(),
                        )
                    )
    print(
        json.dumps(
            {"gpus": gpus, "why": "" if gpus else f"none: {' and '.join(whys)} see no device"}
        )
    )


def _visible(i: int) -> str:
    """What the i-th visible device is called on the host."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[i] if i < len(names) else str(i)


def try_allreduce() -> None:
    """Child on two ranks: sum device memory in place and print {"ranks", "wrong", "numbers"} on the
    first.
    """
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
    """x = 1 + i mod 61 + 2·rank, float32 [n] on this rank's device; a wait for the device; the way
    to a list on the host.
    """
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


def tried(command: Sequence[str], limit_s: float) -> Probe:
    """Try `command`, which reduces device memory over two ranks and prints {"ranks", "wrong",
    "numbers"} as a JSON line.

    Its failure, crash or silence over limit_s seconds is a result and raises nothing.
    """
    job = {
        k
        for k in os.environ
        if k.startswith(JOB) or (k.startswith(LAUNCHED) and not k.startswith(SETTINGS))
    }
    own = {
        k: v for k, v in os.environ.items() if k not in job and (k, v) != ("OMPI_MCA_btl", "self")
    }  # that is for one rank
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
    """The Probe that file `path` has for `key`, else (or when `fresh`) what `try_` finds, kept
    there if it decided.
    """
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(path.read_text()))
    if not fresh:
        with suppress(KeyError, TypeError):
            return replace(Probe(**known[key]), cached=True)
    found = replace(try_(), tried=date.today().isoformat())
    if found.works is not None:
        with suppress(OSError):  # where nothing can be written, the next time tries again
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(path) as part:
                part.write_text(json.dumps({**known, key: asdict(found)}, indent=1))
    return found


def run_child(
    command: Sequence[str], env: Mapping[str, str], limit_s: float
) -> tuple[int | None, str, str]:
    """Exit status, None if it had to be ended after limit_s seconds, and what it wrote to stdout
    and stderr.
    """
    status = None
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):  # no pipes: a stray rank would hold them open
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            child.terminate()  # a launcher then ends its ranks
            with suppress(subprocess.TimeoutExpired):
                child.wait(2)
        finally:
            if status is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return status, *(
            os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace") for file in (out, err)
        )


def answer(out: str) -> dict[str, Any] | None:
    """The last line of JSON that a child printed."""
    lines = [line for line in out.splitlines() if line.startswith("{")]
    with suppress(ValueError, IndexError):
        return json.loads(lines[-1])
    return None


def ended(status: int | None, err: str, limit_s: float) -> str:
    """How a child ended, and the line of stderr that says most."""
    if status is None:
        return f"no answer within {limit_s:g} s"
    lines = [line.strip() for line in err.splitlines() if any(map(str.isalnum, line))] or [
        "it said nothing"
    ]
    telling = [line for line in lines if "rror" in line or "signal" in line] or lines
    return f"the child ended with status {status}: {telling[-1][:200]}"


if __name__ == "__main__":
    {"list": print_gpus, "allreduce": try_allreduce}[sys.argv[1]]()
