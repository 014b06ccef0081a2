"""Sanity tests of the oracles themselves: cases worked by hand and closed forms."""

import math

import numpy as np
import oracles as oracle
import pytest
from oracles import Setup

POLICIES = ["keep", "average", "reset"]


def constant(lr):
    return lambda t: lr


def decaying(t):
    return 0.8 / (1 + 0.1 * t)


def problem(P=4, n=37, d=5, seed=0, l2=0.01, **local):
    """Rows whose distribution drifts with the row number, so that contiguous shards disagree."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + np.linspace(-1, 1, n)[:, None]
    y = np.where(X @ rng.normal(size=d) + rng.normal(size=n) > 0, 1.0, -1.0)
    return Setup(X, y, P, l2, **local)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def times(averages):
    assert all(scope == "global" for _, scope in averages)
    return [t for t, _ in averages]


# ---------------------------------------------------------------------------------------------- the


def test_objective_by_hand():
    X = np.array([[1.0, 0.0], [0.0, 2.0]])
    y = np.array([1.0, -1.0])
    w = np.array([0.3, -0.4])
    by_hand = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-0.8))) / 2 + 0.05 * (
        0.09 + 0.16
    )
    close(oracle.objective(w, X, y, 0.1), by_hand)
    close(oracle.objective(np.zeros(2), X, y, 0.1), math.log(2))


def test_objective_and_gradient_do_not_overflow():
    X, y = np.array([[1.0]]), np.array([1.0])
    close(oracle.objective(np.array([-5000.0]), X, y, 0.0), 5000.0)
    close(oracle.gradient(np.array([-5000.0]), X, y, 0.0), [-1.0])
    close(oracle.gradient(np.array([5000.0]), X, y, 0.0), [0.0])


def test_gradient_is_the_derivative_of_the_objective():
    s = problem(l2=0.3)
    w = np.linspace(-1, 1, 5)
    h = 1e-5
    numeric = [
        (oracle.objective(w + h * e, s.X, s.y, s.l2) - oracle.objective(w - h * e, s.X, s.y, s.l2))
        / (2 * h)
        for e in np.eye(5)
    ]
    np.testing.assert_allclose(oracle.gradient(w, s.X, s.y, s.l2), numeric, atol=1e-8)


@pytest.mark.parametrize(
    ("n", "P", "sizes"), [(8, 4, [2, 2, 2, 2]), (10, 4, [2, 3, 2, 3]), (7, 3, [2, 2, 3])]
)
def test_shards_are_contiguous_and_cover_everything(n, P, sizes):
    parts = [list(range(n))[oracle.shard(n, j, P)] for j in range(P)]
    assert [len(p) for p in parts] == sizes
    assert [i for p in parts for i in p] == list(range(n))


# ---------------------------------------------------------------------------------- the local optim


def steps(optimiser, gradients, lr, m=0.9):
    w, state = np.zeros(len(gradients[0])), oracle.fresh_state(len(gradients[0]))
    for g in gradients:
        w, state = oracle.local_step(w, g, state, lr, optimiser, m)
    return w


def test_local_steps_on_a_constant_gradient_closed_form():
    g, lr, m, n = np.array([2.0, -0.5]), 0.1, 0.7, 9
    v = [g * (1 - m**i) / (1 - m) for i in range(1, n + 1)]  # the velocity after step i
    close(steps("sgd", [g] * n, lr), -lr * n * g)
    close(steps("momentum", [g] * n, lr, m), -lr * sum(v))
    close(steps("nesterov", [g] * n, lr, m), -lr * (n * g + m * sum(v)))
    close(steps("adam", [g] * n, lr), -lr * n * g / (np.abs(g) + 1e-8))


def test_adam_two_steps_by_hand():
    w = steps("adam", [np.array([1.0]), np.array([-3.0])], 0.1)
    a_hat = (0.9 * 0.1 * 1 + 0.1 * -3) / (1 - 0.9**2)
    b_hat = (0.999 * 0.001 * 1 + 0.001 * 9) / (1 - 0.999**2)
    close(w, [-0.1 / (1 + 1e-8) - 0.1 * a_hat / (math.sqrt(b_hat) + 1e-8)])


def numbers(states):
    """Every state's velocity, moments and step counts."""
    return [(*(float(s[x][0]) for x in ("v", "a", "b")), s["na"], s["nb"]) for s in states]


