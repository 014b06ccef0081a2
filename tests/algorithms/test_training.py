"""Training runs, launched as a user would, against the oracles and against each other.

The oracles work in float64 on fixed contiguous shards with whole-shard batches, so a run has
nothing random but QSGD's rounding, whose uniform numbers they are given.
"""

import math
import shlex
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import oracles as oracle
import pytest
from mpi import train, train_all
from samples import D, N

from localavg.files.record import CLUSTER, NEIGHBOURS, WORLD
from localavg.streams import Stream, generator

M, L2 = 0.8, 0.01  # learners' momentum and the ℓ2 coefficient of every case
TOLERANCE = 1e-6  # of weights, relative, in the 2-norm

WORLDS = [  # MPI library, ranks, transport
    ("openmpi", 1, "auto"),
    ("openmpi", 2, "mpi"),
    ("openmpi", 3, "shared"),
    ("openmpi", 4, "shared"),
    ("mpich", 2, "auto"),
]


# ---------------------------------------------------------------------------------------------- the


class StepSize(NamedTuple):
    """A step size as options and as a function of t = 1, 2, …; an epoch of whole shards is one
    update.
    """

    options: str
    gamma: Callable[[int], float]


def constant(lr):
    return StepSize(f"--lr {lr}", lambda t: lr)


