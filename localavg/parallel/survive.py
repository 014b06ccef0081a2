"""Go on without ranks that died, by Open MPI's ULFM: whether it is there, and its calls.

ULFM is User-Level Failure Mitigation (docs.open-mpi.org, "User-Level Fault Mitigation"). It is off
unless mpirun turns it on. Then a call that needs a dead rank raises an exception. A rank that got
one revokes all communicators, so that nobody waits in another one; all living ranks agree that the
work failed; and they make a smaller communicator without the dead.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from time import monotonic, sleep
from typing import NoReturn, Protocol, TypeVar

from mpi4py import MPI

from localavg.errors import GO_ON, SharedError, UserError
from localavg.parallel.abort import FIRST_RANK_S, LAST_WORDS_S

T = TypeVar("T")

CONTINUE = "continue"
"""the value of `on_failure`"""
LAUNCH = "mpirun --with-ft ulfm -n N localavg train …"
RESUME = "the same command with --resume resumes the run"
ENABLED = "OMPI_MCA_mpi_ft_enable"  # set by mpirun --with-ft
LOST = ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")
LIMIT_S = 25.0
"""how long a recovery may take; then the job ends, to be resumed from its checkpoint"""
RECOVERY = "the run could not go on without the lost ranks"
HEARD_S = 300.0
"""how long ranks that know of a loss wait for those that do not, which may evaluate for long"""
NOTICE_S = 1.0  # how long after an exception MPI may report the death that it follows from
LEAVE_S = 10.0  # how long a rank at its end waits for the others
ABORT_S = 3.0  # how long an abort may take

survivors: list[MPI.Intracomm] = []
"""all ranks of a run that goes on without the dead, and those that lived after each loss; empty for
other runs"""


class Lost(Exception):
    """Ranks died, and the others go on without them. Every living rank raises it."""


class Revocable(Protocol):
    """A communicator of MPI, or another one that waits for ranks, whose calls can be ended."""

    def Is_revoked(self) -> bool:
        """Return whether this rank has revoked it, or has heard of it."""

    def Revoke(self) -> None:
        """Let every call fail, also those that wait for a dead rank."""

    def Free(self) -> None:
        """Free it, on all its ranks."""


def check(launch: str = LAUNCH) -> None:
    """Raise UserError where MPI or its launcher cannot go on without a rank that died.

    launch: how to launch the program so that it can.
    """
    if not able():
        raise UserError(
            f"`on_failure = continue` needs Open MPI 5 or later, and MPI is {library()}; "
            f"launch with Open MPI: {launch}, or leave it out"
        )
    if os.environ.get(ENABLED, "").lower() not in ("1", "true", "yes"):
        raise UserError(
            "`on_failure = continue`: this launcher ends the job when a rank dies; launch with "
            f"{launch}, or leave it out"
        )


def reported(world: MPI.Intracomm) -> bool:
    """Return whether MPI reports that a rank has died, or that another rank has noticed it."""
    try:
        world.Iprobe()  # MPI learns of a death while it works
        return world.Is_revoked() or world.Get_failed().size > 0
    except MPI.Exception:
        return True


def is_loss(world: MPI.Intracomm, error: BaseException, notice_s: float = NOTICE_S) -> bool:
    """Return whether an exception may follow from the death of a rank.

    A collective call in which a rank dies may return without an error and with wrong numbers (seen
    with Open MPI 5.0.11). So any exception may follow from a death, and MPI may report the death
    later. notice_s: how long to wait for that report.
    """
    if isinstance(error, MPI.Exception) and error.Get_error_class() in [
        getattr(MPI, name) for name in LOST
    ]:
        return True
    until = monotonic() + notice_s
    while not reported(world):
        if monotonic() > until:
            return False
        sleep(1e-2)
    return True


@contextmanager
def noticing(world: MPI.Intracomm, usual: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise Lost in place of an exception that a rank's death causes.

    usual: exceptions that also come without a death, so that no report of one is waited for.
    """
    try:
        yield
    except Exception as error:
        if not is_loss(world, error, 0.0 if isinstance(error, usual) else NOTICE_S):
            raise
        raise Lost from error


def revoke(communicators: Sequence[Revocable]) -> None:
    """Let every call in these communicators fail, on all their ranks.

    But mpi4py's reductions of objects (allreduce, reduce, scan) travel in a copy that it makes of
    the communicator, which nobody can revoke; take allgather.
    """
    for comm in communicators:
        with suppress(MPI.Exception):
            if not comm.Is_revoked():
                comm.Revoke()


def agreed(world: MPI.Intracomm, done: bool, remedy: str = RESUME) -> bool:
    """Return whether all ranks of `world` are alive and done; the same on all. Collective.

    A rank that is not done waits for at most HEARD_S, and then ends the job: a rank that does not
    hear of a loss waits in a call that nobody can revoke. remedy: what to do then.
    """
    with nullcontext() if done else limited(world, remedy, HEARD_S):
        try:
            return bool(world.Agree(int(done)))
        except MPI.Exception as error:
            if not is_loss(world, error):
                raise
            with suppress(MPI.Exception):
                world.Ack_failed()
            return False


