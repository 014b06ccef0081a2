"""How one rank ends the whole job."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from time import sleep
from types import TracebackType

from mpi4py import MPI

from localavg.errors import FAILED, MISTAKE, SharedError, UserError

# before an abort: MPICH's launcher drops what a rank printed immediately before it
LAST_WORDS_S = 0.3
FIRST_RANK_S = 3.0  # how long the other ranks wait for rank 0 to print an error that all have
MARK = "ends_the_job"  # attribute of the hook of `abort_on_exception`


def abort_on_exception(world: MPI.Intracomm) -> None:
    """Make an uncaught exception, in any thread, end the whole job from now on.

    A UserError is one line and status 2, another exception a traceback and status 1. A second call
    in a process changes nothing.
    """
    show = sys.excepthook
    if hasattr(show, MARK):
        return

    def hook(
        kind: type[BaseException], value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, UserError):
            shared = isinstance(value, SharedError)
            end_job(world, f"localavg: {value}", MISTAKE, shared)
            return
        sys.stderr.write(f"rank {world.rank} failed; ending the job\n")
        if value is not None:
            show(kind, value, trace)
        end_job(world, "", FAILED)

    setattr(hook, MARK, True)
    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)


def on_exception(tell: Callable[[BaseException], None]) -> None:
    """Call `tell` with the exception that nobody caught, before it ends the program or the job."""
    show = sys.excepthook
    ends_job = hasattr(show, MARK)

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        tell(value)
        show(kind, value, trace)

    sys.excepthook = hook
    if ends_job:  # and so does one in another thread
        setattr(hook, MARK, True)
        threading.excepthook = lambda args: hook(
            args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
        )


def end_job(world: MPI.Intracomm, line: str, status: int, shared: bool = False) -> None:
    """Print a line and end the job with this status.

    shared: all ranks do this, so rank 0 alone prints the line, if it is there.
    """
    if shared and world.rank > 0:
        sleep(FIRST_RANK_S)
    sys.stderr.write(f"{line}\n" if line else "")
    sys.stderr.flush()
    sleep(LAST_WORDS_S)
    if MPI.Is_finalized():
        return
    main = threading.current_thread() is threading.main_thread()
    if main or MPI.Query_thread() == MPI.THREAD_MULTIPLE:
        world.Abort(status)
    os._exit(status)
