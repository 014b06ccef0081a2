"""When learners average: every schedule against lists written by hand from the papers."""

import copy
import math
import pickle
import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from localavg import algorithms
from localavg.algorithms.adpsgd import Piecewise, VarianceDriven, adpsgd, piecewise
from localavg.algorithms.base import Never
from localavg.algorithms.common import Others
from localavg.algorithms.hieravg import Hierarchical, hieravg
from localavg.algorithms.kavg import Every
from localavg.algorithms.lupa import Linear, LossDriven, OneShot
from localavg.algorithms.qsr import Quadratic
from localavg.algorithms.switch import Switched
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.learner import stepsizes
from localavg.scope import Scope
from localavg.training import checks


def letters(schedule, T):
    """One letter an update: . nobody, C the clusters, W everyone; 2, 3, … clusters of this level."""
    return "".join(letter(schedule.after(t)) for t in range(1, T + 1))


def letter(scope):
    names = {Scope.NONE: ".", Scope.CLUSTER: "C", Scope.WORLD: "W"}
    return names.get(scope, str(int(scope)))


def averages(schedule, T):
    """The updates t = 1 … T after which everyone averages."""
    return [t for t in range(1, T + 1) if schedule.after(t) is Scope.WORLD]


def steered(schedule, feedback, T, gamma=1.0):
    """The averages of a controller that is told the next of `feedback` at each, the last for
    ever.
    """
    told, found = list(feedback), []
    for t in range(1, T + 1):
        if schedule.after(t) is Scope.WORLD:
            schedule.observe(t, told.pop(0) if len(told) > 1 else told[0], gamma)
            found.append(t)
    return found


# ------------------------------------------------------------------------------------------ static

TRUTH = [
    (Never(), "........"),
    (OneShot(), "........"),
    (Every(1), "WWWWWWWW"),
    (Every(3), "..W..W..W."),
    (Every(4), "...W...W...W"),
    (Every(9), "........"),
    (Quadratic(0.3, 1, 2, lambda t: 0.1), "........W" * 2),  # 0.3/0.1 is 2.9999999999999996
    (Quadratic(0.3, 4, 1, lambda t: 0.1), "...W...W"),
    (Quadratic(2.0, 2, 2, lambda t: 1.0 if t <= 4 else 0.9), "...W...W...W"),
    (Quadratic(2.0, 2, 2, lambda t: 1.0 if t <= 4 else 0.7), "...W.......W"),  # ⌊8.16⌋
    (Quadratic(2.0, 2, 2, lambda t: 1.0 if t <= 4 else 0.0), "...W" + 40 * "."),
    (Quadratic(2.0, 2, 2, lambda t: 1e-300), 40 * "."),
    (Hierarchical((1, 1)), "WWWW"),
    (Hierarchical((3, 3)), "..W..W..W"),
    (Hierarchical((1, 4)), "CCCWCCCW"),
    (Hierarchical((2, 4)), ".C.W.C.W"),
    (Hierarchical((2, 6)), ".C.C.W.C.C.W"),
    (
        Hierarchical((2, 3)),
        ".CW.CW.CW",
    ),  # K1 does not divide K2: the local count restarts at each global average
    (Hierarchical((3, 8)), "..C..C.W..C..C.W"),
    (Hierarchical((4, 6)), "...C.W...C.W"),
    (Switched(Every(4), 6), "......" + "...W...W"),
    (Switched(Hierarchical((2, 6)), 3), "..." + ".C.C.W.C"),
    (Hierarchical((2, 4, 8)), ".C.2.C.W.C.2.C.W"),
    (Hierarchical((1, 2, 4, 8)), "C2C3C2CWC2C3C2CW"),
    # the counts of 2 and 5 restart at 11, 22, … and that of 2 also at 5, 10, 16, 21, …
    (Hierarchical((2, 5, 11)), ".C.C2.C.C2W.C.C2.C.C2W"),
    (Hierarchical((3, 4, 10)), "..C2..C2.W..C2..C2.W"),
    (Linear(4, 0.0), "...W...W...W"),
    (Linear(3, 0.5), "..W....W.....W.......W........W"),  # 3, ⌈4.5⌉ = 5, 6, ⌈7.5⌉ = 8, 9
    (Piecewise([(0, 3)]), "..W..W..W"),
    (Piecewise([(0, 4), (8, 8)]), "...W...W.......W.......W"),  # 4 → 8 (adpsgd strategy 1)
    (Piecewise([(0, 8), (16, 4)]), ".......W.......W...W...W"),  # 8 → 4 (strategy 2)
]


