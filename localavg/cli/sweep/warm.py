"""Start runs from one process that has imported torch, which takes each of them seconds of a core.

The process is the fork server of `multiprocessing`. It imports `preload` and forks for every run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

# Signals that a batch system sends ahead of the time limit.
STOPS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
PRELOAD = "localavg.cli.sweep.preload"


class Child:
    """A run that was started: what the queue needs of subprocess.Popen."""

    def __init__(self, line: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_train, args=([*line], {**env}, log))
        self._process.start()
        assert self._process.pid is not None, "it was started"
        self.pid = self._process.pid

    def send_signal(self, number: int) -> None:
        """Send a signal, if the run has not ended."""
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Return the status when the run has ended; raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode


def start(env: Mapping[str, str]) -> None:
    """Start the server, if there is none, with this environment: torch reads a part of it once."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD])
    with _environment(env):
        forkserver.ensure_running()


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Replace the environment for a while."""
    before = {**os.environ}
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _train(line: list[str], env: dict[str, str], log: Path) -> None:
    """Be the run of a command line, `python -m localavg …`, whose output goes to `log`."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.close(out)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv = line
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    sys.argv = line[line.index("localavg") :]
    sys.modules.pop("localavg.__main__", None)  # the sweep's own, if it was started as a script
    runpy.run_module("localavg", run_name="__main__", alter_sys=True)
