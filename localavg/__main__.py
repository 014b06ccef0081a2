"""The command line: ``localavg COMMAND`` or ``python -m localavg COMMAND``.

MPI and HDF5 are loaded only when a command needs them.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from time import monotonic, sleep
from types import ModuleType
from typing import NoReturn

from localavg.cli import RANK, in_flags, launched, prepare, rank, status, train, world
from localavg.cli.bench import command as bench
from localavg.cli.doctor import command as doctor
from localavg.cli.sweep import command as sweep
from localavg.cli.theory import command as theory
from localavg.errors import FAILED, MISTAKE, UserError

LAST_WORDS_S = 0.3  # MPICH's launcher drops what a rank prints immediately before an abort
PATIENCE_S = 60.0  # how long a rank that made a mistake waits for the others to end too


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises its errors, so that only rank 0 prints them."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """Make the parser of all commands and their options."""
    top = Parser(
        prog="localavg", description="SGD with local updates and periodic averaging over MPI."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, sweep, status, prepare, theory, bench, doctor):
        command.add(commands)
    return top


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its status; a user's mistake is one line on rank 0.

    The first rank that fails ends the job, before MPI has started too: some launchers wait for the
    others for ever.
    """
    if not any(name in os.environ for name in RANK):
        # otherwise Open MPI leaves a file in /dev/shm at every start without a launcher
        os.environ.setdefault("OMPI_MCA_btl", "self")
    mistake = ""
    try:
        args = parser().parse_args(argv)
        code = args.call(args)
    except UserError as e:
        mistake, code = f"localavg: {in_flags(str(e))}", MISTAKE
        if rank() == 0:
            print(mistake, file=sys.stderr, flush=True)
    except Exception:
        if _mpi() is None:
            raise
        sys.excepthook(*sys.exc_info())  # which ends the job
        code = FAILED
    _leave(code, mistake)


def _mpi() -> ModuleType | None:
    """The module mpi4py.MPI where this is one rank of several, started if need be; else None."""
    if not launched() or ((mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_finalized()):
        return None
    try:
        world()
    except UserError:  # there is no MPI here, which has been said
        return None
    return sys.modules["mpi4py.MPI"]


def _leave(status: int, mistake: str) -> NoReturn:
    """Finalise MPI, so that the launcher sees a status and not an abort, and exit.

    A rank whose mistake no other rank shares would wait for them for ever: it ends the job.
    """
    if mistake and (mpi := _mpi()) is not None:
        met, until = mpi.COMM_WORLD.Ibarrier(), monotonic() + PATIENCE_S
        while not met.Test():
            if monotonic() > until:
                print(
                    f"{mistake} (rank {rank()} alone; ending the job)", file=sys.stderr, flush=True
                )
                sleep(LAST_WORDS_S)
                mpi.COMM_WORLD.Abort(status)
            sleep(1e-3)
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    # the interpreter's last search for garbage in torch's modules would take a quarter of a second
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    main()
