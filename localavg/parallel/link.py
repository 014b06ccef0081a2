"""Measure the rate and the latency of the link between nodes."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from mpi4py import MPI

from localavg.parallel.fleet import Fleet
from localavg.parallel.patient import wait
from localavg.parallel.transport.lanes import SENT


def link_bytes_per_s(fleet: Fleet, n: int = 1 << 22) -> float:
    """Measure the bytes a second in one direction between the first two nodes. Collective.

    Both directions are in use at once, with n bytes each, in the pieces of an average. On one node
    the result is inf.
    """
    leaders = [fleet.node_of.index(k) for k in range(min(2, fleet.nodes))]
    rate = np.inf
    if fleet.nodes > 1 and fleet.rank in leaders:
        peer = leaders[1 - leaders.index(fleet.rank)]
        out, back = np.zeros(n, np.uint8), np.empty(n, np.uint8)
        times = []
        pieces = [slice(a, a + SENT) for a in range(0, n, SENT)]
        for _ in range(4):
            fleet.world.Sendrecv(out[:0], peer, recvbuf=back[:0], source=peer)  # both are here
            start = perf_counter()
            come = [fleet.world.Irecv(back[piece], peer) for piece in pieces]
            gone = [fleet.world.Isend(out[piece], peer) for piece in pieces]
            MPI.Request.Waitall(come + gone)
            times.append(perf_counter() - start)
        rate = n / min(times[1:])
    wait(fleet.world.Ibarrier().Test)  # ranks that spin would take the cores from these two
    return min(fleet.world.allgather(rate))


def latency_s(fleet: Fleet, times: int = 20) -> float:
    """Measure the seconds of an empty message between the first two nodes. Collective.

    It is half of the quickest round trip. On one node the result is 0.
    """
    leaders = [fleet.node_of.index(k) for k in range(min(2, fleet.nodes))]
    quickest = 0.0
    if fleet.nodes > 1 and fleet.rank in leaders:
        here, peer = leaders.index(fleet.rank), leaders[1 - leaders.index(fleet.rank)]
        word, trips = np.zeros(1, np.uint8), []
        for _ in range(times):
            start = perf_counter()
            for turn in (0, 1):
                if turn == here:
                    fleet.world.Send(word, peer)
                else:
                    fleet.world.Recv(word, peer)
            trips.append(perf_counter() - start)
        quickest = min(trips) / 2
    return max(fleet.world.allgather(quickest))
