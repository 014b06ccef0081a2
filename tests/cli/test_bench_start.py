"""`localavg bench start`: the steps of a start, in order, add up to the time that the shell waits."""

import json
import time

import pytest
from mpi import alone

from localavg.cli.bench import start

LOGISTIC = "--data", "epsilon-like:60x5", "--learners", 2, "--device", "cpu", "--repeats", 1


def test_the_steps_of_a_start_add_up_to_what_the_shell_waits_for(tmp_path):
    begun = time.time()
    done = alone("bench", "start", *LOGISTIC, "--json", tmp_path / "rows.json")
    took = time.time() - begun
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    steps = [row["step"] for row in rows]
    assert steps[0] == "Python" and steps[-1] == "first update"
    assert "import torch" not in steps and "import cupy" not in steps
    assert all(row["seconds"] >= 0 for row in rows)
    assert sum(row["seconds"] for row in rows) == pytest.approx(rows[-1]["at_s"])
    assert rows[-1]["at_s"] <= took
    table = [line for line in done.stdout.splitlines() if line.startswith(tuple(steps))]
    assert len(table) == len(rows)


def test_each_step_is_the_median_of_its_own_times(monkeypatch):
    starts = iter([{"a": 1.0, "b": 9.0}, {"a": 5.0, "b": 7.0}, {"a": 2.0, "b": 5.0}])
    monkeypatch.setattr(start, "_started", lambda settings: next(starts))
    rows = [(row["step"], row["seconds"], row["at_s"]) for row in start.bench_start({}, 3)]
    assert rows == [("a", 2.0, 2.0), ("b", 3.0, 7.0)]


def test_a_run_that_cannot_start_is_one_line():
    done = alone("bench", "start", "--data", "nothing.h5", "--repeats", 1)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "nothing.h5: no such file" in done.stderr


def test_it_is_for_one_rank():
    done = alone("bench", "start", *LOGISTIC, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert done.returncode == 2 and "without mpirun" in done.stderr
