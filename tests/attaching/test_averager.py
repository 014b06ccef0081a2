"""`localavg.attach` in a plain torch loop, against re-implementations of the algorithms in plain
torch.

The oracles hold all learners in one process and know nothing of the package. A net has what real
ones have: BatchNorm, tied weights, a scalar parameter, an integer buffer; every learner draws its
own data, of its own distribution.
"""

import io
import math
import re
import runpy
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import oracles as oracle
import pytest
from mpi import ROOT, call, run
from mpi4py import MPI

import localavg
import localavg.algorithms
from localavg.files.record import CLUSTER, WORLD, load

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

B, D, H, C = 16, 6, 8, 3  # mini-batch, features, hidden units, classes
SEED, T = 3, 43  # of every case
TOLERANCE = 1e-4  # of a tensor, relative, in the 2-norm: float32 sums in another order


class Net(nn.Module):
    """Linear, BatchNorm, two layers with one weight, a scalar parameter, and an integer buffer that
    counts examples.
    """

    def __init__(self, norm=True):
        super().__init__()
        self.first, self.norm = (
            nn.Linear(D, H, bias=False),
            nn.BatchNorm1d(H) if norm else nn.Identity(),
        )
        self.second, self.third, self.last = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, C)
        self.third.weight = self.second.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        z = torch.tanh(self.norm(self.first(x)))
        return self.last(self.scale * torch.tanh(self.third(torch.tanh(self.second(z)))))


def make_net(seed, **how):
    torch.manual_seed(seed)
    return Net(**how)


