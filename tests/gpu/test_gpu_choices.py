"""What is chosen on a GPU: the device, and between ranks that share it the way of an average; and
the start of a run, whose time is printed.
"""

import json
import re
import subprocess
import sys

import pytest
from gpus import AWARE, answered, guarded, launch, take
from mpi import ROOT, alone

NETWORK = {"data": "digits", "model": "nin", "batch_size": 16, "eval_examples": 64, "learners": 2}
SMALL = {"data": "epsilon-like:400x20", "batch_size": 8, "learners": 2}
LARGE = {"data": "epsilon-like:4000x2000", "batch_size": 512, "learners": 4}


def trained(world, folder, aware):
    """{name: settings and provenance of a run with `device = auto`}."""
    from dataclasses import replace

    from localavg.config import TrainConfig
    from localavg.files import record
    from localavg.parallel.probe import Probe
    from localavg.training.run import run

    def one(name, settings):
        path = f"{folder}/{name}-{world.size}.h5"
        c = TrainConfig(algorithm="kavg", options={"K": 2}, steps=4, out=path, **settings)
        status = run(c, world, aware=Probe(*aware) if world.rank == 0 else None).status
        again = run(replace(c, resume=True), world).status  # which is finished
        found = record.load(path)
        return status, again, dict(found.config), dict(found.provenance)

    cases = {"network": NETWORK, "small": SMALL, "large": LARGE}
    return guarded({name: lambda name=name: one(name, cases[name]) for name in cases})


def begin_choices(folder):
    done = subprocess.run(
        [sys.executable, "-c", AWARE], cwd=ROOT, capture_output=True, text=True, timeout=150
    )
    aware = (
        json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else [None, done.stderr]
    )
    return aware, {ranks: launch(ranks, trained, str(folder), aware)[0] for ranks in (1, 2)}


choices = answered("choices")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("name", "device"), [("network", "cuda"), ("small", "cpu"), ("large", "cuda")])  # fmt: skip
def test_auto_takes_the_gpu_where_the_problem_gains(name, device, ranks, choices):
    status, again, config, provenance = take(choices[1][ranks], name)
    assert status == again == 0 and config["device"] == device
    assert provenance["device_why"].startswith("auto: ")
    assert ("gpus" in provenance) == (device == "cuda")


@pytest.mark.parametrize("name", ["network", "large"])
def test_two_ranks_on_one_gpu_take_the_way_that_was_measured_to_be_the_fastest(name, choices):
    aware, answers = choices
    assert take(answers[1], name)[3]["transport"] == "device"
    provenance = take(answers[2], name)[3]
    chosen, why = provenance["transport"], provenance["transport_why"]
    print(f"transport {chosen}: {why}")
    times = {way: float(ms) for way, ms in re.findall(r"(\w+) ([\d.e+-]+) ms", why)}
    assert "nccl" not in times  # one GPU
    if aware[0]:
        assert {*times} == {"cuda_aware", "staged"} and chosen == min(times, key=times.get)
    else:
        assert chosen == "staged" and not times


def test_nvml_finds_the_gpus_that_cupy_finds():
    code = (
        "from localavg.parallel.gpus import find_gpus; found = find_gpus()[0]; import cupy; "
        "n = cupy.cuda.runtime.getDeviceCount(); "
        "names = [cupy.cuda.runtime.getDeviceProperties(i)['name'].decode() for i in range(n)]; "
        "assert [name for name, _ in found] == names, (found, names)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_the_start_of_a_run_is_printed_step_by_step():
    """The aim is 6 s to the first update with all files in memory: the second of two starts."""
    for _ in range(2):
        done = alone("bench", "start", "--device", "cuda", "--repeats", 1, timeout=120)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