@pytest.mark.parametrize(
    ("schedule", "expected"), TRUTH, ids=[f"{type(s).__name__} {x}" for s, x in TRUTH]
)
def test_a_schedule_averages_after_these_updates(schedule, expected):
    assert letters(schedule, len(expected)) == expected


def test_a_switched_controller_counts_and_learns_from_the_switch_on():
    told = [1.0, 3.0, 0.5, 9.0, 2.0, 2.0, 0.1, 0.1]
    for make in (lambda: VarianceDriven(3, 12), lambda: LossDriven(4)):
        plain, switched = make(), Switched(make(), 5)
        if plain.needs == "objective":
            plain.observe(0, 8.0, 1.0), switched.observe(5, 8.0, 1.0)
        late = steered(switched, told, 65)
        assert late == [t + 5 for t in steered(plain, told, 60)] and len(late) > 4
        assert (switched.needs, switched.final, switched.begins) == (plain.needs, plain.final, 5)
        other = Switched(make(), 5)
        other.load_state_dict(switched.state_dict())
        assert other.state_dict() == switched.state_dict() != Switched(make(), 5).state_dict()
    assert Switched(VarianceDriven(3, 12), 5).steered_after == 17
    assert Switched(Every(3), 5).steered_after == 0


def test_an_average_is_told_as_a_scope_and_only_averages_are_true():
    assert [Every(2).after(t) for t in (1, 2)] == [Scope.NONE, Scope.WORLD]
    assert Hierarchical((1, 3)).after(1) is Scope.CLUSTER
    assert [bool(scope) for scope in (Scope.NONE, Scope.CLUSTER, Scope.WORLD)] == [
        False,
        True,
        True,
    ]


def test_scopes_are_ordered_and_there_is_one_object_for_each():
    scopes = [Scope.NONE, Scope.CLUSTER, Scope(2), Scope(3), Scope.WORLD]
    assert all(a < b for a, b in pairwise(scopes)) and len(set(scopes)) == 5
    for scope in scopes:
        for copied in (copy.deepcopy(scope), pickle.loads(pickle.dumps(scope))):
            assert copied is scope
        assert Scope.recorded(scope.kind, int(scope)) is scope
    assert [scope.kind for scope in scopes] == [0, 1, 1, 1, 2]
    assert [scope.level(4) for scope in scopes] == [0, 1, 2, 3, 4]
    assert [scope.name for scope in scopes] == [
        "NONE",
        "CLUSTER",
        "CLUSTER 2",
        "CLUSTER 3",
        "WORLD",
    ]
    # as earlier versions recorded them, without a level
    assert (Scope.recorded(1), Scope.recorded(2)) == (Scope.CLUSTER, Scope.WORLD)
    for value in (-1, 128):
        with pytest.raises(ValueError, match="is no scope"):
            Scope(value)


def test_every_run_ends_with_everyone_but_where_no_weights_are_averaged():
    weights = [
        OneShot(),
        Every(4),
        Hierarchical((2, 4)),
        Linear(4, 0.1),
        Piecewise([(0, 4)]),
        LossDriven(4),
        VarianceDriven(4, 8),
    ]
    assert [schedule.final for schedule in weights] == [Scope.WORLD] * 7
    assert Never().final is Scope.NONE


def test_only_the_two_controllers_need_feedback():
    static = [
        Never(),
        OneShot(),
        Every(4),
        Hierarchical((2, 4)),
        Linear(4, 0.1),
        Piecewise([(0, 4)]),
    ]
    assert [schedule.needs for schedule in static] == [None] * 6
    assert (LossDriven(4).needs, VarianceDriven(4, 8).needs) == ("objective", "variance")


