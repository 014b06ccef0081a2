"""Downpour and EAMSGD in simulated time.

One process makes real updates, in the order that a modelled machine would give.
"""

from __future__ import annotations

from collections.abc import Callable

from localavg.interfaces import Array
from localavg.simulate.arrivals import exchanges
from localavg.simulate.timing import Timing
from localavg.training.asynchronous.learners import Local
from localavg.training.asynchronous.log import Log


def simulate(
    local: Local,
    center: Array,
    P: int,
    log: Log,
    timing: Timing,
    servers: int,
    seed: int,
    evaluate: Callable[[], None],
) -> None:
    """Make T updates of P learners, which change `center` [d], on their device, in place.

    Call `evaluate` when the log asks for it. Everything is a function of the settings, the modelled
    clock, too. Raises Diverged if a loss or the center is not finite.
    """
    rule, compute_s, wait_s = local.rule, 0.0, 0.0
    for exchange in exchanges(timing, P, rule.K, local.T, seed, center.nbytes, servers):
        learner = local.learners[exchange.j]
        while not local.step_(learner):
            pass
        rule.push_(learner)
        rule.answer_(center, learner.message, local.g, rule.n)
        rule.pull_(learner, local.g)
        compute_s, wait_s = compute_s + exchange.compute_s, wait_s + exchange.wait_s
        split = {
            "compute_s": compute_s / P,
            "communicate_s": 0.0,
            "wait_s": wait_s / P,
            "data_s": 0.0,
        }
        steps, losses = local.take_losses(learner)
        if log.exchanged(learner.j, learner.t, steps, losses, center, exchange.done_s, split):
            evaluate()
