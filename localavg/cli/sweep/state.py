"""The state of a run, from its run file and, while a sweep runs it, the lock of that file.

A sweep holds `RUN.h5.lock` from before a run starts until it has ended, and touches it every
HEARTBEAT_S seconds. The lock names the host, processes and batch job. So two sweeps never start the
same run, and a sweep that was killed does not hold it for ever.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.files import atomic, process, record

KINDS = ("finished", "running", "missing", "interrupted", "stale", "failed")
# Kinds of runs that a sweep starts. stale: marked as running, but no process runs it.
WANTED = ("missing", "interrupted", "stale")
HEARTBEAT_S = 20.0
STALE_S = 180.0  # after this time untouched, a lock of another host is stale
# the same for the run file of a run that no sweep started, if it may be of another host
UNLOCKED_STALE_S = 900.0
PACE_ROWS = 20  # rows of /train whose pace is that of a run


@dataclass(frozen=True)
class State:
    """The state of a run.

    kind: one of KINDS. t: completed local updates, of T. why: the reason of a failure, or who runs
    it. config: the settings in the run file. loss: of the last mini-batches. rate: local updates a
    second over the last rows of /train; None where time is modelled, or no two rows are there.
    """

    kind: str
    t: int = 0
    T: int | None = None
    why: str = ""
    config: Mapping[str, object] | None = None
    loss: float | None = None
    rate: float | None = None


def look(path: Path) -> State:
    """Find the state of the run whose run file is `path`."""
    holder = _holder(path)
    if not path.exists():
        return State("running", why=holder) if holder else State("missing")
    try:
        run = record.load(path, weights=False)
    except UserError as e:
        empty = path.stat().st_size == 0
        if holder or (empty and _age_s(path) < UNLOCKED_STALE_S):
            return State("running", why=holder or "about to start")
        return State("stale", why="empty") if empty else State("failed", why=in_flags(str(e)))
    t = int(run.train.t.iloc[-1]) if len(run.train) else 0
    t = max(t, int(run.attrs.get("stopped_after", 0)))  # it may stop between two rows
    kind, why = run.status, in_flags(str(run.attrs.get("failure", "")))
    if kind == "finished" and len(run.events):
        lost = int((run.events.ranks_before - run.events.ranks_after).sum())
        why = f"{lost} rank{'s' * (lost > 1)} lost"
    if holder and kind != "finished":
        kind, why = "running", holder
    elif kind == "died":
        kind, why = "stale", "its process is gone, and did not write how it ended"
    elif kind == "running" and (_lock(path).exists() or _silent(path, run)):
        min_ = _age_s(path) / 60
        kind, why = "stale", f"silent for {min_:.0f} min; its process cannot be seen from here"
    return State(kind, t, run.config.get("steps"), why, run.config, *_pace(run))


@contextlib.contextmanager
def held(path: Path) -> Iterator[Path | None]:
    """Hold the run whose run file is `path`; yield its lock, or None if another process holds it.

    If the run file does not show how the run ended, the lock is kept and marked as ended.
    """
    lock = _lock(path)
    with contextlib.suppress(OSError):
        text = lock.read_text()
        if not _holder(path):
            lock.rename(gone := lock.with_name(f"{lock.name}.{socket.gethostname()}.{os.getpid()}"))
            if gone.read_text() != text:  # another sweep was quicker, and this is its new lock
                os.link(gone, lock)
            gone.unlink()
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield None
        return
    os.close(descriptor)
    try:
        sign(lock)
        yield lock
    finally:
        lock.write_text(json.dumps({"ended": True}))
        if look(path).kind != "stale":
            lock.unlink(missing_ok=True)


def sign(lock: Path, child: int | None = None) -> None:
    """Write into the lock who holds it: this process and the child that it started."""
    pids = [os.getpid(), *([child] if child else [])]
    mine = {"host": socket.gethostname(), "pids": pids, "job": _job(), "restart": _restart()}
    lock.write_text(json.dumps(mine))


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _job() -> str | None:
    """Return the name of this process's batch job, which a requeue does not change, or None."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"Slurm job {job}"
    job, index = os.environ.get("LSB_JOBID"), os.environ.get("LSB_JOBINDEX", "0")
    return f"LSF job {job}[{index}]" if job else None


def _restart() -> int:
    """Return how often the batch job was requeued; 0 if the batch system does not report it."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _holder(path: Path) -> str:
    """Describe who runs it: a sweep or batch job and its host; "" if nobody does."""
    lock = _lock(path)
    try:
        age_s, text = _age_s(lock), lock.read_text()
        by = json.loads(text) if text else {}
    except (OSError, ValueError):
        return ""
    if by.get("ended"):
        return ""
    host, job = by.get("host"), by.get("job")
    who = f"{job or 'a sweep'} on {host}"
    if host == socket.gethostname():
        return who if any(map(_lives, by["pids"])) else ""
    if job is not None and job == _job():  # this job, or this job before it was requeued
        requeued = "Slurm" not in job or by.get("restart", 0) < _restart()
        if requeued:
            return ""
    return who if age_s < STALE_S else ""


def _silent(path: Path, run: record.Run) -> bool:
    """Return whether a process that cannot be seen from here has written nothing for long."""
    unseen = process.gone(run.provenance.get("process")) is None
    return unseen and _age_s(path) >= UNLOCKED_STALE_S


def _pace(run: record.Run) -> tuple[float | None, float | None]:
    """Return the loss and the updates a second of the last rows of a run."""
    rows = run.train.iloc[-PACE_ROWS:]
    if not len(rows):
        return None, None
    last, first = rows.iloc[-1], rows.iloc[0]
    took_s = last.wall_s - first.wall_s
    known = took_s > 0 and not run.config.get("simulate")
    loss = None if math.isnan(last.loss) else float(last.loss)
    return loss, float((last.t - first.t) / took_s) if known else None


def _lives(pid: int) -> bool:
    """Return whether a process of this number exists and is a localavg command.

    Where /proc does not show the command, every process counts as one.
    """
    if pid == os.getpid():
        return True
    if not atomic.alive(pid):
        return False
    with contextlib.suppress(OSError):
        return b"localavg" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
