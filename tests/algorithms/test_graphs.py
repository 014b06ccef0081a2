"""The graphs of gossip: their matrices against closed forms and the papers' numbers."""

import math
from itertools import combinations

import numpy as np
import oracles as oracle
import pytest

from localavg.algorithms import graphs, matchings
from localavg.algorithms.base import Due
from localavg.algorithms.gossip import gossip
from localavg.algorithms.graphs import GRAPHS, Push, gap, rho
from localavg.algorithms.matchings import Matchings, contraction, laplacian
from localavg.errors import UserError
from localavg.scope import Scope

SIZES = [1, *range(2, 18)]
COMPOSITE = [P for P in SIZES if P == 1 or any(P % a == 0 for a in range(2, P))]


def of(name, P):
    """Each W of a graph; of matchings some draws."""
    if name == "matching":
        return [Matchings(P, 0)(k) for k in range(8)]
    return [GRAPHS[name](P)(k) for k in range(6)]


@pytest.mark.parametrize("name", [*GRAPHS, "matching"])
def test_every_matrix_is_doubly_stochastic_in_float32_too(name):
    """To the last bit, so that no model grows by gossip."""
    for P in COMPOSITE if name == "torus" else SIZES:
        for W in of(name, P):
            assert W.shape == (P, P) and np.array_equal(W.astype(np.float32), W)
            assert (W >= 0).all() or name == "matching"  # 1 − α · degree can be below 0
            assert (W.sum(axis=0) == 1).all() and (W.sum(axis=1) == 1).all(), (name, P)


def test_the_matrices_are_the_oracles():
    for P in SIZES[1:]:
        np.testing.assert_allclose(GRAPHS["ring"](P)(0), oracle.ring(P), atol=1e-7)
        np.testing.assert_allclose(GRAPHS["exp"](P)(0), oracle.exponential(P), atol=1e-7)
        for k in range(7):
            np.testing.assert_array_equal(GRAPHS["one-peer-exp"](P)(k), oracle.one_peer(P, k))
    for rows, columns in ((2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4), (3, 5)):
        expected = oracle.torus(rows, columns)
        np.testing.assert_allclose(GRAPHS["torus"](rows * columns)(0), expected, atol=1e-7)
        neighbours = 4 - (rows == 2) - (columns == 2)
        assert np.allclose(np.diag(expected), 1 / (1 + neighbours))


