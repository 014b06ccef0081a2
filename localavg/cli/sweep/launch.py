"""Start the runs of a sweep one after the other, and stop when told to."""

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
from typing import Any

from localavg.cli.sweep import state
from localavg.cli.sweep.plan import Planned
from localavg.errors import FAILED, FINISHED, GO_ON, MISTAKE, UserError

STOPS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
)  # from the batch system, ahead of the time limit


def command(run: Planned, path: Path, mpirun: str | None = None) -> list[str]:
    """The words that run it, under `mpirun` (a launcher that takes -n RANKS, or has {ranks} in its
    words) or what is here.
    """
    train = ["-m", "localavg", *run.words, "--out", str(path), "--resume"]
    if (
        mpirun is None and run.ranks == 1 and "SLURM_JOB_ID" not in os.environ
    ):  # quicker, where no launcher is needed
        return [sys.executable, *train]
    launcher, n = shlex.split(mpirun) if mpirun else [_mpirun()], str(run.ranks)
    if any("{ranks}" in word for word in launcher):
        launcher = [word.replace("{ranks}", n) for word in launcher]
    else:
        launcher += ["-n", n]
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "")
    if (
        Path(launcher[0]).name == "srun" and per_node.isdigit()
    ):  # a small run fills few nodes of a large allocation
        launcher.append(f"--nodes={math.ceil(run.ranks / int(per_node))}")
    return [*launcher, sys.executable, "-m", "mpi4py", *train]


def _mpirun() -> str:
    ours = Path(__file__).resolve().parents[3] / "jobs" / "local" / "mpirun"
    if found := str(ours) if ours.exists() else shutil.which("mpirun"):
        return found
    raise UserError(
        "no mpirun here: load your cluster's MPI module, or name a launcher with --mpirun 'srun "
        "--mpi=pmix'"
    )


class Queue:
    """Runs of a sweep, done one after the other by `work`; what happens is told to `say`, a line
    each.
    """

    def __init__(
        self, folder: Path, mpirun: str | None, keep_going: bool, say: Callable[[str], Any]
    ) -> None:
        self.folder, self.mpirun, self.keep_going, self.say = folder, mpirun, keep_going, say
        self._told_to_stop = False
        self._child: subprocess.Popen | None = None

    def work(self, runs: Iterable[Planned]) -> int:
        """Do the runs. Returns the status: 0 all finished, GO_ON told to stop or a run was
        interrupted, 1 otherwise.

        A run that fails does not stop the others. A user's mistake (status 2) does, unless
        keep_going.
        """
        runs, worst = list(runs), 0
        before = {s: signal.signal(s, self._stop) for s in STOPS}
        try:
            for i, run in enumerate(runs, 1):
                if self._told_to_stop:
                    self.say(f"told to stop; {len(runs) - i + 1} runs are left")
                    return GO_ON
                status = self._one(run, f"[{i}/{len(runs)}] {run.name}")
                if status == GO_ON:
                    return GO_ON
                if status == MISTAKE and not self.keep_going:
                    self.say("stopped: the others would hardly do better (--keep-going tries them)")
                    return FAILED
                worst = max(worst, min(status, 1))
            return worst
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _one(self, run: Planned, title: str) -> int:
        path = self.folder / f"{run.name}.h5"
        with state.held(path) as lock:
            if lock is None:
                self.say(f"{title}: running elsewhere")
                return FAILED
            start, log = time.perf_counter(), path.with_suffix(".log")
            with log.open("ab") as out:
                words = command(run, path, self.mpirun)
                out.write(f"$ {shlex.join(words)}\n".encode())
                out.flush()
                self._child = subprocess.Popen(
                    words, env=_env(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
                if self._told_to_stop:  # since it was asked last
                    self._stop()
            state.sign(lock, self._child.pid)
            status = self._wait(lock)
            self._child = None
        found = state.look(
            path
        )  # it knows better than the launcher, which may tell of ranks that it ended
        seconds = time.perf_counter() - start
        if found.kind == "finished":
            self.say(f"{title}: finished in {seconds:.1f} s")
            return FINISHED
        told = (
            self._told_to_stop and found.kind in state.WANTED
        )  # it may have been too young to save itself
        if told or status == GO_ON or (found.kind == "interrupted" and not 0 <= status <= 128):
            self.say(
                f"{title}: interrupted after {found.t} of {found.T} updates; the same sweep goes "
                "on from there"
            )
            return GO_ON
        self.say(
            f"{title}: failed with status {status}: {found.why or _last_line(log)} (see {log})"
        )
        return MISTAKE if status == MISTAKE else FAILED

    def _wait(self, lock: Path) -> int:
        """The child's status; the lock is kept fresh until then."""
        assert self._child is not None
        while True:
            try:
                return self._child.wait(timeout=state.HEARTBEAT_S)
            except subprocess.TimeoutExpired:
                os.utime(lock)
            except KeyboardInterrupt:
                self._child.wait()  # the terminal told it too
                raise

    def _stop(self, *_: Any) -> None:
        """Start no other run, and let this one save itself: launchers pass USR1 on to the ranks."""
        self._told_to_stop = True
        if self._child is not None:
            self._child.send_signal(signal.SIGUSR1)


def _env() -> dict[str, str]:
    """The environment, less the setting with which a lone process keeps Open MPI to itself
    (`__main__`).
    """
    return {
        name: value
        for name, value in os.environ.items()
        if (name, value) != ("OMPI_MCA_btl", "self")
    }


def _last_line(log: Path) -> str:
    lines = [
        line.strip() for line in log.read_text(errors="replace").replace("\r", "\n").splitlines()
    ]
    ours = [line.removeprefix("localavg: ") for line in lines if line.startswith("localavg: ")]
    return (ours or [line for line in lines if line] or ["no word"])[-1]
