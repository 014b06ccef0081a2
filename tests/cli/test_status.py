"""localavg status, with --watch too, and localavg plot: what is told of run files."""

import argparse
import os
import subprocess
import sys
import time

import pytest

from localavg.cli import plot, status, watch
from localavg.cli.sweep import state
from localavg.errors import UserError
from localavg.files.record import Record, load


def run_file(path, ends, rows=1):
    file = Record.create(path, {"steps": 400}, {})
    for t in range(rows):
        file.append("train", t=t + 1, samples=1)
    file.flush(force=True)
    if ends != "running":
        file.finish(ends, failure="no luck")
    return path


def test_a_run_that_died_is_told_from_one_that_cannot_be_seen(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.h5"
    code = f"from localavg.files.record import Record; Record.create({str(path)!r}, {{}}, {{}})"
    subprocess.run([sys.executable, "-c", code], check=True)
    os.utime(path, (time.time() - 2 * state.UNLOCKED_STALE_S,) * 2)
    status._status(argparse.Namespace(where=str(path), watch=False))
    said = capsys.readouterr().out
    assert "died" in said and "its process is gone" in said and "1 died" in said
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    status._status(argparse.Namespace(where=str(path), watch=False))
    said = capsys.readouterr().out
    assert "silent for 30 min; its process cannot be seen from here" in said
    assert " died " not in said and "1 silent" in said


def test_a_watch_shows_the_pace_until_no_run_runs(tmp_path, capsys, monkeypatch):
    """Into a pipe a run that changed is a line; the table comes at the end."""
    path = run_file(tmp_path / "a.h5", "running", rows=0)
    file = Record.reopen(path, {}, {})

    def grow(seconds):
        """What happens between two looks."""
        assert seconds == watch.EVERY_S
        if file.rows["train"] < 2:
            t = 100 * (file.rows["train"] + 1)
            file.append("train", t=t, samples=t, wall_s=t / 50, loss=0.25)
            file.flush(force=True)
        elif load(path).status == "running":
            file.finish("failed", failure="no luck")

    monkeypatch.setattr(watch, "sleep", grow)
    assert status._status(argparse.Namespace(where=str(tmp_path), watch=True)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "a: running, 0 of 400 updates",
        "a: running, 100 of 400 updates, loss 0.25",
        "a: running, 200 of 400 updates, loss 0.25, 50 updates/s, 4 s left",
        "a: failed, 200 of 400 updates, loss 0.25, no luck",
    ]
    assert lines[-1] == "1 runs: 0 done, 0 running, 0 to do, 0 interrupted, 1 failed"


def test_ctrl_c_ends_a_watch_as_it_ends_by_itself(tmp_path, capsys, monkeypatch):
    run_file(tmp_path / "a.h5", "running")

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "sleep", stop)
    assert status._status(argparse.Namespace(where=str(tmp_path), watch=True)) == 1
    assert "1 runs: 0 done, 1 running" in capsys.readouterr().out


def test_a_plot_is_drawn_from_files_and_folders(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_file(tmp_path / name / "run.h5", "finished")
    out, runs = tmp_path / "x.png", [str(tmp_path / "a"), str(tmp_path / "b" / "run.h5")]
    plot._plot(argparse.Namespace(runs=runs, out=str(out)))
    assert capsys.readouterr().out == f"{out}\n" and out.read_bytes().startswith(b"\x89PNG")
    for wrong, told in (("x.doc", "Format 'doc' is not supported"), ("no/x.png", "No such file")):
        with pytest.raises(UserError, match=f"--out .*{wrong}: {told}"):
            plot._plot(argparse.Namespace(runs=runs, out=str(tmp_path / wrong)))