def test_state_policies_by_hand():
    states = [
        {"v": np.array([x]), "a": np.array([2 * x]), "b": np.array([x * x]), "na": 4, "nb": 4}
        for x in (1.0, 3.0)
    ]
    assert oracle.states_after_average(states, "keep") == states
    averaged = oracle.states_after_average(states, "average")
    assert numbers(averaged) == [(2.0, 4.0, 5.0, 4, 4)] * 2
    reset = oracle.states_after_average(states, "reset")
    assert numbers(reset) == [(0.0, 0.0, 0.0, 0, 0)] * 2
    by_moment = numbers(oracle.states_after_average(states, "m=reset,v=average"))
    assert by_moment == [(2.0, 0.0, 5.0, 0, 4)] * 2
    assert numbers(oracle.states_after_average(states, "m=average"))[1] == (2.0, 4.0, 9.0, 4, 4)


# ----------------------------------------------------------------------- two learners, one weight,


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def slope_0(w):  # learner 0 owns the row x = 1, y = +1
    return -sigmoid(-w)


def slope_1(w):  # learner 1 owns the row x = 2, y = -1
    return 2 * sigmoid(2 * w)


TINY = Setup(np.array([[1.0], [2.0]]), np.array([1.0, -1.0]), 2)


def test_tiny_one_step():
    # from 0 the slopes are -1/2 and 1, so lr 1 leads to 1/2 and -1
    for run in (oracle.sync, oracle.oneshot):
        close(run(TINY, 1, constant(1.0))[0], [-0.25])
    close(oracle.kavg(TINY, 1, constant(1.0), 5)[0], [-0.25])
    close(oracle.sgd(TINY, 1, constant(1.0))[0], [-0.25])


def test_tiny_two_local_steps():
    a = 0.5 - slope_0(0.5)
    b = -1.0 - slope_1(-1.0)
    close(oracle.kavg(TINY, 2, constant(1.0), 2)[0], [(a + b) / 2])
    close(oracle.oneshot(TINY, 2, constant(1.0))[0], [(a + b) / 2])
    w = -0.25
    close(oracle.sync(TINY, 2, constant(1.0))[0], [w - (slope_0(w) + slope_1(w)) / 2])


def test_tiny_step_size_is_a_function_of_the_one_based_update():
    a = 0.5 * 0.5 - 0.25 * slope_0(0.25)
    b = -0.5 - 0.25 * slope_1(-0.5)
    close(oracle.kavg(TINY, 2, lambda t: {1: 0.5, 2: 0.25}[t], 2)[0], [(a + b) / 2])


def test_tiny_mavg():
    w1 = -0.25  # K = 1: d = v = -1/4
    d2 = -(slope_0(w1) + slope_1(w1)) / 2
    v2 = 0.5 * -0.25 + d2
    close(oracle.mavg(TINY, 2, constant(1.0), 1, 0.5)[0], [w1 + v2])
    w1 = -0.25 + 0.5 * -0.25
    d2 = -(slope_0(w1) + slope_1(w1)) / 2
    v2 = 0.5 * -0.25 + d2
    close(oracle.mavg(TINY, 2, constant(1.0), 1, 0.5, nesterov=True)[0], [w1 + 0.5 * v2 + d2])


def test_mavg_does_not_rescale_its_velocity_when_the_step_size_changes():
    # after a large first step, a step size of zero leaves v to decay: w~ = d (1 + mu + mu^2 + ...)
    w, _ = oracle.mavg(TINY, 4, lambda t: 1.0 if t == 1 else 0.0, 1, 0.5)
    close(w, [-0.25 * (1 + 0.5 + 0.25 + 0.125)])
    w, _ = oracle.mavg(
        TINY, 3, lambda t: 1.0 if t == 1 else 0.0, 2, 0.5
    )  # the partial period moves by mu v
    close(w, [-0.25 * 1.5])