def test_lupas_linear_periods():
    # τ_0 = 91, α = 1.09: 91, ⌈190.19⌉, ⌈289.38⌉, ⌈388.57⌉, ⌈487.76⌉
    assert averages(Linear(91, 1.09), 1500) == [91, 91 + 191, 282 + 290, 572 + 389, 961 + 488]


def test_linear_periods_that_are_whole_numbers_are_not_rounded_up():
    assert averages(Linear(10, 0.1), 60) == [10, 21, 33, 46, 60]
    # (1 + 2 · 0.07) · 100 is 114.00000000000001 in floating point
    assert averages(Linear(100, 0.07), 900) == [100, 207, 321, 442, 570, 705, 847]


@pytest.mark.parametrize("tau0", [1, 3, 7, 10, 50, 91, 1000])
def test_linear_periods_are_those_of_exact_fractions(tau0):
    for hundredths in range(201):
        schedule, end = Linear(tau0, hundredths / 100), 0
        for i in range(30):
            tau = math.ceil((1 + i * Fraction(hundredths, 100)) * tau0)
            end += tau
            assert schedule.after(end) is Scope.WORLD, (hundredths, i)
            assert tau == 1 or schedule.after(end - 1) is Scope.NONE, (hundredths, i)
            assert tau == 1 or schedule.after(end - tau + 1) is Scope.NONE, (hundredths, i)


def test_a_period_that_falls():
    assert averages(Piecewise([(0, 20), (40, 5)]), 60) == [
        20,
        40,
        45,
        50,
        55,
        60,
    ]  # 20 → 5 (adpsgd §V-B)


def test_a_piece_that_starts_between_averages_takes_over_at_once():
    # update 10 belongs to K = 4, update 11 to K = 8; the last average was at 8
    assert averages(Piecewise([(0, 4), (10, 8)]), 32) == [4, 8, 16, 24, 32]
    # at update 31 eleven updates have passed and K is 5: it is overdue
    assert averages(Piecewise([(0, 20), (30, 5)]), 41) == [20, 31, 36, 41]
    # a piece too short for an average of its own
    assert averages(Piecewise([(0, 4), (6, 50), (9, 3)]), 16) == [4, 10, 13, 16]


def test_piecewise_is_counting_up_to_the_period_in_force():
    draw = random.Random(0)
    for _ in range(200):
        starts = [0, *sorted(draw.sample(range(1, 60), draw.randint(0, 4)))]
        pieces = [(start, draw.randint(1, 25)) for start in starts]
        expected, count = [], 0
        for t in range(1, 101):
            count += 1
            if count >= next(K for start, K in reversed(pieces) if start < t):
                expected.append(t)
                count = 0
        assert averages(Piecewise(pieces), 100) == expected, pieces


STATIC = [
    Never,
    OneShot,
    lambda: Every(3),
    lambda: Hierarchical((3, 8)),
    lambda: Hierarchical((2, 5, 11)),
    lambda: Linear(5, 0.3),
    lambda: Piecewise([(0, 4), (30, 9), (70, 2)]),
    lambda: Quadratic(1.0, 2, 2, lambda t: 30 / (t + 30)),
]


@pytest.mark.parametrize("make", STATIC)
def test_a_static_schedule_answers_the_same_whenever_and_however_often_it_is_asked(make):
    in_order = letters(make(), 120)
    order = [*range(120, 0, -1), *range(1, 121), *random.Random(1).choices(range(1, 121), k=300)]
    schedule = make()
    assert all(letter(schedule.after(t)) == in_order[t - 1] for t in order)
    assert all(
        letter(make().after(t)) == in_order[t - 1] for t in (1, 24, 57, 120)
    )  # a new one, asked once


def due(K, t, last):
    """The highest level of a hierarchy that is due after update t, 0 for none, as the rule reads;
    last: when each level averaged last.
    """
    for l in range(len(K), 0, -1):
        above = max([0, *last[l:]])  # the last average at any level above l
        if (t - above) % K[l - 1] == 0:
            return l
    return 0


