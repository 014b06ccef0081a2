"""The theory against the papers: hand arithmetic in exact fractions, brute force, and the theorems
as properties.
"""

import itertools
import math
from fractions import Fraction as Q

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from localavg import theory
from localavg.errors import UserError

F1, L, M, GAMMA, B, P, DELTA = Q(2), Q(3), Q(5), Q(1, 100), 4, 8, Q(1, 2)


def for_all(*strategies):
    """A property over 50 draws of admissible constants, without a time limit on the single one."""
    return lambda test: settings(deadline=None, max_examples=50)(given(*strategies)(test))


def close(value, exact, rel=1e-12):
    return value == pytest.approx(float(exact), rel=rel)


def floats(**symbols):
    return {name: float(x) for name, x in symbols.items()}


positive = st.fractions(min_value=Q(1, 1000), max_value=1000, max_denominator=1000)
step = st.fractions(min_value=Q(1, 10000), max_value=1, max_denominator=10000)
fraction = st.fractions(min_value=Q(1, 100), max_value=Q(99, 100), max_denominator=100)
momentum = st.fractions(min_value=0, max_value=Q(95, 100), max_denominator=100)
problem = st.fixed_dictionaries(
    {
        "F1_minus_Fstar": positive,
        "L": positive,
        "M": positive,
        "B": st.integers(1, 256),
        "P": st.integers(1, 128),
        "delta": fraction,
    }
)


# Conditions
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "lhs", "holds", "margin"),
    [
        (">=", 2.0, True, 0.0),
        (">", 2.0, False, 0.0),
        ("=", 2.0, True, 0.0),
        (">=", 1.5, False, -0.5),
        (">", 2.5, True, 0.5),
        ("=", 2.5, False, -0.5),
        ("=", 1.5, False, -0.5),
    ],
)
def test_condition_says_whether_it_holds_and_by_how_much(relation, lhs, holds, margin):
    condition = theory.Condition("name", lhs, 2.0, relation)
    assert condition.holds == holds and condition.margin == margin


def test_condition_broadcasts():
    first, second = theory.kavg_conditions(L=1.0, gamma=[[0.1], [0.25]], K=[1, 4, 16], delta=0.5)
    assert first.holds.shape == (2, 3) and first.holds.tolist() == [
        [True, True, False],
        [True, False, False],
    ]
    assert second.margin.shape == (2, 1)


# K-AVG
# --------------------------------------------------------------------------------------------------


def kavg_bound_by_hand(F1, L, M, gamma, B, P, K, N, delta):
    distance = 2 * F1 / (N * (K - 1 + delta) * gamma)
    return distance + L * K * gamma * M / (B * (K - 1 + delta)) * (
        Q(K, P) + L * (2 * K - 1) * (K - 1) * gamma / 6
    )


def test_kavg_bound_by_hand():
    # K = 3, N = 7: 4/(7 · 2.5 · 0.01) + (3 · 3 · 0.01 · 5)/(4 · 2.5) · (3/8 + 3 · 5 · 2 · 0.01/6)
    assert close(
        Q(4) / (7 * Q(5, 2) / 100) + Q(45, 1000) * (Q(3, 8) + Q(1, 20)),
        kavg_bound_by_hand(F1, L, M, GAMMA, B, P, 3, 7, DELTA),
    )
    value = theory.kavg_bound(F1_minus_Fstar=2, L=3, M=5, gamma=0.01, B=4, P=8, K=3, N=7, delta=0.5)
    assert close(value, 22.876267857142857)
    values = theory.kavg_bound(
        F1_minus_Fstar=2, L=3, M=5, gamma=0.01, B=4, P=[[4], [8]], K=[1, 3, 9], N=7, delta=0.5
    )
    assert values.shape == (2, 3)
    for (i, p), (j, k) in itertools.product(enumerate((4, 8)), enumerate((1, 3, 9))):
        assert close(values[i, j], kavg_bound_by_hand(F1, L, M, GAMMA, B, p, k, 7, DELTA))


def test_kavg_conditions_by_hand():
    first, second = theory.kavg_conditions(L=3, gamma=0.1, K=4, delta=0.5)
    assert first.lhs == 1 and close(first.rhs, Q(9, 100) * 5 * 2 / 2 + Q(12, 10))  # 1.65
    assert not first.holds and close(first.margin, -0.65)
    assert second.lhs == 0.5 and close(second.rhs, 0.09) and second.holds
    assert theory.kavg_conditions(L=3, gamma=0.1, K=2, delta=0.5)[0].margin == pytest.approx(0.4)
    assert not theory.kavg_conditions(L=3, gamma=0.1, K=2, delta=0.92)[1].holds


def kavg_B(F1, L, M, gamma, B, P, S, delta, K):
    """(3.44)."""
    alpha, beta, eta = 2 * F1 / (S * gamma), L * gamma * M / (P * B), L**2 * gamma**2 * M / (6 * B)
    return (alpha + beta * K + eta * (2 * K - 1) * (K - 1)) * K / (K - 1 + delta)


def kavg_B_of(c, gamma, S, K):
    return kavg_B(c["F1_minus_Fstar"], c["L"], c["M"], gamma, c["B"], c["P"], S, c["delta"], K)


def balance(c, K, S, step):
    """F1 − F* such that an optimum near K balances distance and drift: most random problems end at
    K = 1 or K = S.
    """
    noise = c.get("sigma2", c["M"])
    return c | {
        "F1_minus_Fstar": c["F1_minus_Fstar"] * c["L"] ** 2 * step**3 * noise * S * K**2 / c["B"]
    }


def around_the_tie(bound, K):
    """F1 − F* a little below and above where K and K + 1 give the same bound, which is linear in F1
    − F*.
    """
    (here, rise), (there, slower) = (
        (bound(Q(0), k), bound(Q(1), k) - bound(Q(0), k)) for k in (K, K + 1)
    )
    F1 = (there - here) / (rise - slower)
    assert F1 > 0
    return [float(F1 * (1 + shift)) for shift in (-Q(1, 10**9), Q(1, 10**9))]


balanced = {
    "F1_minus_Fstar": st.fractions(min_value=Q(1, 10), max_value=2, max_denominator=10),
    "L": st.fractions(min_value=Q(1, 2), max_value=2, max_denominator=10),
    "M": st.fractions(min_value=Q(1, 2), max_value=4, max_denominator=10),
    "B": st.integers(1, 8),
    "P": st.integers(1, 64),
    "delta": fraction,
}


@for_all(
    st.fixed_dictionaries(balanced),
    st.sampled_from([Q(1, 5), Q(1, 20), Q(1, 100)]),
    st.integers(1, 40),
    st.integers(40, 80),
)
def test_kavg_K_opt_is_the_brute_force_minimum(c, gamma, K, S):
    c = balance(c, K, S, gamma)
    K_opt = theory.kavg_K_opt(**floats(**c, gamma=gamma), S_total=S)
    values = [kavg_B_of(c, gamma, S, K) for K in range(1, S + 1)]
    assert 1 <= K_opt <= S
    assert values[K_opt - 1] <= min(values) * (1 + Q(1, 10**12))


@for_all(
    st.fixed_dictionaries(balanced),
    st.sampled_from([Q(1, 5), Q(1, 20), Q(1, 100)]),
    st.integers(2, 10**6),
)
def test_kavg_K_above_1_is_necessary_and_sufficient(c, gamma, S):
    c = balance(c, 1, S, gamma)
    first, second = (kavg_B_of(c, gamma, S, K) for K in (1, 2))
    assume(abs(second - first) > first / 10**10)
    condition = theory.kavg_K_above_1(**floats(**c, gamma=gamma), S_total=S)
    assert (
        condition.holds
        == (second < first)
        == (theory.kavg_K_opt(**floats(**c, gamma=gamma), S_total=S) > 1)
    )


@pytest.mark.parametrize("delta", [Q(2, 5), Q(7, 10)])
@pytest.mark.parametrize("K", [1, 2, 3, 10, 60])
def test_kavg_K_opt_turns_where_two_bounds_tie(K, delta):
    F1 = around_the_tie(lambda F1, k: kavg_B(F1, Q(3), Q(5), Q(1, 50), 4, 8, 1000, delta, k), K)
    symbols = {
        "L": 3,
        "M": 5,
        "gamma": 0.02,
        "B": 4,
        "P": 8,
        "S_total": 1000,
        "delta": float(delta),
    }
    assert theory.kavg_K_opt(F1_minus_Fstar=F1, **symbols).tolist() == [K, K + 1]
    assert theory.kavg_K_above_1(F1_minus_Fstar=F1, **symbols).holds.tolist() == [K > 1, True]


