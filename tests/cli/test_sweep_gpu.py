"""Sweeps at scale gpu: the paper's settings with all learners on one GPU, and the hours they take."""

import argparse
import re

import pytest
from drive import parser
from mpi import ROOT, alone

from localavg.cli.sweep import cost, gpu, plan
from localavg.config import TrainConfig

SWEEPS = sorted((ROOT / "jobs" / "sweeps").glob("*.toml"))
LEARN = {"simulate", "device"}  # what may differ from the paper's scale
TEXT = """
[common]
data = "epsilon-like:200x10"
batch-size = 10
[grid]
learners = [2, 4]
[[runs]]
algorithm = "kavg"
K = 3
grid.lr = [0.1, 0.2]
[[runs]]
algorithm = "eamsgd"
momentum = 0.5
[paper]
epochs = 3
ranks = "learners"
device = "cuda"
[laptop]
steps = 7
"""


def read(path, scale="gpu"):
    top = parser()
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return plan.read(path, scale, commands.choices["train"]).runs


def written(folder, text):
    path = folder / "some.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_figure_has_the_papers_runs_with_all_learners_on_one_gpu(path):
    paper, runs = read(path, "paper"), read(path)
    assert [run.name for run in runs] == [run.name for run in paper]
    for run, like in zip(runs, paper, strict=True):
        assert run.ranks == 1 and run.given["device"] == "cuda"
        both = run.given.keys() | like.given.keys()
        changed = {name for name in both if run.given.get(name) != like.given.get(name)}
        assert changed <= LEARN
        if run.given["algorithm"] in ("downpour", "eamsgd"):
            assert run.given["simulate"] and like.given["device"] == "cuda"


def test_its_own_section_is_stronger_than_the_papers(tmp_path):
    text = f"{TEXT}[gpu]\nepochs = 5\ngrid.learners = [8]\ngrid.lr = [0.3]\nsimulate = false\n"
    runs = read(written(tmp_path, text))
    assert [(run.given["learners"], run.given["epochs"], run.given["lr"]) for run in runs] == [
        (8, 5.0, 0.1),
        (8, 5.0, 0.2),
        (8, 5.0, 0.3),
    ]
    assert [run.ranks for run in runs] == [1, 1, 2]  # one rank with learners, and a server
    only = TEXT.replace("K = 3", 'only = "paper"')
    assert len(read(written(tmp_path, only))) == 6
    assert len(read(written(tmp_path, TEXT.replace("K = 3", 'only = "laptop"')))) == 2


def test_hours_are_the_examples_of_all_learners_by_the_rate(tmp_path):
    runs = read(written(tmp_path, TEXT))
    asked = []

    def rate_of(run):
        asked.append(run.name)
        return cost.Rate(10.0, 160) if run.given["algorithm"] == "kavg" else "not known"

    found = list(gpu.hours(runs, rate_of))
    # three epochs of 160 rows are twelve updates of four learners and 24 of two, for two step sizes
    exact = 2 * 3 * 160 / 10.0 / 3600
    assert [taken for taken, _ in found] == [pytest.approx(exact)] * 2 + [None] * 2
    assert asked == ["kavg-P2-lr0.1-s0", "kavg-P4-lr0.1-s0", "eamsgd-P2-s0", "eamsgd-P4-s0"]
    assert cost.work(read(written(tmp_path, TEXT), "laptop")[0], 160) == 7 * 2 * 10


def test_a_rate_is_that_of_a_few_updates_outside_the_sweep(tmp_path):
    text = TEXT.replace('device = "cuda"', "").replace(
        "[laptop]", '[gpu]\ndevice = "cpu"\n[laptop]'
    )
    runs, rate_of = read(written(tmp_path, text)), gpu.measured_rate(None)
    for run in (runs[2], runs[-1]):
        rate = rate_of(run)
        assert rate.rows == 200 and 1e3 < rate.examples_per_s < 1e9
        short = gpu._short(run)
        assert short.given["learners"] == run.given["learners"] == 4
        assert {*short.given} - {"engine"} <= {"K", *TrainConfig.__dataclass_fields__}
    broken = read(written(tmp_path, text.replace("epsilon-like:200x10", "gone.h5")))[0]
    assert rate_of(broken).startswith("not measured, gone.h5: ")


def test_without_a_gpu_a_sweep_does_not_start_and_its_plan_is_printed(tmp_path):
    path, out = written(tmp_path, TEXT), tmp_path / "runs"
    words = "sweep", path, "--scale", "gpu", "--out", out
    done = alone(*words, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and not done.stdout and not out.exists()
    assert done.stderr.startswith("localavg: --scale gpu: this machine has no NVIDIA GPU")
    assert done.stderr.count("\n") == 1 and "--dry-run" in done.stderr
    done = alone(*words, "--dry-run", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0 and " h: " not in done.stdout and not out.exists()
    assert len(re.findall(r"-m localavg train .* --device cuda", done.stdout)) == 6


def test_a_plan_has_hours_by_a_given_rate(shards, tmp_path):
    text = TEXT.replace("epsilon-like:200x10", shards.path).replace("size = 10", "size = 7")
    path = written(tmp_path, text)
    words = "sweep", path, "--scale", "gpu", "--out", tmp_path / "runs", "--dry-run"
    done = alone(*words, "--rate", "0.7")
    hours = 6 * 3 * len(shards.y) / 0.7 / 3600
    assert f"about {hours:.2f} hours in all, without evaluations" in done.stdout
    wrong = alone("sweep", path, "--rate", "0.7")
    assert wrong.returncode == 2 and "--rate 0.7: only with --scale gpu" in wrong.stderr


@pytest.mark.parametrize("launcher", ["slurm", "lsf", "jsrun"])
def test_a_submitted_sweep_is_one_task_with_one_gpu(launcher, tmp_path):
    words = "sweep", written(tmp_path, TEXT), "--scale", "gpu", "--launcher", launcher, "--dry-run"
    line = next(s for s in alone(*words, cwd=tmp_path).stdout.splitlines() if "PYTHON=" in s)
    asked = {
        "slurm": ("--array=1-1", "--ntasks=1", "--ntasks-per-node=1", "--gpus-per-node=1"),
        "lsf": ("some-gpu-1[1-1]", "-n 1", "span[ptile=1]", "num=1:mode=shared"),
        "jsrun": ("some-gpu-1[1-1]", "-nnodes 1", "TASKS=1 GPUS=1"),
    }
    assert all(word in line for word in asked[launcher]) and "--scale gpu" in line
