"""Runs of localavg one after the other, in which ranks kill themselves at named points.

    mpirun --with-ft ulfm -n 4 python -m mpi4py killing.py REQUEST REPLY

REQUEST: JSON, a list of [KILLS, words of the command line]. A run after a loss has the ranks that
live. KILLS: POINT@RANK:N, with commas between several: rank RANK of all kills itself when it comes
to the point for the Nth time. A point is a function of POINTS before it does its work, or with "-"
before its name after it; a barrier of BARRIERS likewise; or of TIMES, N milliseconds after that
function has begun. With "~" before its name the rank stops there for a minute and does not die;
then a recovery may take 3 seconds only. The first living rank writes the exit statuses to REPLY,
and a rank that dies a line to REPLY.hits, in JSON: the number of the run, POINT, and RANK. A run
with --device cuda is on the stand-in for CuPy, or on a GPU where CARD is set.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from mpi4py import MPI

from localavg.__main__ import parser
from localavg.cli import in_flags, train
from localavg.errors import UserError
from localavg.parallel import survive
from localavg.parallel.device import choose_device
from localavg.parallel.probe import Probe

POINTS = {
    "gradient": "localavg.problems.logistic:Logistic.gradient_",
    "network": "localavg.problems.network:Network.gradient_",
    "lanes": "localavg.parallel.transport.lanes:Lanes._finish",
    "sent": "localavg.parallel.transport.lanes:Lanes._land",  # chunks are on their way
    "average": "localavg.training.averaging:Averaging._average_",
    "travel": "localavg.training.flights:Flights._travel",
    "merge": "localavg.training.delayed:Delayed._merge_",
    "mix": "localavg.parallel.transport.mixing:Mix.mix_",
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
    "take-over": "localavg.files.mirror:Mirror.take_over",
    "finish": "localavg.files.mirror:Mirror.finish",
    "agree": "localavg.parallel.survive:agreed",
    "push": "localavg.training.asynchronous.client:Pending.send",
    "pull": "localavg.training.asynchronous.client:Client._pull_",
    "serve": "localavg.training.asynchronous.server:Server.serve",
    "plan": "localavg.training.asynchronous.play:Play._planned",
    "rejoin": "localavg.training.asynchronous.client:Client.rejoin",
    "staged": "localavg.parallel.transport.staged:Staged._sum_over_ranks_",
    "aware": "localavg.parallel.transport.cuda_aware:CudaAware._sum_over_ranks_",
    "nccl": "localavg.parallel.transport.nccl:Nccl._sum_over_ranks_",
    "sum": "stand_in:NcclCommunicator.allReduce",  # others have begun it
    "aside": "stand_in:NcclCommunicator.allReduce",  # in the background
    "connect": "stand_in:NcclCommunicator.__init__",
}
TIMES = {
    "time": "localavg.training.recover:outlive",
    "recovery": "localavg.training.recover:_recovered",
    "playing": "localavg.training.asynchronous.play:Play.run",
    "rejoining": "localavg.training.asynchronous.play:Play._recover",
}
BARRIERS = {  # where the world's barriers are called: their names in turn
    "slots": ("slots",),
    "lanes": ("ready", "written"),
}
RANK = MPI.COMM_WORLD.rank
STUCK_S, LIMIT_S = 60, 3
CARD = "LOCALAVG_TEST_CARD"  # environment variable


def stop():
    time.sleep(STUCK_S)


def die(hits, line):
    """Leave a line that says where, and die."""
    descriptor = os.open(hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Deadly(MPI.Intracomm):
    """The world, which counts the calls of Barrier. ends: what to call, by point and number."""

    calls, ends = Counter(), {}

    def Barrier(self):
        point = self._point(Path(sys._getframe(1).f_code.co_filename).stem)
        Deadly.calls[point] += 1
        self._end(point)
        super().Barrier()
        self._end(f"-{point}")

    @staticmethod
    def _point(where):
        names = BARRIERS.get(where, (where,))
        return names[sum(Deadly.calls[name] for name in names) % len(names)]

    @staticmethod
    def _end(point):
        if end := Deadly.ends.get((point, Deadly.calls[point.lstrip("-")])):
            end()


def counted(plain, N, after, end, aside=False):
    """A function like `plain` that calls `end` before or after its Nth call.

    aside: of those in other threads than the main one.
    """
    calls = [0]

    def call(*args, **how):
        counts = not aside or threading.current_thread() is not threading.main_thread()
        calls[0] += counts
        ends = counts and calls[0] == N
        if ends and not after:
            end()
        found = plain(*args, **how)
        if ends and after:
            end()
        return found

    return call


@contextmanager
def timed(owner, attribute, ms, end):
    """Until the context ends, the function lets the process end this long after its beginning."""
    plain, timers = getattr(owner, attribute), []

    def call(*args, **how):
        timers.append(threading.Timer(ms / 1000, end))
        timers[-1].daemon = True
        timers[-1].start()
        return plain(*args, **how)

    with mock.patch.object(owner, attribute, call):
        yield
    for timer in timers:
        timer.cancel()


def deadly(point, N, end):
    """What lets this process end when it comes to the point for the Nth time."""
    after, name = point.startswith("-"), point.lstrip("-~")
    if point.startswith("~"):
        end, survive.LIMIT_S = stop, LIMIT_S
    if any(name in names for names in BARRIERS.values()):
        return mock.patch.dict(Deadly.ends, {(point, Deadly.calls[name] + N): end})
    module, _, path = {**POINTS, **TIMES}[name].partition(":")
    owner = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    if name in TIMES:
        return timed(owner, attribute, N, end)
    plain = getattr(owner, attribute)
    return mock.patch.object(owner, attribute, counted(plain, N, after, end, name == "aside"))


def world():
    return Deadly(survive.survivors[-1] if survive.survivors else MPI.COMM_WORLD)


def device_of(name, fleet):
    import stand_in

    return choose_device(name, fleet, load=lambda _: stand_in, driver=lambda: None)


def status_of(number, kills, words, hits):
    with ExitStack() as armed:
        armed.enter_context(mock.patch.object(train, "world", world))
        armed.enter_context(mock.patch.object(train, "probed", lambda *how: Probe(True, "it is")))
        if CARD not in os.environ:
            armed.enter_context(mock.patch("localavg.training.where.choose_device", device_of))
        for kill in filter(None, kills.split(",")):
            point, _, where = kill.partition("@")
            rank, _, N = where.partition(":")
            if int(rank) == RANK:
                end = partial(die, hits, json.dumps([number, point.lstrip("-"), int(rank)]))
                armed.enter_context(deadly(point, int(N), end))
        try:
            args = parser().parse_args(words)
            return args.call(args)
        except UserError as e:
            print(f"localavg: {in_flags(str(e))}", file=sys.stderr, flush=True)
            return 2


def main(request, reply):
    statuses = []
    for number, (kills, words) in enumerate(json.loads(Path(request).read_text())):
        statuses.append(status_of(number, kills, words, f"{reply}.hits"))
        if world().rank == 0:
            Path(reply).write_text(json.dumps(statuses))
    if survive.survivors:
        survive.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