@pytest.mark.parametrize("K", [(3, 8), (2, 5, 11), (1, 4, 6, 25), (4, 6, 9), (2, 4, 8, 16), (7,)])
def test_a_hierarchy_averages_at_the_highest_level_that_is_due(K):
    schedule, last = Hierarchical(K), [0] * len(K)
    for t in range(1, 120):
        level = due(K, t, last)
        assert (
            schedule.after(t) is ([Scope.NONE, *map(Scope, range(1, len(K))), Scope.WORLD][level])
        )
        if level:
            last[level - 1] = t


def test_where_each_period_divides_the_next_one_it_is_the_rule_of_torch():
    """HierarchicalModelAverager: the highest level whose period divides the step."""
    K = (2, 6, 12)
    for t in range(1, 100):
        divides = [l for l in (1, 2, 3) if t % K[l - 1] == 0]
        assert Hierarchical(K).after(t).level(3) == max(divides, default=0)


def test_two_levels_are_hieravg_and_one_is_kavg():
    for K1, K2, S in ((3, 8, 2), (1, 4, 4)):
        two, levels = hieravg(K1=K1, K2=K2, S=S), hieravg(levels=[(K1, S), (K2, "P")])
        assert (two.schedule, two.clusters, two.P) == (levels.schedule, levels.clusters, levels.P)
    one = hieravg(levels=[(5, 12)])
    assert (one.schedule, one.clusters, one.P) == (Every(5), (), 12)
    alone = hieravg(K1=2, K2=7, S=1)  # a cluster of one learner has nothing to average
    assert (alone.schedule, alone.clusters) == (Every(7), ())
    assert hieravg().schedule == Hierarchical((4, 16)) and hieravg().clusters == (4,)


NO_HIERARCHY = [  # levels, and what is said
    ([], "must be pairs"),
    ("4:2,8:P", "must be pairs"),
    (5, "must be pairs"),
    ([(4, 2, 1)], "must be pairs"),
    (np.array([[4, 2], [8, 8]]), "must be pairs"),
    ([(0, 2), (8, 8)], "--levels 0:2,8:8: each K must be a whole number of at least 1"),
    ([(4.0, 2), (8, 8)], "each K must be"),
    ([(True, 2), (8, 8)], "each K must be"),
    (
        [(4, 0), (8, 8)],
        "each S must be a whole number of at least 1; the last one may be the letter",
    ),
    ([(4, "P"), (8, "P")], "each S must be"),
    ([(4, 2), (8, "p")], "each S must be"),
    ([(4, 1), (8, 8)], "a cluster of 1 learner has nothing to average; leave the first level out"),
    ([(4, 2), (4, 8)], "K must grow from each level to the next one, and 4 follows 4"),
    ([(4, 2), (8, 4), (6, "P")], "and 6 follows 8"),
    ([(4, 2), (8, 2)], "each S must divide the next one, which is larger, and 2 follows 2"),
    ([(4, 4), (8, 6)], "and 6 follows 4"),
    ([(4, 4), (8, 2), (9, "P")], "and 2 follows 4"),
]


@pytest.mark.parametrize(("levels", "words"), NO_HIERARCHY)
def test_levels_that_are_no_hierarchy_are_refused(levels, words):
    with pytest.raises(UserError) as e:
        hieravg(levels=levels)
    said = in_flags(str(e.value))
    assert said.startswith("--levels ") and words in said and "\n" not in said


@pytest.mark.parametrize("name", ["K1", "K2", "S"])
def test_levels_stand_alone(name):
    with pytest.raises(UserError, match=f"`{name} = 4` means nothing beside `levels`"):
        hieravg(levels=[(4, 2), (8, "P")], **{name: 4})


