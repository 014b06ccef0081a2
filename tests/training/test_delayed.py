"""Delayed averages: merges, what waits for what, and the modelled clock."""

import math

import numpy as np
import pytest
from mpi4py import MPI

from localavg import algorithms
from localavg.algorithms.base import Algorithm
from localavg.algorithms.delay import Delay
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.learner.flat import Flat
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mpi import HostMPI
from localavg.scope import Scope
from localavg.simulate.clock import Synchronous, averages
from localavg.simulate.timing import Timing
from localavg.training.delayed import Delayed

P, N = 4, 5


class Stateless:
    averaged = 0

    def at_average_(self, average_):
        pass


def delayed(algorithm: Algorithm, T=math.inf, noted=None):
    """A Delayed on one rank, with a row of N parameters for each of P learners, all zero."""
    transport, background = (HostMPI(Fleet(MPI.COMM_SELF, P), algorithm.clusters) for _ in range(2))
    flat = Flat({"w": (N,)}, P, None, transport.zeros)
    nothing = dict.fromkeys(("before", "begun", "objective"), lambda *a: None)
    after = noted.append if noted is not None else lambda *a: None
    algorithm.participants.start(range(P), P, 0)
    made = Delayed(
        algorithm,
        transport,
        flat,
        Stateless(),
        background=background,
        T=T,
        after=lambda *a: after(a),
        **nothing,
    )
    made.begin(0, 0.1)
    return made


def rows(seed=0):
    return np.random.default_rng(seed).normal(size=(P, N)).astype(np.float32)