def test_tiny_momentum_policies():
    s = TINY._replace(optimiser="momentum", m=0.5)
    g0, g1 = slope_0(-0.25), slope_1(-0.25)
    # K = 1, after the first average at -1/4 the velocities are -1/2 and 1
    close(oracle.kavg(s, 2, constant(1.0), 1)[0], [-0.25 - ((-0.25 + g0) + (0.5 + g1)) / 2])
    close(
        oracle.kavg(s._replace(policy="average"), 2, constant(1.0), 1)[0],
        [-0.25 - (0.125 + (g0 + g1) / 2)],
    )
    close(oracle.kavg(s._replace(policy="reset"), 2, constant(1.0), 1)[0], [-0.25 - (g0 + g1) / 2])


def test_tiny_adpsgd_variance():
    # p = 1: after each update S = lr^2 (g0 - g1)^2 / 4; the first is (1.5 lr)^2 / 4
    lr = 0.5
    _, _, trace = oracle.adpsgd(TINY, 2, constant(lr), 1, 2)
    w1 = -lr * 0.25
    S2 = (lr * (slope_0(w1) - slope_1(w1))) ** 2 / 4
    close([a.variance for a in trace], [lr**2 * 0.5625, S2])
    close([a.C2 for a in trace], [lr * 0.5625, (lr * 0.5625 + S2 / lr) / 2])


# ------------------------------------------------------------------------------------------ averagi


def test_averaging_steps_of_kavg_and_oneshot():
    s = problem()
    assert times(oracle.kavg(s, 10, decaying, 4)[1]) == [4, 8, 10]
    assert times(oracle.kavg(s, 8, decaying, 4)[1]) == [4, 8]
    assert times(oracle.kavg(s, 3, decaying, 4)[1]) == [3]
    assert times(oracle.oneshot(s, 9, decaying)[1]) == [9]
    assert times(oracle.sync(s, 3, decaying)[1]) == [1, 2, 3]
    assert oracle.sgd(s, 3, decaying)[1] == []
    assert times(oracle.mavg(s, 7, decaying, 3, 0.5)[1]) == [3, 6, 7]


def test_averaging_steps_of_adalupa_linear():
    # alpha = 0.5, tau_0 = 3: periods 3, 4.5 -> 5, 6, 7.5 -> 8
    assert times(oracle.adalupa_linear(problem(), 25, decaying, 3, 0.5)[1]) == [3, 8, 14, 22, 25]
    assert [oracle.linear_period(i, 91, 1.09) for i in range(4)] == [
        91,
        191,
        290,
        389,
    ]  # 91, 190.19, 289.38, 388.57


def test_linear_period_is_exact():
    assert oracle.linear_period(14, 10, 0.1) == 24
    assert math.ceil((1 + 14 * 0.1) * 10) == 25  # what floating point would give
    assert oracle.linear_period(5, 100, "0.02") == 110


def test_adalupa_loss_keeps_the_first_period_while_the_loss_is_no_lower():
    # each shard has a row for w > 0 and its opposite for w < 0: zero is the minimum and nothing
    # moves
    s = Setup(np.array([[1.0], [1.0]] * 2), np.array([1.0, -1.0] * 2), 2)
    assert times(oracle.adalupa_loss(s, 7, constant(1.0), 3)[1]) == [3, 6, 7]
    # a step size far too large: the first mean is at -0.25 * 40, where the loss is higher than at
    # zero
    assert oracle.objective(
        oracle.kavg(TINY, 1, constant(40.0), 1)[0], TINY.X, TINY.y, 0.0
    ) > math.log(2)
    assert times(oracle.adalupa_loss(TINY, 2, constant(40.0), 1)[1]) == [1, 2]


