"""Time rounds of updates with averages at once, delayed and never: what of them a delay hides."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter, process_time

from mpi4py import MPI

from localavg.algorithms import ALGORITHMS
from localavg.cli.bench import WAYS, Row, medians, seconds
from localavg.interfaces import Array, Device, Transport
from localavg.learner.flat import Flat
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.parallel.probe import Probe
from localavg.parallel.transport import choose, in_background
from localavg.parallel.transport.mpi import HostMPI
from localavg.training.averaging import Averaging
from localavg.training.delayed import Delayed

ROWS, ON_GPU = 128, 2048  # of the matrices that an update multiplies, on a CPU and on a GPU
HOST = Cpu()
ALONE = 5  # averages that are timed without updates


class Stateless:
    """The state of an optimiser that has none."""

    averaged = 0

    def at_average_(self, average_: Callable[[Array], None]) -> None:
        """Do nothing."""


class Rounds:
    """Rounds of K updates on rows of n floats, with an average of `algorithm` after each.

    ours: the transport. background: that of delayed averages, None for averages at once.
    """

    def __init__(
        self,
        fleet: Fleet,
        ours: Transport,
        n: int,
        algorithm: str,
        K: int,
        background: Transport | None = None,
    ) -> None:
        self.fleet, self.ours, self.K, self.t = fleet, ours, K, 0
        made = ALGORITHMS[algorithm](K=K, delay=K if background else None)
        made.participants.start(fleet.learners, fleet.P, 0)
        made.average.lay_out(fleet.learners, fleet.P, 0)
        flat = Flat({"w": (n,)}, fleet.L, None, ours.zeros)
        pieces = made, ours, flat, Stateless()
        self.averaging: Averaging
        if background is None:
            self.averaging = Averaging(*pieces, objective=_nan, before=_no, after=_no)
        else:
            self.averaging = Delayed(
                *pieces, background=background, begun=_no, objective=_nan, before=_no, after=_no
            )
        self.averaging.begin(0, 0.1)

    def seconds(self, rounds: int, update: Callable[[], object]) -> float:
        """Return the seconds of a round of the slowest rank, a mean over `rounds`. Collective.

        A round before them is not counted: a delayed average is on its way when they begin. That
        which is on its way when they end arrives before this returns, and is not counted either.
        """
        self._go(1, update)
        self.fleet.world.Barrier()
        took_s = seconds(partial(_all_of, partial(self._go, rounds, update), self.ours))
        if isinstance(self.averaging, Delayed) and (flight := self.averaging.flights.now):
            flight.arrived()
        return slowest(self.fleet, took_s) / rounds  # after which nothing travels on any rank

    def _go(self, rounds: int, update: Callable[[], object]) -> None:
        for _ in range(rounds * self.K):
            update()
            self.t += 1
            self.averaging.average_(self.t, 0.1)


def _all_of(work: Callable[[], object], transport: Transport | Device) -> None:
    """Do `work`, and what it queued on a GPU."""
    work()
    transport.settle()


def slowest(fleet: Fleet, own_s: float) -> float:
    """Return the seconds of the slowest rank. Collective."""
    return float(fleet.world.allreduce(own_s, MPI.MAX))


def average_s(fleet: Fleet, ours: Transport, n: int, algorithm: str = "kavg") -> float:
    """Return the seconds of an average of `algorithm` at once, without updates. Collective."""
    alone = Rounds(fleet, ours, n, algorithm, K=1)
    return medians({"": lambda: alone.seconds(1, _no)}, ALONE)[""]


def updates(fleet: Fleet, way: str, length_s: float, device: Device = HOST) -> Callable[[], None]:
    """Return an update of this way that takes so long where every rank makes it. Collective."""
    if way == "sleeping":
        return partial(time.sleep, length_s)
    rows = ROWS if device.name == "cpu" else ON_GPU
    x, out = device.zeros((rows, rows)), device.zeros((rows, rows))
    x += 1

    def multiply(times: int) -> None:
        for _ in range(times):
            device.xp.matmul(x, x, out=out)

    _all_of(partial(multiply, 20), device)
    fleet.world.Barrier()
    took_s, calls = 0.0, 0
    while slowest(fleet, took_s) < 0.05:  # alike on all ranks
        took_s += seconds(partial(_all_of, partial(multiply, 50), device))
        calls += 50
    return partial(multiply, max(1, round(length_s * calls / slowest(fleet, took_s))))


def never_s(
    fleet: Fleet, rounds: int, K: int, update: Callable[[], object], device: Device = HOST
) -> float:
    """Return the seconds of a round that ends without an average. Collective."""
    fleet.world.Barrier()
    start = perf_counter()
    for _ in range(rounds * K):
        update()
    device.settle()
    return slowest(fleet, perf_counter() - start) / rounds


def hidden(average_s: float, never_s: float, delayed_s: float) -> float:
    """Return the part of an average that a delay hides: 1 if a round takes as long as without."""
    return min(1.0, 1 - (delayed_s - never_s) / average_s)


def bench_hiding(
    fleet: Fleet,
    sizes: Sequence[int],
    algorithms: Sequence[str],
    ways: Sequence[str],
    K: int,
    rounds: int,
    repeats: int,
    length: float = 1.0,
    device: Device = HOST,
    aware: Probe | None = None,
) -> list[Row]:
    """Time rounds of K updates for every size, algorithm and way. Collective. Return the rows.

    The updates of a round take `length` times as long as one average. cpu_s: what the ranks spend
    on a delayed average, divided by the cores that they have. aware: as in `transport.choose`.
    """
    rows = []
    for n in sizes:
        for name in algorithms:
            ours = choose("auto", fleet, (), 4 * n * 4, device, aware, n)
            background = in_background(ours, fleet)
            alone_s = average_s(fleet, ours, n, name)
            for way in ways:
                update = updates(fleet, way, length * alone_s / K, device)
                at_once = Rounds(fleet, ours, n, name, K)
                delayed = Rounds(fleet, ours, n, name, K, background)
                spent = {"never": 0.0, "delayed": 0.0}
                never = partial(never_s, fleet, rounds, K, update, device)
                timed: dict[str, Callable[[], float]] = {
                    "never": _spending(spent, "never", never),
                    "at_once": partial(at_once.seconds, rounds, update),
                    "delayed": _spending(
                        spent, "delayed", partial(delayed.seconds, rounds, update)
                    ),
                }
                found = medians(timed, repeats)
                turns = repeats + 1  # the first is not timed, and counts here
                own = spent["delayed"] / (rounds + 1) - spent["never"] / rounds
                cpu_s = fleet.world.allreduce(own) / turns / _cores(fleet)
                rows.append(
                    {
                        "algorithm": name,
                        "updates": way,
                        "elements": n,
                        "transport": ours.name,
                        "ranks": fleet.ranks,
                        "nodes": fleet.nodes,
                        "average_s": alone_s,
                        "never_s": found["never"],
                        "at_once_s": found["at_once"],
                        "delayed_s": found["delayed"],
                        "hidden": hidden(alone_s, found["never"], found["delayed"]),
                        "delayed / never": found["delayed"] / found["never"],
                        "cpu_s": cpu_s,
                    }
                )
    return rows


def _spending(spent: dict[str, float], name: str, work: Callable[[], float]) -> Callable[[], float]:
    """Return `work`, which then adds the CPU seconds of this process to `spent`."""

    def spending() -> float:
        before = process_time()
        found = work()
        spent[name] += process_time() - before
        return found

    return spending


def _cores(fleet: Fleet) -> int:
    """Return the cores that the ranks use: of a host at most one a rank. Collective.

    Emulated hosts count as hosts, though they share the cores of one machine.
    """
    cores = dict(zip(fleet.hosts, fleet.world.allgather(os.cpu_count() or 1), strict=True))
    return sum(min(ranks, cores[host]) for host, ranks in Counter(fleet.hosts).items())


def trial(fleet: Fleet, ours: HostMPI) -> dict[str, float]:
    """Return the part of an average of some milliseconds that a delay hides, by way. Collective.

    It takes less than a second. Raises UserError where averages cannot be delayed.
    """
    background = in_background(ours, fleet)
    few = 20_000
    n = int(min(4e6, max(few, few * 5e-3 / average_s(fleet, ours, few))))
    alone_s, found = average_s(fleet, ours, n), {}
    for way in WAYS:
        update = updates(fleet, way, 0.55 * alone_s)
        delayed = Rounds(fleet, ours, n, "kavg", 2, background)
        ways: dict[str, Callable[[], float]] = {
            "never": partial(never_s, fleet, 3, 2, update),
            "delayed": partial(delayed.seconds, 3, update),
        }
        took = medians(ways, 3, warm=0)
        found[way] = max(0.0, hidden(alone_s, took["never"], took["delayed"]))
    return found


def _no(*about: object) -> None:
    """Do nothing."""


def _nan(*about: object) -> float:
    """Return no objective."""
    return math.nan
