"""The times and the order of the learners' exchanges with the servers on a modelled machine.

No weights are needed. Every learner computes for the drawn times of its updates. Its message
reaches the servers after the latency. They serve one exchange after the other in the order of
arrival, and the reply takes the latency again. A server receives, serves and sends at once: while
it serves one exchange, the next message comes in and the reply before goes out. All servers serve
in the same order and take equally long, so they are one queue here.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from localavg.simulate.timing import StepTimes, Timing


class Arrival(NamedTuple):
    """One exchange, in the order of service."""

    j: int
    """the learner"""
    t: int
    """number of the learner's updates so far"""
    done_s: float
    """time at which the servers have finished it"""
    compute_s: float
    """duration of the learner's updates since its last pull"""
    wait_s: float
    """duration from the learner's push to its pull"""


def exchanges(
    timing: Timing, P: int, K: int, T: int, seed: int, nbytes: float, servers: int = 1
) -> Iterator[Arrival]:
    """Yield all exchanges of T updates of P learners that push nbytes every K updates.

    The last one's done_s is the wall clock of the run.
    """
    times, transfer_s = StepTimes(timing, seed), timing.transfer_s(nbytes, servers)

    def following(j: int, t: int, pulled_s: float) -> tuple[float, int, int, float]:
        """Return learner j's next exchange, after its pull at update t.

        It is (time of arrival, j, number of updates by then, duration of the updates since t).
        """
        end = min(T, t - t % K + K)
        took_s = times.sum(j, t, end)
        return pulled_s + took_s + timing.latency_s, j, end, took_s

    under_way = [following(j, 0, 0.0) for j in range(P)]
    heapify(under_way)
    # times at which the servers have received, served and answered all that has arrived
    received_s = served_s = answered_s = 0.0
    while under_way:
        arrived_s, j, t, took_s = heappop(under_way)  # the earliest
        received_s = max(received_s, arrived_s) + transfer_s
        served_s = max(served_s, received_s) + timing.service_s
        answered_s = max(answered_s, served_s) + transfer_s
        pulled_s = answered_s + timing.latency_s
        yield Arrival(j, t, answered_s, took_s, pulled_s - arrived_s + timing.latency_s)
        if t < T:
            heappush(under_way, following(j, t, pulled_s))