def test_kavg_K_opt_vectorised_and_at_scale():
    symbols = {"F1_minus_Fstar": 2.0, "L": 1.0, "M": 5.0, "gamma": 0.05, "B": 16, "delta": 0.5}
    grid = theory.kavg_K_opt(**symbols, P=[[8], [128]], S_total=[100, 1000, 10000])
    assert grid.shape == (2, 3) and grid.dtype == np.int64
    one_by_one = [
        [theory.kavg_K_opt(**symbols, P=p, S_total=s) for s in (100, 1000, 10000)] for p in (8, 128)
    ]
    assert grid.tolist() == one_by_one
    assert len(set(grid.ravel().tolist())) > 3
    # without noise fewer averages are always better, so K_opt is S itself, however close B(K+1) and
    # B(K) are
    assert theory.kavg_K_opt(**symbols | {"M": 0}, P=8, S_total=10**12) == 10**12
    assert (
        theory.kavg_K_opt(**symbols | {"M": 0}, P=8, S_total=10**18) == 2**53
    )  # where floats stop counting by ones
    assert theory.kavg_K_opt(**symbols | {"F1_minus_Fstar": 0, "delta": 0.9}, P=8, S_total=100) == 1


def test_kavg_K_opt_takes_the_smaller_of_two():
    # δ = 1/2, β = 0, η = 1/4, α = 3/2: B(1) = 3/2 · 2 = B(2) = (3/2 + 3/4) · 4/3
    symbols = {
        "F1_minus_Fstar": 1.5,
        "L": 1,
        "M": 6,
        "gamma": 0.5,
        "B": 1,
        "P": math.inf,
        "S_total": 4,
        "delta": 0.5,
    }
    assert theory.kavg_K_opt(**symbols) == 1
    condition = theory.kavg_K_above_1(**symbols)
    assert condition.margin == 0 and not condition.holds


def test_printed_3_42_is_not_the_condition():
    """Constants for which (3.42) as printed, with L²γ²M/(3B), says K_opt > 1, and B(1) < B(2) all
    the same.
    """
    S, gamma, delta, P = 100, Q(1, 10), Q(1, 3), 1000  # 3δ − 1 = 0: only the printed term matters
    L, M, B = Q(1), Q(1), 1
    F1 = Q(4, 10) * gamma**2 * S * gamma / 2  # between (1/3) and (1/2) of L²γ²M/B times Sγδ/(1 − δ)
    assert (1 - delta) * F1 / (S * gamma * delta) > L**2 * gamma**2 * M / (3 * B)
    assert kavg_B(F1, L, M, gamma, B, P, S, delta, 1) < kavg_B(F1, L, M, gamma, B, P, S, delta, 2)
    f = floats(F1_minus_Fstar=F1, L=L, M=M, gamma=gamma, delta=delta)
    condition = theory.kavg_K_above_1(**f, B=B, P=P, S_total=S)
    assert not condition.holds
    assert close(condition.lhs, Q(4, 1000)) and close(condition.rhs, Q(5, 1000))


def test_kavg_step_by_hand():
    value = theory.kavg_step(F1_minus_Fstar=2, L=3, M=5, B=4, P=8, K=3, N=7)
    assert close(value, math.sqrt(2 * 4 * 8 / (3 * 5 * 9 * 7)))
    with pytest.raises(UserError, match="M = 0"):
        theory.kavg_step(F1_minus_Fstar=2, L=3, M=0, B=4, P=8, K=3, N=7)


def test_kavg_N_conditions_by_hand():
    printed, needed = theory.kavg_N_conditions(F1_minus_Fstar=2, L=3, M=5, B=4, P=[2, 8], K=4, N=7)
    assert printed.lhs == needed.lhs == 35
    assert printed.rhs.tolist() == [48, 192 * 4]  # (F1−F*)LBP = 48, 192; max(P²/K², 1) = 1, 4
    assert needed.rhs.tolist() == pytest.approx([48 * (2 * 21 / 96) ** 2, 192 * (8 * 21 / 96) ** 2])


@for_all(problem, st.integers(1, 64), st.integers(1, 10**9))
def test_corollary_3_1_needs_the_second_condition(c, K, N):
    """Bound (3.2) at the step (3.23) is below (3.25) exactly when K/P dominates; (3.24) ensures it
    for K ≤ 4.
    """
    f = floats(**c)
    delta = f.pop("delta")
    printed, needed = theory.kavg_N_conditions(**f, K=K, N=N)
    assume(abs(needed.margin) > 1e-6 * needed.lhs)
    bound = theory.kavg_bound(**f, gamma=theory.kavg_step(**f, K=K, N=N), K=K, N=N, delta=delta)
    rate = (
        4
        * K
        / (K - 1 + delta)
        * math.sqrt(f["F1_minus_Fstar"] * f["L"] * f["M"] / (f["B"] * f["P"] * N))
    )
    assert (bound <= rate) == needed.holds
    if printed.holds and K <= 4:
        assert needed.holds


@for_all(problem, st.integers(1, 64))
def test_corollary_3_1_and_condition_3_1(c, K):
    """At the least N of (3.24), the first of (3.1) holds if K ≤ 2 or P ≥ 1.37 K."""
    f = floats(**c)
    delta = f.pop("delta")
    assume(K <= 2 or f["P"] >= 1.37 * K)
    N = (
        f["F1_minus_Fstar"]
        * f["L"]
        * f["B"]
        * f["P"]
        / f["M"]
        * max((f["P"] / K) ** 2, 1)
        * (1 + 1e-9)
    )
    gamma = theory.kavg_step(**f, K=K, N=N)
    assert theory.kavg_conditions(L=f["L"], gamma=gamma, K=K, delta=delta)[0].holds


def test_corollary_3_1_as_printed_fails():
    symbols = {"F1_minus_Fstar": 1, "L": 1, "M": 1, "B": 1, "P": 8, "K": 8}
    N = 8.001  # (3.24): N ≥ 1 · max(1, 1) · 8
    printed, needed = theory.kavg_N_conditions(**symbols, N=N)
    assert printed.holds and printed.rhs == 8 and not needed.holds
    assert close(needed.rhs, 8 * Q(8 * 15 * 7, 6 * 64) ** 2)
    gamma = theory.kavg_step(**symbols, N=N)
    assert not theory.kavg_conditions(L=1, gamma=gamma, K=8, delta=0.5)[0].holds
    bound = theory.kavg_bound(**symbols, N=N, gamma=gamma, delta=0.5)
    assert bound > 4 * 8 / 7.5 * math.sqrt(1 / 8 / N)


def test_asgd_grows_with_P_where_kavg_falls():
    symbols = {
        "F1_minus_Fstar": 2,
        "L": 3,
        "M": 5,
        "gamma": 0.01,
        "B": 4,
        "N": 7,
        "P": [1, 2, 4, 8, 16],
    }
    assert np.all(np.diff(theory.asgd_bound(**symbols)) > 0)
    assert np.all(np.diff(theory.kavg_bound(**symbols, K=4, delta=0.5)) < 0)
    one = theory.asgd_bound(**symbols | {"P": 8}, C0=3, C1=2)
    assert close(one, 3 * Q(2) / (7 * GAMMA) + 2 * 9 * GAMMA**2 * 25 * 8 / (2 * 4))


# M-AVG
# --------------------------------------------------------------------------------------------------


def mavg_bound_by_hand(F1, L, M, sigma2, eta, mu, B, P, K, N, delta):
    d = K - 1 + delta
    return (
        2 * (1 - mu) * F1 / (N * d * eta)
        + L**2 * eta**2 * sigma2 * (2 * K - 1) * K * (K - 1) / (6 * d * B * (1 - mu) ** 2)
        + 2 * L * K**2 * sigma2 * eta / (P * B * d * (1 - mu)) * (1 + mu**2 / (2 * (1 - mu) ** 2))
        + L * eta * mu**2 * K**2 * M / (d * (1 - mu) ** 3)
    )


