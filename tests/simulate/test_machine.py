"""The machine model: what messages and updates cost, clocks that wait for each other, and runs it
may not be fitted to.
"""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import run_file

from localavg.algorithms.kavg import Every
from localavg.algorithms.participants import Participants
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.scope import Scope
from localavg.simulate import plan, timing
from localavg.simulate.arrivals import exchanges
from localavg.simulate.clock import Synchronous, averages
from localavg.simulate.timing import StepTimes, Timing

# --------------------------------------------------------------------------------------------------

BY_HAND = Timing(step_s=1, latency_s=0.5, bandwidth_bytes_per_s=10, service_s=3)


@pytest.mark.parametrize(
    ("n", "mean_s"),
    [
        (1, 0.0),  # nobody to talk to
        (2, 2 * 0.5 + 8),
        (8, 6 * 0.5 + 14),
        (3, 2 * 0.5 * math.log2(3) + 4 / 3 * 8),
    ],
)
def test_an_average_of_80_bytes_at_10_a_second_by_hand(n, mean_s):
    assert BY_HAND.mean_s(n, 80) == pytest.approx(mean_s)


def test_a_server_receives_serves_and_answers_at_once():
    """Two learners push 80 bytes at the same time, at 10 bytes a second each way: the second
    message comes in while the first is served, and the slowest of the three sets the pace.
    """
    steady = Timing(step_s=1, step_cv=0, latency_s=0.5, bandwidth_bytes_per_s=10, service_s=3)
    first, second = exchanges(steady, 2, 1, 1, 0, 80)
    assert first.done_s == 1 + 0.5 + 8 + 3 + 8 and second.done_s == first.done_s + 8
    assert first.wait_s == 0.5 + 8 + 3 + 8 + 0.5 and second.wait_s == first.wait_s + 8
    (quarter, _) = exchanges(steady, 2, 1, 1, 0, 80, servers=4)
    assert quarter.wait_s == 0.5 + 2 + 3 + 2 + 0.5


@pytest.mark.parametrize(
    "name", ["step_s", "bandwidth_bytes_per_s", "step_cv", "latency_s", "service_s"]
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_cost_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(
        UserError, match=f"^`{name} = {value}`: must be a finite number (above|of at least) 0$"
    ):
        Timing(**{name: value})


def test_only_times_that_may_be_nothing_can_be_zero():
    assert Timing(step_cv=0, latency_s=0, service_s=0).mean_s(8, 0) == 0
    for name in ("step_s", "bandwidth_bytes_per_s"):
        with pytest.raises(UserError, match=f"`{name} = 0`: must be a finite number above 0"):
            Timing(**{name: 0})


# --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(0, 1100), max_size=8),
    j=st.integers(0, 40),
    seed=st.integers(0, 2**31),
    cv=st.sampled_from([0.0, 0.1, 1.5]),
)
def test_the_time_of_an_interval_is_that_of_its_parts_however_it_is_cut(cuts, j, seed, cv):
    times, ends = StepTimes(Timing(step_cv=cv), seed), [0, *sorted(cuts), 1100]
    parts = [times.sum(j, a, b) for a, b in zip(ends, ends[1:], strict=False)]
    assert sum(parts) == pytest.approx(times.sum(j, 0, 1100), rel=1e-12)
    assert all(
        part > 0 if b > a else part == 0 for part, a, b in zip(parts, ends, ends[1:], strict=False)
    )


def test_the_time_of_an_update_depends_on_nothing_but_seed_learner_and_update():
    asked = [(j, t) for j in range(4) for t in (0, 1, 255, 256, 257, 1000)]
    alone = {(j, t): StepTimes(Timing(step_cv=0.5), 7).sum(j, t, t + 1) for j, t in asked}
    for order in (asked, asked[::-1], sorted(asked, key=lambda each: each[1])):
        times = StepTimes(Timing(step_cv=0.5), 7)
        assert {each: times.sum(*each, each[1] + 1) for each in order} == alone
    assert len({*alone.values()}) == len(asked)
    assert StepTimes(Timing(step_cv=0.5), 8).sum(0, 0, 1) != alone[0, 0]


