"""Which engine computes the gradients of a rank's learners."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from time import perf_counter
from typing import TypeAlias

from localavg.errors import UserError
from localavg.interfaces import Array, Device, Engine, Feed, Problem
from localavg.parallel.fleet import Fleet
from localavg.problems.engines.loop import Loop
from localavg.problems.engines.memory import is_shortage

Maker: TypeAlias = Callable[[Feed, range], Engine]

AUTO = "auto"
"""the name that leaves the choice to this file"""


WARM_UP, STEPS, REPEATS = 5, 5, 3
"""updates before the clock starts, updates timed together, and how often"""
TRIAL = WARM_UP + STEPS * REPEATS
"""updates of which a trial asks the mini-batches"""


def make(name: str, problem: Problem, feed: Feed, learners: range) -> Engine:
    """Make the engine `name`. Raises UserError if it cannot work for this problem."""
    check(name, problem)
    return _makers(problem)[name](feed, learners)


def check(name: str, problem: Problem) -> None:
    """Raise UserError unless the problem has the engine `name` on its device."""
    makers = _makers(problem)
    if name not in (AUTO, *makers):
        raise UserError(
            f"`engine = {name}`: {type(problem).__name__.lower()} on this device has "
            f"{', '.join(makers)}; use one of these, or `engine = auto`"
        )


def fastest(
    problem: Problem,
    feed: Callable[[int], Feed],
    w: Array,
    trained: int,
    device: Device,
    fleet: Fleet,
) -> tuple[str, str]:
    """Try every engine for some updates at w [L, d]. Return the fastest, and why it is.

    On the CPU it is loop, untried, whose bits do not depend on the layout. feed(T): makes a feed
    for T updates. trained: the columns of w that are not statistics. An engine that cannot work on
    some rank is passed over. All that a trial changes is put back: the statistics in w and the
    random generators; the feeds are closed. Collective.
    """
    makers = _makers(problem)
    if device.name == "cpu" or len(makers) == 1:
        return Loop.name, "auto: loop on the CPU" if device.name == "cpu" else "auto: the only one"
    seconds, words = {}, []
    for name, maker in makers.items():
        took, fault = _tried(problem, maker, feed, fleet.learners, w, trained, device)
        seconds[name] = max(fleet.world.allgather(took))
        fault = next(filter(None, fleet.world.allgather(fault)), "")
        words.append(f"{name} {1e3 * seconds[name]:.3g} ms" if not fault else f"{name}: {fault}")
    name = min(seconds, key=lambda name: seconds[name])
    if math.isinf(seconds[name]):
        raise UserError(f"no engine can compute the gradients ({'; '.join(words)})")
    return name, f"auto: the fastest, for all learners of a rank ({'; '.join(words)})"


def _makers(problem: Problem) -> Mapping[str, Maker]:
    def loop(feed: Feed, learners: range) -> Engine:
        return Loop(problem, feed, learners)

    return {Loop.name: loop, **problem.engines()}


def _tried(
    problem: Problem,
    maker: Maker,
    feed: Callable[[int], Feed],
    learners: range,
    w: Array,
    trained: int,
    device: Device,
) -> tuple[float, str]:
    """Return the seconds of an update's gradients, and what went wrong (then they are inf)."""
    statistics, out = w[:, trained:].copy(), device.zeros(w.shape)
    times = []
    with _same_draws():
        try:
            engine, t = maker(feed(TRIAL), learners), 0
            for steps in (WARM_UP, *[STEPS] * REPEATS):
                device.settle()
                start = perf_counter()
                for _ in range(steps):
                    t += 1
                    engine.gradients_(w, t, out)
                device.settle()
                times.append((perf_counter() - start) / steps)
            return median(times[1:]), ""
        except (UserError, MemoryError, RuntimeError) as e:
            if not (isinstance(e, UserError) or is_shortage(e)):
                raise
            return math.inf, str(e).partition("\n")[0]
        finally:
            w[:, trained:] = statistics
            problem.close()


def _same_draws() -> AbstractContextManager[object]:
    """Return a context after which torch's generators stand where they stood before it."""
    torch = sys.modules.get("torch")
    return torch.random.fork_rng() if torch else nullcontext()
