"""Means in shared memory when a rank comes late: threads stand for two ranks.

One rank waits for the worst moment, so what goes wrong without a barrier goes wrong every time.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from localavg.parallel.transport.lanes import CHUNK, Lanes
from localavg.parallel.transport.slots import Slots

LIMIT_S = 30  # of any wait
VALUES = np.array([np.arange(64), np.arange(64)[::-1] * 3 + 7], np.float32)  # [2, n] by rank
MEAN = (VALUES[0] + VALUES[1]) / 2


class Threads:
    """Two ranks that are threads, and how often each has come to a barrier."""

    def __init__(self):
        self.meeting, self.changed = threading.Barrier(2), threading.Condition()
        self.come, self.ended = [0, 0], [False, False]

    def arrive(self, rank):
        with self.changed:
            self.come[rank] += 1
            self.changed.notify_all()
        self.meeting.wait(LIMIT_S)

    def until(self, rank, n):
        """Wait until a rank has come to its n-th barrier, or has ended without one."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.come[rank] >= n or self.ended[rank], LIMIT_S)

    def run(self, *ranks):
        """Let each rank do its part; returns what they return."""

        def part(rank, work):
            try:
                return work()
            finally:
                with self.changed:
                    self.ended[rank] = True
                    self.changed.notify_all()

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(part, rank, work) for rank, work in enumerate(ranks)]
            return [future.result(LIMIT_S) for future in futures]


class Comm:
    """One rank's communicator. late: what the rank does once it is past its first barrier."""

    size = 2

    def __init__(self, threads, rank, late=lambda: None):
        self.threads, self.rank, self.late = threads, rank, late

    def Barrier(self):
        self.threads.arrive(self.rank)
        if self.threads.come[self.rank] == 1:
            self.late()


def spread(rows, mean):
    """Nobody asks for S here."""
    raise AssertionError


def lanes(rows, comm):
    return Lanes(rows, comm, 2, [(comm.rank, ())], 2, np.empty((1, CHUNK), np.float32), spread)


def test_lanes_wait_for_a_rank_whose_row_is_not_ready():
    """Rank 1 writes its row when rank 0 has come to its first barrier."""
    threads, rows = Threads(), np.zeros((2, 64), np.float32)
    mine = [lanes(rows, Comm(threads, rank)) for rank in range(2)]

    def early():
        rows[0] = VALUES[0]
        mine[0].mean_()
        return rows[0].copy()

    def late():
        threads.until(0, 1)
        rows[1] = VALUES[1]
        mine[1].mean_()
        return rows[1].copy()

    for found in threads.run(early, late):
        assert found.tolist() == MEAN.tolist()


def test_nobody_leaves_before_the_last_lane_is_written():
    """Rank 1 begins its lane when rank 0 is through with its own."""
    threads, rows = Threads(), VALUES.copy()
    comms = Comm(threads, 0), Comm(threads, 1, late=lambda: threads.until(0, 2))
    mine = [lanes(rows, comm) for comm in comms]

    def work(rank):
        mine[rank].mean_()
        return rows[rank].copy()

    for found in threads.run(lambda: work(0), lambda: work(1)):
        assert found.tolist() == MEAN.tolist()


@pytest.mark.parametrize("averages", [2, 3])
def test_slots_are_not_written_while_a_rank_still_reads_them(averages):
    """Rank 1 reads the copies of the first average when rank 0 has made its copy for the second."""
    threads, memory = Threads(), np.zeros((2, 2, 64), np.float32)
    comms = Comm(threads, 0), Comm(threads, 1, late=lambda: threads.until(0, 2))
    w = [np.zeros((1, 64), np.float32) for _ in range(2)]
    mine = [Slots(comm, memory, slice(comm.rank, comm.rank + 1), spread) for comm in comms]
    ways = [slots.way(rows) for slots, rows in zip(mine, w, strict=True)]

    def work(rank):
        found = []
        for turn in range(averages):
            w[rank][0] = VALUES[rank] * (turn + 1)
            ways[rank]()
            found.append(w[rank][0].copy())
        return found

    for found in threads.run(lambda: work(0), lambda: work(1)):
        for turn, mean in enumerate(found):
            assert mean.tolist() == (MEAN * (turn + 1)).tolist()
