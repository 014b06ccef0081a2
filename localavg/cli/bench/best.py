"""The best loop by hand against which `bench train` compares: which way of writing it is fastest.

A way makes the same updates as ours, on the same device, from the same mini-batches, in the same
precision. It keeps no run file, and it promises no bits: it may take whatever kernel is fastest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np

from localavg.cli.bench import seconds
from localavg.errors import UserError
from localavg.learner.sampling import Batch

Steps = Callable[[int], object]
"""makes N updates of all learners, and waits until they are done"""

SLOWER = 2.0
"""a way that takes this many times as long as another one is not timed further"""
TRIAL = 3
"""updates of a way's trial, after as many that warm it up"""
KEPT = 256
"""updates whose rows lie on the device; later updates take these again"""


def fastest_few(makers: Mapping[str, Callable[[], Steps]]) -> dict[str, Steps]:
    """Make every way and try it. Return those that work and are not much slower than another.

    Prints why a way is left out. Raises UserError if none works.
    """
    made: dict[str, Steps] = {}
    took: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            way = make()
            way(TRIAL)
            took[name] = seconds(lambda way=way: way(TRIAL))  # type: ignore[misc]
            made[name] = way
        # torch raises NotImplementedError, which is a RuntimeError, for what vmap cannot do
        except (RuntimeError, MemoryError) as e:
            left_out[name] = str(e).strip().partition("\n")[0]
    if not made:
        raise UserError(f"bench train: no loop by hand works here ({_listed(left_out)})")
    limit = SLOWER * min(took.values())
    for name in [name for name in made if took[name] > limit]:
        left_out[name] = f"{1e3 * took[name] / TRIAL:.3g} ms an update in its trial"
        del made[name]
    if left_out:
        print(f"localavg: bench train leaves out {_listed(left_out)}", file=sys.stderr)
    return made


def timed(ways: Mapping[str, Steps], steps: int) -> dict[str, Callable[[], float]]:
    """Return for every way a call that makes `steps` updates and returns their seconds."""
    return {name: lambda way=way: seconds(lambda: way(steps)) for name, way in ways.items()}  # type: ignore[misc]


def of(times: Mapping[str, float], ways: Mapping[str, Steps]) -> str:
    """Return the way with the shortest time."""
    return min(ways, key=lambda name: times[name])


def numbers(batch: Batch) -> np.ndarray:
    """Return the row numbers [B] of a batch."""
    return np.arange(batch.start, batch.stop) if isinstance(batch, slice) else batch


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())