def test_adalupa_loss_measures_the_regularised_objective_over_all_the_rows():
    # from 0 with lr 1 the mean is at -1/4; the second period follows from F there
    for l2 in (0.0, 100.0):
        s = TINY._replace(l2=l2)
        F1 = (math.log(1 + math.exp(0.25)) + math.log(1 + math.exp(-0.5))) / 2 + l2 / 32
        factor = 2 if math.log(2) > F1 else 1
        assert factor == (2 if l2 == 0 else 1)
        assert times(oracle.adalupa_loss(s, 4, lambda t: 1.0 if t == 1 else 0.0, 1)[1])[:2] == [
            1,
            1 + factor,
        ]


@pytest.mark.parametrize(
    ("pieces", "T", "expected"),
    [
        ([(0, 4)], 10, [4, 8, 10]),
        ([(0, 3), (6, 2)], 11, [3, 6, 8, 10, 11]),
        (
            [(0, 2), (5, 4)],
            13,
            [2, 4, 8, 12, 13],
        ),  # update 5 is still of the first piece; 6 and 7 are too early
        (
            [(0, 5), (7, 2)],
            11,
            [5, 8, 10, 11],
        ),  # three updates are waiting when the period falls to two
        ([(0, 5), (8, 1)], 10, [5, 9, 10]),
        ([(0, 3), (3, 1), (5, 10)], 9, [3, 4, 5, 9]),
    ],
)
def test_averaging_steps_of_piecewise(pieces, T, expected):
    assert times(oracle.piecewise(problem(), T, decaying, pieces)[1]) == expected


def test_averaging_steps_of_hieravg():
    averages = oracle.hieravg(problem(), 13, decaying, 2, 5, 2)[1]
    expected = {
        2: "local",
        4: "local",
        5: "global",
        7: "local",
        9: "local",
        10: "global",
        12: "local",
        13: "global",
    }
    assert averages == list(expected.items())
    averages = oracle.hieravg(problem(), 9, decaying, 2, 4, 2)[1]
    assert averages == [(2, "local"), (4, "global"), (6, "local"), (8, "global"), (9, "global")]
    assert oracle.hieravg(problem(), 2, decaying, 2, 4, 2)[1] == [(2, "global")]


def test_averaging_steps_of_levels():
    _, averages, at = oracle.levels(problem(), 19, decaying, [(3, 2), (8, problem().P)])
    assert [t for t, _ in averages] == [3, 6, 8, 11, 14, 16, 19] and at == [1, 1, 2, 1, 1, 2, 2]
    assert averages == oracle.hieravg(problem(), 19, decaying, 3, 8, 2)[1]
    eight = problem()._replace(P=8)
    _, averages, at = oracle.levels(eight, 13, decaying, [(2, 2), (5, 4), (11, 8)])
    assert [t for t, _ in averages] == [2, 4, 5, 7, 9, 10, 11, 13] and at == [
        1,
        1,
        2,
        1,
        1,
        2,
        3,
        3,
    ]
    assert [scope for _, scope in averages] == ["local"] * 6 + ["global"] * 2


def test_levels_by_hand():
    # four learners with one row each, y = 1, x = 1, 2, 3, 4: from 0 with lr 1 the first step leads
    # to x / 2, and pairs, everyone, pairs, everyone average
    x = np.array([1.0, 2.0, 3.0, 4.0])
    s = Setup(x[:, None], np.ones(4), 4)
    w = np.array([0.75, 0.75, 1.75, 1.75])
    w = np.full(4, np.mean(w + x / (1 + np.exp(x * w))))
    w = np.repeat((w + x / (1 + np.exp(x * w))).reshape(2, 2).mean(axis=1), 2)
    w = np.mean(w + x / (1 + np.exp(x * w)))
    close(oracle.levels(s, 4, constant(1.0), [(1, 2), (2, 4)])[0], [w])


