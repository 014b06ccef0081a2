"""A program of the user's in which ranks kill themselves at named points.

    mpirun --with-ft ulfm -n 3 python -m mpi4py dying.py KILLS PROGRAM ARGUMENTS...

KILLS: POINT@RANK:N, with commas between several, as in `killing.py`, with the points below.
"""

import importlib
import os
import runpy
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from unittest import mock

import killing

POINTS = {
    "step": "localavg.attaching.averager:Averager.step",
    "meet": "localavg.parallel.agreement:Agreement.meet",
    "mean": "localavg.parallel.transport.shared:SharedMemory.mean_",
    "travel": "localavg.training.flights:Flights._travel",
    "merge": "localavg.training.delayed:Delayed._merge_",
    "depart": "localavg.training.delayed:Delayed.depart_",
    "mix": "localavg.parallel.transport.mixing:Mix.mix_",
    "keep": "localavg.attaching.copies:Copies._keeps",
    "back": "localavg.attaching.averager:Averager._go_back",
    "restore": "localavg.attaching.copies:Copy.restore_",
    "row": "localavg.attaching.log:Log.row",
    "averaged": "localavg.attaching.look:Look.begin_",
    "finish": "localavg.attaching.averager:Averager._finish",
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def deadly(point, N):
    """What lets this process die when it comes to the point for the Nth time."""
    module, _, path = POINTS[point.lstrip("-")].partition(":")
    owner, after = importlib.import_module(module), point.startswith("-")
    *classes, attribute = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    plain = getattr(owner, attribute)
    return mock.patch.object(owner, attribute, killing.counted(plain, N, after, die))


@contextmanager
def armed(kills, mine):
    """Let rank `mine` die where the kills say so, until the context ends."""
    with ExitStack() as stack:
        for kill in filter(None, kills.split(",")):
            point, _, where = kill.partition("@")
            rank, _, N = where.partition(":")
            if int(rank) == mine:
                stack.enter_context(deadly(point, int(N)))
        yield


def main(kills, program, *arguments):
    with armed(kills, killing.RANK):
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
