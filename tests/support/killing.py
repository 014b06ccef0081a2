"""Runs of localavg one after the other, in which ranks kill themselves at named points.

    mpirun --with-ft ulfm -n 4 python -m mpi4py killing.py REQUEST REPLY

REQUEST: JSON, a list of [KILLS, words of the command line]. A run after a loss has the ranks that
live. KILLS: POINT@RANK:N, with commas between several: rank RANK of all kills itself when it comes
to the point for the Nth time. A point is a function of POINTS before it does its work, or with "-"
before its name after it; "time" is N milliseconds after the start of training. With "~" before its
name the rank stops there for a minute and does not die; then a recovery may take 3 seconds only.
The first living rank writes the exit statuses to REPLY.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from mpi4py import MPI

from localavg.__main__ import parser
from localavg.cli import in_flags, train
from localavg.errors import UserError
from localavg.parallel import survive
from localavg.training import recover

POINTS = {
    "gradient": "localavg.problems.logistic:Logistic.gradient_",
    "network": "localavg.problems.network:Network.gradient_",
    "lanes": "localavg.parallel.transport.lanes:Lanes._finish",
    "average": "localavg.training.averaging:Averaging._average_",
    "mpi": "localavg.parallel.transport.mpi:HostMPI._sum_over_ranks_",
    "coded": "localavg.parallel.transport.mpi:HostMPI._gather_slices",
    "evaluation": "localavg.training.evaluate:Evaluator._means",
    "table": "localavg.files.tables:extend",
    "rename": "localavg.files.atomic:commit",
    "checkpoint": "localavg.files.checkpoint:_write_rank",
    "copy": "localavg.training.kept:Kept._copy_losses",
    "compare": "localavg.training.recorder:Recorder.compare",
    "build": "localavg.training.recover:assemble",
    "restore": "localavg.training.kept:Kept.restored",
    "take over": "localavg.files.mirror:Mirror.take_over",
    "finish": "localavg.files.mirror:Mirror.finish",
    "agree": "localavg.parallel.survive:agreed",
    "leave": "localavg.parallel.survive:leave",
    "train": "localavg.training.recover:passing",
}
RANK = MPI.COMM_WORLD.rank


STUCK_S, LIMIT_S = 60, 3


def stop():
    time.sleep(STUCK_S)


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Deadly(MPI.Intracomm):
    """The world, which counts the calls of Barrier."""

    before, after, calls = 0, 0, 0

    def Barrier(self):
        Deadly.calls += 1
        if Deadly.calls == Deadly.before:
            die()
        super().Barrier()
        if Deadly.calls == Deadly.after:
            die()


def counted(plain, N, after, end):
    """A function like `plain` that calls `end` before or after its Nth call."""
    calls = [0]

    def call(*args, **how):
        calls[0] += 1
        if calls[0] == N and not after:
            end()
        found = plain(*args, **how)
        if calls[0] == N and after:
            end()
        return found

    return call


def timed(ms):
    """A function like `recover.outlive` that kills the process this long after its beginning."""
    outlive = recover.outlive

    def call(*args):
        timer = threading.Timer(ms / 1000, die)
        timer.daemon = True
        timer.start()
        return outlive(*args)

    return call


def deadly(point, N):
    """What lets this process die when it comes to the point for the Nth time."""
    after, name, end = point.startswith("-"), point.lstrip("-~"), die
    if point.startswith("~"):
        end, survive.LIMIT_S = stop, LIMIT_S
    if name == "barrier":
        return mock.patch.object(Deadly, "after" if after else "before", Deadly.calls + N)
    if name == "time":
        return mock.patch.object(recover, "outlive", timed(N))
    module, _, path = POINTS[name].partition(":")
    owner = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return mock.patch.object(owner, attribute, counted(getattr(owner, attribute), N, after, end))


def world():
    return Deadly(survive.survivors[-1] if survive.survivors else MPI.COMM_WORLD)


def status_of(kills, words):
    with ExitStack() as armed:
        armed.enter_context(mock.patch.object(train, "world", world))
        for kill in filter(None, kills.split(",")):
            point, _, where = kill.partition("@")
            rank, _, N = where.partition(":")
            if int(rank) == RANK:
                armed.enter_context(deadly(point, int(N)))
        try:
            args = parser().parse_args(words)
            return args.call(args)
        except UserError as e:
            print(f"localavg: {in_flags(str(e))}", file=sys.stderr, flush=True)
            return 2


def main(request, reply):
    statuses = []
    for kills, words in json.loads(Path(request).read_text()):
        statuses.append(status_of(kills, words))
        if world().rank == 0:
            Path(reply).write_text(json.dumps(statuses))
    if survive.survivors:
        survive.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