def batch(j, t):
    """Learner j's examples of update t: x [B, D], y [B]."""
    rng = np.random.default_rng([j, t])
    x = rng.normal(size=(B, D)) * (1 + 0.3 * j) + 0.4 * j
    y = np.argmax(x[:, :C] + 0.5 * rng.normal(size=(B, C)), axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def objective(net, j):
    """F on learner j's data, BatchNorm by its running statistics."""
    net.eval()
    with torch.no_grad():
        x, y = batch(j, 10**6)
        value = cross_entropy(net(x), y).item()
    net.train()
    return value


# ------------------------------------------------------------------------------------------------ t


class Learners:
    """P equal nets, each with its torch optimiser; what they do is written out, one learner after
    the other.
    """

    def __init__(self, P, case):
        self.P, self.case = P, case
        self.nets = [make_net(100) for _ in range(P)]
        self.optimisers = [case.make_optimiser(net) for net in self.nets]
        self.averages = []  # (t, global or local, updates since the average before, S)
        self.last = 0
        # how far from turning out otherwise the decisions of a feedback controller were
        self.margins = []
        self.losses = []  # of all mini-batches
        for j, net in enumerate(self.nets):
            net.norm.num_batches_tracked += j

    def gradients(self, t):
        for j, net in enumerate(self.nets):
            self.optimisers[j].zero_grad()
            x, y = batch(j, t)
            loss = cross_entropy(net(x), y)
            loss.backward()
            self.losses.append(loss.item())

    def step(self, t):
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = self.case.gamma(t)
            optimiser.step()

    def update(self, t):
        """A local update of every learner."""
        self.gradients(t)
        self.step(t)

    def S(self):
        """(1/P) Σ ‖w̄ − w_j‖² over the parameters (adpsgd Alg. 2, line 11)."""
        W = [
            torch.cat([p.detach().flatten() for p in net.parameters()]).double()
            for net in self.nets
        ]
        w_bar = sum(W) / self.P
        return sum(float(((w_bar - w) ** 2).sum()) for w in W) / self.P

    def everything(self):
        """Every learner's net and the state of its optimiser."""
        return [
            snapshot(net, optimiser)
            for net, optimiser in zip(self.nets, self.optimisers, strict=True)
        ]

    def average(self, t, members=None, note=True):
        """w_j ← w̄ over `members`, statistics too, and the policy for the optimisers' states."""
        scope, members = ("global", range(self.P)) if members is None else ("local", members)
        if note:
            self.averages.append((t, scope, t - self.last, self.S()))
            self.last = t
        for name in self.nets[0].state_dict():
            tensors = [self.nets[j].state_dict()[name] for j in members]
            if name not in ("norm.num_batches_tracked", "seen", "third.weight"):
                put(tensors, sum(tensors) / len(tensors))
        if self.case.policy == "reset":
            for j in members:
                self.optimisers[j] = self.case.make_optimiser(self.nets[j])
        if isinstance(self.case.policy, dict):
            return self.by_moment(members)
        if self.case.policy == "average":
            for parameters in zip(*(self.nets[j].parameters() for j in members), strict=True):
                states = [
                    self.optimisers[j].state[p] for j, p in zip(members, parameters, strict=True)
                ]
                for key in {"momentum_buffer", "exp_avg", "exp_avg_sq"} & states[0].keys():
                    put(
                        [state[key] for state in states],
                        sum(state[key] for state in states) / len(states),
                    )

    def by_moment(self, members):
        """The policy of each tensor of the states; Adam's step count stays."""
        keys = {"m": ("exp_avg", "momentum_buffer"), "v": ("exp_avg_sq", "momentum_buffer")}
        for parameters in zip(*(self.nets[j].parameters() for j in members), strict=True):
            states = [self.optimisers[j].state[p] for j, p in zip(members, parameters, strict=True)]
            for moment, word in self.case.policy.items():
                for key in {*keys[moment]} & states[0].keys():
                    tensors = [state[key] for state in states]
                    put(tensors, sum(tensors) / len(tensors) if word == "average" else 0)

    def mix(self, t, W):
        """w_j ← Σ_i W_ji w_i, statistics and averaged states of optimisers too."""
        self.averages.append((t, "neighbours", t - self.last, self.S()))
        self.last = t
        tensors = [
            [net.state_dict()[name] for net in self.nets]
            for name in self.nets[0].state_dict()
            if name not in ("norm.num_batches_tracked", "seen", "third.weight")
        ]
        if self.case.policy == "average":
            for parameters in zip(*(net.parameters() for net in self.nets), strict=True):
                states = [o.state[p] for o, p in zip(self.optimisers, parameters, strict=True)]
                tensors += [[state["momentum_buffer"] for state in states]] * bool(states[0])
        for each in tensors:
            mixed = [sum(W[j, i] * each[i] for i in range(self.P)) for j in range(self.P)]
            for x, value in zip(each, mixed, strict=True):
                put([x], value)


def put(tensors, value):
    with torch.no_grad():
        for x in tensors:
            x.copy_(torch.as_tensor(value))


def kavg(K):
    """kavg Alg. 1."""

    def steps(all_, t):
        all_.update(t)
        if t % K == 0:
            all_.average(t)

    return lambda all_: steps


def gossip(K, W_of):
    """Assran et al. 2019 with doubly stochastic W_of(P, k), for gossip k."""

    def steps(all_, t):
        all_.update(t)
        if t % K == 0:
            all_.mix(t, W_of(all_.P, t // K - 1))

    return lambda all_: steps


def mavg(K, mu, nesterov=False):
    """mavg Alg. 1; Nesterov's form adds μv + d."""

    def start(all_):
        w_tilde = [p.detach().clone() for p in all_.nets[0].parameters()]
        v = [torch.zeros_like(p) for p in w_tilde]

        def average(t):
            all_.average(t)
            for i, parameters in enumerate(
                zip(*(net.parameters() for net in all_.nets), strict=True)
            ):
                d = parameters[0].detach() - w_tilde[i]
                v[i] = mu * v[i] + d
                w_tilde[i] = w_tilde[i] + (mu * v[i] + d if nesterov else v[i])
                put(parameters, w_tilde[i])

        def steps(all_, t):
            all_.update(t)
            if t % K == 0:
                average(t)

        all_.at_end = average
        return steps

    return start


def outer(K, rule, lr, mu):
    """An outer optimiser at the averages of kavg Alg. 1, on all parameters as one vector."""

    def start(all_):
        def vector(net):
            return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])

        server = oracle.OuterState(rule, lr, mu, vector(all_.nets[0]).astype(np.float64))

        def average(t):
            W = [vector(net).astype(np.float64) for net in all_.nets]
            all_.average(t)
            new, first = server.step(W, all_.case.gamma(t)), 0
            for parameters in zip(*(net.parameters() for net in all_.nets), strict=True):
                last = first + parameters[0].numel()
                piece = torch.tensor(new[first:last], dtype=parameters[0].dtype)
                put(parameters, piece.reshape(parameters[0].shape))
                first = last

        def steps(all_, t):
            all_.update(t)
            if t % K == 0:
                average(t)

        all_.at_end = average
        return steps

    return start


def hieravg(K1, K2):
    """hieravg Alg. 1: pairs of learners every K1, everyone every K2; an odd P is one cluster."""

    def steps(all_, t):
        all_.update(t)
        S = cluster(all_.P)
        if t % K2 == 0:
            all_.average(t)
        elif t % K2 % K1 == 0 and S > 1:
            for first in range(0, all_.P, S):
                all_.average(t, range(first, first + S), note=first == 0)

    return lambda all_: steps


def levels(*pairs):
    """A hierarchy of pairs (K, S): the highest level whose K divides the updates since the last
    average at any level above averages.
    """

    def start(all_):
        last = [0] * (len(pairs) + 1)

        def steps(all_, t):
            all_.update(t)
            due = [
                l
                for l, (K, _) in enumerate(pairs, 1)
                if (t - max(last[l + 1 :], default=0)) % K == 0
            ]
            if due and (l := due[-1]) == len(pairs):
                all_.average(t)
            elif due:
                S = pairs[l - 1][1]
                for first in range(0, all_.P, S):
                    all_.average(t, range(first, first + S), note=first == 0)
            if due:
                last[l] = t

        return steps

    return start


def delayed(K, tau):
    """CoCoD-SGD: every K a copy, whose mean arrives tau updates later: x <- mean + (x - copy)."""

    def start(all_):
        now = {}

        def floats(net):
            named = net.state_dict().items()  # third.weight is first.weight
            return [x for name, x in named if x.is_floating_point() and name != "third.weight"]

        def steps(all_, t):
            all_.update(t)
            if now and t == now["t"] + tau:
                with torch.no_grad():
                    for net, copies in zip(all_.nets, now["copies"], strict=True):
                        for x, copy_, mean in zip(floats(net), copies, now["means"], strict=True):
                            x.copy_(mean + (x - copy_))
                all_.averages.append((t, "global", t - all_.last, math.nan))
                all_.last = t
                now.clear()
            if t % K == 0:
                copies = [[x.clone() for x in floats(net)] for net in all_.nets]
                now.update(t=t, copies=copies)
                now["means"] = [sum(same) / all_.P for same in zip(*copies, strict=True)]

        return steps

    return start


def cluster(P):
    return 2 if P % 2 == 0 else P


def adpsgd(p_init, K_s, warmup):
    """adpsgd Alg. 2 after `warmup` updates of averaging every step."""

    def start(all_):
        now = {"cnt": 0, "p": p_init, "C2": 0.0, "n_C": 0}

        def steps(all_, t):
            all_.update(t)
            if t <= warmup:
                return all_.average(t)
            now["cnt"] += 1
            if now["cnt"] == now["p"]:
                now["cnt"] = 0
                S, gamma = all_.S(), all_.case.gamma(t)
                all_.average(t)
                if t - 1 - warmup < K_s:
                    now["n_C"] += 1
                    now["C2"] += (S / gamma - now["C2"]) / now["n_C"]
                    return
                low, high = 0.7 * gamma * now["C2"], 1.3 * gamma * now["C2"]
                if S < low:
                    now["p"] += 1
                elif S > high:
                    now["p"] = max(1, now["p"] - 1)
                if all_.P > 1:
                    all_.margins += [abs(S / low - 1), abs(S / high - 1)]

        return steps

    return start


def adalupa_loss(tau0):
    """lupa eq. 11: τ_i = ⌈(F(w̄_0)/F(w̄_i))^(1/3)⌉ τ_0."""

    def start(all_):
        def F():
            return sum(objective(net, j) for j, net in enumerate(all_.nets)) / all_.P

        F0, due = F(), [tau0]

        def steps(all_, t):
            all_.update(t)
            if t == due[0]:
                all_.average(t)
                ratio = (F0 / F()) ** (1 / 3)
                all_.margins.append(abs(ratio - round(ratio)))
                due[0] += math.ceil(ratio) * tau0

        return steps

    return start


def adacomm(tau0, block):
    """Wang and Joshi 2019, as in oracles.adacomm."""

    def start(all_):
        now = {"tau": tau0, "due": tau0, "l": 0}

        def steps(all_, t):
            all_.update(t)
            if t != now["due"]:
                return
            all_.average(t)
            gamma0 = now.setdefault("gamma0", all_.case.gamma(t))
            if t // block > now["l"]:
                F, now["l"] = np.mean(all_.losses), t // block
                all_.losses.clear()
                F0 = now.setdefault("F0", F)
                r = tau0 * math.sqrt(F / F0 * gamma0 / all_.case.gamma(t))
                all_.margins += [abs(r - round(r))] if F != F0 else []
                half = max(1, math.ceil(now["tau"] / 2))
                now["tau"] = math.ceil(r) if math.ceil(r - 1e-9) < now["tau"] else half
            now["due"] = t + now["tau"]

        return steps

    return start


def sync(all_):
    """The mean gradient at every step."""
    return lambda all_, t: exchange(all_, t, lambda j, g: g)


def qsgd(bits, bucket):
    """adpsgd §IV: the mean of gradients quantised with unbiased rounding, the parameters one after
    the other, quantised again.
    """
    s = 2 ** (bits - 1) - 1

    def quantise(g, u):
        levels = torch.floor(s * g.abs() / g.norm() + u).clamp(max=s)
        return g.norm() / s * g.sign() * levels if g.norm() else g

    def coded(g, who, t, stream):
        random = np.random.Generator(np.random.Philox(key=[SEED, who], counter=[0, 0, t, stream]))
        u = torch.from_numpy(random.random(len(g), np.float32)).double()
        buckets = zip(g.double().split(bucket), u.split(bucket), strict=True)
        return torch.cat([quantise(*b) for b in buckets]).float()

    def steps(all_, t):
        exchange(all_, t, lambda j, g: coded(g, j, t, 1), lambda g: coded(g, 0, t, 5))

    return lambda all_: steps


def in_row(x):
    """A tensor as it lies in a row: its numbers, and zeros up to a multiple of 64."""
    return torch.nn.functional.pad(x.detach().flatten(), (0, -x.numel() % 64))


def exchange(all_, t, travelled, again=lambda g: g):
    """Every learner steps with again(g), g the mean over the learners j of travelled(j, g_j), g_j
    all its gradients in a row, each at a multiple of 64 floats, with zeros between.
    """
    all_.gradients(t)
    shapes = [p.shape for p in all_.nets[0].parameters()]
    gradients = [torch.cat([in_row(p.grad) for p in net.parameters()]) for net in all_.nets]
    g = again(sum(travelled(j, g) for j, g in enumerate(gradients)) / all_.P)
    for net in all_.nets:
        parts = g.split([len(in_row(p)) for p in net.parameters()])
        for p, part, shape in zip(net.parameters(), parts, shapes, strict=True):
            p.grad = part[: shape.numel()].view(shape).clone()
    all_.step(t)
    all_.averages.append((t, "global", 1, math.nan))
    all_.last = t


# --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """An algorithm of the package, made for P learners, and its oracle."""

    algorithm: Callable
    oracle: Callable
    optimiser: str = "momentum"
    policy: str = "keep"
    drops: tuple[int, ...] = (30,)
    keep_gradients: bool = False  # zero_grad(set_to_none=False)

    def gamma(self, t):
        return (0.003 if self.optimiser == "adam" else 0.05) * 0.2 ** sum(
            t > drop for drop in self.drops
        )

    def make_optimiser(self, net):
        if self.optimiser == "adam":
            return torch.optim.Adam(net.parameters(), lr=self.gamma(1))
        momentum = {"sgd": 0, "momentum": 0.8, "nesterov": 0.8}[self.optimiser]
        return torch.optim.SGD(
            net.parameters(), self.gamma(1), momentum, nesterov=self.optimiser == "nesterov"
        )

    def expected(self, P):
        """Every learner's tensors after T updates and after the end of the run; the averages; the
        margins.
        """
        all_ = Learners(P, self)
        all_.at_end = all_.average
        step = self.oracle(all_)
        for t in range(1, T + 1):
            step(all_, t)
        local = all_.everything()
        if not all_.averages or all_.averages[-1][:2] != (T, "global"):
            all_.at_end(T)
        elif math.isnan(all_.averages[-1][3]):
            all_.average(T, range(P), note=False)  # statistics; the weights are equal
        return local, all_.everything(), all_.averages, all_.margins


CASES = {
    "sync": Case(lambda P: localavg.sync(), sync),
    "sync-keeping": Case(lambda P: localavg.sync(), sync, keep_gradients=True),
    "qsgd": Case(lambda P: localavg.qsgd(bits=4, bucket=20), qsgd(4, 20), keep_gradients=True),
    "kavg": Case(lambda P: localavg.kavg(K=4), kavg(4)),
    "kavg-average": Case(lambda P: localavg.kavg(K=6), kavg(6), policy="average"),
    "kavg-reset": Case(lambda P: localavg.kavg(K=6), kavg(6), policy="reset"),
    "kavg-adam-average": Case(lambda P: localavg.kavg(K=5), kavg(5), "adam", "average"),
    "kavg-adam-reset": Case(lambda P: localavg.kavg(K=7), kavg(7), "adam", "reset"),
    "kavg-adam-by-moment": Case(lambda P: localavg.kavg(K=7), kavg(7), "adam", {"m": "reset", "v": "average"}),
    "kavg-by-moment": Case(lambda P: localavg.kavg(K=6), kavg(6), "nesterov", {"m": "average"}),
    "mavg": Case(lambda P: localavg.mavg(K=4, mu=0.5), mavg(4, 0.5)),
    "mavg-nesterov": Case(lambda P: localavg.mavg(K=6, mu=0.4, outer="nesterov"), mavg(6, 0.4, True), policy="average"),
    "diloco": Case(lambda P: localavg.diloco(K=5), outer(5, "nesterov", 0.7, 0.9)),
    "slowmo": Case(lambda P: localavg.slowmo(K=6, outer_lr=0.9), outer(6, "slowmo", 0.9, 0.5), policy="reset", drops=(15, 32)),
    "kavg-yogi": Case(lambda P: localavg.kavg(K=5, outer="yogi"), outer(5, "yogi", 0.01, 0.9)),
    "hieravg": Case(lambda P: localavg.hieravg(3, 8, cluster(P)), hieravg(3, 8)),
    "hieravg-average": Case(lambda P: localavg.hieravg(2, 7, cluster(P)), hieravg(2, 7), "nesterov", "average"),
    "delay": Case(lambda P: localavg.kavg(K=6, delay=4), delayed(6, 4)),
    "levels": Case(lambda P: localavg.hieravg(levels=[(3, 2), (8, P)]), levels((3, 2), (8, 4)), policy="average"),
    "three-levels": Case(lambda P: localavg.hieravg(levels=[(2, 2), (5, 4), (11, "P")]), levels((2, 2), (5, 4), (11, 8))),
    "adpsgd": Case(lambda P: localavg.adpsgd(p_init=3, Ks=9, warmup_steps=2), adpsgd(3, 9, 2), "sgd", "average", (16,)),
    "adalupa-loss": Case(lambda P: localavg.adalupa(5, rule="loss"), adalupa_loss(5), drops=()),
    "adacomm": Case(lambda P: localavg.adacomm(tau0=6, block=11), adacomm(6, 11), drops=(25,)),
    "gossip": Case(lambda P: localavg.gossip(K=2), gossip(2, lambda P, k: oracle.ring(P)), policy="average"),
    "one-peer": Case(lambda P: localavg.gossip(K=3, graph="one-peer-exp"), gossip(3, oracle.one_peer)),
}  # fmt: skip


class Loop:
    """A user's own loop around one net on this rank, with the three lines of localavg."""

    def __init__(self, world, case, net=None):
        self.case, self.rank = case, world.rank
        fleet = localavg.Fleet(world)
        self.net = make_net(100 + world.rank) if net is None else net
        self.optimiser = case.make_optimiser(self.net)
        self.averager = localavg.attach(
            self.net,
            fleet,
            case.algorithm(fleet.P),
            self.optimiser,
            state=case.policy,
            objective=lambda: objective(self.net, world.rank),
            seed=SEED,
        )
        self.averages = []

    def train(self, start, end):
        for t in range(start + 1, end + 1):
            self.optimiser.param_groups[0]["lr"] = self.case.gamma(t)
            self.optimiser.zero_grad(set_to_none=not self.case.keep_gradients)
            x, y = batch(self.rank, t)
            loss = cross_entropy(self.net(x), y)
            loss.backward()
            self.optimiser.step()
            self.note(self.averager.step(loss))

    def note(self, scope):
        if scope:
            a = self.averager
            kinds = {1: "local", 2: "global", 3: "neighbours"}
            self.averages.append((a.t, kinds[scope.kind], a.period, a.variance))


def run_cases(world, names):
    """By case: everything after T updates, the averaged weights, and everything after the end; the
    averages.
    """
    answers = {}
    for name in names:
        loop = Loop(world, CASES[name])
        loop.net.norm.num_batches_tracked += world.rank
        loop.train(0, T)
        local = snapshot(loop.net, loop.optimiser)
        with loop.averager.averaged():
            averaged = snapshot(loop.net, loop.optimiser)
        loop.note(loop.averager.finish())
        answers[name] = local, averaged, snapshot(loop.net, loop.optimiser), loop.averages
    return answers


def snapshot(net, optimiser):
    """All that the net and its optimiser hold, by name."""
    state = {
        f"{i} {key}": x for i, s in optimiser.state_dict()["state"].items() for key, x in s.items()
    }
    return {
        name: x.numpy().copy() for name, x in (net.state_dict() | state).items() if x is not None
    }


ON_TWO = [name for name in CASES if name not in ("levels", "three-levels")]
LAYOUTS = {
    1: ["sync", "kavg-average", "mavg", "adpsgd"],
    2: ON_TWO,
    3: ["sync", "qsgd", "kavg-average", "mavg", "hieravg", "adpsgd", "adalupa-loss", "gossip"],
    4: [
        "sync",
        "qsgd",
        "kavg-average",
        "mavg",
        "hieravg",
        "hieravg-average",
        "levels",
        "gossip",
        "one-peer",
    ],
    8: ["three-levels"],
}


def at(P, *more):
    """Parameters; three ranks are left to the long tests, since two and four are here, and eight."""
    return pytest.param(P, *more, marks=[pytest.mark.long] * (P in (3, 8)))


everywhere = pytest.mark.parametrize(
    ("P", "name"), [at(P, name) for P, names in LAYOUTS.items() for name in names]
)


def all_of_it(world, folder):
    """What the tests of this file look at, all of it in one launch."""
    if world.size == 2:
        examples(world, folder)
    return run_cases(world, LAYOUTS[world.size]), promises(
        world
    ) if world.size in PROMISED else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the example's run files are."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def launched(once, folder):
    """launched(P): what each of P ranks has; one rank is this process."""

    def launch(P):
        if P == 1:
            return [all_of_it(MPI.COMM_WORLD, str(folder))]
        return call(P, all_of_it, str(folder))

    return lambda P: once(P, launch, P)


@pytest.fixture(scope="module")
def runs(launched):
    """runs(P, name): what each of P ranks has of a case."""
    return lambda P, name: [cases[name] for cases, _ in launched(P)]


@pytest.fixture(scope="module")
def expected(once):
    """expected(P, name): what the oracle of a case has, worked out once."""
    torch.set_num_threads(1)
    return lambda P, name: once((P, name), CASES[name].expected, P)


def distance(got, expected):
    """The largest ‖got − expected‖ / ‖expected‖ of a tensor; infinite where names or integers
    differ.
    """
    if got.keys() != expected.keys():
        return math.inf
    pairs = [(got[name], b) for name, b in expected.items()]
    if any(a != b for a, b in pairs if b.dtype.kind == "i"):
        return math.inf
    return max(
        float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))  # reset: b = 0
        for a, b in pairs
        if b.dtype.kind == "f"
    )