def test_mavg_bound_by_hand():
    # K = 3, N = 7, μ = 1/2, σ² = 6: the four terms one by one
    terms = [
        Q(2) / (7 * Q(5, 2) / 100),
        Q(9 * 6 * 30, 10**4) / (6 * Q(5, 2) * 4 / 4),
        Q(2 * 3 * 9 * 6, 100) / (32 * Q(5, 2) / 2) * Q(3, 2),
        Q(3 * 9 * 5, 400) / (Q(5, 2) / 8),
    ]
    assert sum(terms) == mavg_bound_by_hand(F1, L, M, Q(6), GAMMA, Q(1, 2), B, P, 3, 7, DELTA)
    value = theory.mavg_bound(
        F1_minus_Fstar=2, L=3, M=5, sigma2=6, eta=0.01, mu=0.5, B=4, P=8, K=3, N=7, delta=0.5
    )
    assert close(value, sum(terms))


def test_mavg_bound_without_momentum_is_kavg_with_half_the_learners():
    """Remark 2 calls the two bounds equivalent; the 1/P term of M-AVG is twice K-AVG's."""
    symbols = {"F1_minus_Fstar": 2, "L": 3, "B": 4, "K": 5, "N": 7, "delta": 0.5}
    mavg = theory.mavg_bound(**symbols, M=9, sigma2=5, eta=0.01, mu=0, P=[8, 16])
    assert mavg == pytest.approx(theory.kavg_bound(**symbols, M=5, gamma=0.01, P=[4, 8]))


def test_mavg_conditions_by_hand():
    first, second = theory.mavg_conditions(L=3, eta=0.01, mu=0.5, K=4, delta=0.5)
    assert (
        close(first.rhs, Q(9, 10**4) * 10 / (2 * Q(1, 4)) + 2 * Q(3, 100) * 4 * 2) and first.holds
    )  # 0.018 + 0.48
    assert close(second.rhs, Q(9, 10**4) * 4) and second.lhs == 0.5
    assert not theory.mavg_conditions(L=3, eta=0.01, mu=0.9, K=4, delta=0.5)[0].holds


@for_all(positive, step, st.integers(1, 64), fraction)
def test_mavg_mu_max_is_where_the_conditions_stop(L, eta, K, delta):
    symbols = {**floats(L=L, eta=eta, delta=delta), "K": K}
    mu_max = theory.mavg_mu_max(**symbols)
    assert mu_max < 1
    if mu_max > 1e-6:
        x = 1 - mu_max
        assert all(
            c.holds
            for c in theory.mavg_conditions(**symbols, mu=1 - x * (1 + 1e-6) if x < 0.999 else 0)
        )
    beyond = max(1 - (1 - mu_max) * (1 - 1e-3), 0)
    if beyond < 1 - 1e-9:
        assert not all(c.holds for c in theory.mavg_conditions(**symbols, mu=beyond))


mavg_problem = st.fixed_dictionaries(
    {
        "F1_minus_Fstar": positive,
        "L": positive,
        "M": positive,
        "sigma2": positive,
        "eta": step,
        "B": st.integers(1, 256),
        "P": st.integers(1, 128),
    }
)


@for_all(mavg_problem, st.integers(1, 64), st.integers(1, 10**5), fraction)
def test_mavg_mu_opt_is_the_minimum(c, K, N, delta):
    f = {**floats(**c), "K": K, "N": N}
    mu_opt = theory.mavg_mu_opt(**f)
    best = theory.mavg_bound(**f, mu=mu_opt, delta=float(delta))
    near = np.clip(mu_opt + (1 - mu_opt) * np.linspace(-0.01, 0.01, 21), 0, 1 - 1e-12)
    others = theory.mavg_bound(
        **f, mu=np.concatenate([np.linspace(0, 0.999, 1000), near]), delta=float(delta)
    )
    assert 0 <= mu_opt < 1 and best <= others.min() * (1 + 1e-9)
    # convexity, on which the search rests
    even = theory.mavg_bound(**f, mu=np.linspace(0, 0.99, 100), delta=float(delta))
    assert np.all(np.diff(even, 2) > -1e-9 * even[1:-1])


def test_mavg_mu_opt_by_hand():
    """K = 1, σ² = 0: (1−μ)A + Eμ²/(1−μ)³ with A = 2(F1−F*)/(Nη), E = LηM is least where A =
    Eμ(2+μ)/(1−μ)⁴.
    """
    eta, N, M, L = 0.01, 10, 1.0, 1.0
    F1 = 0.5 * 2.5 / 0.5**4 * L * eta * M * N * eta / 2  # makes μ = 1/2 the solution
    symbols = {"L": L, "M": M, "sigma2": 0, "eta": eta, "B": 4, "P": 8, "K": 1, "N": N}
    assert close(theory.mavg_mu_opt(F1_minus_Fstar=F1, **symbols), 0.5)
    assert theory.mavg_mu_opt(F1_minus_Fstar=[0, F1], **symbols).tolist() == pytest.approx([0, 0.5])
    with pytest.raises(UserError, match="M = sigma2 = 0"):
        theory.mavg_mu_opt(F1_minus_Fstar=1, **symbols | {"M": 0})


@pytest.mark.parametrize(("sigma2", "M", "P"), [(5, 7, 8), (5, 0, 8), (5, 0, math.inf), (0, 7, 8)])
def test_mavg_mu_opt_by_hand_term_by_term(sigma2, M, P):
    """F1 − F* such that the slope of bound (3) vanishes at μ = 1/2: 2(1−μ)^-3 = 16 in the second
    term, (1−μ)^-2 = 4 and half of (2μ(1−μ) + 3μ²)/(1−μ)⁴ = 20 in the third, 20 in the fourth."""
    L, eta, B, K, N = 3, 0.02, 4, 3, 10
    second, fourth = L**2 * eta**2 * sigma2 * 5 * 3 * 2 / (6 * B), L * eta * K**2 * M
    third = 2 * L * K**2 * sigma2 * eta / (P * B)
    F1 = (16 * second + (4 + 10) * third + 20 * fourth) * N * eta / 2
    assert close(
        theory.mavg_mu_opt(F1_minus_Fstar=F1, L=L, M=M, sigma2=sigma2, eta=eta, B=B, P=P, K=K, N=N),
        0.5,
    )


@for_all(
    mavg_problem,
    st.integers(1, 64),
    st.integers(10**3, 10**9),
    st.fractions(min_value=Q(11, 10), max_value=16),
)
def test_lemma_6_mu_opt_grows_with_P(c, K, S, factor):
    """At fixed S = N P B K; strictly, once momentum pays at all."""
    f = {**floats(**c), "K": K}
    P, more = f.pop("P"), float(factor) * float(c["P"])
    before, after = (theory.mavg_mu_opt(**f, P=p, N=S / (p * f["B"] * K)) for p in (P, more))
    assert after >= before
    if 0 < after < 1 - 1e-9:
        assert after > before


def test_lemma_6_strict_sign_fails_where_momentum_does_not_pay():
    symbols = {"F1_minus_Fstar": 1e-6, "L": 1, "M": 1, "sigma2": 1, "eta": 0.1, "B": 1, "K": 4}
    assert theory.mavg_mu_opt(**symbols, P=[8, 16], N=[1000 / 32, 1000 / 64]).tolist() == [0, 0]


def mavg_B(c, mu, S, delta, K):
    return mavg_bound_by_hand(
        c["F1_minus_Fstar"],
        c["L"],
        c["M"],
        c["sigma2"],
        c["eta"],
        mu,
        c["B"],
        c["P"],
        K,
        Q(S, K),
        delta,
    )


balanced_mavg = {name: balanced[name] for name in ("F1_minus_Fstar", "L", "B", "P")} | {
    "M": st.fractions(min_value=0, max_value=4, max_denominator=10),
    "sigma2": st.fractions(min_value=Q(1, 2), max_value=4, max_denominator=10),
    "eta": st.sampled_from([Q(1, 5), Q(1, 20), Q(1, 100)]),
}


