"""Which of several ways to average a GPU's memory is the fastest here: time an average of each.

The averages are of scratch rows, so the learners' weights stay as they are, and nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from statistics import median

from localavg.errors import SharedError, UserError
from localavg.interfaces import Array
from localavg.parallel.device import Cuda
from localavg.parallel.fleet import Fleet
from localavg.parallel.measure import slowest
from localavg.parallel.transport.mpi import HostMPI
from localavg.scope import Scope

WARM_UP, TURNS = 2, 5
"""averages of each way before the clock starts, and averages timed"""


def fastest(
    ways: Mapping[str, HostMPI], fleet: Fleet, device: Cuda, n: int
) -> tuple[str, dict[str, float], int]:
    """Return the fastest way, the seconds of every way, and the floats of a row in the trial.

    The seconds are the median of some averages of all learners' rows of n floats, each that of the
    slowest rank. If the GPU lacks the memory for rows of n, shorter ones are averaged and their
    time is scaled. The result is the same on every rank. Collective. Raises UserError on every rank
    if there is no memory for any rows.
    """
    rows = _scratch(fleet, device, n, len(ways))  # [L, m]
    m = rows.shape[1]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_UP + TURNS):
        for name, way in ways.items():
            took = slowest(fleet, partial(way.mean_, rows, Scope.WORLD), device)
            if turn >= WARM_UP:
                times[name].append(took * n / m)
    del rows
    device.give_back()
    seconds = {name: median(each) for name, each in times.items()}
    return min(seconds, key=lambda name: seconds[name]), seconds, m


def _scratch(fleet: Fleet, device: Cuda, n: int, ways: int) -> Array:
    """Make zero rows [L, m] for this number of ways.

    m is n, or a half, a quarter, … of it, for which every rank has the memory.
    """
    sums = ways if fleet.L > 1 else 0  # that the ways keep, of m floats each
    m = max(1, n)
    while True:
        rows = None
        with suppress(UserError):
            rows = device.zeros((fleet.L + sums, m))
        fits = all(fleet.world.allgather(rows is not None))
        del rows  # CuPy's pool keeps the memory
        if fits:
            return device.zeros((fleet.L, m))
        device.give_back()
        m //= 2
        if not m:
            raise SharedError(
                "`device = cuda`: the GPU has no memory left for averages; use fewer `learners` "
                "per GPU"
            )
