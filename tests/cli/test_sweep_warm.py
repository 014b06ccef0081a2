"""Runs of networks that a sweep forks from one process: the same runs, and signals reach them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from mpi import ROOT, need

from localavg.cli.sweep import warm
from localavg.files.record import load

LIMIT_S = 100
SWEEP = """
[sweep]
title = "warm"
paper = "all"

[common]
data = "digits"
model = "mlp"
learners = 2
batch-size = 8
steps = STEPS

[[runs]]
algorithm = "kavg"
grid.K = [4, 8]
"""


@pytest.fixture(autouse=True)
def may_launch():
    need("openmpi")


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep of two runs of so many updates; return the words that start it."""

    def write(steps):
        (tmp_path / "warm.toml").write_text(SWEEP.replace("STEPS", str(steps)))
        return "sweep", tmp_path / "warm.toml", "--out", tmp_path / "runs", "--at-once", "2"

    return write


def test_runs_of_a_sweep_import_torch_once_and_are_those_of_their_command_lines(
    sweep, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import is a line of stderr
    script = [Path(sys.executable).with_name("localavg"), *sweep(16)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    imports = re.compile(r"\| +torch$", re.MULTILINE)
    logs = sorted((tmp_path / "runs").glob("*.log"))
    texts = [log.read_text() for log in logs]
    assert len(imports.findall(done.stderr)) == 1 and len(logs) == 2
    assert not any(imports.search(text) or "Warning" in text for text in texts)
    monkeypatch.delenv("PYTHONPROFILEIMPORTTIME")
    line = texts[0].splitlines()[0].removeprefix("$ ")
    forked = load(logs[0].with_suffix(".h5"))
    assert forked.provenance["command"] == line
    words = shlex.split(line)
    words[words.index("--out") + 1] = str(tmp_path / "again.h5")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, env=environment, check=True, timeout=LIMIT_S, capture_output=True)
    again = load(tmp_path / "again.h5")
    np.testing.assert_array_equal(forked.eval.train_loss, again.eval.train_loss)
    np.testing.assert_array_equal(forked.train.loss, again.train.loss)


def test_a_signal_to_all_processes_of_a_job_saves_its_runs_and_leaves_none(sweep, tmp_path):
    words = [sys.executable, "-m", "localavg", *map(str, sweep(1000000))]
    started = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    logs = [tmp_path / "runs" / f"kavg-K{K}-s0.log" for K in (4, 8)]
    try:
        until = time.monotonic() + LIMIT_S
        while not all(log.exists() and "t 0/" in log.read_text() for log in logs):
            assert time.monotonic() < until and started.poll() is None
            time.sleep(0.1)
        (server,) = [
            child
            for child in psutil.Process(started.pid).children()
            if "forkserver" in " ".join(child.cmdline())
        ]
        server.send_signal(
            signal.SIGUSR1
        )  # a sweep without its server would take the runs for ended
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(timeout=3)
        os.killpg(started.pid, signal.SIGUSR1)
        out, _ = started.communicate(timeout=LIMIT_S)
        assert started.returncode == 75 and out.count("interrupted after") == 2
        assert {load(log.with_suffix(".h5")).status for log in logs} == {"interrupted"}
        with suppress(ProcessLookupError):
            while time.monotonic() < until + LIMIT_S:
                os.killpg(started.pid, 0)
                time.sleep(0.1)
            pytest.fail("a process outlives the sweep")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def test_a_signal_before_a_run_has_begun_ends_it(tmp_path):
    log = tmp_path / "a.log"
    log.touch()
    words = f"train kavg --K 4 --data digits --model mlp --steps 1000000 --out {tmp_path}/a.h5"
    warm.start(os.environ)
    child = warm.Child(["python", "-m", "localavg", *words.split()], os.environ, log)
    try:
        child.send_signal(signal.SIGUSR1)
        assert child.wait(LIMIT_S) in (-signal.SIGUSR1, 75)
    finally:
        child.send_signal(signal.SIGKILL)
