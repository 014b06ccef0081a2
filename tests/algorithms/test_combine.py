"""What an average does to the weights: the plain mean, and the outer optimisers."""

import numpy as np
import oracles as oracle
import pytest

from localavg.algorithms.base import Due, Mean
from localavg.algorithms.common import average, effective
from localavg.algorithms.outer import RULES, Momentum, Nesterov
from localavg.errors import UserError
from localavg.scope import Scope

S = 2  # learners in a cluster
MU = 0.5


class Together:
    """Stands in for a transport whose one rank holds everyone."""

    def common(self, shape):
        return np.zeros(shape, np.float32)

    def mean_(self, w, scope, variance=False, step=None):
        size = S if scope is Scope.CLUSTER else len(w)
        means = w.reshape(-1, size, w.shape[1]).mean(axis=1)  # [clusters, d]
        spread = float(((w - np.repeat(means, size, axis=0)) ** 2).sum()) / len(w)
        w[...] = np.repeat(means, size, axis=0)
        for columns in (slice(0, 4), slice(4, None)) if step else ():
            w[:, columns] = step(means[0, columns], columns)
        return spread if variance else np.nan


def weights(k=1, P=4, d=6):
    """[P, d], others for every k."""
    return np.random.default_rng(k).integers(-8, 8, (P, d)).astype(np.float32)


def started(combine, d_trained=6):
    combine.start(np.tile(weights(0)[:1], (4, 1)), d_trained, Together())
    return combine


def block_steps(means, nesterov):
    """w̃ after each of some global averages, from the learners' means a (mavg Alg. 1)."""
    w_tilde, v, found = weights(0)[0].astype(float), np.zeros(len(means[0])), []
    for a in means:
        d = a - w_tilde
        v = MU * v + d
        w_tilde = w_tilde + (MU * v + d if nesterov else v)
        found.append(w_tilde)
    return found


def test_a_mean_is_the_mean_over_its_scope():
    for scope, size in ((Scope.WORLD, 4), (Scope.CLUSTER, S)):
        w = weights()
        started(Mean()).average_(w, Due(scope), Together())
        expected = np.repeat(weights().reshape(-1, size, 6).mean(axis=1), size, axis=0)
        np.testing.assert_allclose(w, expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_block_momentum_at_global_averages(nesterov):
    combine = started((Nesterov if nesterov else Momentum)(1, MU))
    expected = block_steps([weights(k).mean(axis=0) for k in (1, 2, 3)], nesterov)
    for k in (1, 2, 3):
        w = weights(k)
        combine.average_(w, Due(Scope.WORLD), Together())
        np.testing.assert_allclose(w, np.tile(expected[k - 1], (4, 1)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_averages_of_clusters_are_plain_means_and_no_block_step(nesterov):
    combine = started((Nesterov if nesterov else Momentum)(1, MU))
    expected = block_steps([weights(k).mean(axis=0) for k in (1, 3)], nesterov)
    for k, scope in ((1, Scope.WORLD), (2, Scope.CLUSTER), (3, Scope.WORLD)):
        w = weights(k)
        combine.average_(w, Due(scope), Together())
        if scope is Scope.CLUSTER:
            pairs = weights(k).reshape(2, 2, 6).mean(axis=1)
            np.testing.assert_allclose(w, np.repeat(pairs, 2, axis=0))
        else:
            np.testing.assert_allclose(w, np.tile(expected[k // 2], (4, 1)))


def test_statistics_take_the_plain_mean():
    combine = started(Momentum(1, MU), d_trained=4)
    for k in (1, 2):
        w = weights(k)
        combine.average_(w, Due(Scope.WORLD), Together())
        np.testing.assert_allclose(w[:, 4:], np.tile(weights(k).mean(axis=0)[4:], (4, 1)))


def test_the_variance_is_that_of_the_plain_mean():
    w = weights()
    spread = started(Momentum(1, MU)).average_(w, Due(Scope.WORLD, variance=True), Together())
    assert spread == pytest.approx(((weights() - weights().mean(axis=0)) ** 2).sum() / 4)


@pytest.mark.parametrize("rule", RULES)
def test_outer_steps_are_those_of_the_sources(rule):
    combine = started(RULES[rule](0.3, 0.6), d_trained=5)
    server = oracle.OuterState(rule, 0.3, 0.6, weights(0)[0, :5].astype(float))
    for k, gamma in ((1, 0.5), (2, 0.5), (3, 0.1), (4, 0.2)):
        w = weights(k)
        combine.average_(w, Due(Scope.WORLD, gamma=gamma), Together())
        expected = server.step(list(weights(k)[:, :5].astype(float)), gamma)
        np.testing.assert_allclose(w[:, :5], np.tile(expected, (4, 1)), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(w[:, 5], weights(k)[:, 5].mean())


def test_yogi_leaves_the_second_moment_where_it_equals_the_square():
    combine = started(RULES["yogi"](0.3, 0.6))
    combine.state[2] = 4
    combine.average_(weights(0)[:1].repeat(4, 0) + np.float32(2), Due(Scope.WORLD), Together())
    assert (combine.state[2] == 4).all()


def test_defaults_are_those_of_the_sources():
    """And what is given alone, or is the plain mean."""
    assert {rule: effective(rule, None, None)[1:] for rule in RULES} == {
        "momentum": (1, 0.9),
        "nesterov": (0.7, 0.9),
        "adam": (0.01, 0.9),
        "yogi": (0.01, 0.9),
        "slowmo": (1, 0.5),
    }
    assert effective(None, None, 0.3) == ("momentum", 1, 0.3)
    assert effective(None, None, 0.0) == effective("none", None, None) == (None, None, None)
    assert type(average("momentum", None, 0.0)) is Mean
    assert type(average("nesterov", None, 0.0)) is Nesterov  # η = 0.7


@pytest.mark.parametrize("gamma", [0.0, np.nan])
def test_slowmo_needs_a_step_size(gamma):
    combine = started(RULES["slowmo"]())
    with pytest.raises(UserError, match="step size"):
        combine.average_(weights(1), Due(Scope.WORLD, gamma=gamma), Together())
