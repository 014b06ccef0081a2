"""What travels every step: gradients, or QSGD's quantised ones (Alistarh et al. 2017), unbiased and
within its bound.

The statistical tests draw from fixed seeds, so they pass or fail for good; their error rate is the
share of seeds for which a correct quantiser would fail.
"""

import warnings

import numpy as np
import pytest
from mpi4py import MPI
from scipy.stats import chi2

from localavg import algorithms
from localavg.algorithms.base import NoExchange
from localavg.algorithms.qsgd import QuantisedGradient
from localavg.algorithms.sync import MeanGradient
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.learner.flat import Flat
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.wires.int8 import Int8
from localavg.scope import Scope
from localavg.streams import Stream, generator, uniform
from localavg.training.averaging import Averaging

BELOW_1 = np.nextafter(np.float32(1), np.float32(0))


def together(P):
    """The transport of one rank that holds everyone."""
    return HostMPI(Fleet(MPI.COMM_SELF, P))


def quantise(g, s, bucket, u):
    """The codes int8 [d] and the norms float32 [buckets] as which g travels."""
    coded = np.empty(Int8(s, bucket).nbytes(len(g)), np.uint8)
    Int8(s, bucket).encode_(g, u, coded)
    end = 4 * -(-len(g) // bucket)
    return coded[end:].view(np.int8), coded[:end].view(np.float32)


def decode(codes, norms, s, bucket):
    coded = np.concatenate([norms.view(np.uint8), codes.view(np.uint8)])
    return Int8(s, bucket).decode(coded, len(codes))


def gradients():
    """Gradients by name, of odd lengths, with parts of very different size."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=700) * np.repeat([1, 1e-4, 30, 1e-8, 1, 0, 5], 100)
    sparse = np.where(rng.random(513) < 0.02, rng.normal(size=513), 0)
    return {
        name: g.astype(np.float32)
        for name, g in {
            "normal": rng.normal(size=700),
            "mixed": mixed,
            "sparse": sparse,
            "equal": np.full(515, -0.25),
            "tiny": 1e-30 * rng.normal(size=100),
            "large": 1e30 * rng.normal(size=100),
        }.items()
    }


def drawn(g, s, bucket, draws, seed=1):
    """[draws, d] float64: what arrives of g, again and again."""
    rng = np.random.default_rng(seed)
    u = rng.random((draws, len(g)), np.float32)
    return np.array([decode(*quantise(g, s, bucket, u_i), s, bucket) for u_i in u], float)


def norms_by_hand(g, bucket):
    return np.array(
        [np.linalg.norm(g[i : i + bucket].astype(float)) for i in range(0, len(g), bucket)]
    )


def chances(g, s, bucket):
    """For every entry [d] by hand, in float64: the distance of two levels, and the chance of the
    upper one.
    """
    step = np.repeat(norms_by_hand(g, bucket) / s, bucket)[: len(g)]
    level = np.divide(np.abs(g), step, out=np.zeros(len(g)), where=step > 0)
    return step, level - np.floor(level)


# --------------------------------------------------------------------------------------------- QSGD


@pytest.mark.parametrize("name", gradients())
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_quantiser_has_no_bias(name, bits):
    """Over 3000 draws: χ² of the entries' mean errors, in units of their own deviation. Errs with
    probability 1e-6.
    """
    g, s, bucket, draws = gradients()[name], 2 ** (bits - 1) - 1, 256, 3000
    q = drawn(g, s, bucket, draws)
    step, p = chances(g, s, bucket)
    common = (
        p * (1 - p) * draws > 10
    )  # entries with upper and lower draws enough that their mean is normal
    z = (q.mean(axis=0) - g)[common] / (step * np.sqrt(p * (1 - p) / draws))[common]
    assert common.sum() >= 5 or name in ("sparse", "equal")
    assert (z**2).sum() < chi2.isf(1e-6, max(1, len(z)))
    off = np.abs(q - g) > step * (1 + 1e-5)  # never further than the next level
    assert not off.any()
    exact = step == 0
    assert (q[:, exact] == 0).all()


@pytest.mark.parametrize("name", gradients())
@pytest.mark.parametrize(("bits", "bucket"), [(2, 512), (4, 64), (8, 512), (8, 64)])
def test_the_variance_is_within_lemma_3_1(name, bits, bucket):
    """E‖Q(g) − g‖² ≤ min(d/s², √d/s) ‖g‖² for every bucket of d entries, and as large as the
    levels' distance says.
    """
    g, s, draws = gradients()[name], 2 ** (bits - 1) - 1, 800
    errors = (drawn(g, s, bucket, draws) - g) ** 2  # [draws, d]
    step, p = chances(g, s, bucket)
    for i in range(0, len(g), bucket):
        part = slice(i, i + bucket)
        d, norm = len(g[part]), norms_by_hand(g[part], bucket)[0]
        found = errors[:, part].sum(axis=1)
        assert found.mean() <= min(d / s**2, np.sqrt(d) / s) * norm**2
        expected = (step[part] ** 2 * p[part] * (1 - p[part])).sum()
        assert (
            abs(found.mean() - expected)
            <= 6 * found.std() / np.sqrt(draws) + 1e-5 * (step[part] ** 2).sum()
        )


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_fit_the_bits_even_at_the_ends(bits):
    s = 2 ** (bits - 1) - 1
    g = np.concatenate([np.linspace(-3, 3, 99), [0, 100, -100]]).astype(np.float32)
    for bucket in (1, 2, 34, 102, 512):
        for u in (
            np.zeros(102, np.float32),
            np.full(102, BELOW_1),
            np.random.default_rng(0).random(102, np.float32),
        ):
            codes, norms = quantise(g, s, bucket, u)
            assert codes.dtype == np.int8 and codes.shape == g.shape
            assert norms.dtype == np.float32
            assert np.abs(codes.astype(int)).max() <= s
            assert (np.sign(codes) * np.sign(g) >= 0).all()
            assert decode(codes, norms, s, bucket).dtype == np.float32


def test_rounding_by_hand():
    # ‖g‖ = 5, s = 3: levels 3 · 0.6 = 1.8 and 3 · 0.8 = 2.4
    g = np.array([3, -4], np.float32)
    by_draw = {
        0.0: [1, -2],
        0.15: [1, -2],
        0.25: [2, -2],
        0.55: [2, -2],
        0.65: [2, -3],
        BELOW_1: [2, -3],
    }
    for u, levels in by_draw.items():
        codes, norms = quantise(g, 3, 512, np.full(2, u, np.float32))
        assert codes.tolist() == levels and norms.tolist() == [5]
        np.testing.assert_allclose(
            decode(codes, norms, 3, 512), np.array(levels) * 5 / 3, rtol=1e-6
        )


@pytest.mark.parametrize("d", [1, 2, 511, 512, 513, 1023, 1025, 2000])
@pytest.mark.parametrize("bucket", [1, 7, 512, 4096])
def test_every_length_has_its_buckets(d, bucket):
    g = np.random.default_rng(d).normal(size=d).astype(np.float32)
    codes, norms = quantise(g, 127, bucket, np.full(d, 0.5, np.float32))
    assert norms.shape == (-(-d // bucket),)
    np.testing.assert_allclose(norms, norms_by_hand(g, bucket), rtol=1e-6)
    step = np.repeat(norms_by_hand(g, bucket) / 127, bucket)[:d]
    assert (
        np.abs(decode(codes, norms, 127, bucket) - g) <= 0.501 * step
    ).all()  # u = ½ rounds to the nearest


def test_buckets_do_not_feel_each_other():
    g = gradients()["mixed"]
    u = np.random.default_rng(3).random(700, np.float32)
    codes, norms = quantise(g, 127, 100, u)
    for b in range(7):
        part = slice(100 * b, 100 * b + 100)
        alone, norm = quantise(g[part], 127, 100, u[part])
        assert (codes[part] == alone).all() and norms[b] == norm[0]


@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_1])
def test_zero_gradients_arrive_as_zeros_in_silence(u):
    g = np.zeros(1100, np.float32)
    g[600:700] = 1  # the middle bucket is not zero
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (g, np.zeros(1100, np.float32)):
            codes, norms = quantise(x, 127, 512, np.full(1100, u, np.float32))
            q = decode(codes, norms, 127, 512)
            assert not q[x == 0].any() and np.isfinite(q).all()
            assert (norms > 0).tolist() == [False, bool(x.any()), False]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("value", [1.0, -2.5, 3e-20, -7e20])
def test_one_nonzero_entry_arrives_whole(bits, value):
    """Its level is the last one whatever is drawn: no noise, and none on the zeros beside it."""
    s, g = 2 ** (bits - 1) - 1, np.zeros(33, np.float32)
    g[17] = value
    for u in (0.0, 0.3, BELOW_1):
        codes, norms = quantise(g, s, 512, np.full(33, u, np.float32))
        assert codes[17] == np.sign(value) * s and np.count_nonzero(codes) == 1
        np.testing.assert_allclose(decode(codes, norms, s, 512)[17], value, rtol=3e-7)


def test_gradients_below_the_normal_numbers_are_no_disaster():
    g = np.array([1e-39, -1e-39, 0, 0], np.float32)
    with np.errstate(invalid="raise"):  # such as 0 · ∞
        codes, norms = quantise(g, 127, 512, np.full(4, 0.5, np.float32))
        q = decode(codes, norms, 127, 512)
    assert (np.abs(q) <= 1e-38).all() and not q[2:].any()


# ------------------------------------------------------------------------------------------------ t


def test_what_travels_by_name():
    assert (NoExchange().scope, MeanGradient().scope, QuantisedGradient().scope) == (
        Scope.NONE,
        Scope.WORLD,
        Scope.WORLD,
    )


def test_the_mean_gradient_is_the_mean_of_everyone():
    g = np.array([[1, 2], [3, 6]], np.float32)
    MeanGradient().exchange_(g, 1, together(2))
    assert g.tolist() == [[2, 4], [2, 4]]


def test_bytes_of_a_coded_row():
    for d, bucket, expected in [(1, 512, 5), (512, 512, 516), (513, 512, 521), (1000, 1, 5000)]:
        for bits in (2, 8):
            assert QuantisedGradient(bits, bucket).code.nbytes(d) == expected


def exchanged(g, t=1, seed=0, **options):
    exchange, g = QuantisedGradient(**options), g.copy()
    exchange.start(range(len(g)), seed)
    exchange.exchange_(g, t, together(len(g)))
    return g


def rows(P=4, d=700):
    return np.random.default_rng(5).normal(size=(P, d)).astype(np.float32)  # [P, d]


def test_everyone_gets_the_same():
    found = exchanged(rows(), bits=4, bucket=64)
    assert (found == found[0]).all()


def test_the_exchange_is_near_the_mean_gradient():
    g = rows()
    np.testing.assert_allclose(
        exchanged(g, bucket=128)[0], g.mean(axis=0), atol=8 / 127 * np.sqrt(128) / 2
    )


def test_the_exchange_has_no_bias():
    """Over 3000 steps: χ² of 60 entries' mean errors in units of their deviation over the steps.
    Errs with probability about 1e-6.
    """
    g, steps, transport = rows(P=2, d=60), 3000, together(2)
    exchange = QuantisedGradient(bits=3, bucket=20)
    exchange.start(range(2), seed=0)
    found = np.empty((steps, 60))
    for t in range(1, steps + 1):
        copy = g.copy()
        exchange.exchange_(copy, t, transport)
        found[t - 1] = copy[0]
    z = (found.mean(axis=0) - g.mean(axis=0)) / (found.std(axis=0) / np.sqrt(steps))
    assert (z**2).sum() < chi2.isf(1e-6, 60)


def drawn_in(g, t=1, seed=0):
    """What is drawn in an exchange: for each row, and for the mean."""
    found = []

    class Draws(HostMPI):
        def coded_mean_(self, w, code, draws, again):
            n = w.shape[1]
            found.extend([*(draws(l, 0, n) for l in range(len(w))), again(0, n)])

    exchange = QuantisedGradient()
    exchange.start(range(len(g)), seed)
    exchange.exchange_(g, t, Draws(Fleet(MPI.COMM_SELF, len(g))))
    return np.array(found)


def test_rounding_is_drawn_anew_by_learner_step_and_seed_and_for_the_mean():
    g = rows(P=2)
    draws = [drawn_in(g), drawn_in(g, t=2), drawn_in(g, seed=1)]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 9
    assert (drawn_in(g) == draws[0]).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 5), (8, 700), (513, 514), (696, 700)])
def test_any_part_of_the_draws_is_the_part_of_all(start, stop):
    whole = generator(7, 2, 9, Stream.ROUNDING).random(700, np.float32)
    assert (uniform(7, 2, 9, Stream.ROUNDING, start, stop) == whole[start:stop]).all()


@pytest.mark.parametrize("d", [1, 5, 513])
def test_odd_rows_and_parts_of_a_wider_matrix(d):
    wide = np.concatenate([rows(3, d), np.full((3, 2), 9, np.float32)], axis=1)
    exchange, expected = QuantisedGradient(), exchanged(wide[:, :d])
    exchange.start(range(3), 0)
    exchange.exchange_(wide[:, :d], 1, together(3))
    assert (wide[:, :d] == expected).all() and (wide[:, d:] == 9).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1}, "--bits 1: must lie in 2 … 8"),
        ({"bits": 9}, "--bits 9: must lie in 2 … 8"),
        ({"bits": 0}, "--bits 0"),
        ({"bits": -8}, "--bits -8"),
        ({"bucket": 0}, "--bucket 0: must be at least 1"),
        ({"bucket": -512}, "--bucket -512"),
    ],
)
def test_a_bad_value_is_refused_by_name(options, words):
    with pytest.raises(UserError) as e:
        QuantisedGradient(**options)
    assert in_flags(str(e.value)).startswith(words)


class Stateless:
    averaged = 0

    def at_average_(self, average_):
        pass


def averaging(algorithm, P=4):
    """An Averaging on one rank, with a row of 3 parameters for each of P learners, all zero."""
    transport = together(P)
    flat = Flat({"w": (3,)}, P, None, transport.zeros)
    nothing = dict.fromkeys(("before", "after", "objective"), lambda *a: None)
    algorithm.participants.start(range(P), P, 0)
    made = Averaging(algorithm, transport, flat, Stateless(), **nothing)
    made.begin(0, 0.1)
    return made


def test_gradients_are_exchanged_up_to_the_switch():
    made = averaging(algorithms.kavg.kavg(K=2, switch=3))
    for t in range(1, 6):
        g = np.arange(12, dtype=np.float32).reshape(4, 3)
        made.exchange_(g, t)
        assert (np.ptp(g, axis=0) == 0).all() == (t <= 3)
        made.flat.w += g
        scope = made.average_(t, 0.1)
        assert scope == (Scope.WORLD if t == 5 else Scope.NONE)
        assert (np.ptp(made.flat.w, axis=0) == 0).all() == (t != 4)


def test_an_outer_optimiser_begins_at_the_switch():
    """Its w̃ is then the weights at the switch, here 2; 6 is the mean of the first round."""
    made = averaging(algorithms.kavg.kavg(K=1, switch=3, outer="momentum", outer_lr=0.5, mu=0.0))
    for t, (moved, expected) in enumerate([(1, 1), (2, 2), (2, 2), (6, 4)], start=1):
        made.flat.w[:] = moved
        made.average_(t, 0.1)
        assert (made.flat.w == expected).all()