@pytest.mark.parametrize("cv", [0.0, 0.1, 1.0])
def test_many_updates_have_the_mean_and_the_coefficient_of_variation_asked_for(cv):
    """To 5 standard errors; those of a lognormal's deviation follow from its fourth moment."""
    times, n = StepTimes(Timing(step_s=0.03, step_cv=cv), seed=2), 20_000
    draws = np.array([times.sum(j, t, t + 1) for j in range(4) for t in range(n // 4)])
    q = 1 + cv**2
    kurtosis = q**4 + 2 * q**3 + 3 * q**2 - 3
    assert draws.mean() == pytest.approx(0.03, rel=5 * cv / math.sqrt(n) + 1e-12)
    assert draws.std() / draws.mean() == pytest.approx(
        cv, abs=5 * cv * math.sqrt((kurtosis - 1) / (4 * n)) + 1e-9
    )


# --------------------------------------------------------------------------------------------------


def test_gossip_waits_for_neighbours_alone():
    """Four learners in a ring, the second one 2 s late: the fourth does not wait. 32 bytes take
    0.125 + 0.5 s, and each gets two messages.
    """
    W = np.eye(4) + np.roll(np.eye(4), 1, axis=0) + np.roll(np.eye(4), -1, axis=0)
    c = clock(4, step_cv=0)
    c.now = np.array([1.0, 3, 1, 1])
    assert c.mix(W, 32) == (1.25, (2 + 0 + 2 + 0) / 4)
    assert c.now.tolist() == [4.25, 4.25, 4.25, 2.25]
    assert (c.wait_s, c.communicate_s) == (1, 1.25)
    # one gets nothing and sends to both others, who get one message each
    c = clock(3, step_cv=0)
    star = np.eye(3)
    star[[1, 2], 0] = 1
    c.now = np.array([5.0, 1, 6])
    assert c.mix(star, 32) == ((1.25 + 0.625 + 0.625) / 3, (0 + 4 + 0) / 3)
    assert c.now.tolist() == [6.25, 5.625, 6.625]
    assert c.mix(np.eye(3), 32) == (0, 0)


def clock(P, *clusters, seed=0, **more):
    made = Timing(**{"step_s": 0.25, "latency_s": 0.125, "bandwidth_bytes_per_s": 64, **more})
    return Synchronous(made, P, seed, averages(made, P, 32, clusters))


@pytest.mark.parametrize("K", [1, 3, 8, 100])
def test_learners_of_one_speed_never_wait_and_add_up_to_updates_and_averages(K):
    T, P, steady = 24, 8, clock(8, step_cv=0)
    mean_s, averages = 2 * 3 * 0.125 + 2 * 7 / 8 * 32 / 64, 0
    for t in range(1, T + 1):
        if t % K == 0 or t == T:
            steady.advance(t)
            assert steady.average(Scope.WORLD) == (pytest.approx(mean_s), 0)
            averages += 1
    assert averages == math.ceil(T / K)
    assert steady.wall_s == pytest.approx(T * 0.25 + averages * mean_s, rel=1e-12)
    assert steady.wait_s == 0
    assert (steady.compute_s, steady.communicate_s) == (
        pytest.approx(T * 0.25),
        pytest.approx(averages * mean_s),
    )
    assert steady.wall_s == plan.modelled_s(Timing(0.25, 0, 0.125, 64), P, Every(K), T, 0, 32)


def test_learners_that_rest_take_no_time_and_wait_for_the_round_to_end():
    everyone, some = clock(6, step_cv=0.8), clock(6, step_cv=0.8)
    some.participants = Participants(2)
    some.participants.start(range(6), 6, 0)
    wall_s, mean_s, seen = 0.0, everyone.seconds(Scope.WORLD, 0)[1], set()
    for n, t in enumerate((3, 6, 11), start=1):
        drawn = np.flatnonzero(some.participants.weights)
        seen |= {tuple(drawn)}
        took = [everyone.times.sum(j, some.t, t) for j in drawn]
        some.advance(t)
        _, waited = some.average(Scope.WORLD)
        assert waited == pytest.approx(max(took) - sum(took) / 6)
        wall_s += max(took) + mean_s
        assert some.wall_s == pytest.approx(wall_s)
        assert some.compute_s + some.wait_s + n * mean_s == pytest.approx(wall_s)
    assert len(seen) > 1


def test_an_average_over_clusters_waits_within_the_cluster_alone():
    rough = clock(6, 2, step_cv=0.8)
    rough.advance(5)
    before, took = rough.now.copy(), 2 * 0.125 + 32 / 64
    assert len({*before}) == 6
    assert rough.average(Scope.CLUSTER)[0] == took
    slowest = before.reshape(3, 2).max(axis=1)
    np.testing.assert_array_equal(rough.now, np.repeat(slowest, 2) + took)
    assert (
        rough.wait_s == pytest.approx(np.mean(np.repeat(slowest, 2) - before)) and rough.wait_s > 0
    )
    assert len({*rough.now}) == 3 and rough.wall_s == slowest.max() + took


def test_an_average_over_clusters_of_clusters_waits_within_the_large_one():
    rough = clock(12, 2, 6, step_cv=0.8)
    rough.advance(5)
    slowest = rough.now.reshape(2, 6).max(axis=1)  # of each half
    seconds, waited = rough.average(Scope(2))
    assert seconds == pytest.approx(2 * math.log2(6) * 0.125 + 2 * 5 / 6 * 32 / 64)
    assert waited > 0 and rough.compute_s + waited == pytest.approx(slowest.mean())
    np.testing.assert_array_equal(rough.now, np.repeat(slowest, 6) + seconds)


def test_an_average_over_everyone_waits_for_the_slowest_of_all():
    rough = clock(6, 2, step_cv=0.8)
    rough.advance(5)
    slowest = rough.now.max()
    assert rough.wall_s == slowest
    rough.average(Scope.WORLD)
    assert {*rough.now} == {slowest + rough.communicate_s}


def test_every_second_of_a_learner_is_computing_waiting_or_communicating():
    rough = clock(6, 3, seed=4, step_cv=0.8)
    for t, scope in [(2, Scope.CLUSTER), (5, Scope.CLUSTER), (6, Scope.WORLD), (9, Scope.CLUSTER)]:
        rough.advance(t)
        rough.average(scope)
        assert rough.now.mean() == pytest.approx(
            rough.compute_s + rough.wait_s + rough.communicate_s
        )


# ------------------------------------------------------------------------------------------ fitted


def fitted(*paths):
    return timing.fit([record.load(path) for path in paths])


@pytest.mark.parametrize("waits", [True, False])
def test_a_run_gives_back_the_times_that_it_recorded(tmp_path, waits):
    got = fitted(run_file(tmp_path / "run.h5", waits=waits))
    assert got.step_s == pytest.approx(0.5)
    assert got.mean_s(2, 4 * 1000) == pytest.approx(1.0) and got.latency_s == Timing.latency_s
    e_2 = 1 / math.sqrt(math.pi)  # the mean of the larger of two standard normals
    assert got.step_cv == pytest.approx(0.5 / (e_2 * 0.5 * math.sqrt(8)), rel=0.03)
    assert got.service_s == Timing.service_s


REFUSED = {
    "asynchronous": {"config": {"algorithm": "downpour"}, "averages": ()},
    "several learners a rank": {"provenance": {"learners_per_rank": 2}},
    "several learners on some ranks": {"provenance": {"learners_per_rank": [1, 2]}},
    "simulated": {"config": {"simulate": True}},
    "one rank": {"provenance": {"ranks": 1}},
    "no averages": {"config": {"algorithm": "sgd"}, "averages": ()},
    "one row of train": {"rows": 1},
    "no row of train": {"rows": 0},
    "compressed gradients": {"config": {"algorithm": "qsgd"}},
    "averages of clusters": {"config": {"algorithm": "hieravg"}},
    "averages in code": {"config": {"wire": "int8"}},
    "averages of pieces": {"config": {"fragments": 2}},
    "averages of the state too": {"config": {"state": "average"}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_run_that_says_too_little_is_refused_by_its_file(why, tmp_path):
    good, path = run_file(tmp_path / "good.h5"), run_file(tmp_path / "other.h5", **REFUSED[why])
    for paths in ([path], [good, path]):
        with pytest.raises(
            UserError,
            match=rf"^{re.escape(str(path))}: no measured synchronous run .*give the file of one",
        ):
            fitted(*paths)


def test_one_average_after_the_first_row_is_enough(tmp_path):
    assert fitted(run_file(tmp_path / "run.h5", rows=3, averages=[16])).mean_s(
        2, 4 * 1000
    ) == pytest.approx(1.0)


def test_a_run_stopped_before_any_average_after_the_first_row_is_refused_by_its_file(tmp_path):
    path = run_file(tmp_path / "run.h5", rows=3, averages=[8], status="interrupted")
    with pytest.raises(UserError, match=re.escape(str(path))):
        fitted(path)


def test_single_options_are_put_on_top_of_a_measured_run(tmp_path):
    path = run_file(tmp_path / "run.h5")
    got = timing.make(
        TrainConfig(
            algorithm="kavg",
            simulate=True,
            timing_from=str(path),
            step_cv=0.0,
            bandwidth_bytes_per_s=7.0,
        )
    )
    measured = fitted(path)
    assert (got.step_s, got.latency_s) == (measured.step_s, measured.latency_s)
    assert (got.step_cv, got.bandwidth_bytes_per_s) == (0, 7)
    assert timing.make(TrainConfig(algorithm="kavg", simulate=True)) == Timing()


@pytest.mark.parametrize("name", ["step_s", "step_cv", "latency_s", "service_s"])
def test_times_whose_sums_are_not_finite_are_refused(name):
    with pytest.raises(UserError, match=f"`{name} = 1e.200`: must be at most 1e"):
        Timing(**{name: 1e200})
    with pytest.raises(UserError, match="bandwidth_bytes_per_s = 1e-300`: must be at least 1"):
        Timing(bandwidth_bytes_per_s=1e-300)