def mean_of(snapshots):
    """The mean of what is averaged: the rest is left out."""
    floats = [
        {name: x for name, x in s.items() if x.dtype.kind == "f" and name[0].isalpha()}
        for s in snapshots
    ]
    return {name: sum(s[name].astype(float) for s in floats) / len(floats) for name in floats[0]}


def same_bits(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------- against the


@everywhere
def test_every_learner_is_the_oracles(runs, expected, P, name):
    """Weights, statistics, counters and the optimiser's state, at t = T and after the run was
    ended.
    """
    local, final = expected(P, name)[:2]
    for j, (got_local, _, got_final, _) in enumerate(runs(P, name)):
        assert distance(got_local, local[j]) < TOLERANCE
        assert distance(got_final, final[j]) < TOLERANCE


@everywhere
def test_the_averages_are_the_oracles(runs, expected, P, name):
    """When, whose, after how many updates, and S where adpsgd is steered by it; all ranks tell the
    same.
    """
    averages = expected(P, name)[2]
    for *_, got in runs(P, name):
        assert [a[:3] for a in got] == [a[:3] for a in averages]
        if name.startswith("adpsgd"):
            np.testing.assert_allclose(
                [a[3] for a in got], [a[3] for a in averages], rtol=1e-4, atol=1e-12
            )
        else:
            assert all(math.isnan(a[3]) for a in got)


@everywhere
def test_the_averaged_model_and_the_end(runs, P, name):
    """`averaged()` holds the mean of the learners; after `finish()` all learners are one, but for
    integers.
    """
    answers = runs(P, name)
    w_bar = mean_of([local for local, *_ in answers])
    for j, (local, averaged, final, _) in enumerate(answers):
        assert distance(mean_of([averaged]), w_bar) < 1e-6
        if P > 1 and name.startswith(("kavg", "mavg")):  # no average is due at T = 43
            assert distance(mean_of([local]), w_bar) > TOLERANCE
        assert same_bits(mean_of([final]), mean_of([answers[0][2]]))
        assert [x["norm.num_batches_tracked"] for x in (local, averaged, final)] == [T + j] * 3


def test_the_oracles_tell_the_cases_apart(expected):
    """No case could pass for another; keeping the gradients' memory alone changes nothing."""
    ends = {name: mean_of([expected(2, name)[1][0]]) for name in ON_TWO}
    for i, a in enumerate(ON_TWO):
        for b in ON_TWO[:i]:
            same = {a, b} == {"sync", "sync-keeping"}
            assert same == (distance(ends[a], ends[b]) < 20 * TOLERANCE), (a, b)


def test_the_controllers_decide_both_ways_and_nothing_hangs_on_rounding(expected):
    for P in (2, 3):
        for name in ("adpsgd", "adalupa-loss"):
            periods = np.diff([a[2] for a in expected(P, name)[2]][:-1])
            assert periods.max() > 0 and (name != "adpsgd" or periods.min() < 0)
            assert min(expected(P, name)[3]) > 1e-4


# ------------------------------------------------------------------------------------------- other


def promises(world):
    """Run under MPI: what the tests below look at, by their names."""
    checks = (
        restart,
        memory,
        in_place,
        restore,
        equal_start,
        kept_statistics,
        odd_tensors,
        late_state,
        replaced_tensors,
        two_models,
        sync_is_kavg_1,
        mistakes,
    )
    return {check.__name__: check(world) for check in checks}


PROMISED = (2, 3)  # numbers of ranks


@pytest.fixture(scope="module", params=map(at, PROMISED))
def promised(request, launched):
    return [answer for _, answer in launched(request.param)]


def restart(world):
    """The cases and t where a run that is stopped, saved, and gone on with by others ends in other
    bits.
    """
    differ = []
    for name in (
        "qsgd",
        "kavg-adam-average",
        "mavg",
        "slowmo",
        "kavg-yogi",
        "delay",
        "hieravg",
        "adpsgd",
        "adalupa-loss",
        "adacomm",
        "one-peer",
    ):
        case = CASES[name]
        whole = Loop(world, case)
        whole.train(0, T)
        whole.note(whole.averager.finish())
        for stop in (13, 22):
            first = Loop(world, case)
            first.train(0, stop)
            file = io.BytesIO()
            torch.save([x.state_dict() for x in (first.net, first.optimiser, first.averager)], file)
            file.seek(0)
            second = Loop(world, case, make_net(7))
            for x, state in zip(
                (second.net, second.optimiser, second.averager), torch.load(file), strict=True
            ):
                x.load_state_dict(state)
            second.train(stop, T)
            second.note(second.averager.finish())
            same = same_bits(*(snapshot(x.net, x.optimiser) for x in (whole, second)))
            if not same or str(first.averages + second.averages) != str(whole.averages):
                differ.append((name, stop))
    return differ


def test_a_run_that_stopped_goes_on_with_the_same_bits(promised):
    """In mid-period and right after averages, from a file that torch.load takes as safe."""
    assert [answer["restart"] for answer in promised] == [[]] * len(promised)


class Operations(TorchDispatchMode):
    """Notes the operations that torch does."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(D, 5000), nn.BatchNorm1d(5000), nn.Linear(5000, C))


def memory(world):
    """Of ten averages of a large row, by case: torch's operations, and how much memory they took
    and kept, in rows.
    """
    found = {}
    for name in (
        "kavg",
        "kavg-average",
        "kavg-adam-average",
        "kavg-reset",
        "mavg",
        "mavg-nesterov",
        "hieravg",
        "adpsgd",
    ):
        loop = Loop(world, CASES[name], Wide())
        loop.train(0, 24)
        averages = 0
        tracemalloc.start()
        with Operations() as operations:
            before = tracemalloc.get_traced_memory()[0]
            while averages < 10:
                averages += bool(loop.averager.step())
            kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        row = loop.averager.flat.w.nbytes
        found[name] = operations.names, (peak - before) / row, (kept - before) / row
    return found


def test_an_average_copies_no_tensor_and_keeps_no_memory(promised):
    """S takes rows for w̄ − w_j in float64 while it is computed."""
    for answer in promised:
        for name, (operations, peak, kept) in answer["memory"].items():
            assert {*operations} <= {"aten._local_scalar_dense.default"}  # reads Adam's step counts
            assert peak < (3.1 if name == "adpsgd" else 0.1), name
            assert kept < 0.1, name


def places(net):
    return [x.data_ptr() for x in net.state_dict(keep_vars=True).values() if x.is_floating_point()]


def in_place(world):
    """Whether all tensors lie in the row, and where they and the gradients lay at several times."""
    loop = Loop(world, CASES["mavg"])
    w = loop.averager.flat.w
    inside = all(0 <= place - w.ctypes.data < w.nbytes for place in places(loop.net))
    seen = [places(loop.net)]
    loop.train(0, T)
    with loop.averager.averaged():
        seen.append(places(loop.net))
    loop.averager.finish()
    loop.net.load_state_dict(make_net(7).state_dict())
    seen.append(places(loop.net))
    gradients = []
    loop = Loop(world, CASES["sync-keeping"])
    for t in range(3):
        loop.train(t, t + 1)
        gradients.append([p.grad.data_ptr() for p in loop.net.parameters()])
    return inside, seen, gradients


def test_tensors_stay_in_the_row(promised):
    for answer in promised:
        inside, seen, gradients = answer["in_place"]
        assert inside
        assert len(set(seen[0])) == len(seen[0]) - 1  # the tied weight is one
        assert seen == [seen[0]] * 3 and gradients == [gradients[0]] * 3


def restore(world):
    """The net before `averaged()`, within it, and after an error and a loop of training there."""
    loop = Loop(world, CASES["kavg"])
    loop.train(0, 14)
    seen = [snapshot(loop.net, loop.optimiser)]
    try:
        with loop.averager.averaged():
            seen.append(snapshot(loop.net, loop.optimiser))
            loop.net(batch(world.rank, 0)[0])
            nn.init.zeros_(loop.net.last.weight)
            raise ValueError
    except ValueError:
        seen.append(snapshot(loop.net, loop.optimiser))
    return seen


def test_averaged_gives_the_own_weights_back(promised):
    for answer in promised:
        before, within, after = answer["restore"]
        assert same_bits(before, within) == (len(promised) == 1)
        assert before.pop("norm.num_batches_tracked") + 1 == after.pop("norm.num_batches_tracked")
        assert before.pop("seen") + B == after.pop("seen")
        assert same_bits(before, after)


def equal_start(world):
    """A net made, and counters set, otherwise on every rank, after `attach`."""
    net = make_net(100 + world.rank)
    net.seen += 5 + world.rank
    net.norm.running_mean += world.rank
    return snapshot(net, Loop(world, CASES["kavg"], net).optimiser)


def test_all_start_from_rank_0s_model(promised):
    net = make_net(100)
    net.seen += 5
    for answer in promised:
        assert same_bits(answer["equal_start"], snapshot(net, CASES["kavg"].make_optimiser(net)))


def kept_statistics(world):
    """Running means and a weight after an average, with the statistics averaged and kept."""
    found = {}
    for how in ("average", "keep"):
        net = make_net(world.rank)
        averager = localavg.attach(net, localavg.Fleet(world), localavg.kavg(K=3), statistics=how)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        start = net.norm.running_mean.clone()
        for t in range(1, 4):
            x, y = batch(world.rank, t)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
            own = net.norm.running_mean.clone()
            averager.step()
        found[how] = [
            x.numpy().copy() for x in (start, own, net.norm.running_mean, net.first.weight.detach())
        ]
    return found


def test_statistics_are_averaged_or_every_learners_own(promised):
    for how in ("average", "keep"):
        starts, own, after, weights = zip(
            *(answer["kept_statistics"][how] for answer in promised), strict=True
        )
        assert all(np.array_equal(w, weights[0]) for w in weights)
        assert all(np.array_equal(s, starts[0]) for s in starts)  # equal at the start either way
        wanted = [np.mean(own, axis=0)] * len(own) if how == "average" else own
        np.testing.assert_allclose(after, wanted, rtol=1e-6, atol=1e-7)


class Odd(nn.Module):
    """A frozen layer, one that an optimiser of its own has, and one that rank 0 does not use."""

    def __init__(self):
        super().__init__()
        self.frozen, self.apart, self.elsewhere = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.frozen.weight.requires_grad_(False)
        self.trained = nn.Linear(D, C)

    def forward(self, x, elsewhere):
        x = self.apart(self.frozen(x))
        return self.trained(self.elsewhere(x) if elsewhere else x)


def odd_tensors(world):
    """For sync, and for kavg averaging the momentum: a rank's own gradients, and all there is after
    three updates.
    """
    fleet, found = localavg.Fleet(world), []
    for algorithm, policy, lr in (
        (localavg.sync(), "keep", 0.1),
        (localavg.kavg(K=1), "average", 0.0),
    ):
        torch.manual_seed(1)
        net = Odd()
        has = [p for name, p in net.named_parameters() if "apart" not in name]
        optimiser = torch.optim.SGD(
            has, lr, momentum=0.9, weight_decay=0.1 if policy == "keep" else 0
        )
        second = torch.optim.SGD([net.apart.weight], lr=0)
        averager = localavg.attach(net, fleet, algorithm, [optimiser, second], state=policy)
        for _ in range(3):
            net.zero_grad()
            x, y = batch(world.rank, 0)
            cross_entropy(net(x, elsewhere=world.rank > 0), y).backward()
            own = {
                name: None if p.grad is None else p.grad.numpy().copy()
                for name, p in net.named_parameters()
            }
            second.step()
            optimiser.step()
            averager.step()
        exchanged = {name: p.grad for name, p in net.named_parameters()}
        found.append((own, exchanged, snapshot(net, optimiser)))
    return found


def test_a_gradient_that_a_rank_has_not_counts_as_zero_and_frozen_weights_stay(promised):
    P = len(promised)
    torch.manual_seed(1)
    frozen = Odd().frozen.weight.detach().numpy()
    for (_, exchanged, net), (_, _, unmoved) in (answer["odd_tensors"] for answer in promised):
        for name in ("apart.weight", "elsewhere.weight", "trained.weight"):
            gradients = [answer["odd_tensors"][0][0][name] for answer in promised]
            mean = sum((g for g in gradients if g is not None), np.zeros_like(exchanged[name])) / P
            np.testing.assert_allclose(exchanged[name], mean, rtol=1e-5, atol=1e-8)
        assert exchanged["frozen.weight"] is None
        assert np.array_equal(net["frozen.weight"], frozen)
        np.testing.assert_allclose(
            unmoved["frozen.weight"], frozen, rtol=1e-6
        )  # (x + x + x) / 3 may round


def test_a_state_that_a_rank_has_not_counts_as_zero(promised):
    """v_j ← 0.9 v̄ + g_j, v̄ = (1/P) Σ v_j over the ranks that have it; the optimiser saves what it
    had before.
    """
    P = len(promised)
    for j, answer in enumerate(promised):
        state = {
            name: x for name, x in answer["odd_tensors"][1][2].items() if "momentum_buffer" in name
        }
        names = [
            "elsewhere.weight",
            "trained.weight",
            "trained.bias",
        ]  # after frozen.weight, which has no state
        assert list(state) == [f"{i} momentum_buffer" for i in range(1, 4) if i > 1 or j > 0]
        for i, name in enumerate(names, 1):
            gradients = [a["odd_tensors"][1][0][name] for a in promised]
            v = 0
            for _ in range(3):
                v = sum(0.9 * v + g for g in gradients if g is not None) / P
            if i > 1 or j > 0:
                np.testing.assert_allclose(state[f"{i} momentum_buffer"], v, rtol=1e-5, atol=1e-8)


def late_state(world):
    """Momentum buffers averaged where the last rank makes its own only after the first averages."""
    torch.manual_seed(0)
    net = nn.Linear(D, C)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    averager = localavg.attach(
        net, localavg.Fleet(world), localavg.kavg(K=2), optimiser, state="average"
    )
    for t in range(1, 7):
        optimiser.zero_grad()
        if world.rank < world.size - 1 or t > 3:
            nn.functional.cross_entropy(
                net(batch(world.rank, t)[0]), batch(world.rank, t)[1]
            ).backward()
        optimiser.step()
        averager.step()
    averager.finish()
    return [optimiser.state[p]["momentum_buffer"].numpy().copy() for p in net.parameters()]


def test_a_rank_without_any_state_yet_meets_the_others(promised):
    first, *others = (answer["late_state"] for answer in promised)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)  # t = 6 is an average


class Tracking(nn.Linear):
    """Keeps a running mean of its inputs by assigning the buffer anew."""

    def __init__(self):
        super().__init__(D, C)
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x)


def replaced_tensors(world):
    """Before and after an average: a buffer assigned anew, weights loaded with assign=True."""
    net = Tracking()
    averager = localavg.attach(net, localavg.Fleet(world), localavg.kavg(K=1))
    net(batch(world.rank, 1)[0])
    net.load_state_dict({name: x + world.rank for name, x in net.state_dict().items()}, assign=True)
    before = arrays(net)
    with averager.averaged():
        within = arrays(net)
    net(batch(world.rank, 2)[0])
    last = arrays(net)
    averager.step()
    return before, within, last, arrays(net)


def arrays(net):
    return {name: x.detach().numpy().copy() for name, x in net.state_dict().items()}


def test_tensors_put_in_the_place_of_others_are_averaged(promised):
    answers = [answer["replaced_tensors"] for answer in promised]
    for _, within, _, after in answers:
        assert distance(within, mean_of([answer[0] for answer in answers])) < 1e-6
        assert distance(after, mean_of([answer[2] for answer in answers])) < 1e-6


def two_models(world):
    """Two nets that share an algorithm, and each alone."""
    fleet, algorithm, ends = localavg.Fleet(world), localavg.mavg(K=2, mu=0.5), []
    for seeds in ((1, 2), (1,), (2,)):
        nets = [nn.Linear(D, C) for _ in seeds]
        for net, seed in zip(nets, seeds, strict=True):
            nn.init.constant_(net.weight, seed)
        averagers = [localavg.attach(net, fleet, algorithm) for net in nets]
        for t in range(6):
            for net, seed, averager in zip(nets, seeds, averagers, strict=True):
                put([net.weight], net.weight + torch.tensor(0.1 * seed + t * world.rank))
                averager.step()
        ends.append([net.weight.detach().numpy().copy() for net in nets])
    return ends


def test_models_do_not_share_an_algorithms_state(promised):
    for answer in promised:
        (first, second), (first_alone,), (second_alone,) = answer["two_models"]
        assert np.array_equal(first, first_alone) and np.array_equal(second, second_alone)


def sync_is_kavg_1(world):
    """The ends of sync and of kavg(K=1) with momentum, without BatchNorm."""
    ends = []
    for algorithm in (localavg.sync(), localavg.kavg(K=1), localavg.kavg(K=2)):
        case = Case(lambda P, made=algorithm: made, None, "momentum", "keep")
        loop = Loop(world, case, make_net(100, norm=False))
        loop.train(0, T)
        loop.averager.finish()
        ends.append(arrays(loop.net))
    return ends


def test_sync_is_kavg_with_K_1(promised):
    for answer in promised:
        sync, every, every_second = answer["sync_is_kavg_1"]
        assert distance(every, sync) < 1e-5
        assert len(promised) == 1 or distance(every_second, sync) > 1e-3


# -------------------------------------------------------------------------------------------------


def mistakes(world):
    """What is said to a user, by mistake."""
    fleet, last = localavg.Fleet(world), world.rank == world.size - 1

    def said(make):
        try:
            make()
        except localavg.UserError as e:
            return str(e)

    def attach(algorithm, net=None, optimiser=True, fleet=fleet, **how):
        net = nn.Linear(D, C) if net is None else net
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1) if optimiser is True else optimiser
        return localavg.attach(net, fleet, algorithm, optimiser, **how)

    def closure():
        net = nn.Linear(D, C)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        attach(localavg.sync(), net, optimiser)
        optimiser.step(lambda: cross_entropy(net(batch(0, 0)[0]), batch(0, 0)[1]))

    def grown():
        net = nn.Sequential(nn.Linear(D, C))
        averager = attach(localavg.kavg(K=1), net)
        net.append(nn.Linear(C, C))
        averager.step()

    def half():
        net = nn.Linear(D, C)
        averager = attach(localavg.kavg(K=1), net)
        net.half()
        averager.step()

    def tied():
        net = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))
        net[1].weight.data = net[0].weight.data
        attach(localavg.kavg(), net)

    def turned():
        net = nn.Linear(D, C)
        net.weight.data = net.weight.data.t().contiguous().t()
        return net

    adagrad = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))])

    def no_loss():
        net = nn.Linear(D, C)
        attach(localavg.adacomm(block=4), net).step()

    adam_net = nn.Linear(D, C)
    adam = torch.optim.Adam(adam_net.parameters())
    adpsgd, loss = localavg.adpsgd(Ks=25), localavg.adalupa(tau0=5, rule="loss")
    made = {
        "float64": lambda: attach(localavg.kavg(), nn.Linear(D, C).double() if last else nn.Linear(D, C)),
        "L": lambda: attach(localavg.kavg(), fleet=localavg.Fleet(world, world.size + 1)),
        "S": lambda: attach(localavg.hieravg(S=world.size + 1)),
        "sync": lambda: attach(localavg.sync(), optimiser=None),
        "qsgd": lambda: attach(localavg.qsgd(), optimiser=None),
        "adpsgd": lambda: attach(adpsgd, optimiser=None),
        "slowmo": lambda: attach(localavg.slowmo(), optimiser=None),
        "average": lambda: attach(localavg.kavg(), optimiser=None, state="average"),
        "reset": lambda: attach(localavg.kavg(), optimiser=adagrad, state="reset"),
        "state": lambda: attach(localavg.kavg(), state="forget"),
        "moment": lambda: attach(localavg.kavg(), state="m=forget"),
        "plain sgd": lambda: attach(localavg.kavg(), state="m=reset"),
        "state of sync": lambda: attach(localavg.sync(), state="reset"),
        "v alone": lambda: attach(localavg.kavg(), adam_net, adam, state={"v": "reset"}),
        "torch's name of v": lambda: attach(localavg.kavg(), adam_net, adam, state="exp_avg_sq=reset"),
        "objective": lambda: attach(loss),
        "mix": lambda: attach(localavg.gossip(mix="first")),
        "push": lambda: attach(localavg.gossip(graph="push")),
        "sync-master": lambda: attach(localavg.sync(), master=True),
        "master": lambda: attach(localavg.kavg(), master=1),
        "adacomm": lambda: attach(localavg.adacomm(), optimiser=None), "no loss": no_loss,
        "closure": closure, "grown": grown, "half": half, "tied": tied,
    }  # fmt: skip
    if world.size > 1:
        made["sgd"] = lambda: attach(localavg.sgd())
        made["shapes"] = lambda: attach(localavg.kavg(), nn.Linear(D, C + last))
        made["types"] = lambda: attach(
            localavg.kavg(), nn.Linear(D, C).half() if last else nn.Linear(D, C)
        )
        made["strides"] = lambda: attach(localavg.kavg(), turned() if last else nn.Linear(D, C))
        made["fewer"] = lambda: attach(localavg.kavg(), nn.Linear(D, C, bias=not last))
    return {name: said(make) for name, make in made.items()}


SAID = {
    "float64": "weight is torch.float64 on cpu; weights must be torch.float32, bfloat16 or "
    "float16, .*; call model.float.. before attach",
    "L": "ranks: a model is one learner; use as many learners as ranks",
    "S": "`S = .* a cluster's size must divide P",
    **dict.fromkeys(("sync", "qsgd", "adpsgd", "adacomm", "slowmo", "average"), "pass optimizer="),
    "no loss": r"adacomm is steered by the losses: pass the loss of each update, averager.step",
    "reset": "'reset': Adagrad has a state already .* use keep or average",
    "state": "`state = forget`: must be one of keep, average, reset",
    "moment": "`state = m=forget`: must be one of keep, average, reset, or these by moment",
    "plain sgd": "`state = m=reset`: SGD has neither m nor v",
    "state of sync": "`state = reset` means nothing to sync, which averages no weights; leave it out",
    "torch's name of v": "`state = exp_avg_sq=reset`: exp_avg_sq is a moment; call it v",
    "v alone": "`state = v=reset`: Adam counts one step .* reset m too",
    "objective": "pass objective=, a function that returns it",
    "closure": "call backward.. first and step.. without a closure",
    "grown": "1.weight is new or has another shape now; attach when the model is complete",
    "half": "weight is torch.float16 on cpu now, and was torch.float32 on cpu; convert and move",
    "mix": "`mix = first` averages between backward.. and step.., where your loop makes no call",
    "push": "`graph = push` needs gradients at x/s and updates of x, and your model holds one",
    "sync-master": "master=True: sync and qsgd average gradients, not weights; leave it out",
    "master": "`master = 1`: must be True or False",
    "tied": "0.weight and 1.weight are two tensors in one memory; .* register one Parameter in "
    "both places",
    "sgd": "sequential sgd on [23] ranks; use sync or kavg, or one rank",
    "shapes": r"rank .'s model has weight .4, 6. .* where rank 0's has weight .3, 6. .*; build the "
    r"same model",
    "types": r"rank .'s model has weight .* of torch.float16.* rank 0's has weight .* torch.float32",
    "strides": r"rank .'s model has weight .* strides .1, 3., .* where .* strides .6, 1.",
    "fewer": r"rank .'s model has no more tensors where rank 0's has bias",
}


def test_mistakes_are_told_on_every_rank(promised):
    for answer in promised:
        told = answer["mistakes"]
        assert told.keys() == SAID.keys() - (
            () if len(promised) > 1 else ("sgd", "shapes", "types", "strides", "fewer")
        )
        for name, message in told.items():
            assert re.search(SAID[name], message or "nothing"), (name, message)


# ---------------------------------------------------------------------------------------------- the

EXAMPLE = ROOT / "jobs" / "examples" / "attach.py"


def launch_lines():
    return [
        line.split()
        for line in re.findall(
            r"^ +jobs/local/mpirun (.*)$", EXAMPLE.read_text().replace("\\\\\n", ""), re.MULTILINE
        )
    ]


def test_the_example_by_its_own_launch_line():
    _, ranks, *words = launch_lines()[0]
    done = run(int(ranks), *words[1:], check=True, program=("python",))
    accuracies = [float(x) for x in re.findall(r"test accuracy ([\d.]+) %", done.stdout)]
    assert accuracies[-1] >= 97


# the example's options, and the periods of its averages on two ranks in two epochs of 22 updates
EXAMPLES = {
    "sync": ("sync", [1] * 44),
    "qsgd": ("qsgd bits=6", [1] * 44),
    "kavg": ("kavg K=8", [8] * 5 + [4]),
    "oneshot": ("oneshot", [44]),
    "mavg": ("mavg K=20 outer=nesterov", [20, 20, 4]),
    "diloco": ("diloco K=20", [20, 20, 4]),
    "slowmo": ("slowmo K=20", [20, 20, 4]),
    "postlocal": ("postlocal K=8 switch=0.5", [1] * 11 + [8] * 4 + [1]),
    "fedavg": ("fedavg K=8 participants=1", [8] * 5 + [4]),
    "hieravg": ("hieravg K1=2 K2=8 S=2", [2] * 22 + [0]),
    "hieravg-levels": ("hieravg levels=8:P", [8] * 5 + [4]),
    "adpsgd": ("adpsgd Ks=8 warmup=0.5", [1] * 11 + [4, 4]),
    "adalupa": ("adalupa tau0=6 alpha=0.5", [6, 9, 12, 15, 2]),
    "adalupa-loss": ("adalupa tau0=6 rule=loss", [6]),
    "adacomm": ("adacomm tau0=9 block=11", [9, 9, 5]),
    "piecewise": ("piecewise pieces=0:5,1:11", [5, 5, 5, 5, 11, 11, 2]),
    "qsr": ("qsr alpha=0.05 K=4", [4] * 6 + [20]),  # the step size falls after 22 updates
    "gossip": ("gossip graph=one-peer-exp K=2", [2] * 22 + [0]),
}


def examples(world, folder):
    """Short runs of the example."""
    example = runpy.run_path(str(EXAMPLE), run_name="example")
    for name, (line, _) in EXAMPLES.items():
        words = ["--algorithm", *line.split(), "--epochs", "2", "--out", f"{folder}/{name}.h5"]
        example["train"](example["arguments"](words))


def test_the_examples_run_file(launched, folder):
    """Of every synchronous algorithm: each average, S for adpsgd, bytes, evaluations of the
    averaged model.
    """
    launched(2)
    assert {name.partition("-")[0] for name in EXAMPLES} | {
        "sgd"
    } == localavg.algorithms.ALGORITHMS.keys()
    assert EXAMPLES["hieravg"][0] in " ".join(launch_lines()[1])
    for name, (line, periods) in EXAMPLES.items():
        found = load(folder / f"{name}.h5")
        averages, steered = found.averages, name in ("adpsgd", "adalupa-loss", "adacomm")
        assert found.status == "finished" and found.config["learners"] == 2
        for option in line.split()[1:]:
            key, value = option.split("=")
            assert str(found.config[key]) in (value, value + ".0")
        assert averages.period.tolist()[: len(periods)] == periods
        assert (
            averages.t.tolist() == averages.period.cumsum().tolist() and averages.t.iloc[-1] == 44
        )
        assert len(averages) > len(periods) if steered else len(averages) == len(periods)
        assert averages.scope.iloc[-1] == WORLD
        assert (averages.scope == CLUSTER).sum() == (17 if name == "hieravg" else 0)
        assert (
            averages.variance.notna().all() == averages.variance.notna().any() == (name == "adpsgd")
        )
        assert found.config["d"] == 144 + 4608 + 1290 + 4 * (16 + 32)
        n = 192 + 4608 + 1280 + 64 + 4 * 64  # parameters, each in a multiple of 64 floats
        exchanged = averages.t <= {"sync": 44, "postlocal": 11}.get(name, 0)
        floats = 4 * np.where(exchanged, n, n + 4 * 64)  # BatchNorm's statistics
        sent = (
            2 * (n + 4 * math.ceil(n / 512)) if name == "qsgd" else 2 * floats
        )  # a byte an entry, 4 a bucket
        assert (averages.bytes_node == sent).all() and (averages.bytes_cross == 0).all()
        assert found.eval.epoch.tolist() == [1, 2] and found.eval.t.tolist() == [22, 44]
        assert (found.eval.train_loss < 1).all() and (found.eval.test_accuracy > 0.8).all()
