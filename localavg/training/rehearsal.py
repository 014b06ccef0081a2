"""Compile what a run calls on a GPU before its clock starts, in one place."""

from __future__ import annotations

import copy
from functools import partial

from localavg.algorithms.base import Due
from localavg.interfaces import Array
from localavg.scope import Scope
from localavg.training.build import Experiment

COLUMNS = 64
"""of the rows in a rehearsal, and as many that are not trained"""


def rehearse(e: Experiment) -> None:
    """Do an update, an average of each scope and a mean once, on a few columns. Collective.

    CuPy compiles a kernel at its first call for rows that are laid out in a new way, or loads it
    from its cache on disk (CUPY_CACHE_DIR). The rows here are laid out as those of the run, whose
    weights and state stay as they are. On the CPU nothing is done.
    """
    if e.device.name == "cpu":
        return
    # a mean takes four columns at a time where their number is a multiple of 4
    L, pieces = e.fleet.L, max(1, len(e.algorithm.average.pieces) - 1)
    n = COLUMNS * pieces + e.flat.d_trained % 4
    shape = L, n + COLUMNS * (e.flat.d > e.flat.d_trained)
    w, g = e.transport.zeros(shape), e.transport.zeros(shape)
    optimizer, average = copy.copy(e.optimizer), copy.deepcopy(e.algorithm.average)
    optimizer.start((L, n), e.transport.zeros, e.transport.ordinary)
    optimizer.update_(w[:, :n], g[:, :n], 0.0)
    covered = w if e.config.statistics == "average" else w[:, :n]
    average.start(covered, n, e.transport)
    variance = e.config.variance != "no" or e.algorithm.schedule.spread
    for scope, t in _scopes(e).items():
        average.average_(covered, Due(scope, t, 1.0, variance, last=pieces > 1), e.transport)
        optimizer.at_average_(
            partial(average.average_state_, scope=scope, transport=e.transport, t=t)
        )
    if e.algorithm.delay is not None:
        _merge(e, covered, average.pieces[-1])
    if pieces > 1:
        e.transport.mean_(g[:, :n], Scope.WORLD)  # of gradients, before a switch
    e.transport.mean(w)  # as an evaluation does
    e.transport.take_spread_s()  # no time of the run
    e.device.settle()


def _merge(e: Experiment, w: Array, columns: slice) -> None:
    """Merge a mean of these columns of w into them."""
    delay = e.algorithm.delay
    assert delay is not None
    z, own = e.transport.zeros(w.shape), e.transport.ordinary(w.shape)
    z[:, columns] = w[:, columns]
    copies = own[:, columns] if delay.keeps_copies else None
    delay.merge_(w[:, columns], z[:, columns], copies, e.fleet.P)
    if delay.anchored:
        delay.pull_(w, z)


def _scopes(e: Experiment) -> dict[Scope, int]:
    """Return the scopes of the run's averages, each with an update t after which it may be due."""
    schedule, T = copy.deepcopy(e.algorithm.schedule), e.length.T
    found = dict.fromkeys(e.algorithm.scopes, 0)
    if t := next((t for t in range(1, T + 1) if schedule.after(t) is Scope.NEIGHBOURS), 0):
        found[Scope.NEIGHBOURS] = t
    return found
