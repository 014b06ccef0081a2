"""Measure the time of work that all ranks do at once."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from localavg.interfaces import Device
from localavg.parallel.fleet import Fleet


def slowest(fleet: Fleet, work: Callable[[], object], device: Device) -> float:
    """Do `work` on all ranks at once; return the seconds of the slowest on every rank. Collective.

    Work that it queued on the device counts too.
    """
    fleet.world.Barrier()
    start = perf_counter()
    work()
    device.settle()
    return max(fleet.world.allgather(perf_counter() - start))
