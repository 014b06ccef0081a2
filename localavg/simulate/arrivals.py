"""When and in what order learners exchange with the servers on a modelled machine: no weights are
needed to know.

Every learner computes for the drawn times of its updates, its message reaches the servers after the
latency, they serve one exchange after the other in the order of arrival, and the reply takes the
latency back. All servers serve in the same order and take equally long, so they are one queue here.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from localavg.simulate.timing import Machine, StepTimes


class Exchange(NamedTuple):
    """One exchange, in the order of service."""

    j: int
    t: int
    """the learner's updates so far"""
    done_s: float
    """when the servers have done it"""
    compute_s: float
    """what the learner's updates since its last pull took"""
    wait_s: float
    """from its push to its pull"""


def exchanges(
    machine: Machine, P: int, K: int, T: int, seed: int, nbytes: float, servers: int = 1
) -> Iterator[Exchange]:
    """All exchanges of T updates of P learners who push nbytes every K updates; the last one's
    done_s is the wall clock.
    """
    times, busy_s = StepTimes(machine, seed), machine.exchange_s(nbytes, servers)

    def following(j: int, t: int, pulled_s: float) -> tuple[float, int, int, float]:
        """Learner j has pulled after update t: when its next message arrives, j, its updates by
        then, what they take.
        """
        end = min(T, t - t % K + K)
        took_s = times.sum(j, t, end)
        return pulled_s + took_s + machine.latency_s, j, end, took_s

    under_way = [following(j, 0, 0.0) for j in range(P)]
    heapify(under_way)
    free_s = 0.0  # when the servers have done what came so far
    while under_way:
        arrived_s, j, t, took_s = heappop(under_way)  # the earliest
        free_s = max(free_s, arrived_s) + busy_s
        pulled_s = free_s + machine.latency_s
        yield Exchange(j, t, free_s, took_s, pulled_s - arrived_s + machine.latency_s)
        if t < T:
            heappush(under_way, following(j, t, pulled_s))
