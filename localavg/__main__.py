"""The command line: ``python -m localavg COMMAND``. It loads neither MPI nor HDF5 before a command
needs it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import NoReturn

from localavg.cli import RANK, prepare, rank, status, theory, train
from localavg.cli.bench import command as bench
from localavg.cli.doctor import command as doctor
from localavg.cli.sweep import command as sweep
from localavg.errors import MISTAKE, UserError


class Parser(argparse.ArgumentParser):
    """Errors are raised, so that one rank tells them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """All commands and their options."""
    top = Parser(
        prog="localavg", description="SGD with local updates and periodic averaging over MPI."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, sweep, status, prepare, theory, bench, doctor):
        command.add(commands)
    return top


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit with a status of `config`; a user's mistake is one line on rank
    0.
    """
    if not any(name in os.environ for name in RANK):
        os.environ.setdefault(
            "OMPI_MCA_btl", "self"
        )  # alone, Open MPI would leave a file in /dev/shm each time
    try:
        args = parser().parse_args(argv)
        code = args.call(args)
    except UserError as e:
        if rank() == 0:
            print(f"localavg: {e}", file=sys.stderr, flush=True)
        code = MISTAKE
    _leave(code)


def _leave(status: int) -> NoReturn:
    """Exit together: MPI is finalised first, so that the launcher sees a status and not an
    abort.
    """
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    # the interpreter's last search for garbage in torch's modules would take a quarter of a second
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    main()