def test_hieravg_by_hand():
    # four learners with one row each, y = 1, x = 1, 2, 3, 4: from 0 with lr 1 the first step leads
    # to x / 2
    x = np.array([1.0, 2.0, 3.0, 4.0])
    s = Setup(x[:, None], np.ones(4), 4)
    w = np.array([0.75, 0.75, 1.75, 1.75])  # the clusters' means
    w = w + x / (1 + np.exp(x * w))
    close(oracle.hieravg(s, 2, constant(1.0), 1, 2, 2)[0], [np.mean(w)])


def test_hieravg_state_policies_by_hand():
    # as above with momentum: at the local average after the first step the velocities are -x / 2
    x = np.array([1.0, 2.0, 3.0, 4.0])
    w = np.array([0.75, 0.75, 1.75, 1.75])
    g = -x / (1 + np.exp(x * w))
    v = {"keep": -x / 2, "average": np.array([-0.75, -0.75, -1.75, -1.75]), "reset": np.zeros(4)}
    for policy in POLICIES:
        s = Setup(x[:, None], np.ones(4), 4, optimiser="momentum", m=0.5, policy=policy)
        close(oracle.hieravg(s, 2, constant(1.0), 1, 2, 2)[0], [np.mean(w - (0.5 * v[policy] + g))])
    # one more step: the mean over each cluster is not the mean over everyone
    s = s._replace(policy="average")
    v = 0.5 * v["average"] + g
    w = np.repeat((w - v).reshape(2, 2).mean(axis=1), 2)
    v = np.repeat(v.reshape(2, 2).mean(axis=1), 2)
    g = -x / (1 + np.exp(x * w))
    w, v = w - (0.5 * v + g), 0.5 * v + g
    w, v = np.repeat(w.reshape(2, 2).mean(axis=1), 2), np.repeat(v.reshape(2, 2).mean(axis=1), 2)
    w = w - (0.5 * v - x / (1 + np.exp(x * w)))
    close(oracle.hieravg(s, 4, constant(1.0), 1, 4, 2)[0], [np.mean(w)])


# --------------------------------------------------------------------------------------------------


def test_adpsgd_on_identical_shards_never_changes_its_period():
    one = problem(n=6)
    s = one._replace(X=np.tile(one.X, (4, 1)), y=np.tile(one.y, 4))
    w, averages, trace = oracle.adpsgd(s, 14, decaying, 3, 6)
    assert times(averages) == [3, 6, 9, 12, 14]
    assert all(a.variance == 0 for a in trace)
    assert [a.phase for a in trace] == ["sampling", "sampling", "control", "control", "final"]
    close(w, oracle.sgd(one, 14, decaying)[0])


def test_adpsgd_period_grows_when_the_step_size_falls():
    # S goes like the square of the step size, its target like the step size itself
    _, averages, trace = oracle.adpsgd(problem(), 40, lambda t: 0.2 if t <= 8 else 0.002, 4, 8)
    assert [(a.t, a.next_period) for a in trace][:5] == [(4, 4), (8, 4), (12, 5), (17, 6), (23, 7)]
    assert times(averages) == [4, 8, 12, 17, 23, 30, 38, 40]
    assert trace[-1].phase == "final" and trace[-1].next_period == trace[-2].next_period == 9


def test_adpsgd_period_falls_to_one_and_stays_there():
    _, averages, trace = oracle.adpsgd(problem(), 16, lambda t: 0.002 if t <= 6 else 0.2, 3, 6)
    assert times(averages) == [3, 6, 9, 11, 12, 13, 14, 15, 16]
    assert [a.next_period for a in trace] == [3, 3, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("ratio", "change"), [(0.69, 1), (0.71, 0), (1.0, 0), (1.29, 0), (1.31, -1)]
)
def test_adpsgd_thresholds(ratio, change):
    # steps this small leave the gradients as they were, so S goes like the square of the step size:
    # with one sample before the step size is multiplied by the ratio, S / (gamma C2) is the ratio
    trace = oracle.adpsgd(problem(), 4, lambda t: 1e-6 if t <= 2 else ratio * 1e-6, 2, 2)[2]
    assert [(a.t, a.phase, a.next_period) for a in trace] == [
        (2, "sampling", 2),
        (4, "control", 2 + change),
    ]


