"""The commands, one file each: ``add`` says what they take; what they need is imported when they run."""

from __future__ import annotations

import os
from typing import Any

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK", "SLURM_PROCID")


def rank() -> int:
    """This process's rank, as the launcher's environment says: known without MPI."""
    return next((int(os.environ[name]) for name in RANK if os.environ.get(name, "").isdigit()), 0)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table under a title."""
    from tabulate import tabulate

    print(f"\n{title}\n{tabulate(rows, headers='keys', floatfmt='.4g', missingval='-')}")