@for_all(
    st.fixed_dictionaries(balanced_mavg),
    st.sampled_from([0, Q(1, 4), Q(1, 2), Q(3, 4)]),
    st.integers(1, 60),
    st.integers(30, 60),
    fraction,
)
def test_mavg_K_opt_is_the_brute_force_minimum(c, mu, K, S, delta):
    c = balance(c, K, S, c["eta"])
    K_opt = theory.mavg_K_opt(**floats(**c, mu=mu, delta=delta), S_total=S)
    values = [mavg_B(c, mu, S, delta, K) for K in range(1, S + 1)]
    assert 1 <= K_opt <= S and values[K_opt - 1] <= min(values) * (1 + Q(1, 10**12))


def test_mavg_K_opt_where_every_term_has_its_say():
    """F1 − F* high enough for K_opt near 88: dropping a term of bound (3) would move it."""
    c = {
        "F1_minus_Fstar": Q(5000),
        "L": Q(1),
        "M": Q(1, 10),
        "sigma2": Q(3),
        "eta": Q(1, 100),
        "B": 2,
        "P": 4,
    }
    changed = ({}, {"P": 10**9}, {"M": Q(0)}, {"P": 1}, {"B": 1, "P": 8})
    optima = []
    for change in changed:
        values = [mavg_B(c | change, Q(1, 2), 200, Q(1, 10), K) for K in range(1, 201)]
        optima.append(1 + values.index(min(values)))
        assert (
            theory.mavg_K_opt(**floats(**c | change), mu=0.5, S_total=200, delta=0.1) == optima[-1]
        )
    assert len(set(optima)) == len(changed)


@pytest.mark.parametrize("mu", [Q(0), Q(2, 5)])
@pytest.mark.parametrize("delta", [Q(2, 5), Q(7, 10)])
@pytest.mark.parametrize("K", [1, 2, 3, 10, 60])
def test_mavg_K_opt_turns_where_two_bounds_tie(K, delta, mu):
    def bound(F1, k):
        return mavg_bound_by_hand(F1, Q(3), Q(2), Q(5), Q(1, 50), mu, 4, 8, k, Q(1000, k), delta)

    F1 = around_the_tie(bound, K)
    symbols = {
        "L": 3,
        "M": 2,
        "sigma2": 5,
        "eta": 0.02,
        "mu": float(mu),
        "B": 4,
        "P": 8,
        "S_total": 1000,
    }
    assert theory.mavg_K_opt(F1_minus_Fstar=F1, **symbols, delta=float(delta)).tolist() == [
        K,
        K + 1,
    ]
    assert theory.mavg_K_above_1(
        F1_minus_Fstar=F1, **symbols, delta=float(delta)
    ).holds.tolist() == [K > 1, True]


@for_all(
    st.fixed_dictionaries(balanced_mavg),
    st.sampled_from([0, Q(1, 4), Q(1, 2), Q(3, 4)]),
    st.integers(2, 10**6),
    fraction,
)
def test_lemma_5_is_necessary_and_sufficient(c, mu, S, delta):
    c = balance(c, 1, S, c["eta"])
    first, second = mavg_B(c, mu, S, delta, 1), mavg_B(c, mu, S, delta, 2)
    assume(abs(second - first) > first / 10**10)
    f = floats(**c, mu=mu, delta=delta)
    assert (
        theory.mavg_K_above_1(**f, S_total=S).holds
        == (second < first)
        == (theory.mavg_K_opt(**f, S_total=S) > 1)
    )


@for_all(mavg_problem, momentum, st.integers(2, 10**5), fraction)
def test_lemma_7_K_opt_falls_with_momentum(c, mu, S, delta):
    """Without its condition for δ ≥ 1/3; for smaller δ it is condition (12) at μ = 0 that
    counts.
    """
    f = floats(**c, delta=delta)
    assume(delta >= Q(1, 3) or theory.mavg_K_above_1(**f, mu=0, S_total=S).holds)
    assert theory.mavg_K_opt(**f, mu=float(mu), S_total=S) <= theory.mavg_K_opt(
        **f, mu=0, S_total=S
    )


def test_lemma_7_as_printed_fails():
    """Condition (12) at μ and those of Theorem 1 hold, and yet K_opt(μ) > K_opt(0)."""
    c = {
        "F1_minus_Fstar": Q(1, 100),
        "L": Q(2, 5),
        "M": Q(7, 2),
        "sigma2": Q(2, 5),
        "eta": Q(3, 10),
        "B": 46,
        "P": 77,
    }
    mu, S, delta = Q(1, 10), 64000, Q(3, 10)
    f = floats(**c, delta=delta)
    assert theory.mavg_K_above_1(**f, mu=float(mu), S_total=S).holds
    assert not theory.mavg_K_above_1(**f, mu=0, S_total=S).holds
    at = {m: [mavg_B(c, m, S, delta, K) for K in range(1, 20)] for m in (Q(0), mu)}
    K_opt = {m: 1 + values.index(min(values)) for m, values in at.items()}
    assert K_opt[mu] > K_opt[0] == 1
    assert theory.mavg_K_opt(**f, mu=[0, float(mu)], S_total=S).tolist() == [K_opt[0], K_opt[mu]]
    assert all(
        x.holds
        for x in theory.mavg_conditions(L=0.4, eta=0.3, mu=float(mu), K=K_opt[mu], delta=0.3)
    )


# Hier-AVG
# --------------------------------------------------------------------------------------------------


def hieravg_bound_by_hand(F1, L, M, gamma, B, P, K1, K2, S, N, delta):
    d = K2 - delta
    local = Q((K2 - K1) * (4 * K2 + K1 - 3)) / S + (K1 - 1) * (3 * K2 + K1 - 2)
    return (
        2 * F1 / (N * d * gamma)
        + L * gamma * M * K2**2 / (P * B * d)
        + L**2 * gamma**2 * M * K2 / (12 * B * d) * local
    )


def hieravg_bound_of(c, gamma, K1, K2, S, T):
    return hieravg_bound_by_hand(
        c["F1_minus_Fstar"], c["L"], c["M"], gamma, c["B"], c["P"], K1, K2, S, Q(T, K2), c["delta"]
    )


def test_hieravg_bound_3_6_by_hand():
    # K2 = 6, K1 = 2, S = 4, N = 7: d = 5.5 and (4 · 23)/4 + 1 · 18 = 41
    d = Q(11, 2)
    by_hand = (
        Q(4) / (7 * d / 100) + Q(15 * 36, 100) / (32 * d) + Q(9 * 5 * 6 * 41, 10**4) / (48 * d)
    )
    assert by_hand == hieravg_bound_by_hand(F1, L, M, GAMMA, B, P, 2, 6, 4, 7, DELTA)
    symbols = {
        "F1_minus_Fstar": 2,
        "L": 3,
        "M": 5,
        "gamma": 0.01,
        "B": 4,
        "P": 8,
        "N": 7,
        "delta": 0.5,
    }
    assert close(theory.hieravg_bound_3_6(**symbols, K1=2, K2=6, S=4), by_hand)
    grid = theory.hieravg_bound_3_6(**symbols, K1=[[1], [2], [3]], K2=6, S=[1, 2, 4, 8])
    assert grid.shape == (3, 4) and close(grid[1, 2], by_hand)


def test_hieravg_refuses_clusters_that_do_not_fit():
    symbols = {
        "F1_minus_Fstar": 2,
        "L": 3,
        "M": 5,
        "gamma": 0.01,
        "B": 4,
        "P": 8,
        "N": 7,
        "delta": 0.5,
    }
    with pytest.raises(UserError, match="S must divide P"):
        theory.hieravg_bound_3_6(**symbols, K1=1, K2=4, S=3)
    with pytest.raises(UserError, match="K1 at most K2"):
        theory.hieravg_bound_3_6(**symbols, K1=5, K2=4, S=4)


@for_all(problem, step, st.integers(1, 64), st.data())
def test_hieravg_contains_kavg(c, gamma, K, data):
    f, N = floats(**c, gamma=gamma), 100
    delta = f.pop("delta")
    kavg = theory.kavg_bound(**f, K=K, N=N, delta=delta)
    K1, S = (
        data.draw(st.integers(1, K)),
        data.draw(st.sampled_from([s for s in range(1, 129) if c["P"] % s == 0])),
    )
    for k1, s in ((K1, 1), (K, S)):
        assert theory.hieravg_bound_3_6(
            **f, K1=k1, K2=K, S=s, N=N, delta=1 - delta
        ) == pytest.approx(kavg, rel=1e-9)


