"""The options that several kinds of datasets share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from localavg.cli import launched, rank, world

if TYPE_CHECKING:
    from mpi4py import MPI


def add_shuffle(s: argparse.ArgumentParser) -> None:
    """Declare --shuffle."""
    s.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="shuffle the training rows with this random seed, as --sampling block needs "
        "(default: keep their order)",
    )


def add_name(
    s: argparse.ArgumentParser, name: str | None, otherwise: str = "the name of DIR"
) -> None:
    """Declare --name with this default; otherwise: what it is if that is None."""
    s.add_argument(
        "--name",
        default=name,
        help=f"call the dataset this in run files (default: {name or otherwise})",
    )


def add_out(s: argparse.ArgumentParser) -> None:
    """Declare --out."""
    s.add_argument("--out", required=True, metavar="FILE.h5", help="write the dataset here")


def ranks() -> MPI.Intracomm | None:
    """Return COMM_WORLD under a launcher; None for one process, which needs no MPI library."""
    return world() if launched() else None


def print_path(path: str) -> int:
    """Print the path on rank 0; return the exit status of success."""
    if rank() == 0:
        print(path)
    return 0
