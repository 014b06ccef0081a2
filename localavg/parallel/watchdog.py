"""A daemon thread that prints where this rank waits for the others, if it waits for long."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from mpi4py import MPI

from localavg.errors import FAILED
from localavg.parallel.abort import end_job

LOOKS = 20  # how often the thread looks in the shortest time that counts as long
MOST_S = 15.0  # between two looks


class Watchdog:
    """Prints rank, place, t and seconds when this rank has waited for `warn_after` seconds.

    here: the text of a place with {t}, and t, while the rank waits for others; None otherwise. Its
    owner sets it, which is all that a meeting costs. Every meeting needs a tuple of its own. The
    line is printed again after each `warn_after` seconds. limit_s: end the job after this time;
    never if it is None.
    """

    def __init__(self, world: MPI.Intracomm, warn_after: float, limit_s: float | None) -> None:
        self.world, self.warn_after, self.limit_s = world, warn_after, limit_s
        self.here: tuple[str, int] | None = None

    def start(self, owner: object) -> None:
        """Start a thread that watches as long as `owner` exists."""
        every_s = min(MOST_S, min(self.warn_after, self.limit_s or self.warn_after) / LOOKS)
        threading.Thread(
            target=_watch, args=(self, weakref.ref(owner), every_s), name="localavg", daemon=True
        ).start()

    def look(self, here: tuple[str, int], waited_s: float, told_s: float) -> float:
        """Print a line if it is time, and end the job at the limit.

        waited_s: the seconds at this place. told_s: those at the last line. Return the new told_s.
        """
        what, t = here[0].format(t=here[1]), here[1]
        line = f"localavg: rank {self.world.rank} has been waiting for {waited_s:.0f} s in {what}"
        if self.limit_s is not None and waited_s >= self.limit_s:
            end = f"{line} (t = {t}): the limit is {self.limit_s:g} s; ending the job"
            end_job(self.world, end, FAILED)
        if waited_s < told_s + self.warn_after:
            return told_s
        print(f"{line} (t = {t}): another rank does not come", file=sys.stderr, flush=True)
        return waited_s


@contextmanager
def watched(
    world: MPI.Intracomm, place: str, warn_after: float, limit_s: float | None
) -> Iterator[None]:
    """Watch all meetings of a piece of code as one place; see `Watchdog`."""
    owner, dog = threading.Event(), Watchdog(world, warn_after, limit_s)
    dog.here = place, 0
    if world.size > 1:
        dog.start(owner)
    try:
        yield
    finally:
        dog.here = None
        del owner


def _watch(dog: Watchdog, owner: weakref.ref[object], every_s: float) -> None:
    """Look at where the rank is now and then, as long as `owner` exists."""
    seen, since, told_s = None, 0.0, 0.0
    while owner() is not None:
        sleep(every_s)
        here = dog.here
        if here is not seen:
            seen, since, told_s = here, monotonic(), 0.0
        elif here is not None:
            told_s = dog.look(here, monotonic() - since, told_s)
