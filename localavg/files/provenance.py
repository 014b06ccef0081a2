"""The origin of a run: its command, code, versions and host."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np


def provenance(argv: list[str] | None = None) -> dict[str, str | bool | None]:
    """Return the command line, git state of the package, versions, start (UTC), platform and CPU.

    A value that cannot be found is None. This runs git as a child process, so call it before MPI
    starts.
    """
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "localavg")
    return {
        "command": shlex.join(sys.orig_argv if argv is None else argv),
        "git_commit": commit,
        "git_dirty": None if commit is None or changes is None else changes != "",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "torch": _version("torch"),
        "mpi4py": _version("mpi4py"),
        "cupy": _version("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x"),
        "start": now(),
        "platform": platform.platform(),
        "cpu": _cpu(),
    }


def _git(*words: str) -> str | None:
    """Return what git prints on the package's checkout; None if there is none or git fails."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(checkout), *words]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, env=env, capture_output=True, check=True, timeout=10, text=True
        )
        return done.stdout.strip()
    return None


def _version(*names: str) -> str | None:
    """Return the version of the first of these packages that is installed, or None."""
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