@pytest.mark.parametrize("how", [{}, {"merge": "lerp", "pull": 0.3}, {"merge": "daso"}])
def test_a_merge_is_of_the_copies_and_not_of_the_weights_of_then(how):
    """The updates between the two are kept by cocod whole, by the others in part."""
    made = delayed(algorithms.kavg.kavg(K=5, delay=2, **how))
    first, drift = rows(0), rows(1)
    for t in range(1, 5):
        assert made.average_(t, 0.1) is Scope.NONE
    made.flat.w[:] = first
    assert made.average_(5, 0.1) is Scope.NONE
    assert np.array_equal(made.flat.w, first)  # the learners go on from their own weights
    made.flat.w += drift
    assert made.average_(6, 0.1) is Scope.NONE
    now, mean = made.flat.w.astype(np.float64), first.astype(np.float64).mean(axis=0)
    assert made.average_(7, 0.1) is Scope.WORLD
    a = {"lerp": 0.3, "daso": P / (2 * 2 + P)}.get(how.get("merge"))
    expected = mean + (now - first) if a is None else (1 - a) * now + a * mean
    np.testing.assert_allclose(made.flat.w, expected, rtol=1e-5, atol=1e-6)
    if a is None:  # cocod leaves the mean of the learners where it was
        np.testing.assert_allclose(made.flat.w.mean(axis=0), now.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_new_mean_begins_no_earlier_than_the_last_one_is_merged():
    """Averages after 3, 6, 7 …: that of everyone at 7 waits for the clusters' until 9."""
    noted = []
    made = delayed(algorithms.hieravg.hieravg(K1=3, K2=7, S=2, delay=3), noted=noted)
    for t in range(1, 14):
        made.average_(t, 0.1)
    assert [(t, scope, begun) for t, scope, _, begun, _ in noted] == [
        (6, Scope.CLUSTER, 3),
        (9, Scope.CLUSTER, 6),
        (12, Scope.WORLD, 9),
    ]


def test_a_mean_that_would_not_arrive_does_not_begin_and_the_run_ends_averaged():
    noted = []
    made = delayed(algorithms.kavg.kavg(K=4, delay=3), T=10, noted=noted)
    for t in range(1, 11):
        made.flat.w[:] = rows(t)
        made.average_(t, 0.1, last=t == 10)
    assert [each[0] for each in noted] == [7, 10] and made.flights.now is None
    np.testing.assert_allclose(made.flat.w, np.tile(rows(10).mean(axis=0), (P, 1)), rtol=1e-5)


@pytest.mark.parametrize(("T", "outer", "merges"), [(11, None, [7, 11]), (10, "momentum", [7, 10])])
def test_a_schedule_gets_its_feedback_once_after_an_update(T, outer, merges, monkeypatch):
    """At T a mean is merged, and then everyone averages; the round of the latter has no updates."""
    noted, told = [], []
    made = delayed(algorithms.kavg.kavg(K=4, delay=3, outer=outer), noted=noted)
    monkeypatch.setattr(type(made.schedule), "needs", "variance")
    monkeypatch.setattr(
        type(made.schedule), "observe", lambda self, t, *about, **how: told.append(t)
    )
    for t in range(1, T + 1):
        made.average_(t, 0.1, last=t == T)
    assert [each[0] for each in noted] == [*merges, T] and told == merges


@pytest.mark.parametrize("outer", [None, "momentum"])
def test_a_run_of_unknown_length_ends_averaged_though_a_mean_is_on_its_way(outer):
    """As attach ends: the mean is dropped; that of an outer optimiser is merged before."""
    noted = []
    made = delayed(algorithms.kavg.kavg(K=4, delay=3, outer=outer), noted=noted)
    for t in range(1, 6):
        made.flat.w[:] = rows(t)
        made.average_(t, 0.1, last=t == 5)
    assert [each[0] for each in noted] == [5] * (1 if outer is None else 2)
    assert (np.ptp(made.flat.w, axis=0) == 0).all()


def test_a_piece_whose_mean_is_dropped_averages_at_the_end(monkeypatch):
    """As in `attach`, where the end may come right after the copies; it is no average of its own."""
    monkeypatch.setitem(globals(), "N", 128)
    made = delayed(algorithms.kavg.kavg(K=4, fragments=2, delay=1))
    for t in (1, 2):
        made.flat.w[:] = rows(t)
        made.average_(t, 0.1)
    assert made.flights.now is not None and made.flights.now.t == 2
    made.average_(2, 0.1, last=True)
    np.testing.assert_allclose(made.flat.w, np.tile(rows(2).mean(axis=0), (P, 1)), rtol=1e-4)
    assert made.average.averaged(2) == (0,)


def test_the_state_holds_a_mean_on_its_way():
    one, other = (delayed(algorithms.kavg.kavg(K=4, delay=3)) for _ in range(2))
    for t in range(1, 6):
        one.flat.w[:] = rows(t)
        one.average_(t, 0.1)
    other.flat.w[:] = one.flat.w
    other.load_state_dict({name: np.array(x) for name, x in one.state_dict().items()})
    for made in (one, other):
        for t in (6, 7, 8):
            made.flat.w += rows(t)
            made.average_(t, 0.1)
    assert np.array_equal(one.flat.w, other.flat.w)


def test_a_modelled_average_hides_behind_the_updates_that_follow():
    """Updates of 1 s, an average of 2.5 s: after 2 updates learners wait 0.5 s, after 3 no more."""
    timing = Timing(step_s=1, step_cv=0, latency_s=0, bandwidth_bytes_per_s=1, service_s=0)
    nbytes = 2.5 / (2 * (P - 1) / P)
    for tau, waited in ((2, 0.5), (3, 0.0)):
        clock = Synchronous(timing, P, 0, averages(timing, P, nbytes))
        assert clock.meet(Scope.WORLD, 4, 4 + tau) == pytest.approx((2.5, waited))
        assert clock.wall_s == pytest.approx(4 + tau + waited)
        assert clock.communicate_s == pytest.approx(waited) and clock.wait_s == pytest.approx(0)


def test_a_modelled_average_begins_with_the_last_learner_and_rows_between_change_nothing():
    timing = Timing(step_s=1, step_cv=0.5, latency_s=0, bandwidth_bytes_per_s=1, service_s=0)
    clocks = [Synchronous(timing, P, 3, averages(timing, P, 2.0)) for _ in range(2)]
    clocks[1].advance(6)  # a row of /train between the copies and the merge
    clocks[1].advance(7)
    for clock in clocks:
        clock.meet(Scope.WORLD, 5, 8)
    assert np.allclose(clocks[0].now, clocks[1].now)
    began = max(clocks[0].times.sum(j, 0, 5) for j in range(P))
    own = [clocks[0].times.sum(j, 0, 8) for j in range(P)]
    assert np.allclose(clocks[0].now, np.maximum(own, began + 3.0))


BAD = [
    ({"delay": -1}, "--delay -1: must be at least 1 update"),
    ({"K": 4, "delay": 5}, "--delay 5 is longer than the shortest period of 4 updates"),
    ({"merge": "lerp"}, "--merge lerp means nothing without --delay"),
    ({"delay": 2, "pull": 0.5}, "--pull 0.5 means nothing to --merge cocod"),
    ({"delay": 2, "merge": "lerp", "pull": 0.0}, "--pull 0.0: must lie in (0, 1]"),
    ({"delay": 2, "merge": "lerp", "anchor_mu": 1.0}, "--anchor-mu 1.0: must lie in [0, 1)"),
    ({"delay": 2, "merge": "sum"}, "--merge sum: must be one of cocod, lerp, daso"),
    ({"delay": 2, "merge": "daso", "outer": "adam"}, "--merge daso weighs the plain mean"),
    (
        {"delay": 2, "merge": "lerp", "outer": "adam", "anchor_mu": 0.5},
        "--anchor-mu is an outer optimiser of its own",
    ),
]


@pytest.mark.parametrize(("given", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_delay_is_refused_by_name(given, words):
    with pytest.raises(UserError) as e:
        algorithms.kavg.kavg(**given)
    assert in_flags(str(e.value)).startswith(words) and "\n" not in str(e.value)


def test_the_defaults_are_those_of_the_sources():
    made = {
        name: algorithms.kavg.kavg(K=8, **given).delay
        for name, given in {
            "none": {},
            "plain": {"delay": 3},
            "overlap": {"delay": 8, "merge": "lerp"},
            "late": {"delay": 7, "merge": "lerp"},
            "streaming": {"delay": 3, "merge": "lerp", "outer": "nesterov"},
        }.items()
    }
    assert made == {
        "none": None,
        "plain": Delay(3, "cocod"),
        "overlap": Delay(8, "lerp", 0.6, anchored=True),
        "late": Delay(7, "lerp", 0.6),
        "streaming": Delay(3, "lerp", 1.0),
    }
