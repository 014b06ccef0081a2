"""Training runs, launched as a user would, against the oracles and against each other.

The oracles work in float64 on fixed contiguous shards with whole-shard batches, so a run has nothing random but QSGD's
rounding, whose uniform numbers they are given.
"""

import math
import shlex
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import oracles as oracle
import pytest
from conftest import D, N
from mpi import train, train_all

from localavg.record import CLUSTER, WORLD
from localavg.sampling import generator

M, L2 = 0.8, 0.01  # learners' momentum and the ℓ2 coefficient of every case
TOLERANCE = 1e-6  # of weights, relative, in the 2-norm

WORLDS = [("openmpi", 1), ("openmpi", 2), ("openmpi", 3), ("openmpi", 4), ("mpich", 4)]


# ---------------------------------------------------------------------------------------------- the cases


class StepSize(NamedTuple):
    """A step size as options and as a function of t = 1, 2, …; an epoch of whole shards is one update."""

    options: str
    gamma: Callable[[int], float]


def constant(lr):
    return StepSize(f"--lr {lr}", lambda t: lr)


FALLING = StepSize("--lr 1.2 --schedule steps --milestones 21 45 --factor 0.4",
                   lambda t: 1.2 * 0.4 ** ((t > 21) + (t > 45)))  # fmt: skip