def shrunk(world: MPI.Intracomm) -> MPI.Intracomm:
    """Return the communicator of the ranks of `world` that live. Collective over them.

    All of them have it then: a revoke that reaches a rank within Shrink ends its process (seen with
    Open MPI 5.0.11), and whoever is ahead revokes the new communicator when another rank dies.
    """
    living = MPI.Intracomm(world.Shrink())
    agreed(living, True)
    return living


def lost(before: MPI.Intracomm, after: MPI.Intracomm) -> list[int]:
    """Return the ranks of `before` that are not in `after`."""
    gone = MPI.Group.Difference(before.group, after.group)
    return [int(r) for r in gone.Translate_ranks(list(range(gone.size)), before.group)]


def summary(losses: int, repeated: str, seconds: float) -> str:
    """Write what the losses of ranks cost a run, "" if there were none.

    repeated: the number of updates that were made again, in words.
    """
    if not losses:
        return ""
    often = f"{losses} time{'s' * (losses > 1)}"
    return (
        f"; ranks were lost {often}, {repeated} updates were made again, and {seconds:.1f} s were "
        "lost"
    )


def without_lost(
    world: MPI.Intracomm,
    made: Sequence[Revocable],
    build: Callable[[MPI.Intracomm, list[Revocable]], T],
    remedy: str = RESUME,
) -> T:
    """Return what `build` makes on the ranks that live, or on fewer if more of them die.

    made: all communicators of the work that failed, `world` among them. build(world, made): takes
    the communicator of the living ranks, and adds those that it makes to the list. Collective over
    the living ranks. The job ends with status 75 where that fails or takes too long; remedy: what
    to do then.
    """
    with limited(world, remedy) as limit:
        while True:
            revoke(made)
            limit.living = world = shrunk(world)
            made, done = list[Revocable](), False
            try:
                found = build(world, made)
                done = True
            except Exception as error:
                if not is_loss(world, error):
                    _give_up(world, error, remedy)
                revoke([world, *made])
            if agreed(world, done):
                survivors.append(world)
                return found


def _give_up(world: MPI.Intracomm, error: Exception, remedy: str) -> NoReturn:
    """End the job for an error of a recovery, with a traceback where that is a defect."""
    if not isinstance(error, UserError | OSError | MemoryError):
        traceback.print_exception(error)
    why = f"without the lost ranks the run cannot go on: {error or type(error).__name__}"
    give_up(world, why, shared=isinstance(error, SharedError), remedy=remedy)


class Limit:
    """The ranks whose work has a limit. living: those that live, None while nobody knows.

    why: what has not happened within the limit.
    """

    def __init__(self, world: MPI.Intracomm, limit_s: float, remedy: str, why: str) -> None:
        self.world, self.limit_s, self.remedy, self.why = world, limit_s, remedy, why
        self.living: MPI.Intracomm | None = None

    def late(self) -> None:
        """End the job; the first rank that lives says why, or every rank if that is not known."""
        why, known = f"{self.why} within {self.limit_s:g} s", self.living is not None
        give_up(self.living or self.world, why, known, self.remedy)


@contextmanager
def limited(
    world: MPI.Intracomm, remedy: str, limit_s: float | None = None, why: str = RECOVERY
) -> Iterator[Limit]:
    """End the job with status 75 if the code takes longer than limit_s, by default LIMIT_S.

    why: what has not happened then.
    """
    limit = Limit(world, LIMIT_S if limit_s is None else limit_s, remedy, why)
    timer = threading.Timer(limit.limit_s, limit.late)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()


def give_up(world: MPI.Intracomm, why: str, shared: bool = False, remedy: str = RESUME) -> NoReturn:
    """Print a line and end the job with the status that asks to start it again.

    shared: all ranks do this, so that the first one alone prints. remedy: what to do then.
    """
    last = threading.Timer(FIRST_RANK_S + ABORT_S, os._exit, (GO_ON,))  # an abort may hang by now
    last.daemon = True
    last.start()
    if shared and world.rank > 0:
        sleep(FIRST_RANK_S)
    else:
        print(f"localavg: {why}; {remedy}", file=sys.stderr, flush=True)
    sleep(LAST_WORDS_S)
    everyone = (survivors or [world])[0]
    if everyone.Get_failed().size < everyone.size - 1:  # mpirun returns 0 if the last rank aborts
        everyone.Abort(GO_ON)
    os._exit(GO_ON)


def leave(status: int) -> NoReturn:
    """End this process when the others end too, without MPI_Finalize, which may hang after a loss.

    Open MPI issue 11404.
    """
    until = monotonic() + LEAVE_S
    with suppress(MPI.Exception):
        met = survivors[-1].Ibarrier()
        while not met.Test() and monotonic() < until:
            sleep(1e-3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def able() -> bool:
    """Return whether this MPI has ULFM."""
    number = library().removeprefix("Open MPI v").partition(".")[0]
    return number.isdigit() and int(number) >= 5 and hasattr(MPI.Comm, "Shrink")


def library() -> str:
    """Return the name and version of the MPI library."""
    return MPI.Get_library_version().splitlines()[0].rstrip("\0 ")