FALLING = StepSize(
    "--lr 1.2 --lr-schedule steps --milestones 21 45 --factor 0.4",
    lambda t: 1.2 * 0.4 ** ((t > 21) + (t > 45)),
)
STAIRS = StepSize(
    "--lr 1.5 --lr-schedule steps --decay-every 16 --factor 0.7",
    lambda t: 1.5 * 0.7 ** ((t - 1) // 16),
)
RISING = StepSize(
    "--lr 1.2 --warmup-epochs 40 --warmup-from 0.1", lambda t: 0.1 + 1.1 * min(t - 1, 40) / 40
)
INVERSE = StepSize(
    "--lr-schedule inverse --pl-constant 0.1 --shift 30", lambda t: 4 / (0.1 * (t + 30))
)


def momentum(optimiser):
    """The option of the optimisers that have a coefficient."""
    return f"--momentum {M} " if optimiser in ("momentum", "nesterov") else ""


class Case(NamedTuple):
    """A run: the algorithm as words of the command line, and the oracle for it as a function of
    (setup, T, γ).
    """

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
        return (
            f"{self.line} --learners {self.P} --data {shlex.quote(data.path)} --sampling shard "
            f"--batch-size {len(data.y) // self.P} --steps {self.T} --l2 {self.l2} --optimizer "
            f"{self.optimiser} "
            f"{momentum(self.optimiser)}--state {self.policy} {self.step.options} --save-weights "
            "--seed 0 "
            f"--log-every {self.T} --eval-every {self.T}"
        )

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


def levels(*pairs, rule=None, lr=None, mu=None):
    """A hierarchy of pairs (K, S), with an outer optimiser where there is a rule."""

    def run(s, T, gamma):
        server = oracle.OuterState(rule, lr, mu, np.zeros(D)) if rule else None
        return oracle.levels(s, T, gamma, pairs, server)

    return run


def adpsgd(p_init, K_s, warmup=0):
    return lambda s, T, gamma: oracle.adpsgd(s, T, gamma, p_init, K_s, warmup, k_from="warmup")


def qsgd(bits=8, bucket=512):
    def uniforms(t, j):
        return generator(0, j, t, Stream.ROUNDING).random(D, np.float32).astype(np.float64)

    def again(t):
        return generator(0, 0, t, Stream.MEAN_ROUNDING).random(D, np.float32).astype(np.float64)

    return lambda s, T, gamma: oracle.qsgd(s, T, gamma, uniforms, again, bits, bucket)


def block_step(a, w_tilde, v, mu, nesterov):
    """The new (w~, v) of mavg Algorithm 1 from the mean a; with nesterov its last line is w~ <- w~
    + mu v + d.
    """
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
    """adpsgd Algorithm 2 whose averages are those of mavg Algorithm 1; S is about the plain
    mean.
    """

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
                    ratio = S / (gamma(t) * C2)
                    p = p + 1 if ratio < 0.7 else max(1, p - 1) if ratio > 1.3 else p
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


def postlocal(t0, *due, **outer):
    return lambda s, T, gamma: oracle.postlocal(s, T, gamma, t0, due, **outer)


def adacomm(tau0, block):
    return lambda s, T, gamma: oracle.adacomm(s, T, gamma, tau0, block)


def fedavg(K, m, rows=True, rule=None, lr=None, mu=None):
    """FedAvg of runs with seed 0 on shards, with their clients and mini-batches, which are the whole
    shard where that has the rows of the smallest.
    """

    def run(s, T, gamma):
        def drawn(r):
            random = generator(0, 0, r, Stream.PARTICIPANTS)
            return sorted(random.choice(s.P, m, replace=False).tolist())

        def batch(j, t):
            shard, B = oracle.shard(len(s.y), j, s.P), len(s.y) // s.P
            held = np.arange(shard.start, shard.stop)
            if len(held) == B:
                return held
            return held[generator(0, j, t - 1, Stream.SAMPLING).permutation(len(held))[:B]]

        server = oracle.OuterState(rule, lr, mu, np.zeros(s.X.shape[1])) if rule else None
        return oracle.fedavg(s, T, gamma, K, drawn, batch, rows, server)

    return run


def delayed(schedule, tau, merge="cocod", **how):
    return lambda s, T, gamma: oracle.delayed(s, T, gamma, schedule, tau, merge, **how)


def qsr(alpha, K, power=2, peak=0):
    return lambda s, T, gamma: oracle.qsr(s, T, gamma, alpha, K, power, peak)


def gossip(K, W_of, first=False):
    """W_of: P → W of every gossip, or (P, k) → W of gossip k."""
    return lambda s, T, gamma: oracle.gossip(s, T, gamma, K, lambda k: W_of(s.P, k), first)


def ring(P, k):
    return oracle.ring(P)


def torus(P, k):
    return oracle.torus(*{4: (2, 2), 6: (2, 3), 8: (2, 4), 12: (3, 4), 15: (3, 5)}[P])


def exponential(P, k):
    return oracle.exponential(P)


def draws(k):
    return generator(0, 0, k, Stream.GOSSIP)


def matching(P, k):
    """MATCHA on a ring of 8: α is where the contractions of the largest and of the smallest
    eigenvalue of its Laplacian, 4 and 2 − √2, are equal: 1 − λα + (λ²/4 + λ/2)α².
    """
    small = 2 - math.sqrt(2)
    alpha = (4 - small) / (6 - small**2 / 4 - small / 2)
    W = np.eye(P)
    for start, on in enumerate(draws(k).random(2) < 0.5):
        for i in range(start, P, 2) if on else ():
            j = (i + 1) % P
            W[i, i] -= alpha
            W[j, j] -= alpha
            W[i, j] = W[j, i] = alpha
    return W


def push(P, k):
    """Halves to the draw-th learner after oneself."""
    return oracle.halves(P, (np.arange(P) + 1 + draws(k).integers(P - 1, size=P)) % P)


def outer(rule, lr, mu, schedule, S=None):
    """An outer optimiser at the averages of another oracle; S: learners in a cluster of it."""

    def at(s, T, gamma):
        return schedule(s, T, gamma)

    at.S = S
    return lambda s, T, gamma: oracle.outer(s, T, gamma, rule, lr, mu, at)


def piecewise(*pieces):
    return lambda s, T, gamma: oracle.piecewise(s, T, gamma, pieces)


ADAM, FASTER_ADAM = constant(0.03), constant(0.05)
CASES = {
    **{
        f"sgd-{optimiser}": Case("sgd", oracle.sgd, optimiser, step=step, P=1)
        for optimiser, step in {
            "sgd": FALLING,
            "momentum": INVERSE,
            "nesterov": RISING,
            "adam": FASTER_ADAM,
        }.items()
    },
    **{
        f"sync-{optimiser}": Case("sync", oracle.sync, optimiser, step=step)
        for optimiser, step in {
            "sgd": STAIRS,
            "momentum": RISING,
            "nesterov": FALLING,
            "adam": ADAM,
        }.items()
    },
    "kavg-sgd": Case("kavg --K 7", kavg(7), step=FALLING),
    **{
        f"kavg-{optimiser}-{policy}": Case("kavg --K 7", kavg(7), optimiser, policy, step)
        for optimiser, step in {"momentum": constant(0.7), "nesterov": STAIRS, "adam": ADAM}.items()
        for policy in ("keep", "average", "reset")
    },
    **{
        f"kavg-adam-{policy}": Case("kavg --K 7", kavg(7), "adam", policy, ADAM, T=40)
        for policy in ("m=reset,v=average", "m=average,v=keep", "m=reset")
    },
    "kavg-momentum-m=average": Case("kavg --K 7", kavg(7), "momentum", "m=average", T=40),
    "kavg-adamw-average": Case("kavg --K 6", kavg(6), "adamw", "average", constant(0.1)),
    "diloco-adamw": Case("diloco --K 6", outer("nesterov", 0.7, 0.9, kavg(6)), "adamw", step=ADAM),
    "kavg-inverse": Case("kavg --tau 12", kavg(12), step=INVERSE),
    "kavg-longer-than-T": Case("kavg --K 99", kavg(99), T=51),
    "kavg-12": Case("kavg --K 5", kavg(5), "momentum", "average", FALLING, P=12, T=53),
    "oneshot-sgd": Case("oneshot", oracle.oneshot, step=RISING),
    "oneshot-adam": Case("oneshot", oracle.oneshot, "adam", step=ADAM),
    "adalupa-linear": Case("adalupa --tau0 5 --alpha 0.3", linear(5, 0.3), "nesterov", "average"),
    "adalupa-linear-tenths": Case(
        "adalupa --tau0 10 --alpha 0.1", linear(10, 0.1), step=INVERSE, T=270
    ),
    "adalupa-linear-mu": Case(
        "adalupa --tau0 4 --alpha 0.5 --mu 0.5", momentum_at(linear(4, 0.5), 0.5), T=70
    ),
    "adalupa-loss": Case(
        "adalupa --rule loss --tau0 5",
        lambda s, T, gamma: oracle.adalupa_loss(s, T, gamma, 5),
        step=constant(60.0),
        T=150,
        data="separable",
        l2=1e-5,
    ),
    "adalupa-loss-reset": Case(
        "adalupa --rule loss --tau0 4",
        lambda s, T, gamma: oracle.adalupa_loss(s, T, gamma, 4),
        "momentum",
        "reset",
        constant(12.0),
        data="separable",
        l2=1e-4,
    ),
    "piecewise": Case(
        "piecewise --pieces 0:3,20:8,41:2", piecewise((0, 3), (20, 8), (41, 2)), "momentum", "reset"
    ),
    "piecewise-20-5": Case(
        "piecewise --pieces 0:20,40:5", piecewise((0, 20), (40, 5)), "adam", "average", ADAM, T=78
    ),
    "piecewise-mu": Case(
        "piecewise --pieces 0:4,30:7 --mu 0.4 --nesterov",
        momentum_at(piecewise((0, 4), (30, 7)), 0.4, nesterov=True),
        T=64,
    ),
    "postlocal": Case(  # up to the first change of the step size
        "postlocal --K 8", postlocal(21, 29, 37, 45, 53), "momentum", step=FALLING
    ),
    "postlocal-average": Case(
        "kavg --K 7 --switch 19", postlocal(19, 26, 33, 40, 47, 54), "adam", "average", ADAM
    ),
    "postlocal-slowmo": Case(
        "slowmo --K 9 --switch 11",
        postlocal(11, 20, 29, 38, 47, 56, rule="slowmo", lr=1, mu=0.5),
        "nesterov",
        "reset",
        STAIRS,
    ),
    "postlocal-loss": Case(  # F(w_21) is the first F of eq. 11
        "adalupa --tau0 4 --rule loss --switch 9", postlocal(9, tau0=4), step=constant(3.0)
    ),
    "adacomm": Case("adacomm --tau0 16 --block 20", adacomm(16, 20), step=RISING, T=90),
    "adacomm-average": Case(
        "adacomm --tau0 9 --block 20", adacomm(9, 20), "momentum", "average", FALLING, T=75
    ),
    "fedavg": Case("fedavg --K 7 --participants 3", fedavg(7, 3), "adam", "reset", ADAM),
    "fedavg-keep": Case(
        "kavg --K 8 --participants 5", fedavg(8, 5, rows=False), "momentum", "keep", FALLING
    ),
    "fedavg-average": Case("fedavg --K 5 --participants 2", fedavg(5, 2), "adam", "average", ADAM),
    "fedavg-one": Case("fedavg --K 9", fedavg(9, 1), "nesterov", "average", STAIRS),  # 8/10 of one
    "fedavg-slowmo": Case(
        "slowmo --K 9 --participants 4",
        fedavg(9, 4, rule="slowmo", lr=1, mu=0.5),
        "nesterov",
        "reset",
        STAIRS,
    ),
    "delay-cocod": Case(
        "kavg --K 7 --delay 7", delayed(kavg(7), 7), "momentum", step=FALLING, T=59
    ),
    "delay-short": Case("kavg --K 8 --delay 3", delayed(kavg(8), 3), "adam", "reset", ADAM, T=51),
    "delay-lerp": Case(
        "kavg --K 6 --delay 6 --merge lerp", delayed(kavg(6), 6, "lerp", a=0.6), "nesterov"
    ),
    "delay-lerp-late": Case(  # arrives at T
        "kavg --K 6 --delay 4 --merge lerp --pull 0.3", delayed(kavg(6), 4, "lerp", a=0.3), T=58
    ),
    "delay-anchor": Case(
        "kavg --K 5 --delay 5 --merge lerp --anchor-mu 0.7",
        delayed(kavg(5), 5, "lerp", a=0.6, rule="anchor", mu=0.7),
        step=FALLING,
    ),
    "delay-daso": Case("kavg --K 5 --delay 2 --merge daso", delayed(kavg(5), 2, "daso")),
    "delay-outer": Case(
        "diloco --K 7 --delay 3",
        delayed(kavg(7), 3, rule="nesterov", lr=0.7, mu=0.9),
        "momentum",
        step=FALLING,
    ),
    "delay-outer-lerp": Case(
        "kavg --K 7 --delay 2 --merge lerp --outer momentum --mu 0.4",
        delayed(kavg(7), 2, "lerp", rule="momentum", lr=1, mu=0.4),
    ),
    "hieravg-delay": Case(  # an average of everyone waits for one of the clusters
        "hieravg --K1 3 --K2 7 --S 4 --delay 3", delayed(hieravg(3, 7, 4), 3, S=4), "momentum", T=57
    ),
    "delay-piecewise": Case(
        "piecewise --pieces 0:5,20:8 --delay 4 --merge daso",
        delayed(piecewise((0, 5), (20, 8)), 4, "daso"),
        step=STAIRS,
    ),
    "qsr": Case("qsr --alpha 1.6 --K 2", qsr(1.6, 2), "momentum", step=FALLING, T=70),
    "qsr-cubic": Case(
        "qsr --alpha 2.1 --K 3 --power 3", qsr(2.1, 3, 3), "nesterov", "average", STAIRS
    ),
    "qsr-warm-up": Case("qsr --alpha 3 --K 1", qsr(3, 1, peak=40), step=RISING),
    "mavg": Case("mavg --K 7 --mu 0.6", mavg(7, 0.6)),
    "mavg-momentum": Case("mavg --K 7 --mu 0.5", mavg(7, 0.5), "momentum", "keep", FALLING),
    "mavg-adam-reset": Case("mavg --K 4 --mu 0.3", mavg(4, 0.3), "adam", "reset", ADAM, T=54),
    "mavg-nesterov": Case("mavg --K 7 --mu 0.6 --nesterov", mavg(7, 0.6, nesterov=True)),
    "mavg-nesterov-nesterov": Case(
        "mavg --K 6 --mu 0.4 --nesterov",
        mavg(6, 0.4, nesterov=True),
        "nesterov",
        "average",
        FALLING,
        T=52,
    ),
    "diloco": Case("diloco --K 7", outer("nesterov", 0.7, 0.9, kavg(7))),
    "diloco-adam": Case(
        "diloco --K 5 --outer-lr 0.4 --mu 0.6",
        outer("nesterov", 0.4, 0.6, kavg(5)),
        "adam",
        "keep",
        ADAM,
        T=53,
    ),
    "slowmo": Case("slowmo --K 7", outer("slowmo", 1, 0.5, kavg(7)), step=FALLING),
    "slowmo-reset": Case(
        "slowmo --K 6 --outer-lr 0.8 --mu 0.7",
        outer("slowmo", 0.8, 0.7, kavg(6)),
        "nesterov",
        "reset",
        STAIRS,
        T=57,
    ),
    "kavg-outer-momentum": Case(
        "kavg --K 7 --outer momentum --outer-lr 0.6 --mu 0.8",
        outer("momentum", 0.6, 0.8, kavg(7)),
        "momentum",
        "average",
    ),
    "kavg-outer-adam": Case(
        "kavg --K 7 --outer adam --outer-lr 0.2", outer("adam", 0.2, 0.9, kavg(7)), "momentum"
    ),
    "kavg-outer-yogi": Case(
        "kavg --K 5 --outer yogi --outer-lr 0.3 --mu 0.5", outer("yogi", 0.3, 0.5, kavg(5)), T=58
    ),
    "hieravg-outer-adam": Case(
        "hieravg --K1 3 --K2 8 --S 4 --outer adam",
        outer("adam", 0.01, 0.9, hieravg(3, 8, 4), 4),
        "momentum",
    ),
    "hieravg-outer-slowmo": Case(
        "hieravg --K1 2 --K2 7 --S 2 --outer slowmo",
        outer("slowmo", 1, 0.5, hieravg(2, 7, 2), 2),
        "momentum",
        "reset",
        STAIRS,
    ),
    "piecewise-outer-yogi": Case(
        "piecewise --pieces 0:4,30:7 --outer yogi",
        outer("yogi", 0.01, 0.9, piecewise((0, 4), (30, 7))),
        T=64,
    ),
    "hieravg": Case("hieravg --K1 2 --K2 8 --S 4", hieravg(2, 8, 4)),
    "hieravg-pairs": Case(
        "hieravg --K1 3 --K2 8 --S 2", hieravg(3, 8, 2), "momentum", "average", FALLING
    ),
    "hieravg-adam": Case("hieravg --K1 5 --K2 7 --S 4", hieravg(5, 7, 4), "adam", "average", ADAM),
    "hieravg-reset": Case(
        "hieravg --K1 3 --K2 10 --S 4", hieravg(3, 10, 4), "nesterov", "reset", T=56
    ),
    "hieravg-everyone": Case("hieravg --K1 3 --K2 7 --S 8", hieravg(3, 7, 8), "momentum", "keep"),
    "hieravg-alone": Case(
        "hieravg --K1 3 --K2 9 --S 1", hieravg(3, 9, 1), "momentum", "reset", STAIRS
    ),
    "hieravg-mu": Case(
        "hieravg --K1 3 --K2 8 --S 4 --mu 0.5", hieravg_with_momentum(3, 8, 4, 0.5), "momentum"
    ),
    "hieravg-mu-nesterov": Case(
        "hieravg --K1 2 --K2 7 --S 2 --mu 0.4 --nesterov",
        hieravg_with_momentum(2, 7, 2, 0.4, nesterov=True),
        step=STAIRS,
    ),
    **{
        f"hieravg-12-{S}": Case(
            f"hieravg --K1 3 --K2 {K2} --S {S}", hieravg(3, K2, S), "momentum", policy, P=12
        )
        for S, K2, policy in ((2, 8, "keep"), (3, 7, "reset"), (4, 7, "average"), (6, 8, "average"))
    },
    "levels": Case(
        "hieravg --levels 3:2,8:4,20:P",
        levels((3, 2), (8, 4), (20, 8)),
        "momentum",
        "average",
        STAIRS,
        T=53,
    ),
    "levels-reset": Case(
        "hieravg --levels 2:2,4:4,8:8", levels((2, 2), (4, 4), (8, 8)), "nesterov", "reset", T=44
    ),
    "levels-12": Case(
        "hieravg --levels 2:2,4:6,12:12",
        levels((2, 2), (4, 6), (12, 12)),
        "adam",
        "keep",
        ADAM,
        P=12,
        T=41,
    ),
    "levels-outer": Case(
        "hieravg --levels 2:2,5:4,11:P --outer nesterov",
        levels((2, 2), (5, 4), (11, 8), rule="nesterov", lr=0.7, mu=0.9),
        "momentum",
        T=50,
    ),
    "adpsgd-grows": Case(
        "adpsgd --p-init 3 --Ks 20 --warmup 0", adpsgd(3, 20), step=FALLING, T=120
    ),
    "adpsgd-shrinks": Case(
        "adpsgd --p-init 5 --Ks 12 --warmup 0", adpsgd(5, 12), step=RISING, T=80
    ),
    "adpsgd-warm-up": Case(
        "adpsgd --p-init 4 --Ks 0.25 --warmup 9",
        adpsgd(4, 25, 9),
        "momentum",
        "average",
        FALLING,
        T=101,
    ),
    "adpsgd-reset": Case(
        "adpsgd --p-init 3 --Ks 0.2 --warmup 5", adpsgd(3, 18, 5), "nesterov", "reset", STAIRS, T=90
    ),
    "adpsgd-sampling-only": Case(
        "adpsgd --p-init 6 --Ks 60 --warmup 0", adpsgd(6, 60), "adam", step=ADAM
    ),
    "adpsgd-mu": Case(
        "adpsgd --p-init 3 --Ks 20 --warmup 4 --mu 0.4",
        adpsgd_with_momentum(3, 20, 4, 0.4),
        step=FALLING,
        T=110,
    ),
    "adpsgd-12": Case(
        "adpsgd --p-init 4 --Ks 16 --warmup 3",
        adpsgd(4, 16, 3),
        "momentum",
        step=FALLING,
        T=90,
        P=12,
    ),
    "qsgd": Case("qsgd", qsgd(), step=FALLING),
    "qsgd-buckets": Case("qsgd --bucket 8", qsgd(bucket=8), "momentum"),
    "qsgd-4-bits": Case("qsgd --bits 4 --bucket 6", qsgd(4, 6), "adam", step=ADAM, T=55),
    "qsgd-12": Case(
        "qsgd --bucket 16", qsgd(bucket=16), "nesterov", step=constant(0.45), P=12, T=50
    ),
}
CASES |= {
    "gossip-ring": Case("gossip", gossip(1, ring), step=FALLING),
    "gossip-ring-first": Case("gossip --mix first --K 2", gossip(2, ring, first=True), "momentum"),
    "gossip-torus": Case(
        "gossip --graph torus --K 3", gossip(3, torus), "nesterov", "average", STAIRS
    ),
    "gossip-exp": Case("gossip --graph exp", gossip(1, exponential), "adam", "average", ADAM),
    "gossip-one-peer": Case(
        "gossip --graph one-peer-exp --K 2", gossip(2, oracle.one_peer), "momentum", "reset", T=57
    ),
    "gossip-matching": Case(
        "gossip --graph matching --probabilities equal", gossip(1, matching), "momentum"
    ),
    "gossip-push": Case("gossip --graph push", gossip(1, push), step=FALLING),
    "gossip-push-first": Case(
        "gossip --graph push --K 2 --mix first",
        gossip(2, push, first=True),
        "momentum",
        "average",
        constant(0.3),
    ),
    "gossip-12-torus": Case("gossip --graph torus --mix first", gossip(1, torus, True), P=12),
}
ANY = {  # numbers of learners that no number of ranks from 2 to 4 divides
    "sync": ("sync", oracle.sync, {"optimiser": "momentum"}),
    "kavg": ("kavg --K 7", kavg(7), {"optimiser": "adam", "policy": "average", "step": ADAM}),
    "oneshot": ("oneshot", oracle.oneshot, {"step": RISING}),
    "mavg": ("mavg --K 7 --mu 0.5", mavg(7, 0.5), {"optimiser": "nesterov", "policy": "reset"}),
    "diloco": ("diloco --K 7", outer("nesterov", 0.7, 0.9, kavg(7)), {"optimiser": "momentum"}),
    "slowmo": ("slowmo --K 7", outer("slowmo", 1, 0.5, kavg(7)), {"step": FALLING}),
    "yogi": ("kavg --K 7 --outer yogi", outer("yogi", 0.01, 0.9, kavg(7)), {}),
    "piecewise": ("piecewise --pieces 0:3,20:8,41:2", piecewise((0, 3), (20, 8), (41, 2)), {}),
    "adalupa": ("adalupa --tau0 5 --alpha 0.3", linear(5, 0.3), {}),
    "loss": (
        "adalupa --rule loss --tau0 5",
        lambda s, T, gamma: oracle.adalupa_loss(s, T, gamma, 5),
        {"step": constant(3.0)},
    ),
    "adacomm": ("adacomm --tau0 16 --block 20", adacomm(16, 20), {"step": RISING, "T": 90}),
    "qsr": ("qsr --alpha 1.6 --K 2", qsr(1.6, 2), {"step": FALLING, "T": 70}),
    "delay": ("kavg --K 7 --delay 4", delayed(kavg(7), 4), {"optimiser": "momentum"}),
    "delay-anchor": (
        "kavg --K 5 --delay 5 --merge lerp --anchor-mu 0.7",
        delayed(kavg(5), 5, "lerp", a=0.6, rule="anchor", mu=0.7),
        {},
    ),
    "postlocal": ("postlocal --K 8", postlocal(21, 29, 37, 45, 53), {"step": FALLING}),
    "adpsgd": (
        "adpsgd --p-init 4 --Ks 16 --warmup 3",
        adpsgd(4, 16, 3),
        {"step": FALLING, "T": 90},
    ),
    "qsgd": ("qsgd --bucket 12", qsgd(bucket=12), {"step": FALLING}),
    "gossip": ("gossip --K 2", gossip(2, ring), {"optimiser": "momentum", "policy": "average"}),
    "one-peer": ("gossip --graph one-peer-exp", gossip(1, oracle.one_peer), {"step": STAIRS}),
    "push": ("gossip --graph push", gossip(1, push), {}),
}
UNEVEN = {
    f"{name}-{P}": Case(*ANY[name][:2], **ANY[name][2], P=P, data=data)
    for P, data in ((5, "fives"), (7, "shards"))
    for name in ANY
}
UNEVEN["hieravg-15-outer"] = Case(
    "hieravg --K1 3 --K2 8 --S 5 --outer adam",
    outer("adam", 0.01, 0.9, hieravg(3, 8, 5), 5),
    P=15,
    data="fives",
)
UNEVEN["levels-15"] = Case(
    "hieravg --levels 3:3,9:15", levels((3, 3), (9, 15)), "momentum", "reset", P=15, data="fives"
)
UNEVEN |= {
    f"hieravg-{P}-{S}": Case(
        f"hieravg --K1 3 --K2 8 --S {S}", hieravg(3, 8, S), "momentum", "average", P=P, data=data
    )
    for P, S, data in ((5, 5, "fives"), (7, 7, "shards"), (15, 5, "fives"), (14, 7, "shards"))
}
# shards of 33 and 34 rows
UNEVEN["fedavg-5"] = Case(
    "fedavg --K 7 --participants 3", fedavg(7, 3), "momentum", "reset", FALLING, P=5
)
UNEVEN["fedavg-5-all"] = Case(
    "kavg --K 7 --weights rows --outer adam",
    fedavg(7, 5, rule="adam", lr=0.01, mu=0.9),
    "momentum",
    "average",
    P=5,
)
CASES |= UNEVEN


@pytest.fixture(scope="module")
def datasets(shards, separable, fives):
    return {"shards": shards, "separable": separable, "fives": fives}


@pytest.fixture(scope="module")
def expected(datasets):
    """The oracle's answer for a case by name, worked out once."""
    answers = {}

    def answer(name):
        if name not in answers:
            answers[name] = CASES[name].expected(datasets[CASES[name].data])
        return answers[name]

    return answer


FEW = (
    "sync-momentum",
    "kavg-momentum-average",
    "kavg-adam-reset",
    "oneshot-sgd",
    "adalupa-linear",
    "adalupa-loss-reset",
    "postlocal",
    "adacomm",
    "fedavg",
    "fedavg-keep",
    "fedavg-5",
    "qsr",
    "delay-cocod",
    "delay-outer",
    "piecewise-mu",
    "mavg-momentum",
    "diloco-adam",
    "slowmo-reset",
    "kavg-outer-adam",
    "hieravg-pairs",
    "hieravg-mu",
    "levels",
    "levels-12",
    "adpsgd-warm-up",
    "qsgd-buckets",
    "gossip-torus",
    "gossip-push-first",
)


def cases_in(mpi, ranks, later=False):
    """The names of the cases of a world; `later`: those left to the long tests there.

    On one to three ranks of Open MPI all that can run there, elsewhere some; UNEVEN ones where
    ranks hold different numbers of learners. Later: on one rank what two ranks run too, and UNEVEN
    ones but on three ranks.
    """
    names = [*CASES] if mpi == "openmpi" and ranks < 4 else [*FEW]
    uneven = [*UNEVEN] if mpi == "openmpi" else []
    even = [name for name in names if name not in uneven and CASES[name].P % ranks == 0]
    soon = [name for name in even if ranks > 1 or name in FEW or CASES[name].P == 1]
    uneven = [name for name in uneven if CASES[name].P % ranks]
    if later:
        return [name for name in even if name not in soon] + uneven * (ranks != 3)
    return soon + uneven * (ranks == 3)


@pytest.fixture
def runs(request, once, tmp_path_factory, datasets):
    """The runs, by name, of every case that a layout can hold: one launch."""
    mpi, ranks, transport, later = request.param
    lines = {
        name: f"{CASES[name].command(datasets[CASES[name].data])} --transport {transport}"
        for name in cases_in(mpi, ranks, later)
    }
    return once(request.param, train_all, tmp_path_factory.getbasetemp(), ranks, lines, mpi=mpi)


everywhere = pytest.mark.parametrize(
    ("runs", "name"),
    [
        pytest.param(
            (mpi, ranks, transport, later),
            name,
            id=f"{mpi}-{ranks}-{transport}-{name}",
            marks=[pytest.mark.long] * later,
        )
        for later in (False, True)
        for mpi, ranks, transport in WORLDS
        for name in cases_in(mpi, ranks, later)
    ],
    indirect=["runs"],
)


def distance(a, b):
    """‖a − b‖ / ‖b‖ in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ---------------------------------------------------------------------------------------- against t


@everywhere
def test_the_weights_are_the_oracles(runs, name, expected):
    assert distance(runs[name].weights, expected(name)[0]) < TOLERANCE


@everywhere
def test_the_averages_are_the_oracles(runs, name, expected):
    """Every row of /averages: when, whose, after how many updates; and the last one is at T."""
    got, averages = runs[name].averages, expected(name)[1]
    assert list(zip(got.t, got.scope, strict=True)) == [
        (t, {"global": WORLD, "local": CLUSTER, "neighbours": NEIGHBOURS}[scope])
        for t, scope in averages
    ]
    assert got.period.tolist() == np.diff([0, *(t for t, _ in averages)]).tolist()
    if not name.startswith("sgd"):
        assert got.t.iloc[-1] == CASES[name].T and got.scope.iloc[-1] == WORLD


@everywhere
def test_the_levels_are_the_oracles(runs, name, expected):
    """Everyone is level 1 without clusters, and 2 above those of Hier-AVG; neighbours are 0."""
    _, averages, *more = expected(name)
    top = 1 + (name.startswith("hieravg") and name != "hieravg-alone")
    level = {"global": top, "local": 1, "neighbours": 0}
    wanted = [level[scope] for _, scope in averages]
    assert runs[name].averages.level.tolist() == (more[0] if name.startswith("levels") else wanted)


@everywhere
def test_the_variances_are_the_oracles(runs, name, expected):
    """ADPSGD records the S that steers it; where nothing asked for S there is none."""
    if name.startswith("adpsgd"):
        wanted = [a.variance for a in expected(name)[2]]
    else:
        wanted = np.full(len(expected(name)[1]), np.nan)
    np.testing.assert_allclose(runs[name].averages.variance, wanted, rtol=1e-4)


def test_the_cases_tell_algorithms_and_options_apart(expected):
    """No run could pass for another's: the oracles' weights differ by far more than is
    tolerated.
    """
    names = [name for name, case in CASES.items() if case.data == "shards"]
    for i, a in enumerate(names):
        for b in names[:i]:
            assert distance(expected(a)[0], expected(b)[0]) > 100 * TOLERANCE, (a, b)


def test_adpsgd_goes_through_all_its_phases(expected):
    traces = {name: expected(name)[2] for name in CASES if name.startswith("adpsgd")}
    changes = {
        name: [b.next_period - a.next_period for a, b in pairwise(trace)]
        for name, trace in traces.items()
    }
    phases = {name: {a.phase for a in trace} for name, trace in traces.items()}
    assert (
        phases["adpsgd-warm-up"]
        == phases["adpsgd-reset"]
        == {"warmup", "sampling", "control", "final"}
    )
    assert changes["adpsgd-grows"].count(1) >= 3 and changes["adpsgd-shrinks"].count(-1) >= 3
    assert phases["adpsgd-sampling-only"] <= {"sampling", "final"}


def test_adalupa_goes_through_three_periods(expected):
    gaps = np.diff([0, *(t for t, _ in expected("adalupa-loss")[1])])
    assert {5, 10, 15} <= set(gaps.tolist())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name in UNEVEN))
        for name in CASES
        if name.startswith(("adpsgd", "qsgd", "adalupa-loss"))
    ],
)
def test_no_decision_hangs_on_rounding(name, datasets, expected):
    """Data moved by several float32 roundings give the same averages and weights: no comparison in
    the run is close.
    """
    data = datasets[CASES[name].data]
    rng = np.random.default_rng(0)
    for _ in range(4):
        moved = data._replace(X=data.X * (1 + 5e-7 * rng.choice([-1, 1], data.X.shape)))
        w, averages = CASES[name].expected(moved)[:2]
        assert averages == expected(name)[1]
        assert distance(w, expected(name)[0]) < 20 * TOLERANCE


# ------------------------------------------------------------------------------------------ what a


@everywhere
def test_a_run_starts_at_zero_and_evaluates_the_weights_it_stores(runs, name, datasets, expected):
    run, data = runs[name], datasets[CASES[name].data]
    assert (run.initial_weights == 0).all()
    first, last = run.eval.iloc[0], run.eval.iloc[-1]
    assert first.t == 0 and first.train_loss == pytest.approx(math.log(2), rel=1e-6)
    assert last.t == CASES[name].T
    w = run.weights.astype(np.float64)
    assert last.train_loss == pytest.approx(
        oracle.objective(w, data.X, data.y, CASES[name].l2), rel=1e-5
    )
    assert last.train_accuracy == pytest.approx(np.mean(np.sign(data.X @ w) == data.y))


# ---------------------------------------------------------------------------------- algorithms that


def line(algorithm, data, optimiser="sgd", policy="keep", P=8, sampling="iid", B=5, more=""):
    if optimiser == "sgd" or algorithm.split()[0] in ("sync", "qsgd"):
        policy = "keep"  # another one means nothing, and is refused
    return (
        f"{algorithm} --learners {P} --data {shlex.quote(data.path)} --sampling {sampling} "
        f"--batch-size {B} "
        f"--steps 60 --l2 {L2} --optimizer {optimiser} {momentum(optimiser)}--state {policy} --lr "
        "0.5 --save-weights "
        f"--eval-every 60 {more}"
    )


SAME_BITS = {
    "hieravg --K1 7 --K2 7 --S 4": "kavg --K 7",
    "hieravg --K1 3 --K2 7 --S 1": "kavg --K 7",
    "hieravg --K1 3 --K2 9 --S 8": "kavg --K 3",
    "hieravg --K1 1 --K2 1 --S 2": "kavg --K 1",
    "piecewise --pieces 0:7": "kavg --K 7",
    "piecewise --pieces 0:5,2:5": "kavg --K 5",
    "adalupa --tau0 7 --alpha 0": "kavg --K 7",
    "oneshot": "kavg --K 60",
    "qsr --alpha 0.1 --K 7": "kavg --K 7",
    "adalupa --tau0 60": "oneshot",
    "kavg --K 1000": "oneshot",
    "adpsgd --p-init 7 --Ks 60 --warmup 0": "kavg --K 7",
    "adpsgd --p-init 7 --Ks 60 --warmup 99": "kavg --K 1",
    "hieravg --K1 3 --K2 8 --S 2 --mu 0": "hieravg --K1 3 --K2 8 --S 2",
    "hieravg --K1 7 --K2 7 --S 4 --mu 0.5": "mavg --K 7 --mu 0.5",
    "hieravg --levels 3:2,8:P": "hieravg --K1 3 --K2 8 --S 2",
    "hieravg --levels 7:8": "kavg --K 7",
    "mavg --K 7 --mu 0": "kavg --K 7",
    "mavg --K 7 --mu 0 --nesterov": "kavg --K 7",
    "kavg --K 7 --outer momentum --mu 0": "kavg --K 7",
    "kavg --K 7 --outer none": "kavg --K 7",
    "kavg --K 7 --mu 0.5": "mavg --K 7 --mu 0.5",
    "mavg --K 7 --mu 0.4 --nesterov": "kavg --K 7 --outer nesterov --outer-lr 1 --mu 0.4",
    "diloco --K 7": "kavg --K 7 --outer nesterov",
    "slowmo --K 7": "kavg --K 7 --outer slowmo",
    "postlocal --K 7 --switch 5": "kavg --K 7 --switch 5",
    "fedavg --K 7 --participants 8": "kavg --K 7",
    "fedavg --K 7 --participants 3": "kavg --K 7 --participants 3",
    "kavg --K 7 --weights equal": "kavg --K 7",
    "gossip --graph complete --K 7": "kavg --K 7",
    "gossip --K 1000": "oneshot",
    "gossip --K 1000 --mix first --graph push": "oneshot",
    "gossip --graph matching --budget 1 --probabilities equal": "gossip --graph matching --budget 1",
    "gossip --graph matching --probabilities equal": "gossip --graph matching --base ring",
}
SAME_TO_ROUNDING = {
    "slowmo --K 7 --mu 0.6": "mavg --K 7 --mu 0.6",  # α = 1, constant γ
    "kavg --K 7 --mu 1e-9": "kavg --K 7",
    "kavg --K 7 --outer nesterov --outer-lr 1 --mu 1e-9": "kavg --K 7",
    "kavg --K 1": "sync",
}
ONE_LEARNER = [
    "kavg --K 7",
    "sync",
    "oneshot",
    "hieravg --K1 2 --K2 6 --S 1",
    "adpsgd --p-init 4 --Ks 60 --warmup 0",
]
LINEAR = ["sgd", "momentum", "nesterov"]  # optimisers whose step is linear in gradients and state
OPTIMISERS = [*LINEAR, "adam"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, shards):
    """Eight learners on two ranks, by name."""
    names = {**SAME_BITS, **SAME_TO_ROUNDING}
    lines = {name: line(name, shards, "momentum", "average") for name in [*names, *names.values()]}
    whole = {"sampling": "shard", "B": N // 8}
    for optimiser in LINEAR:
        for policy in ("keep", "average"):
            lines[f"K=1 {optimiser} {policy}"] = line(
                "kavg --K 1", shards, optimiser, policy, **whole
            )
        lines[f"sync {optimiser}"] = line("sync", shards, optimiser, **whole)
    for seed in (0, 1):
        for algorithm in ("kavg --K 7", "hieravg --K1 3 --K2 8 --S 4", "sync"):
            lines[f"{algorithm} {seed}"] = line(
                algorithm, shards, "momentum", **whole, more=f"--seed {seed}"
            )
        for sampling in ("iid", "shuffle", "shard", "block", "dirichlet-class:1"):
            lines[f"{sampling} {seed}"] = line(
                "kavg --K 7", shards, sampling=sampling, more=f"--seed {seed}"
            )
    lines["S"] = line("kavg --K 7", shards, **whole, more="--variance averages --grad-norm")
    lines["V"] = line("kavg --K 7", shards, **whole, more="--variance steps")
    lines["unwatched"] = line("kavg --K 7", shards, **whole)
    steps = "--log-every 1"
    for algorithm in ("sync", "kavg --K 7 --switch 5"):
        lines[f"{algorithm}: steps"] = line(algorithm, shards, "momentum", more=steps)
    lines["weights not asked for"] = line("kavg --K 7", shards, **whole).replace(
        "--save-weights", ""
    )
    return train_all(tmp_path_factory.getbasetemp(), 2, lines)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, shards):
    """One learner on one rank, by name."""
    lines = {
        f"whole {optimiser}": line("sgd", shards, optimiser, P=1, sampling="shard", B=N)
        for optimiser in LINEAR
    }
    lines |= {
        f"{algorithm} {optimiser}": line(algorithm, shards, optimiser, P=1)
        for algorithm in ["sgd", *ONE_LEARNER]
        for optimiser in OPTIMISERS
    }
    return train_all(tmp_path_factory.getbasetemp(), 1, lines)


@pytest.mark.parametrize(("a", "b"), SAME_BITS.items())
def test_special_cases_have_the_same_bits(two_ranks, a, b):
    assert np.array_equal(two_ranks[a].weights, two_ranks[b].weights)


@pytest.mark.parametrize(("a", "b"), SAME_TO_ROUNDING.items())
def test_special_cases_are_the_same_to_rounding(two_ranks, a, b):
    assert distance(two_ranks[a].weights, two_ranks[b].weights) < TOLERANCE


def test_a_switch_is_sync_up_to_it(two_ranks):
    """The losses are to the bit those of sync up to the update after the switch, and then others."""
    sync, switched = (
        two_ranks[f"{name}: steps"].train.loss for name in ("sync", "kavg --K 7 --switch 5")
    )
    t0 = 21  # 5 epochs of 4.2 updates
    assert np.array_equal(sync[: t0 + 1], switched[: t0 + 1])
    assert not np.array_equal(sync[: t0 + 2], switched[: t0 + 2])


@pytest.mark.parametrize("optimiser", LINEAR)
def test_period_one_is_sync_is_one_learner_with_a_large_batch(two_ranks, one_rank, optimiser):
    large = one_rank[
        f"whole {optimiser}"
    ].weights  # its batches are the union of the eight learners'
    for name in (f"K=1 {optimiser} keep", f"K=1 {optimiser} average", f"sync {optimiser}"):
        assert distance(two_ranks[name].weights, large) < TOLERANCE


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("algorithm", ONE_LEARNER)
def test_one_learner_is_sgd_bit_by_bit(one_rank, algorithm, optimiser):
    assert np.array_equal(
        one_rank[f"{algorithm} {optimiser}"].weights, one_rank[f"sgd {optimiser}"].weights
    )


# ------------------------------------------------------------------------------------------ seeds a


@pytest.mark.parametrize("algorithm", ["kavg --K 7", "hieravg --K1 3 --K2 8 --S 4", "sync"])
def test_whole_shards_leave_nothing_to_the_seed(two_ranks, algorithm):
    assert np.array_equal(two_ranks[f"{algorithm} 0"].weights, two_ranks[f"{algorithm} 1"].weights)


@pytest.mark.parametrize("sampling", ["iid", "shuffle", "shard", "block", "dirichlet-class:1"])
def test_another_seed_draws_other_examples(two_ranks, sampling):
    assert (
        distance(two_ranks[f"{sampling} 1"].weights, two_ranks[f"{sampling} 0"].weights)
        > 100 * TOLERANCE
    )


AGAIN = {
    **{
        sampling: ("kavg --K 7", "momentum", sampling)
        for sampling in ("iid", "shuffle", "shard", "block", "dirichlet:1")
    },
    "sync": ("sync", "adam", "iid"),
    "qsgd": ("qsgd --bucket 8", "sgd", "iid"),
    "hieravg": ("hieravg --K1 3 --K2 8 --S 4 --mu 0.3", "nesterov", "iid"),
    "adpsgd": ("adpsgd --p-init 3 --Ks 12", "sgd", "iid"),
}


@pytest.fixture(scope="module")
def repeated(once, tmp_path_factory, shards):
    """Twelve learners on two ranks, every run in two launches of each MPI library: {mpi: (runs,
    runs)}.
    """
    lines = {
        name: line(algorithm, shards, optimiser, "average", P=12, sampling=sampling)
        for name, (algorithm, optimiser, sampling) in AGAIN.items()
    }
    folder = tmp_path_factory.getbasetemp()
    return lambda mpi: tuple(once((mpi, i), train_all, folder, 2, lines, mpi=mpi) for i in range(2))


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
@pytest.mark.parametrize("name", AGAIN)
def test_the_same_command_gives_the_same_bits(repeated, name, mpi):
    first, second = (runs[name] for runs in repeated(mpi))
    assert np.array_equal(first.weights, second.weights)
    for column in ("t", "scope", "period", "variance"):
        assert np.array_equal(first.averages[column], second.averages[column], equal_nan=True)
    assert np.array_equal(first.train.loss, second.train.loss)


def test_a_command_alone_gives_the_bits_of_one_among_many(two_ranks, tmp_path, shards):
    """What ran before in the same processes leaves nothing behind."""
    name = "hieravg --K1 3 --K2 8 --S 2 --mu 0"
    alone = train(tmp_path, 2, line(name, shards, "momentum", "average"))
    assert alone.status == "finished" and np.array_equal(alone.weights, two_ranks[name].weights)


@pytest.mark.parametrize("name", AGAIN)
def test_mpich_and_open_mpi_give_the_same_weights(repeated, name):
    assert (
        distance(repeated("mpich")[0][name].weights, repeated("openmpi")[0][name].weights)
        < TOLERANCE
    )


# --------------------------------------------------------------------------------------- what is re


def test_weights_are_stored_only_when_asked_for(two_ranks):
    without, with_them = two_ranks["weights not asked for"], two_ranks["unwatched"]
    assert without.weights is None and without.initial_weights is None
    assert with_them.weights.shape == with_them.initial_weights.shape == (D,)
    assert with_them.weights.dtype == with_them.initial_weights.dtype == np.float32


def test_watching_changes_nothing(two_ranks):
    for name in ("S", "V", "weights not asked for"):
        assert np.array_equal(
            two_ranks[name].eval.train_loss, two_ranks["unwatched"].eval.train_loss
        )
    assert np.array_equal(two_ranks["V"].weights, two_ranks["unwatched"].weights)
    assert two_ranks["unwatched"].averages.variance.isna().all()
    assert two_ranks["unwatched"].averages.mean_variance.isna().all()


def test_the_variance_at_averages_is_the_oracles(two_ranks, shards):
    """ADPSGD that samples all the way is K-AVG with S beside it."""
    trace = oracle.adpsgd(oracle.Setup(shards.X, shards.y, 8, L2), 60, lambda t: 0.5, 7, 60)[2]
    np.testing.assert_allclose(
        two_ranks["S"].averages.variance, [a.variance for a in trace], rtol=1e-4
    )


def test_the_mean_variance_of_a_period_is_equation_11(two_ranks, shards):
    """V_t of adpsgd: the mean of Var[W_k] over a period, W_k the weights at the beginning of
    iteration k.
    """
    setup = oracle.Setup(shards.X, shards.y, 8, L2)
    W, states = oracle.start(setup)
    V, period = [], []
    for t in range(1, 61):
        w_bar = oracle.mean(W)
        period.append(np.mean([np.sum((w_bar - w) ** 2) for w in W]))  # eq. 7
        W, states = oracle.every_learner_steps(setup, W, states, 0.5)
        if t % 7 == 0 or t == 60:
            W = [oracle.mean(W)] * 8
            V.append(np.mean(period))
            period = []
    np.testing.assert_allclose(two_ranks["V"].averages.mean_variance, V, rtol=1e-4)


def test_the_gradient_norm_is_that_of_the_averaged_model(two_ranks, shards):
    run = two_ranks["S"]
    for w, row in ((run.initial_weights, run.eval.iloc[0]), (run.weights, run.eval.iloc[-1])):
        gradient = oracle.gradient(w.astype(np.float64), shards.X, shards.y, L2)
        assert row.grad_norm_sq == pytest.approx(gradient @ gradient, rel=1e-4)
    assert two_ranks["unwatched"].eval.grad_norm_sq.isna().all()
