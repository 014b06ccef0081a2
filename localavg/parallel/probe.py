"""Find out whether MPI takes the memory of GPUs, before MPI starts.

The trial is a job of its own, because a library that cannot do it may crash, a process must not
start CUDA before it knows its device, and must not fork after MPI has started.
"""

from __future__ import annotations

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
from typing import TYPE_CHECKING

from localavg.interfaces import Settings
from localavg.parallel.child import answer, ended, run_child
from localavg.parallel.gpus import Gpus, find_gpus
from localavg.parallel.outside import on_two_nodes, outside

if TYPE_CHECKING:
    import cupy
    import torch

LIMIT_S = 120  # after which a child is killed
BETWEEN_S = 60  # the same where the child's ranks lie on two nodes: its launcher may wait for ever


@dataclass(frozen=True)
class Probe:
    """Whether MPI reduced device memory in a trial.

    works: None if the trial was not possible; why: what the trial found, or why there was none;
    tried: the day; cached: whether the result was read from the cache; nodes: on how many nodes
    the ranks of the trial were.
    """

    works: bool | None
    why: str
    tried: str = ""
    cached: bool = False
    nodes: int = 1


def probed() -> Probe:
    """Return the cached Probe of MPI on device memory, or try it in a child; then start MPI."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    found = probe(*find_gpus(), fresh=False)
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    return found


def known() -> Probe:
    """Return the cached Probe of MPI on device memory. Nothing is tried: MPI may have started."""
    gpus, why = find_gpus()
    if not gpus:
        return Probe(None, f"not tried: GPUs: {why}")
    return cached(*_case(gpus)[:2], lambda: Probe(None, "not tried yet; localavg doctor tries it"))


def probe(gpus: Gpus, why: str, fresh: bool) -> Probe:
    """Find out whether MPI takes device memory on this host, before MPI starts.

    It is tried once for each MPI library and type of host, and cached. In a job on several nodes it
    is tried on two of them, or if no launcher starts that, on this one. gpus and why: as
    `find_gpus` returns them; fresh: try again.
    """
    if not gpus:
        return Probe(None, f"not tried: GPUs: {why}")
    mpirun, (path, key, between) = which("mpirun"), _case(gpus)
    if mpirun is None and not between:
        return Probe(None, "not tried: no mpirun on PATH")
    program = [sys.executable, "-m", "mpi4py", "-m", __name__]

    def try_() -> Probe:
        one = [mpirun or "mpirun", "-n", "2", *program]
        if not between:
            return tried(one, LIMIT_S)
        if (found := tried([*between, *program], BETWEEN_S, nodes=2)).works is not None:
            return found
        here = tried(one, LIMIT_S)
        return replace(here, why=f"{here.why}; between nodes {found.why}")

    return cached(path, key, try_, fresh)


def _case(gpus: Gpus) -> tuple[Path, str, list[str]]:
    """Return the cache, the key of this host there, and what starts ranks on two nodes."""
    from mpi4py import MPI

    library = MPI.Get_library_version().strip(chr(0))
    between = on_two_nodes(os.environ, library)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "localavg")
    key = f"{library} on {platform.machine()} with {counted(name for name, _ in gpus)}"
    if between:
        key += f", between nodes by {Path(between[0]).name}"
    return folder / "cuda-aware.json", key, between


def try_allreduce() -> None:
    """Sum device memory over the ranks in place, and check it. Runs in a child, see `tried`.

    The first rank prints the answers.
    """
    signal.alarm(LIMIT_S)  # ends a rank that hangs where its launcher cannot reach it
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    R, wrong = world.size, 0
    here = world.Split_type(MPI.COMM_TYPE_SHARED)
    met = {"ranks": R, "nodes": sum(world.allgather(here.rank == 0))}
    if world.rank == 0:
        print(json.dumps(met), flush=True)
    sizes = (5, 1 << 20)  # floats: one message sent at once, one by rendezvous or CUDA IPC
    for n in sizes:
        x, synchronize, to_list = _on_device(n, world.rank, here.rank)  # [n]
        synchronize()
        world.Allreduce(MPI.IN_PLACE, x)
        wrong += sum(value != R * (1 + i % 61 + R - 1) for i, value in enumerate(to_list(x)))
    wrong = sum(world.allgather(wrong))
    if world.rank == 0:
        print(json.dumps({**met, "wrong": wrong, "numbers": R * sum(sizes)}), flush=True)


def _on_device(
    n: int, rank: int, place: int
) -> tuple[cupy.ndarray | torch.Tensor, Callable[[], None], Callable[..., list[float]]]:
    """Return x = 1 + i mod 61 + 2·rank, float32 [n] on the device of this place, and two functions.

    The first waits for the device; the second makes a list on the host of x.
    """
    with suppress(ImportError):
        import cupy  # CuPy first: training sends its memory

        cupy.cuda.Device(place % cupy.cuda.runtime.getDeviceCount()).use()
        x = (cupy.arange(n) % 61 + 1 + 2 * rank).astype(cupy.float32)
        return x, cupy.cuda.get_current_stream().synchronize, cupy.ndarray.tolist
    import torch

    torch.cuda.set_device(place % torch.cuda.device_count())
    x = (torch.arange(n, device="cuda") % 61 + 1 + 2 * rank).to(torch.float32)
    return x, torch.cuda.synchronize, torch.Tensor.tolist


def counted(names: Iterable[str]) -> str:
    """Write equal names once, with their number: 2 × NVIDIA H100."""
    return ", ".join(f"{n} × {name}" for name, n in Counter(names).items())


def tried(command: Sequence[str], limit_s: float, nodes: int = 1) -> Probe:
    """Run `command`, which reduces device memory over two ranks a node, and judge its answer.

    The command prints {"ranks", "nodes"} as a line of JSON when its ranks have met, and "wrong" and
    "numbers" with them at its end. If it fails, crashes or takes more than limit_s seconds, that is
    the result; nothing is raised. On several nodes ranks that never met are no result.
    """
    allocated = nodes > 1 and command[0] != "srun"  # which is told the allocation
    try:
        status, out, err = run_child(command, outside(os.environ, allocated), limit_s)
    except OSError as e:
        return Probe(None, f"not tried: {e}")
    found = answer(out) or {}
    if nodes > 1 and found.get("nodes", 0) < nodes:
        on = f"all ranks are on {found['nodes']}" if found else ended(status, err, limit_s)
        return Probe(None, f"not tried: {command[0]} starts no ranks on {nodes} nodes: {on}")
    if found.get("ranks", 2 * nodes) != 2 * nodes:
        return Probe(
            None, f"not tried: {command[0]} is not of the MPI that mpi4py loads: each rank is alone"
        )
    if status != 0 or "wrong" not in found:
        return Probe(False, ended(status, err, limit_s), nodes=nodes)
    if found["wrong"]:
        wrong = f"{found['wrong']} of {found['numbers']} numbers were wrong"
        return Probe(False, wrong, nodes=nodes)
    where = " on two nodes" if nodes > 1 else ""
    right = f"device memory was reduced in place{where}, every number right"
    return Probe(True, right, nodes=nodes)


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
    try_allreduce()
