"""Start the runs of a sweep one after the other, and stop at a signal."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from localavg.cli import shell_words
from localavg.cli.sweep import state
from localavg.cli.sweep.plan import Planned
from localavg.errors import FAILED, FINISHED, GO_ON, MISTAKE, UserError
from localavg.files.hdf5 import clear_errors

# Signals that a batch system sends ahead of the time limit.
STOPS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def command(run: Planned, path: Path, mpirun: str | None = None) -> list[str]:
    """Return the command line of a run with the run file `path`.

    mpirun: the launcher's words; it takes -n RANKS, or {ranks} stands in its words. By default the
    launcher is `mpirun`, or none for a run of one rank.
    """
    train = ["-m", "localavg", *run.words, "--out", str(path), "--resume"]
    if mpirun is None and run.ranks == 1 and "SLURM_JOB_ID" not in os.environ:
        return [sys.executable, *train]  # quicker than with a launcher
    launcher, n = shell_words("mpirun", mpirun or "") or [_mpirun()], str(run.ranks)
    if any("{ranks}" in word for word in launcher):
        launcher = [word.replace("{ranks}", n) for word in launcher]
    else:
        launcher += ["-n", n]
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "")
    if Path(launcher[0]).name == "srun" and per_node.isdigit():
        # otherwise srun spreads a small run over all nodes of a large allocation
        launcher.append(f"--nodes={math.ceil(run.ranks / int(per_node))}")
    return [*launcher, sys.executable, "-m", "mpi4py", *train]


def _mpirun() -> str:
    """Return the path of jobs/local/mpirun or, without a checkout, of the mpirun on PATH."""
    ours = Path(__file__).resolve().parents[3] / "jobs" / "local" / "mpirun"
    if found := str(ours) if ours.exists() else shutil.which("mpirun"):
        return found
    raise UserError(
        "no mpirun here: load your cluster's MPI module, or name a launcher, such as "
        "--mpirun 'srun --mpi=pmix'"
    )


class Queue:
    """Starts the runs of a sweep one after the other.

    folder: of the run files. mpirun: as in `command`. keep_going: continue after a user's mistake.
    report: called with one line for every event.
    """

    def __init__(
        self, folder: Path, mpirun: str | None, keep_going: bool, report: Callable[[str], object]
    ) -> None:
        self.folder, self.mpirun, self.keep_going, self.report = folder, mpirun, keep_going, report
        self._stopped = False  # a signal came
        self._child: subprocess.Popen[bytes] | None = None

    def work(self, runs: Iterable[Planned]) -> int:
        """Do the runs and return the exit status.

        The status is 0 if all finished, GO_ON if a signal came or a run was interrupted, and 1
        otherwise. A run that fails does not stop the others. A user's mistake (status 2) does,
        unless keep_going.
        """
        runs, worst = list(runs), 0
        before = {s: signal.signal(s, self._stop) for s in STOPS}
        try:
            for i, run in enumerate(runs, 1):
                if self._stopped:
                    self.report(f"stopped by a signal; {len(runs) - i + 1} runs are left")
                    return GO_ON
                status = self._one(run, f"[{i}/{len(runs)}] {run.name}")
                if status == GO_ON:
                    return GO_ON
                if status == MISTAKE and not self.keep_going:
                    self.report(
                        "stopped after a user's mistake; the other runs would probably fail too "
                        "(--keep-going runs them anyway)"
                    )
                    return FAILED
                worst = max(worst, min(status, 1))
            return worst
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _one(self, run: Planned, title: str) -> int:
        """Do one run, report how it ended, and return its status."""
        path = self.folder / f"{run.name}.h5"
        log = path.with_suffix(".log")
        start = time.perf_counter()
        with state.held(path) as lock:
            if lock is None:
                self.report(f"{title}: running elsewhere")
                return FAILED
            status = self._start(run, path, log, lock)
        # The run file decides: a launcher may return the status of ranks that it ended itself.
        found = state.look(path)
        if found.kind == "finished":
            self.report(f"{title}: finished in {time.perf_counter() - start:.1f} s")
            return FINISHED
        stopped = self._stopped and found.kind in state.WANTED  # also one too young to save itself
        if stopped or status == GO_ON or (found.kind == "interrupted" and not 0 <= status <= 128):
            self.report(
                f"{title}: interrupted after {found.t} of {found.T} updates; the same sweep "
                "resumes it from there"
            )
            return GO_ON
        why = found.why or last_line(log.read_text(errors="replace"))
        self.report(f"{title}: failed with status {status}: {why} (see {log})")
        return MISTAKE if status == MISTAKE else FAILED

    def _start(self, run: Planned, path: Path, log: Path, lock: Path) -> int:
        """Start a run, whose output goes to `log`, and return its status when it has ended."""
        with log.open("ab") as out:
            line = command(run, path, self.mpirun)
            out.write(f"$ {shlex.join(line)}\n".encode())
            out.flush()
            with clear_errors(f"{line[0]}: cannot start this launcher", "give another --mpirun"):
                child = self._child = subprocess.Popen(
                    line, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            if self._stopped:  # by a signal that came before there was a child
                self._stop()
        state.sign(lock, child.pid)
        status = _wait(child, lock)
        self._child = None
        return status

    def _stop(self, *_: object) -> None:
        """Start no other run, and let this one save itself; launchers send USR1 to the ranks."""
        self._stopped = True
        if self._child is not None:
            self._child.send_signal(signal.SIGUSR1)


def _wait(child: subprocess.Popen[bytes], lock: Path) -> int:
    """Wait for the child and return its status; touch the lock meanwhile."""
    while True:
        try:
            return child.wait(timeout=state.HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            os.utime(lock)
        except KeyboardInterrupt:
            child.wait()  # the terminal interrupts it too
            raise


def environment() -> dict[str, str]:
    """Return the environment without btl = self, which `__main__` sets for a process alone."""
    alone = ("OMPI_MCA_btl", "self")
    return {name: value for name, value in os.environ.items() if (name, value) != alone}


def last_line(log: str) -> str:
    """Return the last line of localavg in the text of a log, or else its last line."""
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines()]
    ours = [line.removeprefix("localavg: ") for line in lines if line.startswith("localavg: ")]
    return (ours or [line for line in lines if line] or ["nothing was printed"])[-1]
