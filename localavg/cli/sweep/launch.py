"""Start the runs of a sweep, some at a time, and stop at a signal."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from localavg.cli import shell_words
from localavg.cli.sweep import state, warm
from localavg.cli.sweep.plan import Planned
from localavg.cli.sweep.warm import STOPS
from localavg.errors import FAILED, FINISHED, GO_ON, MISTAKE, UserError
from localavg.files.hdf5 import clear_errors
from localavg.parallel.gpus import find_gpus

BESIDE = {  # environment of a run beside others, unless told
    "OMP_NUM_THREADS": "1",
    # otherwise each mpirun binds its ranks to the same first cores
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def command(run: Planned, path: Path, mpirun: str | None = None, at_once: int = 1) -> list[str]:
    """Return the command line of a run with the run file `path`.

    mpirun: the launcher's words; it takes -n RANKS, or {ranks} stands in its words. By default the
    launcher is `mpirun`, or none for a run of one rank. at_once: ranks of all runs at work.
    """
    train = ["-m", "localavg", *run.words, "--out", str(path), "--resume"]
    if alone(run, mpirun):
        return [sys.executable, *train]  # quicker than with a launcher
    launcher, n = shell_words("mpirun", mpirun or "") or [_mpirun()], str(run.ranks)
    if any("{ranks}" in word for word in launcher):
        launcher = [word.replace("{ranks}", n) for word in launcher]
    else:
        launcher += ["-n", n]
    if Path(launcher[0]).name == "srun":
        launcher += _step(run.ranks, at_once)
    return [*launcher, sys.executable, "-m", "mpi4py", *train]


def alone(run: Planned, mpirun: str | None) -> bool:
    """Return whether a run is started without a launcher."""
    return mpirun is None and run.ranks == 1 and "SLURM_JOB_ID" not in os.environ


def _step(ranks: int, at_once: int) -> list[str]:
    """Return what srun needs to give a run only its part of the allocation."""
    words, per_node = [], os.environ.get("SLURM_NTASKS_PER_NODE", "")
    if per_node.isdigit():  # otherwise srun spreads a small run over all nodes
        words.append(f"--nodes={math.ceil(ranks / int(per_node))}")
    if at_once > ranks:  # otherwise the first run holds all cores and GPUs, and the others wait
        words.append("--exact")
        if (gpus := os.environ.get("SLURM_GPUS_ON_NODE", "")).isdigit():
            words.append(f"--gpus-per-node={int(gpus) * ranks // at_once}")
    return words


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
    """Starts the runs of a sweep in their order.

    folder: of the run files. mpirun: as in `command`. keep_going: continue after a user's mistake.
    report: called with one line for every event. at_once: ranks at work at the same time; a run of
    more ranks runs alone.
    """

    def __init__(
        self,
        folder: Path,
        mpirun: str | None,
        keep_going: bool,
        report: Callable[[str], object],
        at_once: int = 1,
    ) -> None:
        self.folder, self.mpirun, self.keep_going, self.report = folder, mpirun, keep_going, report
        self.at_once = at_once
        self._stopped = False  # a signal came
        self._children: set[subprocess.Popen[bytes] | warm.Child] = set()
        self._env = environment() if at_once == 1 else {**BESIDE, **environment()}
        self._free = [uuid for _, uuid in find_gpus()[0]] if at_once > 1 else []  # GPUs
        self._gpus = len(self._free)
        self._lock = threading.Lock()

    def work(self, runs: Iterable[Planned]) -> int:
        """Do the runs and return the exit status.

        The status is 0 if all finished, GO_ON if a signal came or a run was interrupted, and 1
        otherwise. A run that fails does not stop the others. A user's mistake (status 2) does,
        unless keep_going.
        """
        runs, statuses = list(runs), set[int]()
        before = {s: signal.signal(s, self._stop) for s in STOPS}
        try:
            left = self._work(runs, statuses)
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
        if self._stopped and left:
            self.report(f"stopped by a signal; {left} runs are left")
        if GO_ON in statuses or (self._stopped and left):
            return GO_ON
        if MISTAKE in statuses and not self.keep_going:
            self.report(
                "stopped after a user's mistake; the other runs would probably fail too "
                "(--keep-going runs them anyway)"
            )
        return FAILED if statuses - {FINISHED} else FINISHED

    def _work(self, runs: list[Planned], statuses: set[int]) -> int:
        """Do the runs, add their statuses, and return how many were not started."""
        ends = {GO_ON} | (set() if self.keep_going else {MISTAKE})
        busy: dict[Future[int], int] = {}  # a run at work: its ranks
        waiting = list(enumerate(runs, 1))
        if any(self._is_warm(run) for run in runs):
            warm.start(self._env)
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                while busy or (waiting and not self._stopped and not statuses & ends):
                    room = self.at_once - sum(busy.values())
                    going = waiting and not self._stopped and not statuses & ends
                    if going and min(waiting[0][1].ranks, self.at_once) <= room:
                        i, run = waiting.pop(0)
                        title = f"[{i}/{len(runs)}] {run.name}"
                        busy[pool.submit(self._one, run, title)] = min(run.ranks, self.at_once)
                        continue
                    for done in wait(busy, return_when=FIRST_COMPLETED).done:
                        del busy[done]
                        statuses.add(done.result())
            except KeyboardInterrupt:
                self._stopped = True  # the terminal interrupts the children too
                raise
        return len(waiting)

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
        line = command(run, path, self.mpirun, self.at_once)
        gpus, env = self._part(run, line[0])
        with log.open("ab") as out:
            out.write(f"$ {shlex.join(line)}\n".encode())
            out.flush()
            if self._is_warm(run):
                child: subprocess.Popen[bytes] | warm.Child = warm.Child(line, env, log)
            else:
                with clear_errors(
                    f"{line[0]}: cannot start this launcher", "give another --mpirun"
                ):
                    child = subprocess.Popen(
                        line, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                    )
            self._children.add(child)
            if self._stopped:  # by a signal that came before there was a child
                child.send_signal(signal.SIGUSR1)
        state.sign(lock, child.pid)
        status = _wait(child, lock)
        self._children.discard(child)
        with self._lock:
            self._free += gpus
        return status

    def _part(self, run: Planned, launcher: str) -> tuple[list[str], dict[str, str]]:
        """Take a run's part of this host's GPUs; return it, and the environment of the run.

        srun and jsrun share out GPUs and cores by themselves. Where there are more runs than GPUs,
        those that find none left use all of them.
        """
        if self.at_once == 1:
            return [], self._env
        if Path(launcher).name in ("srun", "jsrun"):
            return [], environment()
        with self._lock:
            each = max(1, self._gpus * min(run.ranks, self.at_once) // self.at_once)
            gpus, self._free = self._free[:each], self._free[each:]
        return gpus, self._env | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})

    def _is_warm(self, run: Planned) -> bool:
        """Return whether a run is forked from a process that has imported torch."""
        return alone(run, self.mpirun) and run.given.get("model") is not None

    def _stop(self, *_: object) -> None:
        """Start no other run, let those at work save themselves; launchers send USR1 to ranks."""
        self._stopped = True
        for child in list(self._children):
            child.send_signal(signal.SIGUSR1)


def _wait(child: subprocess.Popen[bytes] | warm.Child, lock: Path) -> int:
    """Wait for the child and return its status; touch the lock meanwhile."""
    while True:
        try:
            return child.wait(timeout=state.HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            os.utime(lock)


def environment() -> dict[str, str]:
    """Return the environment without btl = self, which `__main__` sets for a process alone."""
    alone = ("OMPI_MCA_btl", "self")
    return {name: value for name, value in os.environ.items() if (name, value) != alone}


def last_line(log: str) -> str:
    """Return the last line of localavg in the text of a log, or else its last line."""
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines()]
    ours = [line.removeprefix("localavg: ") for line in lines if line.startswith("localavg: ")]
    return (ours or [line for line in lines if line] or ["nothing was printed"])[-1]
