"""Speed and memory against what the machine can do: ``localavg bench WHAT``, a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

CIFAR10 = 32  # pixels across


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    start = perf_counter()
    work()
    return perf_counter() - start


def medians(
    ways: Mapping[str, Callable[[], float]], repeats: int, warm: int = 1
) -> dict[str, float]:
    """The median seconds that every way returns over `repeats` turns, all ways in each, after
    `warm` turns not counted.

    The order changes from turn to turn, the same on every rank: whoever comes after torch finds its
    caches cold.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm + repeats):
        for name in Random(turn).sample(list(ways), len(ways)):
            took = ways[name]()
            if turn >= warm:
                times[name].append(took)
    return {name: median(each) for name, each in times.items()}


def images(side: int) -> tuple[tuple[int, int, int], int]:
    """Shape and number of classes of the images of so many pixels across: digits, CIFAR-10's,
    ImageNet's.
    """
    return (side, side, 1 if side < CIFAR10 else 3), 1000 if side > CIFAR10 else 10