@for_all(problem, step, st.integers(2, 64), st.integers(1, 10**4), st.data())
def test_theorem_3_5_increasing_in_K1_decreasing_in_S(c, gamma, K2, N, data):
    """The bound less what neither changes is compared, so that rounding hides nothing."""
    f = floats(**c, gamma=gamma)
    f |= {"P": math.inf, "F1_minus_Fstar": 0.0}
    K1, K1_more = sorted(
        data.draw(st.lists(st.integers(1, K2), min_size=2, max_size=2, unique=True))
    )
    S, S_more = sorted(data.draw(st.lists(st.integers(1, 64), min_size=2, max_size=2, unique=True)))
    fewer, more = theory.hieravg_bound_3_6(**f, K1=[K1, K1_more], K2=K2, S=S_more, N=N)
    assert fewer < more
    small, large = theory.hieravg_bound_3_6(**f, K1=K1, K2=K2, S=[S, S_more], N=N)
    assert large < small
    flat = theory.hieravg_bound_3_6(**f, K1=[K1, K1_more], K2=K2, S=1, N=N)
    assert flat[0] == pytest.approx(flat[1])  # S = 1: no local averages to speak of


def test_hieravg_bound_3_2_and_its_step():
    by_hand = Q(4) / (GAMMA * 700) + 4 * 9 * GAMMA**2 * 36 * 4 + 15 * GAMMA / 32
    value = theory.hieravg_bound_3_2(
        F1_minus_Fstar=2, L=3, M=5, M_G=2, gamma=0.01, B=4, P=8, K2=6, T=700
    )
    assert close(value, by_hand)
    # P B = 16, T = 16^5: γ = 16^-2, K2 = 16^(5/4 − 3/4) = 4
    gamma, K2 = theory.hieravg_step(B=2, P=8, T=16**5)
    assert close(gamma, 1 / 256) and close(K2, 4)
    value = theory.hieravg_bound_3_2(
        F1_minus_Fstar=2, L=3, M=5, M_G=2, gamma=gamma, B=2, P=8, K2=K2, T=16**5
    )
    assert close(value, Q(4 + 4 * 9 * 4 + 15) / 16**3)  # (3.4), sqrt(PBT) = 16³
    step, interval = theory.hieravg_step_conditions(L=3, B=2, P=8, T=[143, 144, 4095, 4096])
    assert step.holds.tolist() == [False, True, True, True] and interval.holds.tolist() == [
        False,
        False,
        False,
        True,
    ]


def test_hieravg_conditions_by_hand():
    """(3.5) is written with δ_∇F,w there; here with δ = L²γ²(1 + δ_∇F,w)."""
    L, gamma, K2, delta_F = Q(2), Q(1, 20), 6, Q(3)
    delta = L**2 * gamma**2 * (1 + delta_F)
    first, above, below = theory.hieravg_conditions(L=2, gamma=0.05, K2=6, delta=float(delta))
    assert close(
        first.margin, 1 - L**2 * gamma**2 * (Q(K2 * (K2 - 1), 2) - 1 - delta_F) - L * gamma * K2
    )
    assert first.holds and above.holds and below.holds
    assert close(above.margin, L**2 * gamma**2 * delta_F)
    assert close(below.margin, L**2 * gamma**2 * (14 - delta_F))
    assert not theory.hieravg_conditions(L=1, gamma=0.1, K2=6, delta=0.01)[1].holds  # δ_∇F,w = 0
    assert not theory.hieravg_conditions(L=1, gamma=0.1, K2=6, delta=0.16)[2].holds  # δ_∇F,w = 15
    assert not theory.hieravg_conditions(L=1, gamma=0.1, K2=20, delta=0.04)[0].holds


@for_all(
    st.fixed_dictionaries(balanced),
    st.sampled_from([Q(1, 5), Q(1, 20), Q(1, 100)]),
    st.integers(1, 40),
    st.integers(40, 80),
    st.integers(1, 12),
    st.integers(1, 8),
)
def test_hieravg_K2_opt_is_the_brute_force_minimum(c, gamma, K2, T, K1, S):
    c = balance(c, K2, T, gamma) | {"P": c["P"] * S}
    K2_opt = theory.hieravg_K2_opt(**floats(**c, gamma=gamma), K1=K1, S=S, T=T)
    values = {K2: hieravg_bound_of(c, gamma, K1, K2, S, T) for K2 in range(K1, T + 1)}
    assert values[K2_opt] <= min(values.values()) * (1 + Q(1, 10**12))


@pytest.mark.parametrize("delta", [Q(2, 5), Q(3, 5)])
@pytest.mark.parametrize(
    ("K1", "S", "K2"),
    [(1, 1, 1), (1, 4, 1), (1, 4, 2), (2, 4, 3), (5, 2, 5), (5, 2, 6), (7, 8, 60)],
)
def test_hieravg_K2_opt_turns_where_two_bounds_tie(K1, S, K2, delta):
    def bound(F1, k):
        return hieravg_bound_by_hand(F1, Q(3), Q(5), Q(1, 50), 4, 8, K1, k, S, Q(1000, k), delta)

    F1 = around_the_tie(bound, K2)
    symbols = {
        "L": 3,
        "M": 5,
        "gamma": 0.02,
        "B": 4,
        "P": 8,
        "S": S,
        "T": 1000,
        "delta": float(delta),
    }
    assert theory.hieravg_K2_opt(F1_minus_Fstar=F1, **symbols, K1=K1).tolist() == [K2, K2 + 1]
    if K1 == 1:
        _, exact = theory.hieravg_K2_above_1(F1_minus_Fstar=F1, **symbols)
        assert exact.holds.tolist() == [K2 > 1, True]


def test_hieravg_K2_opt_where_K1_and_S_matter():
    c = {"F1_minus_Fstar": Q(500), "L": Q(1), "M": Q(3), "B": 2, "P": 8, "delta": Q(9, 10)}
    optima = {}
    for K1, S in itertools.product((1, 3, 6), (1, 2, 4)):
        values = [hieravg_bound_of(c, Q(1, 50), K1, K2, S, 1000) for K2 in range(K1, 201)]
        optima[K1, S] = K1 + values.index(min(values))
        assert theory.hieravg_K2_opt(**floats(**c), gamma=0.02, K1=K1, S=S, T=1000) == optima[K1, S]
    assert list(optima.values()) == [46, 56, 67, 46, 56, 66, 46, 55, 65]
    assert (
        theory.hieravg_K2_opt(**floats(**c), gamma=0.02, K1=80, S=4, T=1000) == 80
    )  # K2 is at least K1
    assert (
        theory.hieravg_K2_opt(**floats(**c), gamma=0.02, K1=3, S=4, T=40.5) == 40
    )  # and at most T


@for_all(
    st.fixed_dictionaries(balanced),
    st.sampled_from([Q(1, 5), Q(1, 20), Q(1, 100)]),
    st.integers(1, 16),
    st.integers(2, 10**6),
)
def test_condition_3_11_is_sufficient(c, gamma, S, T):
    c = balance(c, 1, T, gamma) | {"P": c["P"] * S}
    first, second = (hieravg_bound_of(c, gamma, 1, K2, S, T) for K2 in (1, 2))
    assume(abs(second - first) > first / 10**10)
    printed, exact = theory.hieravg_K2_above_1(**floats(**c, gamma=gamma), S=S, T=T)
    assert (
        exact.holds
        == (second < first)
        == (theory.hieravg_K2_opt(**floats(**c, gamma=gamma), K1=1, S=S, T=T) > 1)
    )
    assert exact.holds or not printed.holds


def test_condition_3_11_by_hand_is_not_necessary():
    symbols = {"L": 2, "M": 6, "gamma": 0.1, "B": 3, "P": 8, "S": 4, "T": 100, "delta": 0.6}
    # rhs of (3.11): 2 · 2 · 0.1 · 6/24 + 4 · 0.01 · 6/12 = 0.12; its lhs 0.6(F1−F*)/(100 · 0.1 ·
    # 0.4)
    printed, exact = theory.hieravg_K2_above_1(F1_minus_Fstar=[0.6, 0.82], **symbols)
    assert printed.rhs == pytest.approx(0.12) and printed.lhs.tolist() == pytest.approx(
        [0.09, 0.123]
    )
    assert printed.holds.tolist() == [False, True] and exact.holds.tolist() == [True, True]
    # B(2) < B(1): δα/(1−δ) = 0.18, (0.2/0.4) · 0.05 + 12 · (4 · 0.01 · 6/36)/4 = 0.045
    assert exact.lhs[0] == pytest.approx(0.18) and exact.rhs == pytest.approx(0.045)


