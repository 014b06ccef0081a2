"""The command line: ``localavg COMMAND`` or ``python -m localavg COMMAND``.

MPI and HDF5 are loaded only when a command needs them.
"""

from __future__ import annotations

import gc
import os
import sys
from time import monotonic, sleep
from types import ModuleType
from typing import NoReturn

from localavg import __version__
from localavg.cli import RANK, in_flags, launched, missing, output, rank, world
from localavg.cli.parser import Parser
from localavg.errors import FAILED, FINISHED, MISTAKE, UserError, shown

LAST_WORDS_S = 0.3  # MPICH's launcher drops what a rank prints immediately before an abort
INTERRUPTED = 130  # the status of a command that Ctrl-C ended, as in a shell
PATIENCE_S = 60.0  # how long a rank that made a mistake waits for the others to end too


def parser() -> Parser:
    """Make the parser of all commands and their options."""
    # Here, so that `main` can say which library is missing: some of these import NumPy.
    from localavg.cli import plan, plot, status, train
    from localavg.cli.bench import command as bench
    from localavg.cli.doctor import command as doctor
    from localavg.cli.prepare import command as prepare
    from localavg.cli.sweep import command as sweep
    from localavg.cli.theory import command as theory

    top = Parser(
        prog="localavg", description="SGD with local updates and periodic averaging over MPI."
    )
    top.add_argument("--version", action="version", version=f"localavg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, sweep, status, plot, prepare, theory, plan, bench, doctor):
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
    output.set_up()
    mistake = ""
    try:
        code = _called(argv)
    except UserError as e:
        mistake, code = f"localavg: {shown(in_flags(str(e)))}", MISTAKE
        if rank() == 0:
            print(mistake, file=sys.stderr, flush=True)
    except SystemExit as end:
        if end.code:
            raise
        code = 0  # of --help and --version
    except KeyboardInterrupt:
        if launched():
            raise  # the hook ends the job
        print("localavg: interrupted", file=sys.stderr, flush=True)
        code = INTERRUPTED
    except Exception:  # whatever it is, the other ranks must not wait for this one
        if _mpi() is None:
            raise
        sys.excepthook(*sys.exc_info())  # which ends the job
        code = FAILED
    if error := output.lost():
        if rank() == 0:
            print(f"localavg: output was lost ({error.strerror}); make room", file=sys.stderr)
        code = code or FAILED
    _leave(code, mistake)


def _called(argv: list[str] | None) -> int:
    """Run one command and return its status; a library that is missing is a UserError."""
    try:
        args = parser().parse_args(argv)
        return args.call(args)
    except ModuleNotFoundError as e:
        if (mistake := missing(e)) is None:
            raise
        raise mistake from e


def _mpi() -> ModuleType | None:
    """The module mpi4py.MPI where this is one rank of several, started if need be; else None."""
    if not launched() or ((mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_finalized()):
        return None
    try:
        world()
    except (UserError, ModuleNotFoundError):  # there is no MPI here, which has been said
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
    if (outlived := sys.modules.get("localavg.parallel.survive")) and outlived.survivors:
        outlived.leave(status)
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized() and not mpi.Is_finalized():
        try:
            mpi.Finalize()
        except mpi.Exception:
            # The launcher ends the job when the first rank exits with a status, and MPI with it;
            # all has been written, and printed, by then.
            if status == FINISHED:
                raise
    # the interpreter's last search for garbage in torch's modules would take a quarter of a second
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    main()