@pytest.mark.parametrize(
    ("made", "P", "words"),
    [
        (lambda: hieravg(levels=[(4, 2), (8, 4)]), 8, "--levels has 4 learners, and the run has 8"),
        (lambda: hieravg(levels=[(4, 3), (8, "P")]), 8, "clusters of 3 (--levels) with 8 learners"),
        (lambda: hieravg(levels=[(4, 12)]), 6, "--levels has 12 learners, and the run has 6"),
        (lambda: hieravg(levels=[(2, 4), (4, 8), (9, "P")]), 8, "clusters of 8 (--levels) with 8"),
        (lambda: hieravg(S=3), 8, "--S 3 with 8 learners: a cluster's size must divide P"),
    ],
)
def test_learners_that_do_not_form_the_hierarchy_are_refused(made, P, words):
    with pytest.raises(UserError) as e:
        made().check_learners(P)
    assert words in in_flags(str(e.value))


def test_learners_that_form_the_hierarchy_are_taken():
    hieravg(levels=[(2, 3), (4, 6), (9, 12)]).check_learners(12)
    hieravg(levels=[(2, 3), (4, 6), (9, "P")]).check_learners(18)
    hieravg(levels=[(9, "P")]).check_learners(18)
    hieravg(S=3).check_learners(9)
    hieravg(S=9).check_learners(9)


# ------------------------------------------------------------------------------------- driven by th


def opened(tau0, F0):
    schedule = LossDriven(tau0)
    schedule.observe(0, F0, 1.0)
    return schedule


def test_periods_from_the_objective():
    # eq. 11 with τ_0 = 10, F(w̄_0) = 8: ⌈1⌉, ⌈(8/2)^⅓⌉ = 2, ⌈8^⅓⌉ = 2, ⌈(8/0.9)^⅓⌉ = 3, ⌈(8/0.1)^⅓⌉
    # = 5
    assert steered(opened(10, 8.0), [2.0, 1.0, 0.9, 0.1, 0.1], 130) == [10, 30, 50, 80, 130]


def test_an_objective_that_has_not_fallen_keeps_the_first_period():
    assert steered(opened(10, 1.0), [1.0, 1.5, 40.0, 1e6], 50) == [10, 20, 30, 40, 50]


def test_no_objective_is_so_large_that_the_averages_stop():
    # ⌈x⌉ of a positive x is at least 1, so τ_i ≥ τ_0
    assert steered(opened(10, 1.0), [1e30], 30) == [10, 20, 30]


@pytest.mark.parametrize("root", [2, 3, 4, 5, 6, 7, 10, 11, 100])
def test_exact_cubes_are_not_rounded_up(root):
    assert steered(opened(1, float(root**3)), [1.0], 1 + root) == [1, 1 + root]


@pytest.mark.parametrize("F", [0.0, -1.0, math.nan, math.inf])
def test_eq_11_needs_a_finite_positive_objective(F):
    with pytest.raises(UserError, match=rf"adalupa `rule = loss`: F\(w̄\) = {F:g} at t = 10"):
        opened(10, 1.0).observe(10, F, 1.0)
    with pytest.raises(UserError, match=rf"adalupa `rule = loss`: F\(w̄\) = {F:g} at t = 0"):
        LossDriven(10).observe(0, F, 1.0)


# -------------------------------------------------------------------------------------- driven by t


def test_the_variance_steers_the_period():
    # p_init = 2, K_s = 6: samples at t = 2, 4, 6 (k = 1, 3, 5) of S = 1, 2, 3, so C₂ = 2;
    # thresholds 1.4 and 2.6
    feedback = [1, 2, 3, 1.39, 2.0, 2.61, 1.41, 2.59, 1.0, 1.0, 3.0]
    #           2  4  6  8     11   14    16    18    20   23   27
    expected = [2, 4, 6, 8, 11, 14, 16, 18, 20, 23, 27, 30]
    assert steered(VarianceDriven(2, 6), feedback, 31) == expected


def test_the_running_mean_of_the_samples_is_exact_and_then_frozen():
    schedule = VarianceDriven(1, 4)
    for t, S in enumerate([1.0, 2.0, 6.0, 7.0, 100.0], start=1):
        assert schedule.after(t) is Scope.WORLD
        schedule.observe(t, S, gamma=0.5)
    assert abs(schedule.C2 - 8.0) < 1e-14  # (1 + 2 + 6 + 7) / (4 · 0.5)
    assert schedule.n_C == 4


