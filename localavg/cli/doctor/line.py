"""The line by which training is launched here, from how these ranks were launched."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from localavg.cli.doctor.facts import Facts

CHECKOUT = Path(__file__).resolve().parents[3]
FIRST = "train kavg --K {K} --learners {P} --data digits --model nin --epochs 5 --out runs/first.h5"
PERIOD = 16  # where one rank has measured no average


def launcher() -> tuple[str, ...]:
    """Return the words that started these ranks, or that start ranks here; () if nothing can."""
    given = os.environ
    if "JSM_NAMESPACE_RANK" in given:
        return ("jsrun",)
    by_mpirun = "OMPI_COMM_WORLD_RANK" in given or "MPI_LOCALRANKID" in given  # that of Hydra
    if "SLURM_STEP_ID" in given and not by_mpirun:
        kind = "pmix" if "PMIX_RANK" in given else "pmi2" if "PMI_RANK" in given else ""
        return ("srun", f"--mpi={kind}") if kind else ("srun",)
    ours = CHECKOUT / "jobs" / "local" / "mpirun"
    in_job = "SLURM_JOB_ID" in given or "LSB_JOBID" in given
    other = "PMI_RANK" in given and "MPI" not in given  # an mpirun that is not of this checkout
    if ours.exists() and not in_job and not other:
        chosen = given.get("MPI", "openmpi")
        return (*([f"MPI={chosen}"] if chosen != "openmpi" else []), _short(ours))
    return ("mpirun",) if shutil.which("mpirun") else ()


def program() -> str:
    """Return the command that starts localavg, as a shell in this folder finds it."""
    beside = Path(sys.executable).with_name("localavg")
    on_path = shutil.which("localavg")
    if on_path and Path(on_path).resolve() == beside.resolve():
        return "localavg"
    return _short(beside) if beside.exists() else f"{_short(Path(sys.executable))} -m localavg"


def launch_line(f: Facts) -> str:
    """Return the line for as many ranks as these, or alone for as many as this host has room."""
    first, ranks = f.ranks[0], len(f.ranks)
    if ranks == 1:
        ranks = len(first.gpus) or max(1, first.cores or len(first.cpus or ()) or 1)
    nodes = f.srun_nodes or len(f.machines())
    per_node = -(-ranks // nodes)
    gpus = min(len(first.gpus), per_node)
    cores = max(1, (_cores(f) if len(f.ranks) > 1 else first.cores or 1) // per_node)
    words = [*f.launcher, *_size(f, ranks, nodes, per_node, cores, gpus)]
    told = FIRST.format(K=f.period or PERIOD, P=max(ranks, f.learners))
    return " ".join([*(words if ranks > 1 and f.launcher else []), f.program, told])


def _size(f: Facts, ranks: int, nodes: int, per_node: int, cores: int, gpus: int) -> list[str]:
    """Return the launcher's words for the ranks, and the cores that each is bound to."""
    if f.launcher[:1] == ("srun",):
        size = [f"--nodes={nodes}", f"--ntasks={ranks}", f"--cpus-per-task={cores}"]
        more = [f"--gpus-per-node={gpus}"] if gpus else []
        return [*size, *more, "--cpu-bind=cores", "--kill-on-bad-exit=1"]
    if f.launcher == ("jsrun",):
        sets = [f"--np {ranks}", "--rs_per_host 1", f"--tasks_per_rs {per_node}"]
        return [*sets, f"--cpu_per_rs {per_node * cores} --gpu_per_rs {gpus} --bind packed:{cores}"]
    spread = nodes > 1 and "Open MPI" in f.mpi
    return [f"-n {ranks}", *([f"--map-by ppr:{per_node}:node:PE={cores}"] if spread else [])]


def _cores(f: Facts) -> int:
    """Return the cores of the first host on which its ranks may run."""
    here = f.machines()[0]
    if any(r.cpus is None for r in here):
        return here[0].host_cpus
    return len({cpu for r in here for cpu in r.cpus or ()})


def _short(path: Path) -> str:
    """Write a path below the current folder without that folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
