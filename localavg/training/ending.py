"""How a run ends: finished, diverged, told to stop, or failed; and what the run file says of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from mpi4py import MPI

from localavg.errors import FAILED, FINISHED, GO_ON, SharedError, UserError
from localavg.files.record import Record
from localavg.interfaces import Problem


class Diverged(Exception):
    """A loss is not finite; raised on every rank alike."""


class Interrupted(Exception):
    """The run was told to stop and is saved; raised on every rank alike."""


class Outcome(NamedTuple):
    """What a run returns on every rank."""

    status: int
    """exit status"""
    text: str
    """how it went, on the rank that writes the run file; "" elsewhere"""


class Closed(Protocol):
    """What is closed before the run file: a monitor or a log."""

    def close(self) -> None:
        """Leave the terminal in order."""


def ended(
    work: Callable[[], None],
    file: Record | None,
    log: Closed,
    problem: Problem,
    world: MPI.Intracomm,
) -> tuple[int, str]:
    """Do `work`, and write to the run file how it ended.

    Returns the exit status, and the reason if the run did not finish. Exceptions that are no end of
    a run propagate and abort the job; a UserError of this rank alone aborts it too.
    """

    def finish(status: str, **why: str) -> None:
        if file is not None:
            log.close()
            file.finish(status, **why)

    try:
        work()
        finish("finished")
    except Diverged as e:
        finish("failed", failure=str(e))
        return FAILED, str(e)
    except Interrupted as e:
        finish("interrupted", failure=str(e))
        return GO_ON, str(e)
    except BaseException as e:
        with suppress(UserError):  # what went wrong first is what counts
            interrupted = isinstance(e, KeyboardInterrupt)
            finish("interrupted" if interrupted else "failed", failure=f"{type(e).__name__}: {e}")
        if not isinstance(e, UserError):
            raise
        if world.size > 1 and not isinstance(e, SharedError):  # perhaps only this rank knows
            print(f"localavg: {e}", file=sys.stderr, flush=True)
            world.Abort(FAILED)
        return FAILED, f"localavg: {e}"
    finally:
        problem.close()
    return FINISHED, ""