@for_all(
    problem,
    step,
    st.integers(2, 200),
    st.fractions(min_value=0, max_value=Q(6, 10), max_denominator=100),
    st.integers(200, 10**6),
)
def test_theorem_3_6_for_many_learners(c, gamma, K, a, T):
    f = floats(**c, gamma=gamma) | {"P": math.inf}
    bounds, enough = theory.hieravg_against_kavg(**f, K=K, a=float(a), T=T)
    assert enough.holds and bounds.margin >= -1e-12 * bounds.lhs
    bounds, _ = theory.hieravg_against_kavg(**f | {"F1_minus_Fstar": 0}, K=K, a=float(a), T=T)
    assert bounds.holds  # strictly, where no large first term hides the difference


@for_all(
    problem, step, st.integers(1, 200), st.fractions(min_value=0, max_value=1, max_denominator=100)
)
def test_theorem_3_6_how_many_learners_are_enough(c, gamma, K, a):
    f = floats(**c | {"P": 4 * c["P"]}, gamma=gamma)
    bounds, enough = theory.hieravg_against_kavg(**f, K=K, a=float(a), T=1000)
    assume(abs(bounds.margin) > 1e-9 * bounds.lhs)
    assert bounds.holds or not enough.holds


def test_theorem_3_6_by_hand_and_where_it_ends():
    symbols = {"L": 1, "M": 1, "gamma": 0.1, "B": 1, "T": 1000, "delta": 0.5}
    bounds, enough = theory.hieravg_against_kavg(F1_minus_Fstar=1, **symbols, P=8, K=4, a=0.5)
    kavg = hieravg_bound_by_hand(Q(1), Q(1), Q(1), Q(1, 10), 1, 8, 1, 4, 1, Q(250), DELTA)
    hier = hieravg_bound_by_hand(Q(1), Q(1), Q(1), Q(1, 10), 1, 8, 1, 6, 4, Q(1000, 6), DELTA)
    assert close(bounds.lhs, kavg) and close(bounds.rhs, hier)
    assert enough.lhs == 3 * 7 - 5 * 11 / 4 and close(enough.rhs, Q(6 * 4) / 2 / Q(8, 10))
    # §6.6 proves it up to a = 0.606, from K = 2 on, and only for P large enough
    far = {"F1_minus_Fstar": 0, "P": math.inf}
    assert theory.hieravg_against_kavg(**symbols, **far, K=2, a=[0.606, 0.607])[
        1
    ].holds.tolist() == [True, False]
    assert not theory.hieravg_against_kavg(**symbols, **far, K=1, a=0.5)[0].holds
    few = theory.hieravg_against_kavg(**symbols, F1_minus_Fstar=0.01, P=[4, 4000], K=2, a=0.6)
    assert few[0].holds.tolist() == [False, True] and few[1].holds.tolist() == [False, True]


# LUPA
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 16, 64])
def test_the_speed_up_ends_where_both_terms_of_noise_are_equal(K):
    """At P = ∞ only the term that does not fall is left, and at the end there is twice as much."""
    noise = {"F1_minus_Fstar": 0, "L": 0.3, "M": 2, "gamma": 0.2, "B": 4, "N": 9, "delta": 0.5}
    end = theory.kavg_P_end(L=0.3, gamma=0.2, K=K)
    bounds = [float(theory.kavg_bound(P=max(P, 1), K=K, **noise)) for P in (end, np.inf)]
    assert end < 1 or close(bounds[0], 2 * bounds[1], 1e-6)
    assert theory.kavg_P_end(L=0.3, gamma=0.2, K=1) == np.inf


def test_lupas_P_is_the_one_whose_tau_it_is():
    assert close(theory.lupa_tau(T=1000, P=theory.lupa_P_end(T=1000, B=2, tau=50), B=2), 50)


def test_the_papers_periods():
    assert round(float(theory.lupa_tau(T=21875, P=5, B=128))) == 91
    assert int(theory.stich_tau(T=21875, P=5, B=128)) == 5
    assert close(theory.lupa_tau(T=1000, P=4, B=2), 50) and close(
        theory.stich_tau(T=800, P=4, B=2), 10
    )


def test_the_papers_alpha():
    alpha = theory.adalupa_alpha(T=5469, E=10, tau0=91)
    assert close(alpha, 2 * (Q(5469, 910) - 1) / 9) and round(float(alpha), 2) == 1.11
    assert sum((1 + i * alpha) * 91 for i in range(10)) == pytest.approx(5469)
    assert sum(i * 1.09 * 91 for i in range(1, 11)) == pytest.approx(5469, rel=0.003)
    with pytest.raises(UserError, match="lower E or tau0"):
        theory.adalupa_alpha(T=900, E=10, tau0=91)


@for_all(st.integers(2, 50), st.integers(1, 100), st.integers(0, 10**6))
def test_adalupa_alpha_fills_the_run(E, tau0, extra):
    alpha = theory.adalupa_alpha(T=E * tau0 + extra, E=E, tau0=tau0)
    assert alpha >= 0 and sum((1 + i * alpha) * tau0 for i in range(E)) == pytest.approx(
        E * tau0 + extra
    )


def test_lupa_bound_8_by_hand():
    # κ = 6, a = 2 · 10 + 4 = 24, T = 100
    numerator = Q(1, 2) * 8 * 4 * 24**3 * 2 + 4 * 6 * 5 * 100 * 148 + 256 * 36 * 5 * 100 * 9
    value = theory.lupa_bound(
        F1_minus_Fstar=2, L=3, mu_PL=0.5, sigma2=5, B=8, P=4, T=100, tau=10, alpha=2
    )
    assert close(value, numerator / (Q(1, 2) * 32 * 124**3))


def test_adalupa_bound_12():
    symbols = {"F1_minus_Fstar": 2, "L": 3, "mu_PL": 0.5, "sigma2": 5, "B": 8, "P": 4, "alpha": 2}
    assert theory.adalupa_bound(**symbols, taus=[10] * 10) == pytest.approx(
        theory.lupa_bound(**symbols, T=100, tau=10)
    )
    # τ = 10, 20, 30: T = 60, c = 64, Σ(τ−1)τ = 90 + 380 + 870
    by_hand = (
        Q(64**3, 124**3) * 2
        + Q(4 * 6 * 5 * 60 * 188) / (16 * 124**3)
        + Q(256 * 36 * 5 * 1340) / (16 * 124**3)
    )
    assert theory.adalupa_bound(**symbols, taus=[[10, 20, 30], [20, 20, 20]])[0] == pytest.approx(
        float(by_hand)
    )


def test_adalupa_conditions():
    i, ii, iii = theory.adalupa_conditions(taus=[[10, 20, 30], [20, 20, 21]], T=60, P=4, B=2)
    assert i.holds.tolist() == [True, False] and i.margin.tolist() == [0, -1]
    assert ii.lhs == 3600 and ii.rhs.tolist() == [90 + 380 + 870, 380 + 380 + 420]
    assert iii.lhs == 450 and iii.rhs.tolist() == [27000, 9261] and not iii.holds.any()
    assert theory.adalupa_conditions(taus=[10, 20, 30], T=60, P=4, B=2, C=60)[
        2
    ].holds  # 27000 ≤ 60 · 450


