"""Which GPUs a process sees, by a stand-in for the driver's libraries; and how a job of its own is
started from a rank.
"""

import json
import subprocess
import sys

import nvml
import pytest

from localavg.parallel import probe
from localavg.parallel.gpus import visible
from localavg.parallel.outside import on_two_nodes, outside

GPUS = (("A", "GPU-10"), ("A", "GPU-11"), ("B", "GPU-2"))
LOOK = """
import importlib.util, json, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: {"torch": torch}.get(name, found(name))
from localavg.parallel.gpus import find_gpus
answer = find_gpus()
loaded = [name for name in ("torch", "cupy", "mpi4py.MPI") if name in sys.modules]
print(json.dumps([*answer, loaded]))
"""


def look(folder, torch=True, **env):
    """What find_gpus returns in a process of its own, and what that loaded."""
    code = LOOK.replace("torch}", f"{torch or None}}}")
    env = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": ":".join(sys.path), **env}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    gpus, why, loaded = json.loads(done.stdout)
    assert loaded == []
    return [tuple(gpu) for gpu in gpus], why


def test_the_drivers_own_library_is_asked_and_no_other(tmp_path):
    nvml.driver(tmp_path)
    two = "NVIDIA X=GPU-1;NVIDIA Y=GPU-2"
    assert look(tmp_path, FAKE_GPUS=two) == ([("NVIDIA X", "GPU-1"), ("NVIDIA Y", "GPU-2")], "")
    hidden = look(tmp_path, FAKE_GPUS=two, CUDA_VISIBLE_DEVICES="1")
    assert hidden == ([("NVIDIA Y", "GPU-2")], "")


@pytest.mark.parametrize(
    ("driver", "nvml_too", "torch", "env", "why"),
    [
        (False, False, True, {}, "none: no NVIDIA driver"),
        (True, False, True, {}, "unknown: libnvidia-ml.so.1: libnvidia-ml.so.1: cannot open"),
        (True, True, False, {"FAKE_GPUS": "X=GPU-1"}, "unknown: neither torch nor CuPy"),
        (True, True, True, {}, "unknown: libnvidia-ml.so.1: Driver Not Loaded"),
        (True, True, True, {"FAKE_GPUS": ""}, "none: the driver has no GPU"),
        (
            True,
            True,
            True,
            {"FAKE_GPUS": "X=GPU-1", "CUDA_VISIBLE_DEVICES": ""},
            "none: CUDA_VISIBLE_DEVICES=",
        ),
    ],
)
def test_why_there_is_no_gpu(driver, nvml_too, torch, env, why, tmp_path):
    if driver:
        nvml.driver(tmp_path, nvml_too)
    found, said = look(tmp_path, torch, **env)
    assert found == [] and said.startswith(why)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("0,2", [0, 2]),
        ("2, 0", [2, 0]),
        ("", []),
        ("-1", []),
        ("1,-1,0", [1]),
        ("1,3,0", [1]),
        ("GPU-2,GPU-10", [2, 0]),
        ("GPU-1", []),  # of two
        ("0,GPU-9,1", [0]),
        ("0,0", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(words, numbers):
    assert visible(GPUS, words.split(",")) == tuple(GPUS[i] for i in numbers)


def test_a_part_of_a_gpu_is_a_device():
    assert visible(GPUS, ["MIG-1", "0"]) == (("MIG device", "MIG-1"), GPUS[0])


# --------------------------------------------------------------------------------------------------

JOBS = {  # name: (what the launcher set, MPI, the words that start two ranks on each of two nodes)
    "alone": ({}, "Open MPI", ""),
    "one node": (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        "Open MPI",
        "",
    ),
    "mpirun": (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        "Open MPI",
        "mpirun -n 4 --map-by ppr:2:node",
    ),
    "mpirun that srun helps": (
        {
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
            "SLURM_STEP_NUM_NODES": "2",
        },
        "Open MPI",
        "mpirun -n 4 --map-by ppr:2:node",
    ),
    "hydra": ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}, "MPICH", "mpirun -n 4 -ppn 2"),
    "srun": (
        {"SLURM_STEP_NUM_NODES": "3", "SLURM_JOB_ID": "7", "SLURM_MPI_TYPE": "pmix", "PMI_SIZE": "6"},
        "MPICH",
        "srun --jobid=7 --overlap --overcommit --nodes=2 --ntasks=4 --ntasks-per-node=2 --mpi=pmix",
    ),
    "srun on one node": ({"SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "7"}, "MPICH", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_a_job_on_several_nodes_is_tried_on_two_of_them(name, monkeypatch):
    env, library, words = JOBS[name]
    monkeypatch.setattr("localavg.parallel.outside.which", lambda name: name)
    assert on_two_nodes(env, library) == words.split()


def test_an_mpirun_on_two_nodes_keeps_the_allocation_and_nothing_else_of_the_job():
    batch = {"SLURM_JOB_NODELIST": "n[1-2]", "LSB_MCPU_HOSTS": "n1 4 n2 4"}
    mine = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm", "OMPI_MCA_osc": "^ucx"}
    job = {"OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0", "OMPI_MCA_ess": "x", "SRUN_DEBUG": "3"}
    there, here = (outside({**batch, **mine, **job}, allocated) for allocated in (True, False))
    assert mine.items() <= here.items() and not (batch | job).keys() & here.keys()
    assert (batch | mine).items() <= there.items()
    assert not {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "OMPI_MCA_ess"} & there.keys()
    assert there["SLURM_OVERLAP"] == "1"


def test_what_is_known_of_device_memory_is_read_and_never_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "find_gpus", lambda: ((("card", "1"),), ""))
    monkeypatch.setattr(probe, "run_child", None)
    assert probe.known().works is None
    path, key, _ = probe._case((("card", "1"),))
    found = probe.cached(path, key, lambda: probe.Probe(True, "right"))
    assert found.works and probe.known().works and probe.known().cached
    monkeypatch.setattr(probe, "find_gpus", lambda: ((), "none: no driver"))
    assert probe.known().works is None and "no driver" in probe.known().why
