"""How a run ends when something goes wrong late, and options that would do nothing."""

import re
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from mpi import ROOT, need, run

from localavg import __main__ as command
from localavg.files import record

SMALL = ("--data", "epsilon-like:200x5", "--batch-size", "4")


def localavg(*words):
    """The command line, on one process."""
    return subprocess.run(
        [sys.executable, "-m", "localavg", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_that_vanishes_ends_the_job_with_one_line(ranks, tmp_path):
    """Only rank 0 writes; the others must not wait for it."""
    need("openmpi")  # before the thread, which would keep pytest for a minute
    folder = tmp_path / "gone"

    def remove():
        until = time.monotonic() + 60
        while not (folder / "run.h5").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        shutil.rmtree(folder)

    threading.Thread(target=remove).start()
    done = run(
        ranks,
        "-m",
        "localavg",
        "train",
        "kavg",
        *SMALL,
        "--learners",
        "2",  # one alone would be told that nothing is averaged
        "--steps",
        "100000000",
        "--log-every",
        "1000",
        "--eval-every",
        "100000000",
        "--out",
        folder / "run.h5",
    )
    assert done.returncode == 1
    told = re.findall("localavg: .*", done.stderr)  # the launcher's own words may stand before it
    assert len(told) == 1 and "cannot write this run file" in told[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_whose_last_update_diverges_has_failed(tmp_path):
    """No mini-batch is looked at after the last update; the averaged model is."""
    done = localavg(
        "train", "sgd", "--steps", 1, "--lr", 1e38, *SMALL, "--out", tmp_path / "run.h5"
    )
    assert done.returncode == 1 and "after step 1, the last, is not finite" in done.stderr
    found = record.load(tmp_path / "run.h5")
    assert found.status == "failed" and "step 1" in found.attrs["failure"]
    assert len(found.eval) == 1 and len(found.train) == 1  # what came before it is kept


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "--momentum 0.5",
            "--momentum 0.5 means nothing to --optimizer sgd; use --optimizer momentum",
        ),
        (
            "--factor 0.5",
            "--factor 0.5 means nothing to --lr-schedule constant; use --lr-schedule steps",
        ),
        (
            "--lr-schedule inverse --pl-constant 1 --lr 0.1",
            "--lr 0.1 means nothing to --lr-schedule inverse",
        ),
        (
            "--problem network --model mlp --precision tf32",
            "--precision tf32 means nothing to --device cpu",
        ),
        (
            "--problem network --model mlp --deterministic no",
            "--deterministic no means nothing to --device cpu",
        ),
        ("--warmup-from 0.1", "--warmup-from 0.1 means nothing to a run without --warmup-epochs"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words, told, tmp_path):
    done = localavg("train", "kavg", *words.split(), *SMALL, "--out", tmp_path / "run.h5")
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"localavg: {told}")
        and done.stderr.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())


def test_a_cluster_of_nobody_is_refused(tmp_path):
    done = localavg(
        "train", "hieravg", "--S", 0, "--learners", 4, *SMALL, "--out", tmp_path / "run.h5"
    )
    assert done.returncode == 2 and "--S 0: a cluster has at least 1 learner" in done.stderr


@pytest.mark.parametrize("status", [0, 1, 75])
def test_an_end_that_the_launcher_cuts_short_keeps_its_status(status, monkeypatch):
    """The first rank that exits with a status ends the job, also for MPI_Finalize of the others."""

    class CutShort(Exception):
        pass

    def finalize():
        raise CutShort

    mpi = SimpleNamespace(
        Exception=CutShort,
        Finalize=finalize,
        Is_initialized=lambda: True,
        Is_finalized=lambda: False,
    )
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)
    monkeypatch.setattr(command.gc, "freeze", lambda: None)
    with pytest.raises(SystemExit if status else CutShort) as e:
        command._leave(status, "")
    assert status == 0 or e.value.code == status


FAILS = """
import os
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1":
    import localavg.__main__ as command
    from localavg.cli import train
    from localavg.errors import UserError
    command.PATIENCE_S = 1.0

    def fail(args):
        {body}

    train._train = fail
"""
BODIES = {  # what goes wrong on rank 1 alone, the other goes on: (code, words on stderr, status)
    "an exception before MPI": ("raise RuntimeError('broken')", "RuntimeError: broken", 1),
    "an exception under MPI": (
        "train.world(); raise RuntimeError('broken')",
        "rank 1 failed; ending the job",
        1,
    ),
    "a mistake before MPI": (
        "raise UserError('`lr = 3`: no')",
        "localavg: --lr 3: no (rank 1 alone; ending the job)",
        2,
    ),
    "a mistake under MPI": (
        "train.world(); raise UserError('`lr = 3`: no')",
        "localavg: --lr 3: no (rank 1 alone; ending the job)",
        2,
    ),
}


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
@pytest.mark.parametrize("what", BODIES)
def test_one_failing_rank_ends_the_job_of_the_short_launch_line(what, mpi, tmp_path):
    """`mpirun -n 2 localavg train …`, without -m mpi4py: rank 0 would train for ever."""
    body, words, status = BODIES[what]
    (tmp_path / "sitecustomize.py").write_text(FAILS.format(body=body))
    done = run(
        2,
        *("train", "kavg", *SMALL, "--steps", "100000000", "--out", tmp_path / "run.h5"),
        program=[str(ROOT / ".venv/bin/localavg")],
        mpi=mpi,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert words in done.stderr


def test_the_short_launch_line_trains(tmp_path):
    line = ("train", "kavg", *SMALL, "--steps", "4", "--out", tmp_path / "run.h5")
    done = run(2, *line, program=[str(ROOT / ".venv/bin/localavg")])
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run.h5'}\n"), done.stderr
    assert record.load(tmp_path / "run.h5").provenance["ranks"] == 2