def test_adpsgd_sampling_boundary():
    def phases(K_s, **more):
        return [a.phase for a in oracle.adpsgd(problem(), 12, decaying, 4, K_s, **more)[2]]

    # k = t - 1 < K_s: the average at t = 4 is a sample for K_s = 4 but not for K_s = 3
    assert phases(4)[:2] == ["sampling", "control"]
    assert phases(3)[:2] == ["control", "control"]
    # with two warm-up updates, the first average of Algorithm 2 is at t = 6
    assert phases(6, warmup=2)[:4] == ["warmup", "warmup", "sampling", "control"]
    assert phases(5, warmup=2)[:4] == ["warmup", "warmup", "control", "control"]
    assert phases(4, warmup=2, k_from="warmup")[:4] == ["warmup", "warmup", "sampling", "control"]
    assert phases(3, warmup=2, k_from="warmup")[:4] == ["warmup", "warmup", "control", "control"]


# --------------------------------------------------------------------------------------------------


def test_quantise_by_hand():
    # ||g|| = 5 and 2 bits leave one level: 3/5 and 4/5 are rounded to 0 or 1
    g = np.array([3.0, -4.0])
    close(oracle.quantise(g, np.array([0.39, 0.19]), bits=2), [0.0, 0.0])
    close(oracle.quantise(g, np.array([0.41, 0.21]), bits=2), [5.0, -5.0])
    # 8 bits: 127 levels, 3/5 of which are 76.2 and 4/5 of which are 101.6
    close(oracle.quantise(g, np.array([0.79, 0.41])), [5 * 76 / 127, -5 * 102 / 127])
    close(oracle.quantise(g, np.array([0.81, 0.39])), [5 * 77 / 127, -5 * 101 / 127])


def test_quantise_buckets_and_zeros():
    u = np.full(5, 0.999999)
    close(oracle.quantise(np.zeros(5), u, bucket=2), np.zeros(5))
    # buckets (2, 0), (0, 0), (-7): each has its own norm, and a lone entry is exact
    close(
        oracle.quantise(np.array([2.0, 0.0, 0.0, 0.0, -7.0]), u, bucket=2),
        [2.0, 0.0, 0.0, 0.0, -7.0],
    )


def test_quantise_has_no_level_above_the_highest():
    # in float64, 127 plus the largest number below 1 is 128
    close(oracle.quantise(np.array([7.0]), np.array([np.nextafter(1, 0)])), [7.0])


def test_qsgd_by_hand_on_one_weight():
    # a single weight is always exact: its norm is itself, whatever the random numbers
    close(
        oracle.qsgd(TINY, 9, decaying, lambda t, j: np.array([0.73]), lambda t: np.array([0.2]))[0],
        oracle.sync(TINY, 9, decaying)[0],
    )


def test_qsgd_first_step_by_hand():
    s = problem(P=2, l2=0.0)
    u = {(1, 0): np.linspace(0, 0.9, 5), (1, 1): np.linspace(0.9, 0, 5)}
    decoded = []
    for j, rows in enumerate((slice(0, 18), slice(18, 37))):
        g = -(s.y[rows] @ s.X[rows]) / (2 * len(s.y[rows]))
        norm = math.sqrt(sum(x * x for x in g))
        levels = [
            math.copysign(math.floor(abs(g[i]) / norm * 127 + u[1, j][i]), g[i]) for i in range(5)
        ]
        decoded.append([norm * level / 127 for level in levels])
    again = np.linspace(0.3, 0.7, 5)
    w, averages = oracle.qsgd(s, 1, constant(0.5), lambda t, j: u[t, j], lambda t: again)
    mean = (np.array(decoded[0]) + np.array(decoded[1])) / 2
    norm = math.sqrt(sum(x * x for x in mean))
    levels = [
        math.copysign(math.floor(abs(x) / norm * 127 + a), x)
        for x, a in zip(mean, again, strict=True)
    ]
    close(w, [-0.5 * norm * level / 127 for level in levels])
    assert averages == [(1, "global")]