@for_all(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_adalupa_second_condition_follows_from_the_first(taus):
    i, ii, _ = theory.adalupa_conditions(taus=taus, T=sum(taus), P=4, B=2)
    assert i.holds and ii.holds


def test_adalupa_doubling_periods_break_the_third_condition():
    """max τ_i is about T/2, so (max τ_i)³ outgrows T²/(pB) whatever the constant; equal periods of
    LUPA's τ do not.
    """
    ratio = []
    for E in (10, 20, 30):
        taus = 2 ** np.arange(E)
        iii = theory.adalupa_conditions(taus=taus, T=taus.sum(), P=5, B=128)[2]
        ratio.append(iii.rhs / iii.lhs)
    assert ratio[0] < ratio[1] / 500 < ratio[2] / 500**2
    assert theory.adalupa_conditions(taus=[90] * 243, T=21870, P=5, B=128)[2].holds


@pytest.mark.parametrize(
    ("kappa", "p", "tau", "alpha", "C1"),
    [
        (2.0, 5, 4, 1.0, 0.0),
        (2.0, 5, 1, 1.0, 0.5),
        (0.1, 3, 3, 2.0, 10.0),
        (1.0, 2, 2, 15.0, 1.0),
        (10.0, 16, 9, 0.5, 3.0),
        (1.0, 1, 3, 25.0, 7.0),
    ],
)
def test_lupa_conditions_as_printed(kappa, p, tau, alpha, C1):
    mu, a = 0.5, alpha * tau + 4
    L = kappa * mu
    of_alpha, seven, first, second = theory.lupa_conditions(
        L=L, mu_PL=mu, P=p, tau=tau, alpha=alpha, C1=C1
    )
    least, most = alpha * math.exp(-2 / alpha), kappa * math.sqrt(192 * (p + 1) / p)
    assert (
        close(of_alpha.lhs, most)
        and close(of_alpha.rhs, least)
        and of_alpha.holds == (least < most)
    )
    X = (p + 1) / p * 192 * kappa**2 * math.exp(4 / alpha)
    if of_alpha.holds:
        b = X + 6 * alpha
        assert close(
            seven.rhs, (b + math.sqrt(b**2 + 20 * (X - alpha**2))) / (2 * (X - alpha**2)), rel=1e-9
        )
        assert seven.holds == (tau >= seven.rhs)
    else:
        assert seven.rhs == math.inf and not seven.holds
    scale = (a + 1) ** (tau - 2)
    assert close(first.lhs * scale, 64 * L**2 * (p + 1) / (mu * p) * (tau - 1) * tau * scale)
    assert close(first.rhs * scale, 4 * (a - 3) ** (tau - 1) * L * (C1 + p), rel=1e-9)
    assert close(second.lhs, 64 * L**2 / mu * (tau - 1) * tau) and close(
        second.rhs, 32 * L**2 / mu * C1 * (tau - 1)
    )


def test_lupa_conditions_of_theorem_2_and_at_scale():
    taus = np.array([5, 91, 2000])
    conditions = theory.lupa_conditions(
        L=1, mu_PL=1e-4, P=5, tau=taus, alpha=0.001, c=0.001 * 2000 + 4
    )
    assert all(np.all(np.isfinite(c.margin)) and np.all(c.holds) for c in conditions)
    theory.lupa_conditions(L=1, mu_PL=1, P=5, tau=9, alpha=1, c=4)
    for c in (3.9, math.inf):
        with pytest.raises(UserError, match=r"^c = .*: must be finite and at least 4"):
            theory.lupa_conditions(L=1, mu_PL=1, P=5, tau=9, alpha=1, c=c)
    by_hand = 4 * 3 * (3 / 7) ** 3 * 1 * 5  # (a − 3)((a − 3)/(a + 1))^(τ−2) at a = 6, τ = 5
    assert close(conditions[2].rhs[0], by_hand, rel=1e-9)


# ADPSGD
# --------------------------------------------------------------------------------------------------


def test_adpsgd_weighted_variance_and_bound():
    gamma, variance = [0.4, 0.4, 0.1, 0.1], [0, 2, 0, 8]
    assert close(theory.adpsgd_weighted_variance(gamma=gamma, variance=variance), 1.6)
    assert close(theory.adpsgd_weighted_variance(gamma=0.1, variance=variance), 2.5)
    # (12): the same from V_t with the step sizes of the periods
    V = [1, 4]
    assert theory.adpsgd_weighted_variance(gamma=[0.4, 0.1], variance=V) == pytest.approx(1.6)
    # 2 · 2/1 + 9 · 1.6 + (0.34/1) · 3 · 5/(8 · 4)
    bound = theory.adpsgd_bound(
        F1_minus_Fstar=2, L=3, sigma2=5, gamma=gamma, variance=variance, B=4, P=8
    )
    assert close(bound, 4 + 14.4 + 0.34 * 15 / 32)
    constant = theory.adpsgd_bound(
        F1_minus_Fstar=2, L=3, sigma2=5, gamma=0.1, variance=variance, B=4, P=8
    )
    assert close(constant, 4 / 0.4 + 9 * 2.5 + 0.1 * 15 / 32)


# Bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K", 0),
        ("P", 0),
        ("P", math.nan),
        ("B", -1),
        ("gamma", 0),
        ("gamma", math.inf),
        ("L", -2),
        ("N", 0),
        ("delta", 0),
        ("delta", 1),
        ("M", -1),
        ("F1_minus_Fstar", math.nan),
        ("K", [4, 0.5]),
    ],
)
def test_bad_values_are_named_in_one_line(name, value):
    symbols = {
        "F1_minus_Fstar": 2,
        "L": 3,
        "M": 5,
        "gamma": 0.01,
        "B": 4,
        "P": 8,
        "K": 3,
        "N": 7,
        "delta": 0.5,
    }
    with pytest.raises(UserError, match=f"^{name} = .*: must ") as error:
        theory.kavg_bound(**symbols | {name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["F1_minus_Fstar", "L", "M", "gamma", "B", "K", "N"])
def test_infinite_values_are_refused_but_for_P(name):
    symbols = {
        "F1_minus_Fstar": 2,
        "L": 3,
        "M": 5,
        "gamma": 0.01,
        "B": 4,
        "P": math.inf,
        "K": 3,
        "N": 7,
        "delta": 0.5,
    }
    assert math.isfinite(theory.kavg_bound(**symbols))
    with pytest.raises(UserError, match=f"^{name} = inf: must be finite"):
        theory.kavg_bound(**symbols | {name: math.inf})


def test_bad_lists_in_tables():
    with pytest.raises(UserError, match=r"^K = 0"):
        theory.kavg_table(CONSTANTS, gamma=0.05, B=16, S_total=1000, P=[8], K=[1, 0])
    with pytest.raises(UserError, match=r"^K = 0"):
        theory.mavg_table(CONSTANTS, eta=0.05, B=16, S_total=1000, P=[8], K=[1, 0], mu=[0])
    with pytest.raises(UserError, match=r"^K2 = 0"):
        theory.hieravg_table(CONSTANTS, gamma=0.02, B=16, T=960, P=[16], K1=[1], K2=[0], S=[1])
    with pytest.raises(UserError, match=r"^S = 0"):
        theory.hieravg_table(CONSTANTS, gamma=0.02, B=16, T=960, P=[16], K1=[1], K2=[4], S=[0])
    with pytest.raises(UserError, match=r"^T = 0"):
        theory.predict(CONSTANTS, P=8, B=16, gamma=0.05, T=0)


def test_bad_momentum_and_bad_constants():
    with pytest.raises(UserError, match=r"mu = 1: must lie in \[0, 1\)"):
        theory.mavg_conditions(L=1, eta=0.1, mu=1, K=4, delta=0.5)
    with pytest.raises(UserError, match=r"^delta = 1\.5"):
        theory.Constants(F1_minus_Fstar=1, L=1, M=1, delta=1.5)
    with pytest.raises(UserError, match=r"^mu_PL = 0"):
        theory.Constants(F1_minus_Fstar=1, L=1, M=1, mu_PL=0)
    for E in (1, math.inf):
        with pytest.raises(UserError, match=f"^E = {E}: must be finite and at least 2"):
            theory.adalupa_alpha(T=100, E=E, tau0=10)


# Tables and predictions
# -----------------------------------------------------------------------------------------------

CONSTANTS = theory.Constants(F1_minus_Fstar=2.0, L=1.0, M=5.0, mu_PL=0.01)


def plain(rows):
    return all(type(x) in (int, float, bool, str) for row in rows for x in row.values())


def test_constants_derive_the_gradient_bounds():
    assert CONSTANTS.G2 == 4 and CONSTANTS.M_G == 3  # 2 L (F1 − F*); sqrt(5 + 4)
    assert theory.Constants(F1_minus_Fstar=2, L=1, M=5, G2_max=11).M_G == 4
    assert theory.Constants(F1_minus_Fstar=2, L=3, M=5).G2 == 12
    assert CONSTANTS.C1 == 0  # bounded variance, lupa's [6]


def test_kavg_table():
    rows = theory.kavg_table(CONSTANTS, gamma=0.05, B=16, S_total=1000, P=[8, 128], K=[1, 16, 64])
    assert plain(rows) and [(r["P"], r["K"]) for r in rows] == list(
        itertools.product([8, 128], [1, 16, 64])
    )
    for r in rows:
        by_hand = kavg_bound_by_hand(
            Q(2), Q(1), Q(5), Q(1, 20), 16, r["P"], r["K"], Q(1000, r["K"]), DELTA
        )
        assert close(r["bound"], by_hand) and r["N"] == 1000 / r["K"]
        B_of_K = [
            kavg_B(Q(2), Q(1), Q(5), Q(1, 20), 16, r["P"], 1000, DELTA, K) for K in range(1, 1001)
        ]
        assert r["K_opt"] == 1 + B_of_K.index(min(B_of_K))
        rhs = Q(1, 400) * (r["K"] + 1) * (r["K"] - 2) / 2 + Q(r["K"], 20)
        assert r["holds"] == (rhs <= 1) and close(r["margin"], min(1 - rhs, Q(1, 2) - Q(1, 400)))
        assert close(r["asgd_bound"], Q(4) / 50 + Q(25, 400) * r["P"] / 32)


def test_mavg_table():
    rows = theory.mavg_table(
        CONSTANTS, eta=0.01, B=16, S_total=1000, P=[6, 48], K=[8], mu=[0, 0.5, 0.9]
    )
    assert plain(rows) and [(r["P"], r["mu"]) for r in rows] == list(
        itertools.product([6, 48], [0, 0.5, 0.9])
    )
    for r in rows:
        mu = Q(r["mu"]).limit_denominator(10)
        by_hand = mavg_bound_by_hand(
            Q(2), Q(1), Q(4), Q(5), Q(1, 100), mu, 16, r["P"], 8, Q(125), DELTA
        )
        assert close(r["bound"], by_hand) and r["N"] == 125
    assert (
        rows[0]["mu_opt"] < rows[3]["mu_opt"]
        and rows[0]["K_opt"] >= rows[1]["K_opt"] >= rows[2]["K_opt"]
    )
    assert (
        [r["holds"] for r in rows[:3]]
        == [r["mu"] <= r["mu_max"] for r in rows[:3]]
        == [True, True, False]
    )


def test_hieravg_table():
    rows = theory.hieravg_table(
        CONSTANTS, gamma=0.02, B=16, T=960, P=[16, 6], K1=[1, 4, 8], K2=[4, 8], S=[1, 4]
    )
    assert plain(rows)
    assert {(r["P"], r["S"]) for r in rows} == {(16, 1), (16, 4), (6, 1)} and all(
        r["N"] == 960 / r["K2"] for r in rows
    )
    assert {(r["K1"], r["K2"]) for r in rows} == {(1, 4), (4, 4), (1, 8), (4, 8), (8, 8)}
    for r in rows:
        by_hand = hieravg_bound_by_hand(
            Q(2), Q(1), Q(5), Q(1, 50), 16, r["P"], r["K1"], r["K2"], r["S"], Q(960, r["K2"]), DELTA
        )
        assert close(r["bound"], by_hand)
        assert r["bound"] <= r["kavg_bound"] * (1 + 1e-12)
        if r["S"] == 1 or r["K1"] == r["K2"]:
            assert r["bound"] == pytest.approx(r["kavg_bound"])
        assert close(
            r["bound_3_2"], Q(4 * 50, 960) + 4 * Q(r["K2"], 50) ** 2 * 9 + Q(5, 50) / (16 * r["P"])
        )
        assert r["K2_opt"] >= r["K1"]


def test_lupa_table():
    rows = theory.lupa_table(CONSTANTS, B=128, P=[5, 10], T=[21875])
    assert plain(rows) and (rows[0]["tau"], rows[0]["tau_stich"], rows[0]["averages"]) == (
        91,
        5,
        241,
    )
    by_hand = theory.lupa_bound(
        F1_minus_Fstar=2, L=1, mu_PL=0.01, sigma2=5, B=128, P=5, T=21875, tau=91, alpha=1
    )
    assert rows[0]["bound"] == by_hand and rows[0]["holds"]
    without = theory.lupa_table(
        theory.Constants(F1_minus_Fstar=2.0, L=1.0, M=5.0), B=128, P=[5], T=[1, 21875]
    )
    assert "bound" not in without[0] and without[0]["tau"] == without[0]["tau_stich"] == 1


def test_predict():
    prediction = theory.predict(CONSTANTS, P=8, B=16, gamma=0.05, T=1000, K1=1, S=4)
    B_of_K = [kavg_B(Q(2), Q(1), Q(5), Q(1, 20), 16, 8, 1000, DELTA, K) for K in range(1, 1001)]
    K = 1 + B_of_K.index(min(B_of_K))
    assert prediction["K_opt"] == K > 1
    assert close(prediction["gamma_K_opt"], math.sqrt(2 * 16 * 8 / (5 * K**2 * (1000 / K))))
    grid = np.linspace(0, 0.99, 100)
    mavg = [mavg_bound_by_hand(2, 1, 4, 5, 0.05, mu, 16, 8, K, 1000 / K, 0.5) for mu in grid]
    assert abs(prediction["mu_opt"] - grid[np.argmin(mavg)]) <= 0.01
    mu = prediction["mu_opt"]
    at_mu = [
        mavg_bound_by_hand(2, 1, 4, 5, 0.05, mu, 16, 8, k, 1000 / k, 0.5) for k in range(1, 1001)
    ]
    assert prediction["K_opt_mu"] == 1 + int(np.argmin(at_mu))
    assert close(prediction["K2"], 1000**0.25 / 128**0.75) and close(
        prediction["gamma_K2"], math.sqrt(0.128)
    )
    assert (prediction["tau"], prediction["tau_stich"]) == (
        20,
        2,
    )  # 100/128^(1/3) = 19.8, sqrt(7.8) = 2.8
    assert prediction["K2_opt"] > K  # local averages leave room for fewer global ones
    assert theory.predict(CONSTANTS, P=8, B=16, gamma=0.05, T=1000)["K2_opt"] == K  # S = 1 is K-AVG
    assert theory.predict(CONSTANTS, P=8, B=16, gamma=0.05, T=1000, S=4) == prediction  # K1 = 1
    far = theory.Constants(F1_minus_Fstar=10.0, L=1.0, M=5.0)
    K2_opt = [theory.predict(far, P=8, B=16, gamma=0.05, T=1000, S=S)["K2_opt"] for S in (1, 2, 4)]
    assert K2_opt == [7, 8, 9] and theory.predict(far, P=8, B=16, gamma=0.05, T=1000)["K2_opt"] == 7


def test_predict_says_which_conditions_fail_and_by_how_much():
    prediction = theory.predict(CONSTANTS, P=8, B=16, gamma=0.05, T=1000)
    rows = prediction["conditions"]
    assert plain(rows) and len({row["condition"] for row in rows}) == len(rows)
    assert prediction["failing"] == [row for row in rows if row["margin"] < 0]
    failing = {row["condition"]: row["margin"] for row in prediction["failing"]}
    assert failing["Hier-AVG (3.3), K2 ≥ 1: T ≥ (PB)³"] == 1000 - 128**3
    assert any(row["condition"].startswith("LUPA (7)") for row in rows)
    noiseless = theory.predict(
        theory.Constants(F1_minus_Fstar=2.0, L=1.0, M=0.0), P=8, B=16, gamma=0.05, T=1000
    )
    assert noiseless["gamma_K_opt"] is None and noiseless["K_opt"] == 1000
    assert not any(row["condition"].startswith("LUPA") for row in noiseless["conditions"])
    large_step = theory.predict(CONSTANTS, P=8, B=16, gamma=2.0, T=1000)
    margins = {row["condition"]: row["margin"] for row in large_step["failing"]}
    assert margins["K-AVG (3.1): 1 − δ ≥ L²γ²"] == -3.5
