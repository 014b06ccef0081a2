"""``localavg bench WHAT``: speed and memory against what the hardware can do, a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

CIFAR10 = 32  # height and width of its images, in pixels

WAYS = ("sleeping", "computing")
"""what an update of `bench delay` does: sleep, as while a GPU works, or multiply on the CPU"""
Row: TypeAlias = dict[str, Any]  # of a benchmark's table: numbers and words


def seconds(work: Callable[[], object]) -> float:
    """Time a call of `work`, in seconds."""
    start = perf_counter()
    work()
    return perf_counter() - start


def medians(
    ways: Mapping[str, Callable[[], float]], repeats: int, warm: int = 1
) -> dict[str, float]:
    """Return the median of the seconds that every way returns, over `repeats` turns.

    Each turn calls all ways; `warm` more turns come first and are not counted. The order of the
    ways changes from turn to turn, alike on every rank, because a way that follows torch has cold
    caches.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm + repeats):
        for name in Random(turn).sample(list(ways), len(ways)):
            took = ways[name]()
            if turn >= warm:
                times[name].append(took)
    return {name: median(each) for name, each in times.items()}


def images(side: int) -> tuple[tuple[int, int, int], int]:
    """Return shape and number of classes of images with this height and width, in pixels.

    They are those of the digits, CIFAR-10 or ImageNet, by the size.
    """
    return (side, side, 1 if side < CIFAR10 else 3), 1000 if side > CIFAR10 else 10