def test_spectral_gaps_have_their_closed_forms():
    for P in range(4, 18):  # eigenvalues 1/3 + 2/3 cos 2πk/P, k = 0, …, P − 1
        λ = max(abs(1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / P)) for k in (1, P // 2))
        assert gap(GRAPHS["ring"](P)(0)) == pytest.approx(1 - λ, abs=1e-6)
    for P in (4, 8, 16):  # eigenvalues (1 + Σ_i ω^(2^i)) / (L + 1), the largest is 1 − 2/(L + 1)
        assert gap(GRAPHS["exp"](P)(0)) == pytest.approx(2 / (1 + math.log2(P)), abs=1e-6)
    assert gap(np.full((5, 5), 0.2)) == pytest.approx(1) and rho(np.full((5, 5), 0.2)) < 1e-12
    # a torus is the sum of two rings: λ = (1 + 2 cos a + 2 cos b) / 5
    assert gap(GRAPHS["torus"](16)(0)) == pytest.approx(1 - 3 / 5, abs=1e-6)
    assert gap(GRAPHS["torus"](9)(0)) == pytest.approx(1 - 2 / 5, abs=1e-6)


@pytest.mark.parametrize("L", [1, 2, 3, 4])
def test_one_peer_graphs_give_the_exact_mean_after_L_gossips_and_nothing_before(L):
    P = 1 << L
    graph, product = GRAPHS["one-peer-exp"](P), np.eye(P)
    for k in range(L):
        assert not np.allclose(product, 1 / P)
        product = graph(k) @ product
    assert np.array_equal(product, np.full((P, P), 1 / P))
    assert np.array_equal(graph(L), graph(0))  # and so on
    other = GRAPHS["one-peer-exp"](6)
    assert not np.allclose(other(2) @ other(1) @ other(0), 1 / 6)


@pytest.mark.parametrize("P", [P for P in SIZES if P > 1])
@pytest.mark.parametrize("base", matchings.BASES)
def test_a_base_graph_is_cut_into_matchings(base, P):
    """No two edges of a matching meet; together they are the graph, each edge once."""
    if base == "torus" and P not in COMPOSITE:
        return
    parts = matchings.cut(base, P)
    for part in parts:
        ends = [j for edge in part for j in edge]
        assert part and len(ends) == len(set(ends))
    edges = sorted(tuple(sorted(edge)) for part in parts for edge in part)
    if base == "complete":
        wanted = list(combinations(range(P), 2))
    else:
        W = (GRAPHS[base](P)(0) != 0) & ~np.eye(P, dtype=bool)
        wanted = sorted((int(i), int(j)) for i, j in zip(*np.nonzero(W), strict=True) if i < j)
    assert edges == wanted
    degree = 2 * len(edges) / P
    assert len(parts) <= degree + (2 if base == "torus" else 1)


def test_matcha_has_the_papers_numbers():
    """On a ring of 8: half of the links, and all of them."""
    half, whole = Matchings(8, 0), Matchings(8, 0, budget=1.0)
    assert np.allclose(half.p, 0.5) and np.allclose(whole.p, 1)
    assert half.alpha == pytest.approx(0.61, abs=0.005)
    assert contraction(half.Ls, half.p, half.alpha) == pytest.approx(0.784, abs=5e-4)
    assert whole.alpha == pytest.approx(0.436, abs=5e-4)
    assert contraction(whole.Ls, whole.p, whole.alpha) == pytest.approx(0.554, abs=5e-4)


@pytest.mark.parametrize(("base", "P"), [("ring", 7), ("ring", 15), ("torus", 6), ("torus", 14)])
def test_optimal_probabilities_beat_equal_ones_and_keep_the_budget(base, P):
    def connected(m):
        return np.linalg.eigvalsh(np.tensordot(m.p, m.Ls, 1))[1]  # λ₂

    for budget in (0.2, 0.5, 0.9):
        best = Matchings(P, 0, base, budget)
        assert best.p.sum() <= len(best.p) * budget + 0.002
        assert best.p.min() >= 0 and best.p.max() <= 1
        equal = Matchings(P, 0, base, budget, "equal")
        assert np.allclose(equal.p, budget) and connected(best) > 1.002 * connected(equal)
        draw = np.random.default_rng(0)
        for _ in range(100):  # no other p is better
            p = np.clip(best.p + 0.05 * draw.normal(size=len(best.p)), 0, 1)
            p *= min(1, len(p) * budget / p.sum())
            other = np.linalg.eigvalsh(np.tensordot(p, best.Ls, 1))[1]
            assert other < connected(best) * 1.002


@pytest.mark.parametrize("budget", [1e-9, 1e-300, 4e-4])
def test_links_that_connect_nobody_are_refused(budget):
    with pytest.raises(UserError, match=f"`budget = {budget}`: so few links gossip"):
        Matchings(6, 0, budget=budget)
    if budget < 1e-8:
        with pytest.raises(UserError, match=f"`budget = {budget}`"):
            Matchings(6, 0, budget=budget, probabilities="equal")
    Matchings(6, 0, budget=0.01)
    Matchings(64, 0, budget=1e-5, probabilities="equal")


def test_matchings_are_on_as_often_as_they_should():
    """Over many gossips and seeds the mean of W is I − αL̄, and of WᵀW what α minimises."""
    m = Matchings(7, 3, budget=0.4)
    others = [Matchings(7, seed, budget=0.4) for seed in range(8)]
    draws = [other(k) for other in others for k in range(500)]
    mean = np.eye(7) - m.alpha * np.tensordot(m.p, m.Ls, 1)
    assert abs(np.mean(draws, axis=0) - mean).max() < 0.02
    second = np.mean([W.T @ W for W in draws], axis=0)
    assert np.linalg.norm(second - 1 / 7, 2) == pytest.approx(
        contraction(m.Ls, m.p, m.alpha), abs=0.02
    )
    assert len({W.tobytes() for W in draws}) == 2 ** len(m.p)
    assert np.array_equal(m(5), Matchings(7, 3, budget=0.4)(5))
    for worse in (m.alpha - 0.02, m.alpha + 0.02):
        assert contraction(m.Ls, m.p, worse) > contraction(m.Ls, m.p, m.alpha)


def test_push_sends_a_half_to_somebody_else():
    for P in SIZES:
        graph = Push(P, 1)
        heard = np.zeros((P, P))
        for k in range(60):
            W = graph(k)
            assert (W.sum(axis=0) == 1).all() and set(np.unique(W)) <= {0, 0.5, 1}
            assert (np.diag(W) == (0.5 if P > 1 else 1)).all()
            heard += W
        assert P > 9 or (heard > 0).all()
        assert P < 3 or not (W.sum(axis=1) == 1).all() or not (graph(3).sum(axis=1) == 1).all()


class Alone:
    """Stands in for a transport whose one rank holds everyone."""

    def mean_(self, w, scope, variance=False, step=None):
        w[...] = w.mean(axis=0)
        return np.nan

    def mix_(self, w, W):
        w[...] = W @ w

    def variance(self, w):
        return float(((w - w.mean(axis=0)) ** 2).sum() / len(w))


def started(P=6, d=4, trained=3, seed=2, **options):
    average = gossip(**options).average
    average.lay_out(range(P), P, seed)
    w = np.random.default_rng(0).normal(size=(P, d))
    average.start(w, trained, Alone())
    return average, w


def test_push_sum_conserves_both_sums_and_finds_the_mean_of_everyone():
    average, w = started(graph="push", K=3)
    mean = w.mean(axis=0)
    for t in range(3, 150, 3):
        average.average_(w, Due(Scope.NEIGHBOURS, t=t), Alone())
        np.testing.assert_allclose(w.mean(axis=0), mean)
        assert average.s.sum() == pytest.approx(6)
    assert abs(w - mean).max() > 0.01  # x does not
    np.testing.assert_allclose(w / average.s[:, None], np.tile(mean, (6, 1)), rtol=1e-5)
    average.average_(w, Due(Scope.WORLD), Alone())
    np.testing.assert_allclose(w, np.tile(mean, (6, 1)))
    assert (average.s == 1).all()


def test_gradients_of_push_sum_are_those_at_z_and_leave_x():
    average, w = started(graph="push")
    average.s = np.array([0.5, 2, 1, 4, 0.25, 1])
    x, seen = w.copy(), []
    losses = average.gradients_at(lambda w, t, out: seen.append(w.copy()) or [t])(w, 7, out=None)
    np.testing.assert_allclose(seen[0], x / average.s[:, None])
    assert losses == [7] and np.array_equal(w, x)


def test_state_is_mixed_to_a_mean_also_where_rows_do_not_sum_to_1():
    average, _ = started(graph="push")
    s = np.ones((6, 2))
    average.average_state_(s, Scope.NEIGHBOURS, Alone(), t=1)
    np.testing.assert_allclose(s, 1)
    assert not np.allclose(average.matrix(1).sum(axis=1), 1)
    average.average_state_(s := np.arange(6.0)[:, None], Scope.WORLD, Alone(), t=1)
    np.testing.assert_allclose(s, 2.5)


def test_s_is_the_distance_before_the_mix_without_statistics():
    average, w = started()
    before = ((w - w.mean(axis=0))[:, :3] ** 2).sum() / 6
    S = average.average_(w, Due(Scope.NEIGHBOURS, variance=True, t=1), Alone())
    assert S == pytest.approx(before)
    assert math.isnan(average.average_(w, Due(Scope.NEIGHBOURS, t=2), Alone()))


def test_the_kth_gossip_takes_the_kth_matrix():
    average, _ = started(P=8, graph="one-peer-exp", K=5, switch=12)
    for k in range(7):
        assert np.array_equal(average.matrix(12 + 5 * (k + 1)), oracle.one_peer(8, k))


@pytest.mark.parametrize("P", [2, 3, 5, 7, 13])
def test_a_torus_of_a_prime_is_refused(P):
    for make in (lambda: GRAPHS["torus"](P), lambda: Matchings(P, 0, "torus")):
        with pytest.raises(UserError, match=f"`graph = torus` with {P} learners"):
            make()


def test_a_schedule_says_neighbours():
    schedule = gossip(K=3).schedule
    assert [t for t in range(1, 10) if schedule.after(t) is Scope.NEIGHBOURS] == [3, 6, 9]
    assert all(schedule.after(t) in (Scope.NONE, Scope.NEIGHBOURS) for t in range(1, 10))
    assert schedule.final is Scope.WORLD


def test_laplacians_and_weights_are_on_the_grid_of_float32():
    assert np.array_equal(laplacian([(0, 2)], 3), [[1, 0, -1], [0, 0, 0], [-1, 0, 1]])
    W = graphs.exact(np.full((3, 3), 1 / 3))
    assert W.astype(np.float32).sum(axis=0).tolist() == [1, 1, 1]
    assert W[0, 0] == 1 - 2 * W[0, 1] != W[0, 1]