def test_a_variance_on_a_threshold_changes_nothing():
    schedule = VarianceDriven(4, 4, low=0.5, high=1.5)
    assert steered(schedule, [2.0, 1.0, 3.0, 1.0], 16) == [4, 8, 12, 16]


def test_the_period_never_falls_below_one():
    assert steered(VarianceDriven(3, 3), [1.0, 9.0, 9.0, 9.0, 9.0, 9.0], 13) == [
        3,
        6,
        8,
        9,
        10,
        11,
        12,
        13,
    ]


def test_a_period_of_one_can_grow_again():
    assert steered(VarianceDriven(1, 1), [1.0, 9.0, 0.1, 0.1, 1.0], 10) == [1, 2, 3, 5, 8]


def test_iterations_count_from_zero_in_the_sampling_phase():
    # the average at t = 4 is iteration k = 3: a sample for K_s = 4, and the first that steers for
    # K_s = 3
    assert steered(VarianceDriven(2, 4), [1.0, 9.0, 5.0], 10) == [2, 4, 6, 8, 10]
    assert steered(VarianceDriven(2, 3), [1.0, 9.0, 1.0], 7) == [2, 4, 5, 6, 7]


def test_thresholds_follow_the_step_size():
    schedule = VarianceDriven(2, 2)
    assert steered(schedule, [0.4], 2, gamma=0.1) == [2]  # C₂ = 4
    assert [t for t in (3, 4) if schedule.after(t)] == [4]
    schedule.observe(4, 0.04, 0.01)  # S = γ C₂: as it should be
    assert schedule.p == 2
    assert [t for t in (5, 6) if schedule.after(t)] == [6]
    schedule.observe(6, 0.4, 0.01)  # ten times γ C₂
    assert schedule.p == 1


def test_a_warm_up_averages_every_step_and_is_no_part_of_the_algorithm():
    schedule = VarianceDriven(2, 2, warmup_steps=3)
    # samples of the warm-up are not seen: C₂ = 1 from t = 5 alone, whose k is 1; S = 9 then lowers
    # p to 1
    assert steered(schedule, [50.0, 50.0, 50.0, 1.0, 9.0, 1.0], 10) == [1, 2, 3, 5, 7, 8, 9, 10]
    assert (schedule.C2, schedule.n_C) == (1.0, 1)


def test_other_thresholds():
    assert steered(VarianceDriven(2, 2, low=0.1, high=20.0), [1.0, 0.5, 9.0, 19.0], 8) == [
        2,
        4,
        6,
        8,
    ]


# ------------------------------------------------------------------ lengths in Python and in epochs


def test_lengths_in_python_are_updates_and_need_no_length_of_the_run():
    assert adpsgd(Ks=2000, warmup_steps=500).schedule == VarianceDriven(4, 2000, warmup_steps=500)
    assert piecewise({0: 4, 8000: 8}).schedule == Piecewise([(0, 4), (8000, 8)])


@pytest.mark.parametrize("Ks", [0.25, 0.999, 1e-9])
def test_a_fraction_of_the_run_is_refused_in_python(Ks):
    with pytest.raises(UserError, match=r"Ks.*fraction.*number of updates"):
        adpsgd(Ks=Ks)


def test_stages_as_the_command_line_has_them_are_refused_in_python():
    with pytest.raises(UserError, match=r"pieces = 0:4,80:8.*updates"):
        piecewise("0:4,80:8")


def test_the_command_line_counts_epochs_and_fractions_of_the_run():
    made = algorithms.make("adpsgd", {"Ks": 0.29, "warmup": 1.5}, T=100, epoch=7)
    assert made.schedule == VarianceDriven(4, 29, warmup_steps=11)
    made = algorithms.make("adpsgd", {"Ks": 40.0, "warmup": 1.1}, T=100, epoch=100)
    assert made.schedule == VarianceDriven(4, 40, warmup_steps=110)  # 110.00000000000001 as floats
    made = algorithms.make("piecewise", {"pieces": "0:4,1.5:8"}, T=100, epoch=10)
    assert made.schedule == Piecewise([(0, 4), (15, 8)])


# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -0.1, None, "0.1 each"],
    ids=["nan", "inf", "below 0", "None", "text"],
)
def test_what_is_no_step_size_is_refused_by_qsr(value):
    with pytest.raises(UserError, match=r"qsr: step_size\(5\) is .* a finite number"):
        averages(Quadratic(1.0, 4, 2.0, lambda t: value if t > 4 else 1.0), 9)


def test_qsr_refuses_a_warm_up_from_0_and_takes_any_other_step_size():
    with pytest.raises(UserError, match=r"step_size\(1\) is 0.0; .*in a warm-up"):
        averages(Quadratic(1.0, 4, 2.0, lambda t: (t - 1) / 10), 9)
    assert averages(Quadratic(1e-320, 4, 2.0, lambda t: 1e4), 9) == [4, 8]
    assert averages(Quadratic(2.0, 1, 2.0, lambda t: np.float32(1)), 9) == [4, 8]
    with pytest.raises(UserError, match="qsr needs step_size="):
        algorithms.qsr.qsr(alpha=0.1, step_size=0.1)


def test_the_step_size_of_qsr_is_not_copied():
    class Trainer:
        def gamma(self, t):
            return 1.0

        def __deepcopy__(self, memo):
            raise AssertionError

    schedule = Quadratic(2.0, 1, 2.0, Trainer().gamma)
    assert averages(copy.deepcopy(schedule), 8) == averages(schedule, 8) == [4, 8]


BAD = [
    (lambda: Every(0), "--K 0: a period must be at least 1"),
    (lambda: Every(-3), "--K -3: a period must be at least 1"),
    (lambda: hieravg(K1=0, K2=4), "--K1 0: a period must be at least 1"),
    (lambda: hieravg(K1=4, K2=-1), "--K2 -1: a period must be at least 1"),
    (lambda: hieravg(K1=5, K2=4), "--K1 5 exceeds --K2 4"),
    (lambda: Linear(0, 1.0), "--tau0 0: a period must be at least 1"),
    (lambda: Linear(4, -0.1), "--alpha -0.1: must be a finite number of at least 0"),
    (lambda: Linear(4, math.nan), "--alpha nan"),
    (lambda: Linear(4, math.inf), "--alpha inf"),
    (lambda: Quadratic(0.0, 4, 2.0, float), "--alpha 0.0: must be a finite number above 0"),
    (lambda: Quadratic(1.0, 4, math.inf, float), "--power inf: must be a finite number above 0"),
    (lambda: Quadratic(1.0, 0, 2.0, float), "--K 0: a period must be at least 1"),
    (
        lambda: algorithms.qsr.qsr(step_size=float),
        "qsr needs --alpha, in the unit of the step size",
    ),
    (lambda: algorithms.postlocal.postlocal(), "postlocal needs --switch, the length of its"),
    (lambda: algorithms.kavg.kavg(switch=-1), "--switch -1: must be at least 0"),
    (lambda: algorithms.qsr.qsr(alpha=0.1), "qsr needs step_size=, a function of t"),
    (lambda: Piecewise([]), "--pieces"),
    (lambda: Piecewise([(1, 4)]), "--pieces with starts [1]: they must begin at 0"),
    (lambda: Piecewise([(0, 4), (0, 8)]), "--pieces with starts [0, 0]"),
    (lambda: Piecewise([(0, 4), (10, 8), (5, 2)]), "--pieces with starts [0, 10, 5]"),
    (lambda: Piecewise([(0, 4), (10, 0)]), "--pieces 0: a period must be at least 1"),
    (lambda: LossDriven(0), "--tau0 0: a period must be at least 1"),
    (lambda: VarianceDriven(0, 10), "--p-init 0: a period must be at least 1"),
    (lambda: VarianceDriven(4, 10, low=0.0), "--low 0"),
    (lambda: VarianceDriven(4, 10, low=-1.0), "--low -1"),
    (lambda: VarianceDriven(4, 10, low=math.nan), "--low nan"),
    (lambda: VarianceDriven(4, 10, high=math.inf), "--low 0.7 and --high inf"),
    (lambda: VarianceDriven(4, 10, high=math.nan), "--low 0.7 and --high nan"),
    (lambda: VarianceDriven(4, 10, low=1.5, high=1.2), "--low 1.5 and --high 1.2"),
    (lambda: VarianceDriven(4, 3), "--Ks of 3 updates ends before the first average at p_init = 4"),
]


