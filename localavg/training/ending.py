"""How a run ends (finished, diverged, stopped or failed), and how the run file records it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from mpi4py import MPI

from localavg.errors import FAILED, FINISHED, GO_ON, SharedError, UserError
from localavg.files.record import Record
from localavg.interfaces import Problem
from localavg.parallel.survive import Lost
from localavg.problems.engines.memory import is_shortage


class Diverged(Exception):
    """A loss is not finite. Every rank raises it."""


class Interrupted(Exception):
    """The run was told to stop, and is saved. Every rank raises it.

    by: the name of the signal, or "the time limit". after: the local updates made, 0 if not known.
    """

    def __init__(self, message: str, by: str = "", after: int = 0) -> None:
        super().__init__(message)
        self.by, self.after = by, after


class Outcome(NamedTuple):
    """What a run returns on every rank."""

    status: int
    """exit status"""
    text: str
    """how it went, on the rank that writes the run file; "" elsewhere"""


class Closed(Protocol):
    """What is closed before the run file: a monitor or a log."""

    def close(self) -> None:
        """End the progress bar."""


def ended(
    work: Callable[[], None],
    file: Record | None,
    log: Closed,
    problem: Problem,
    world: MPI.Intracomm,
    remedy: str,
) -> tuple[int, str]:
    """Do `work`, and write to the run file how it ended. remedy: what helps a run that diverged.

    Return the exit status, and the reason if the run did not finish. Other exceptions than those of
    this file are raised again and end the job. So does a UserError of this rank alone. Lost is
    raised again, and the run file stays as it is.
    """
    finish = partial(_finish, file, log)
    try:
        work()
        finish("finished")
    except Diverged as e:
        finish("failed", failure=f"{e}; {remedy}")
        return FAILED, f"{e}; {remedy}"
    except Interrupted as e:
        finish("interrupted", failure=str(e), stopped_by=e.by, stopped_after=e.after)
        return GO_ON, str(e)
    except Lost:
        raise
    except BaseException as raised:
        error = short_of_memory(raised) or raised
        with suppress(UserError):  # the first error counts, not one that follows from it
            interrupted = isinstance(error, KeyboardInterrupt)
            why = f"{type(error).__name__}: {error}"
            finish("interrupted" if interrupted else "failed", failure=why)
        if not isinstance(error, UserError):
            raise
        if world.size > 1 and not isinstance(error, SharedError):  # perhaps only this rank knows
            print(f"localavg: {error}", file=sys.stderr, flush=True)
            world.Abort(FAILED)
        return FAILED, f"localavg: {error}"
    finally:
        problem.close()
    return FINISHED, ""


def short_of_memory(e: BaseException) -> UserError | None:
    """Return the clear error of an exception that says that memory is used up, else None."""
    if not is_shortage(e):
        return None
    why = str(e).strip().partition("\n")[0] or "no more is said"
    return UserError(
        f"memory is used up ({why}); use a smaller `batch_size`, fewer learners on each rank, "
        "`engine = loop`, or a smaller network"
    )


def _finish(file: Record | None, log: Closed, status: str, **why: object) -> None:
    """Write to the run file, on the rank that writes it, how the run ended."""
    if file is not None:
        log.close()
        file.finish(status, **why)