STAIRS = StepSize("--lr 1.5 --schedule steps --every 16 --factor 0.7", lambda t: 1.5 * 0.7 ** ((t - 1) // 16))
RISING = StepSize("--lr 1.2 --warmup-epochs 40 --warmup-from 0.1", lambda t: 0.1 + 1.1 * min(t - 1, 40) / 40)
INVERSE = StepSize("--schedule inverse --pl-constant 0.1 --shift 30", lambda t: 4 / (0.1 * (t + 30)))


class Case(NamedTuple):
    """A run: the algorithm as words of the command line, and the oracle for it as a function of (setup, T, γ)."""

    line: str
    oracle: Callable
    optimiser: str = "sgd"
    policy: str = "keep"
    step: StepSize = constant(0.7)
    T: int = 60
    P: int = 8
    data: str = "shards"
    l2: float = L2

    def command(self, data):
        """The arguments of `localavg train`."""
        return (f"{self.line} --learners {self.P} --data {shlex.quote(data.path)} --sampling shard --batch-size {N // self.P} "
                f"--steps {self.T} --l2 {self.l2} --optimizer {self.optimiser} --momentum {M} --state {self.policy} "
                f"{self.step.options} --save-weights --seed 0")  # fmt: skip

    def expected(self, data):
        """What the oracle returns: weights, averages, and for adpsgd its trace."""
        setup = oracle.Setup(data.X, data.y, self.P, self.l2, self.optimiser, M, self.policy)
        return self.oracle(setup, self.T, self.step.gamma)


def kavg(K):
    return lambda s, T, gamma: oracle.kavg(s, T, gamma, K)


def mavg(K, mu, nesterov=False):
    return lambda s, T, gamma: oracle.mavg(s, T, gamma, K, mu, nesterov)


def hieravg(K1, K2, S):
    return lambda s, T, gamma: oracle.hieravg(s, T, gamma, K1, K2, S)


def adpsgd(p_init, K_s, warmup=0):
    return lambda s, T, gamma: oracle.adpsgd(s, T, gamma, p_init, K_s, warmup, k_from="warmup")


def qsgd(bits=8, bucket=512):
    def uniforms(t, j):
        return generator(0, j, t, stream=1).random(D, np.float32).astype(np.float64)

    return lambda s, T, gamma: oracle.qsgd(s, T, gamma, uniforms, bits, bucket)


def block_step(a, w_tilde, v, mu, nesterov):
    """The new (w~, v) of mavg Algorithm 1 from the mean a; with nesterov its last line is w~ <- w~ + mu v + d."""
    d = a - w_tilde
    v = mu * v + d
    return w_tilde + (mu * v + d if nesterov else v), v


def hieravg_with_momentum(K1, K2, S, mu, nesterov=False):
    """hieravg Algorithm 1 whose global averages are those of mavg Algorithm 1."""

    def run(setup, T, gamma):
        W, states = oracle.start(setup)
        w_tilde = v = np.zeros(setup.X.shape[1])
        averages, since = [], 0
        for t in range(1, T + 1):
            W, states = oracle.every_learner_steps(setup, W, states, gamma(t))
            since += 1
            if since == K2 or t == T:
                w_tilde, v = block_step(oracle.mean(W), w_tilde, v, mu, nesterov)
                W = [w_tilde] * setup.P
                states = oracle.states_after_average(states, setup.policy)
                averages.append((t, "global"))
                since = 0
            elif since % K1 == 0:
                for first in range(0, setup.P, S):
                    cluster = slice(first, first + S)
                    W[cluster] = [oracle.mean(W[cluster])] * S
                    states[cluster] = oracle.states_after_average(states[cluster], setup.policy)
                averages.append((t, "local"))
        return w_tilde, averages

    return run


def adpsgd_with_momentum(p_init, K_s, warmup, mu):
    """adpsgd Algorithm 2 whose averages are those of mavg Algorithm 1; S is about the plain mean."""

    def run(setup, T, gamma):
        W, states = oracle.start(setup)
        w_tilde = v = np.zeros(setup.X.shape[1])
        averages, trace = [], []
        cnt, p, samples = 0, p_init, []
        for t in range(1, T + 1):
            W, states = oracle.every_learner_steps(setup, W, states, gamma(t))
            cnt += t > warmup
            if t <= warmup or cnt == p or t == T:
                a = oracle.mean(W)
                S = np.mean([np.sum((a - w) ** 2) for w in W])
                w_tilde, v = block_step(a, w_tilde, v, mu, nesterov=False)
                W = [w_tilde] * setup.P
                states = oracle.states_after_average(states, setup.policy)
                averages.append((t, "global"))
                C2 = np.mean(samples) if samples else math.nan
                if t <= warmup:
                    phase = "warmup"
                elif cnt != p:
                    phase = "final"
                elif t - 1 - warmup < K_s:
                    phase = "sampling"
                    samples.append(S / gamma(t))
                else:
                    phase = "control"
                    p = p + 1 if S < 0.7 * gamma(t) * C2 else max(1, p - 1) if S > 1.3 * gamma(t) * C2 else p
                cnt = 0
                trace.append(oracle.Adaptation(t, 0, S, C2, p, phase))
        return w_tilde, averages, trace

    return run


def momentum_at(schedule, mu, nesterov=False):
    """mavg Algorithm 1 at the updates where another oracle, of the same arguments, averages."""

    def run(setup, T, gamma):
        W, states = oracle.start(setup)
        w_tilde = v = np.zeros(setup.X.shape[1])
        averages = schedule(setup, T, gamma)[1]
        for t in range(1, T + 1):
            W, states = oracle.every_learner_steps(setup, W, states, gamma(t))
            if (t, "global") in averages:
                w_tilde, v = block_step(oracle.mean(W), w_tilde, v, mu, nesterov)
                W = [w_tilde] * setup.P
                states = oracle.states_after_average(states, setup.policy)
        return w_tilde, averages

    return run


def linear(tau0, alpha):
    return lambda s, T, gamma: oracle.adalupa_linear(s, T, gamma, tau0, alpha)


def piecewise(*pieces):
    return lambda s, T, gamma: oracle.piecewise(s, T, gamma, pieces)


ADAM = constant(0.03)
CASES = {
    **{f"sgd-{optimiser}": Case("sgd", oracle.sgd, optimiser, step=step, P=1)
       for optimiser, step in {"sgd": FALLING, "momentum": INVERSE, "nesterov": RISING, "adam": ADAM}.items()},
    **{f"sync-{optimiser}": Case("sync", oracle.sync, optimiser, step=step)
       for optimiser, step in {"sgd": STAIRS, "momentum": RISING, "nesterov": FALLING, "adam": ADAM}.items()},
    "kavg-sgd": Case("kavg --K 7", kavg(7), step=FALLING),
    **{f"kavg-{optimiser}-{policy}": Case("kavg --K 7", kavg(7), optimiser, policy, step)
       for optimiser, step in {"momentum": constant(0.7), "nesterov": STAIRS, "adam": ADAM}.items()
       for policy in ("keep", "average", "reset")},
    "kavg-inverse": Case("kavg --tau 12", kavg(12), step=INVERSE),
    "kavg-longer-than-T": Case("kavg --K 99", kavg(99), T=51),
    "kavg-12": Case("kavg --K 5", kavg(5), "momentum", "average", FALLING, P=12, T=53),
    "oneshot-sgd": Case("oneshot", oracle.oneshot, step=RISING),
    "oneshot-adam": Case("oneshot", oracle.oneshot, "adam", step=ADAM),
    "adalupa-linear": Case("adalupa --tau0 5 --alpha 0.3", linear(5, 0.3), "nesterov", "average"),
    "adalupa-linear-tenths": Case("adalupa --tau0 10 --alpha 0.1", linear(10, 0.1), step=INVERSE, T=270),
    "adalupa-linear-mu": Case("adalupa --tau0 4 --alpha 0.5 --mu 0.5", momentum_at(linear(4, 0.5), 0.5), T=70),
    "adalupa-loss": Case("adalupa --rule loss --tau0 5", lambda s, T, gamma: oracle.adalupa_loss(s, T, gamma, 5),
                         step=constant(60.0), T=150, data="separable", l2=1e-5),
    "adalupa-loss-reset": Case("adalupa --rule loss --tau0 4", lambda s, T, gamma: oracle.adalupa_loss(s, T, gamma, 4),
                               "momentum", "reset", constant(12.0), data="separable", l2=1e-4),
    "piecewise": Case("piecewise --pieces 0:3,20:8,41:2", piecewise((0, 3), (20, 8), (41, 2)), "momentum", "reset"),
    "piecewise-20-5": Case("piecewise --pieces 0:20,40:5", piecewise((0, 20), (40, 5)), "adam", "average", ADAM, T=78),
    "piecewise-mu": Case("piecewise --pieces 0:4,30:7 --mu 0.4 --nesterov",
                         momentum_at(piecewise((0, 4), (30, 7)), 0.4, nesterov=True), T=64),
    "mavg": Case("mavg --K 7 --mu 0.6", mavg(7, 0.6)),
    "mavg-momentum": Case("mavg --K 7 --mu 0.5", mavg(7, 0.5), "momentum", "keep", FALLING),
    "mavg-adam-reset": Case("mavg --K 4 --mu 0.3", mavg(4, 0.3), "adam", "reset", ADAM, T=54),
    "mavg-nesterov": Case("mavg --K 7 --mu 0.6 --nesterov", mavg(7, 0.6, nesterov=True)),
    "mavg-nesterov-nesterov": Case("mavg --K 6 --mu 0.4 --nesterov", mavg(6, 0.4, nesterov=True), "nesterov", "average",
                                   FALLING, T=52),
    "hieravg": Case("hieravg --K1 2 --K2 8 --S 4", hieravg(2, 8, 4)),
    "hieravg-pairs": Case("hieravg --K1 3 --K2 8 --S 2", hieravg(3, 8, 2), "momentum", "average", FALLING),
    "hieravg-adam": Case("hieravg --K1 5 --K2 7 --S 4", hieravg(5, 7, 4), "adam", "average", ADAM),
    "hieravg-reset": Case("hieravg --K1 3 --K2 10 --S 4", hieravg(3, 10, 4), "nesterov", "reset", T=56),
    "hieravg-everyone": Case("hieravg --K1 3 --K2 7 --S 8", hieravg(3, 7, 8), "momentum", "keep"),
    "hieravg-alone": Case("hieravg --K1 3 --K2 9 --S 1", hieravg(3, 9, 1), "momentum", "reset", STAIRS),
    "hieravg-mu": Case("hieravg --K1 3 --K2 8 --S 4 --mu 0.5", hieravg_with_momentum(3, 8, 4, 0.5), "momentum"),
    "hieravg-mu-nesterov": Case("hieravg --K1 2 --K2 7 --S 2 --mu 0.4 --nesterov",
                                hieravg_with_momentum(2, 7, 2, 0.4, nesterov=True), step=STAIRS),
    **{f"hieravg-12-{S}": Case(f"hieravg --K1 3 --K2 {K2} --S {S}", hieravg(3, K2, S), "momentum", policy, FALLING, P=12)
       for S, K2, policy in ((2, 8, "keep"), (3, 7, "reset"), (4, 7, "average"), (6, 8, "average"))},
    "adpsgd-grows": Case("adpsgd --p-init 3 --Ks 20 --warmup 0", adpsgd(3, 20), step=FALLING, T=120),
    "adpsgd-shrinks": Case("adpsgd --p-init 5 --Ks 12 --warmup 0", adpsgd(5, 12), step=RISING, T=80),
    "adpsgd-warm-up": Case("adpsgd --p-init 4 --Ks 0.25 --warmup 9", adpsgd(4, 25, 9), "momentum", "average", FALLING, T=101),
    "adpsgd-reset": Case("adpsgd --p-init 3 --Ks 0.2 --warmup 5", adpsgd(3, 18, 5), "nesterov", "reset", STAIRS, T=90),
    "adpsgd-sampling-only": Case("adpsgd --p-init 6 --Ks 60 --warmup 0", adpsgd(6, 60), "adam", step=ADAM),
    "adpsgd-mu": Case("adpsgd --p-init 3 --Ks 20 --warmup 4 --mu 0.4", adpsgd_with_momentum(3, 20, 4, 0.4), step=FALLING, T=110),
    "adpsgd-12": Case("adpsgd --p-init 4 --Ks 16 --warmup 3", adpsgd(4, 16, 3), "momentum", step=FALLING, T=90, P=12),
    "qsgd": Case("qsgd", qsgd(), step=FALLING),
    "qsgd-buckets": Case("qsgd --bucket 8", qsgd(bucket=8), "momentum"),
    "qsgd-4-bits": Case("qsgd --bits 4 --bucket 6", qsgd(4, 6), "adam", step=ADAM, T=55),
    "qsgd-12": Case("qsgd --bucket 16", qsgd(bucket=16), "nesterov", step=constant(0.4), P=12, T=50),
}  # fmt: skip


@pytest.fixture(scope="module")
def datasets(shards, separable):
    return {"shards": shards, "separable": separable}


@pytest.fixture(scope="module")
def expected(datasets):
    """The oracle's answer for a case by name, worked out once."""
    answers = {}

    def answer(name):
        if name not in answers:
            answers[name] = CASES[name].expected(datasets[CASES[name].data])
        return answers[name]

    return answer


def cases_on(ranks):
    """The names of the cases that can run on so many ranks."""
    return [name for name, case in CASES.items() if case.P % ranks == 0]


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory, datasets):
    """The run of every case that one layout can hold, in one launch."""
    mpi, ranks = request.param
    lines = {name: CASES[name].command(datasets[CASES[name].data]) for name in cases_on(ranks)}
    return train_all(tmp_path_factory.mktemp("runs"), ranks, lines, mpi=mpi, timeout=300)


everywhere = pytest.mark.parametrize(
    ("runs", "name"),
    [pytest.param(world, name, id=f"{world[0]}-{world[1]}-{name}") for world in WORLDS for name in cases_on(world[1])],
    indirect=["runs"],
)


def distance(a, b):
    """‖a − b‖ / ‖b‖ in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ---------------------------------------------------------------------------------------- against the oracles


@everywhere
def test_the_weights_are_the_oracles(runs, name, expected):
    assert distance(runs[name].weights, expected(name)[0]) < TOLERANCE


@everywhere
def test_the_averages_are_the_oracles(runs, name, expected):
    """Every row of /averages: when, whose, after how many updates; and the last one is at T."""
    got, averages = runs[name].averages, expected(name)[1]
    assert list(zip(got.t, got.scope, strict=True)) == [
        (t, {"global": WORLD, "local": CLUSTER}[scope]) for t, scope in averages
    ]
    assert got.period.tolist() == np.diff([0, *(t for t, _ in averages)]).tolist()
    if not name.startswith("sgd"):
        assert got.t.iloc[-1] == CASES[name].T and got.scope.iloc[-1] == WORLD


@pytest.mark.parametrize(
    ("runs", "name"),
    [pytest.param(world, name, id=f"{world[0]}-{world[1]}-{name}")
     for world in WORLDS for name in cases_on(world[1]) if name.startswith("adpsgd")],
    indirect=["runs"],
)  # fmt: skip
def test_adpsgds_variances_are_the_oracles(runs, name, expected):
    trace = expected(name)[2]
    np.testing.assert_allclose(runs[name].averages.variance, [a.variance for a in trace], rtol=1e-4)


def test_the_cases_tell_algorithms_and_options_apart(expected):
    """No run could pass for another's: the oracles' weights differ by far more than is tolerated."""
    names = [name for name, case in CASES.items() if case.data == "shards"]
    for i, a in enumerate(names):
        for b in names[:i]:
            assert distance(expected(a)[0], expected(b)[0]) > 100 * TOLERANCE, (a, b)


def test_adpsgd_goes_through_all_its_phases(expected):
    changes = {name: [b.next_period - a.next_period for a, b in zip(t, t[1:], strict=False)]
               for name in CASES if name.startswith("adpsgd") for t in [expected(name)[2]]}  # fmt: skip
    phases = {name: {a.phase for a in expected(name)[2]} for name in changes}
    assert phases["adpsgd-warm-up"] == phases["adpsgd-reset"] == {"warmup", "sampling", "control", "final"}
    assert changes["adpsgd-grows"].count(1) >= 3 and changes["adpsgd-shrinks"].count(-1) >= 3
    assert phases["adpsgd-sampling-only"] <= {"sampling", "final"}


def test_adalupa_goes_through_three_periods(expected):
    gaps = np.diff([0, *(t for t, _ in expected("adalupa-loss")[1])])
    assert {5, 10, 15} <= set(gaps.tolist())


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("adpsgd", "qsgd", "adalupa-loss"))])
def test_no_decision_hangs_on_rounding(name, datasets, expected):
    """Data moved by several float32 roundings give the same averages and weights: no comparison in the run is close."""
    data = datasets[CASES[name].data]
    rng = np.random.default_rng(0)
    for _ in range(4):
        moved = data._replace(X=data.X * (1 + 5e-7 * rng.choice([-1, 1], data.X.shape)))
        w, averages = CASES[name].expected(moved)[:2]
        assert averages == expected(name)[1]
        assert distance(w, expected(name)[0]) < 20 * TOLERANCE
