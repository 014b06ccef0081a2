"""The origin of a run: its command, code, versions and host."""

from __future__ import annotations

import contextlib
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np

from localavg.files import git


def provenance(argv: list[str] | None = None) -> dict[str, str | bool | None]:
    """Return the command line, git state of the package, versions, start (UTC), platform and CPU.

    A value that cannot be found is None. No process is started, so MPI may have started.
    """
    commit, dirty = _git()
    return {
        "command": shlex.join(sys.orig_argv if argv is None else argv),
        "git_commit": commit,
        "git_dirty": dirty,
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


def _git() -> tuple[str | None, bool | None]:
    """Return the commit of the package's checkout, and whether the package differs from it."""
    checkout = Path(__file__).resolve().parents[2]
    commit = git.head(checkout)
    return commit, None if commit is None else git.changed(checkout, commit, "localavg")


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