@pytest.mark.parametrize(("make", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_value_is_refused_by_name(make, words):
    with pytest.raises(UserError) as e:
        make()
    assert in_flags(str(e.value)).startswith(words)
    assert "\n" not in str(e.value)


def test_limits_are_taken():
    Every(1), Hierarchical((1, 1)), Linear(1, 0.0), Piecewise([(0, 1), (1, 1)]), LossDriven(1)
    VarianceDriven(4, 4, low=1.0, high=1.0)


WHOLE = [  # every length of every algorithm's function
    (name, parameter)
    for name, parameters in {
        "kavg": "K", "postlocal": "K", "fedavg": "K", "mavg": "K", "hieravg": "K1 K2 S", "adpsgd": "p_init warmup_steps Ks", "adalupa": "tau0", "adacomm": "tau0",
        "gossip": "K",
        "qsgd": "bits bucket", "downpour": "K servers", "eamsgd": "K servers",
    }.items()
    for parameter in parameters.split()
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        (*length, value)
        for length in WHOLE
        for value in ("4", 4.5, None, True)
        if value is not None or length[0] != "hieravg"  # None stands for the default
    ],
)
def test_a_length_that_is_not_whole_is_refused_by_name(name, parameter, value):
    run = {"eamsgd": {"P": 2, "momentum": 0.9}, "downpour": {"P": 2}, "postlocal": {"switch": 1}}
    run = run.get(name, {})
    with pytest.raises(UserError, match=f"`{parameter} = .*must be a (whole )?number"):
        algorithms.BOTH[name](**run, **{parameter: value})


@pytest.mark.parametrize("pieces", [{0: 2.5}, {0: "4"}, {"0": 4}, [(0, 4), (2.5, 8)], [4, 8], 4])
def test_stages_that_are_not_whole_are_refused(pieces):
    with pytest.raises(UserError, match="`pieces = "):
        piecewise(pieces)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: algorithms.BOTH["mavg"](mu="0.7"), "`mu = '0.7'`: must be a number"),
        (lambda: algorithms.BOTH["kavg"](outer=1), "`outer = 1`: must be of type str"),
        (lambda: algorithms.BOTH["adalupa"](rule=3), "`rule = 3`: must be of type str"),
    ],
)
def test_an_argument_of_another_kind_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_an_algorithm_knows_its_name_and_its_arguments():
    made = algorithms.BOTH["mavg"](K=np.int64(8))
    assert (made.name, made.options) == (
        "mavg",
        {
            "K": 8,
            "outer": "momentum",
            "outer_lr": 1.0,
            "mu": 0.7,
            **dict.fromkeys(Others.__annotations__),
        },
    )
    assert (
        str(algorithms.BOTH["kavg"](K=4)) == "kavg(K=4)"
        and str(algorithms.BOTH["sync"]()) == "sync()"
    )


@pytest.mark.parametrize(
    ("given", "t0"),
    [
        ({"milestones": [3, 1], "factor": 0.5}, 31),  # 31.25 updates an epoch
        ({"decay_every": 1.0}, 32),
        ({"milestones": [2], "switch": 3.0}, 94),
    ],
)
def test_postlocal_switches_where_the_step_size_changes_first(given, t0):
    epoch, lr = 31.25, {"lr": 1.0, "lr_schedule": "steps"}
    config = checks.read({"algorithm": "postlocal", **lr, **given})
    options = checks.own_options(config, epoch)
    made = algorithms.make("postlocal", options, T=1000, epoch=epoch)
    assert made.schedule.begins == made.exchange.until == t0
    gamma = stepsizes.make(config, epoch)
    if "switch" not in given:
        assert gamma(t0) == 1.0 > gamma(t0 + 1)
