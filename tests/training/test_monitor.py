"""What a row of /train says of the time, by hand: this rank's clock is moved, the other rank's
numbers are given.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from localavg.algorithms.base import Mean, NoExchange
from localavg.algorithms.kavg import kavg
from localavg.scope import Scope
from localavg.training import stopwatch
from localavg.training.averages import Averages
from localavg.training.monitor import Monitor
from localavg.training.payload import Kind


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Pair:
    """The communicator of two ranks: `meetings` are the other's, whose computing takes 7 s and
    whose data 1 s in all.
    """

    rank, size = 0, 2

    def __init__(self, meetings, clock):
        self.meetings, self.clock = meetings, clock

    def Barrier(self):
        self.clock.now += 0.25

    def allgather(self, x):
        return [x, x]

    def Allreduce(self, place, x, op=MPI.SUM):
        if op == MPI.MIN:  # the first loss that is not finite, and the meetings
            x[1:] = self.fastest = np.minimum(x[1:], self.meetings)
        else:  # loss, wall clock, computing, data, waits
            x += [3.0, 13.0, 7.0, 1.0, *(np.array(self.meetings) - self.fastest)]


class Rows(list):
    """A run file that keeps its rows."""

    def append(self, group, **row):
        super().append((group, row))

    def flush(self):
        pass


class Evaluator:
    """Takes 50 s."""

    def __init__(self, clock):
        self.clock = clock

    def row(self, w):
        self.clock.now += 50
        return dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), 0.5)


def payload_of(*scopes):
    """Of an algorithm that averages weights over these scopes."""
    algorithm = SimpleNamespace(scopes=scopes, exchange=NoExchange(), average=Mean())
    return SimpleNamespace(
        algorithm=algorithm,
        kind=lambda t: Kind.WEIGHTS,
        pieces=lambda t: (0,),
        of_kind=lambda kind, scope, pieces: (8, 0),
    )


def made(clock, world, rows):
    fleet = SimpleNamespace(world=world, P=2, L=1, ranks=2, rank=0, learners=range(1))
    transport = SimpleNamespace(settle=lambda: None, take_spread_s=lambda: 0.5, mean=lambda w: w)
    length = SimpleNamespace(T=9, B=4, P=2, epoch=10.0, log_every=3, eval_every=3)
    payload = payload_of(Scope.WORLD)
    payload.algorithm.participants = kavg().participants
    payload.algorithm.participants.start(fleet.learners, fleet.P, 0)
    monitor = Monitor(fleet, transport, Evaluator(clock), rows, length, payload)
    monitor.progress = SimpleNamespace(step=lambda *_: None, evaluated=lambda *_: None)
    return monitor


def work(monitor, clock):
    """Three updates with an average, in which this rank is early by 2 s and computes S for 0.5."""
    clock.now += 4  # of which 1.5 for data
    monitor.clock.book("data", 1.5)
    monitor.begin_average(3, Scope.WORLD)
    clock.now += 3.5
    monitor.averaged(3, Scope.WORLD, 1.0)
    monitor.losses += [1.0, 1.0, 1.0]


def test_rows_of_a_checkpoint_keep_their_levels():
    """And those of an earlier version, which has none, are of clusters of level 1 or of everyone."""
    world = SimpleNamespace(allgather=lambda x: [x])
    payload = payload_of(Scope.CLUSTER, Scope(2), Scope.WORLD)
    whole, later, earlier = (
        Averages(SimpleNamespace(world=world), payload, writes=True) for _ in range(3)
    )
    for t, scope in enumerate((Scope.CLUSTER, Scope(2), Scope.WORLD), 1):
        whole.note(t, scope, 0.5, range(0, 1))
    saved = {name: np.array(value) for name, value in whole.state_dict().items()}
    later.load_state_dict(saved)
    earlier.load_state_dict({name: saved[name] for name in saved if name != "levels"})
    for averages, levels in ((whole, [1, 2, 3]), (later, [1, 2, 3]), (earlier, [1, 1, 3])):
        rows = []
        record = SimpleNamespace(append=lambda group, rows=rows, **row: rows.append(row))
        averages.write(record, np.ones(1), np.zeros(1), np.empty(0))
        assert [row["level"] for row in rows] == levels
        assert [row["scope"] for row in rows] == [1, 1, 2]
        assert [row["period"] for row in rows] == [1, 1, 1]


def report(monitor, clock):
    clock.now += 1
    monitor.report(3, 0.1, None)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "perf_counter", clock)
    return clock


def check(rows):
    """Meetings: the average (ours 3 s, the other's 1 s), and the barrier (ours 0.25, theirs 0.75)."""
    (train,) = [row for group, row in rows if group == "train"]
    (average,) = [row for group, row in rows if group == "averages"]
    (evaluation,) = [row for group, row in rows if group == "eval"]
    assert train["compute_s"] == (4 - 1.5 + 0.5 + 1 + 7) / 2
    assert train["data_s"] == (1.5 + 1) / 2
    assert train["communicate_s"] == 1 + 0.25
    assert train["wait_s"] == (2 + 0.5) / 2
    assert train["wall_s"] == evaluation["wall_s"] == (4 + 3.5 + 1 + 0.25 + 13) / 2
    assert (average["seconds"], average["wait_s"]) == (1, 1)
    assert train["loss"] == (3 + 3) / 6


def test_waiting_is_what_a_rank_spends_more_than_the_last_one_to_come(clock):
    rows = Rows()
    monitor = made(clock, Pair([1.0, 0.75], clock), rows)
    work(monitor, clock)
    report(monitor, clock)
    check(rows)


def test_the_next_row_does_not_count_the_evaluation(clock):
    monitor = made(clock, Pair([1.0, 0.75], clock), Rows())
    work(monitor, clock)
    before = clock.now
    report(monitor, clock)
    assert clock.now - before > 50 and monitor.clock.wall_s == 4 + 3.5 + 1 + 0.25


def test_a_resumed_run_counts_what_was_before_it(clock):
    first = made(clock, Pair([1.0, 0.75], clock), Rows())
    work(first, clock)
    state = {name: np.array(value) for name, value in first.state_dict().items()}
    clock.now += 1000
    rows = Rows()
    monitor = made(clock, Pair([1.0, 0.75], clock), rows)
    monitor.load_state_dict(state)
    report(monitor, clock)
    check(rows)


def test_queued_work_is_waited_for_before_its_time_is_taken(clock):
    """On a GPU: the work lasts until somebody waits for it."""
    monitor = made(clock, Pair([], clock), Rows())

    def settle():
        clock.now += 2

    monitor.transport.settle = settle
    monitor.computed()
    monitor.met()
    assert monitor.clock.seconds["compute"] == 2 and monitor.clock.meetings == [2]


def test_the_time_of_V_t_is_no_part_of_the_next_average(clock):
    monitor = made(clock, Pair([], clock), Rows())
    spent = [0.0]

    def variance(w):
        clock.now += 8
        spent[0] += 8
        return 1.0

    def take():
        seconds, spent[0] = spent[0], 0.0
        return seconds

    monitor.transport.variance, monitor.transport.take_spread_s = variance, take
    monitor.drifted(None)
    monitor.begin_average(1, Scope.WORLD)
    clock.now += 2
    monitor.averaged(1, Scope.WORLD, 1.0)
    assert monitor.clock.seconds["outside"] == 8 and monitor.clock.seconds["compute"] == 0
    assert monitor.clock.meetings == [0.25, 2]
