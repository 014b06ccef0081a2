"""Plans: wall clock, shares and bytes against numbers by hand, runs with a modelled clock, and the
run files that a plan may be made from.
"""

import math
from types import SimpleNamespace

import pytest
from run_files import run_file

from localavg.algorithms.hieravg import Hierarchical
from localavg.algorithms.kavg import Every
from localavg.errors import UserError
from localavg.files import record
from localavg.scope import Scope
from localavg.simulate.plan import Machine, elapse, measured, modelled_s, predict
from localavg.simulate.timing import Timing

STEADY = Timing(step_s=0.5, step_cv=0, latency_s=0.125, bandwidth_bytes_per_s=100)
AVERAGE_S = 0.25 + 2 * 2 * 0.125 + 2 * 3 / 4 * 400 / 100  # inside a node, and between four
FOUR = Machine(STEADY, nodes=4, ranks=2, node_s=0.25)


def test_averages_at_once_add_up():
    """At 4, 8 and 10."""
    got = predict(FOUR, 400, K=4, T=10)
    assert got.average_s == pytest.approx(AVERAGE_S)
    assert got.wall_s == pytest.approx(10 * 0.5 + 3 * AVERAGE_S)
    assert got.communicate == pytest.approx(3 * AVERAGE_S / got.wall_s) and got.wait == 0
    assert got.link_bytes == pytest.approx(3 * 2 * 3 / 4 * 400) and got.learners == 8


@pytest.mark.parametrize(
    ("delay", "averages", "waited"),
    [
        (1, 3, 2 * (AVERAGE_S - 0.5)),  # merged at 5 and 9, and at once at 10
        (2, 3, 2 * (AVERAGE_S - 1.0)),  # merged at 6 and 10, and at once at 10
        (4, 2, 1 * (AVERAGE_S - 2.0)),  # merged at 8; the one of 8 would arrive after 10
    ],
)
def test_delayed_averages_cost_what_their_updates_do_not_hide(delay, averages, waited):
    got = predict(FOUR, 400, K=4, T=10, delay=delay)
    assert got.wall_s == pytest.approx(10 * 0.5 + waited + AVERAGE_S)
    assert got.communicate == pytest.approx((waited + AVERAGE_S) / got.wall_s)
    assert got.link_bytes == pytest.approx(averages * 2 * 3 / 4 * 400)


def test_an_average_that_its_updates_hide_costs_nothing_but_the_last():
    fast = Machine(Timing(step_s=0.5, step_cv=0, latency_s=0, bandwidth_bytes_per_s=1000), 2)
    got = predict(fast, 400, K=2, T=100, delay=2)
    assert got.wall_s == pytest.approx(50 + 0.4)


def test_a_machine_of_one_node_has_no_link_and_one_of_lone_ranks_no_average_inside():
    assert Machine(STEADY, 1, 4, 0.25).average_s(400) == 0.25
    assert Machine(STEADY, 1, 4, 0.25).link_bytes(400) == 0
    assert Machine(STEADY, 4, 1, 0.25).average_s(400) == pytest.approx(AVERAGE_S - 0.25)


def test_an_average_that_falls_due_waits_for_the_one_on_its_way():
    """Clusters after 3, 6, 9 …, everyone after 7: that waits for the clusters of 6, until 9."""
    did = []
    clock = SimpleNamespace(
        merge=lambda scope, begun, t: did.append((t, scope, begun)),
        average=lambda scope: did.append(scope),
        advance=lambda t: None,
    )
    assert elapse(clock, Hierarchical((3, 7)), 15, delay=3) == 5
    assert did == [
        (6, Scope.CLUSTER, 3),
        (9, Scope.CLUSTER, 6),
        (12, Scope.WORLD, 9),
        (15, Scope.CLUSTER, 12),
        Scope.WORLD,
    ]


def test_a_plan_is_the_clock_of_a_modelled_run():
    rough = Timing(step_s=0.01, step_cv=0.5, latency_s=0, bandwidth_bytes_per_s=1e4)
    for delay in (0, 3):
        by_clock = modelled_s(rough, 8, Every(4), 30, 5, 400, delay=delay)
        assert predict(Machine(rough, 8), 400, 4, 30, delay, seed=5).wall_s == by_clock


def test_a_long_run_is_extrapolated():
    machine = Machine(Timing(step_s=0.5, step_cv=0.1), nodes=2000)
    long, short = (predict(machine, 400, 4, T) for T in (4 * 10_000, 4 * 16))
    assert long.wall_s == pytest.approx(2500 / 4 * short.wall_s, rel=0.02)
    assert long.link_bytes == pytest.approx(625 * short.link_bytes, rel=1e-9)


def test_a_run_in_one_node_gives_the_average_inside_and_one_between_nodes_that_of_the_link(
    tmp_path,
):
    """Averages of 4000 bytes in 1 s on 2 ranks."""
    inside = measured(record.load(run_file(tmp_path / "one.h5", provenance={"nodes": 1})))
    assert (inside.nodes, inside.ranks) == (1, 2)
    assert inside.node_s == pytest.approx(1.0) and inside.timing.step_s == pytest.approx(0.5)
    four = {"ranks": 4, "nodes": 2}
    between = measured(record.load(run_file(tmp_path / "two.h5", provenance=four)))
    assert (between.nodes, between.ranks, between.node_s) == (2, 2, 0)
    assert between.average_s(4000) == pytest.approx(1.0)
    latency_s = 2 * math.log2(2) * between.timing.latency_s
    assert between.timing.bandwidth_bytes_per_s == pytest.approx(4000 / (1 - latency_s))


def test_a_run_whose_averages_were_delayed_gives_no_plan(tmp_path):
    run = record.load(run_file(tmp_path / "run.h5", config={"delay": 2}))
    with pytest.raises(UserError, match=r"its averages were delayed.* without `delay`"):
        measured(run)


def test_a_machine_and_a_delay_that_cannot_be_are_refused():
    for what, error in [
        (lambda: Machine(STEADY, 0), "nodes = 0"),
        (lambda: Machine(STEADY, ranks=0), "ranks_per_node = 0"),
        (lambda: Machine(STEADY, node_s=-1), "node_s = -1"),
        (lambda: predict(FOUR, 400, 4, 10, delay=5), "delay = 5`: must lie between 0 and"),
    ]:
        with pytest.raises(UserError, match=error):
            what()
