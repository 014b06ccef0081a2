"""Naive float64 oracles for SGD with local updates and periodic averaging.

Every algorithm is written straight from its paper's pseudo-code, as its own loop, for one problem:
l2-regularised logistic regression on fixed contiguous shards, with whole-shard batches and zero
initial weights. Nothing here uses the package under test, nothing is random and nothing is clever.

Papers, by the short names used in the comments:
  kavg     Zhou and Cong, K-step averaging SGD, Algorithm 1 (its statements carry no numbers)
  lupa     Haddadpour et al., LUPA-SGD, Algorithm 1 (numbered lines), equation 11, section 6
  adpsgd   Jiang and Agrawal, adaptive periodic averaging, Algorithms 1 and 2 (numbered lines)
  mavg     Cong and Liu, block momentum M-AVG, Algorithm 1 (no line numbers)
  hieravg  Zhou and Cong, hierarchical averaging Hier-AVG, Algorithm 1 (no line numbers)
  diloco   Douillard et al., Algorithm 1 (arXiv 2311.08105)
  reddi    Reddi et al., adaptive federated optimization, Algorithm 2 (arXiv 2003.00295)
  mcmahan  McMahan et al., federated averaging, Algorithm 1 (arXiv 1602.05629)
  slowmo   Wang et al., slow momentum, Algorithm 1 (arXiv 1910.00643)
  gossip   Lian et al. (arXiv 1705.09056), Assran et al. (arXiv 1811.10792), Algorithm 1 of each

Conventions:
  t          completed local updates, 1-based: update t uses the step size gamma(t); T updates in all
  W, w_bar   W[j] are learner j's weights; w_bar is their plain mean, however unequal the shards are
  averages   list of (t, scope): after update t there was an average; scope is "global", "local" (all the
             clusters of Hier-AVG at once) or "neighbours"; a run always ends with a global average at T
Every algorithm returns (final w_bar, averages); `adpsgd` returns a third value, its controller's
trace.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Setup(NamedTuple):
    """The problem, the number of learners and their local optimiser."""

    X: np.ndarray  # (n, d)
    y: np.ndarray  # (n,), entries -1 or +1
    P: int = 1
    l2: float = 0.0
    optimiser: str = "sgd"  # sgd | momentum | nesterov | adam | adamw
    m: float = 0.9  # momentum coefficient of momentum and nesterov
    policy: str = (
        "keep"  # of the state at an average: keep | average | reset, or by moment "m=reset,v=keep"
    )


# ---------------------------------------------------------------------------------------------- the


def objective(w, X, y, l2):
    """F(w) = mean_i log(1 + exp(-y_i x_i.w)) + (l2 / 2) ||w||^2."""
    return np.mean(np.logaddexp(0.0, -y * (X @ w))) + 0.5 * l2 * np.sum(w * w)


def gradient(w, X, y, l2):
    """The gradient of `objective`: mean_i -y_i x_i / (1 + exp(y_i x_i.w)) + l2 w."""
    total = np.zeros(X.shape[1])
    for x_i, y_i in zip(X, y, strict=True):
        total += -y_i * x_i * np.exp(-np.logaddexp(0.0, y_i * (x_i @ w)))
    return total / len(y) + l2 * w


def shard(n, j, P):
    """The rows of learner j of P: floor(n j / P) .. floor(n (j + 1) / P) - 1."""
    return slice(n * j // P, n * (j + 1) // P)


def learner_gradient(setup, j, w):
    """The mean gradient over the whole shard of learner j."""
    rows = shard(len(setup.y), j, setup.P)
    return gradient(w, setup.X[rows], setup.y[rows], setup.l2)


# ---------------------------------------------------------------------------------- the local optim


def fresh_state(d):
    """The state of a local optimiser that has made no step (v: velocity; a, b: Adam's moments; na,
    nb: the steps since each of them was zero).
    """
    return {"v": np.zeros(d), "a": np.zeros(d), "b": np.zeros(d), "na": 0, "nb": 0}


def local_step(w, g, state, lr, optimiser="sgd", m=0.9):
    """One local update from w with the gradient g; returns (new w, new state) and changes neither
    argument.
    """
    state = dict(state)
    if optimiser == "sgd":
        return w - lr * g, state
    if optimiser == "momentum":
        state["v"] = m * state["v"] + g
        return w - lr * state["v"], state
    if optimiser == "nesterov":
        state["v"] = m * state["v"] + g
        return w - lr * (g + m * state["v"]), state
    if optimiser in ("adam", "adamw"):
        if optimiser == "adamw":  # Loshchilov and Hutter, Algorithm 2, with lambda as torch has it
            w = w - lr * 0.01 * w
        beta1, beta2, eps = 0.9, 0.999, 1e-8
        state["na"], state["nb"] = state["na"] + 1, state["nb"] + 1
        state["a"] = beta1 * state["a"] + (1 - beta1) * g
        state["b"] = beta2 * state["b"] + (1 - beta2) * g * g
        a_hat = state["a"] / (1 - beta1 ** state["na"])
        b_hat = state["b"] / (1 - beta2 ** state["nb"])
        return w - lr * a_hat / (np.sqrt(b_hat) + eps), state
    raise ValueError(f"unknown optimiser {optimiser!r}")


def states_after_average(states, policy):
    """The optimiser states of the learners that have just been averaged together.

    keep leaves an array alone; average takes its mean (the step counts agree already); reset makes
    it zero, its step count too. By moment, m is a, v is b, and either is the velocity; an array
    that is not named is left alone.
    """
    words = {"m": policy, "v": policy}
    if "=" in policy:
        words = dict(pair.split("=") for pair in policy.split(","))
    of = {"v": words.get("v", words.get("m")), "a": words.get("m"), "b": words.get("v")}
    new = [dict(s) for s in states]
    for name, word in of.items():
        if word == "average":
            mean = sum(s[name] for s in states) / len(states)
        for s in new:
            if word == "average":
                s[name] = mean
            elif word == "reset":
                s[name] = np.zeros(len(s[name]))
                if name != "v":
                    s["n" + name] = 0
            elif word not in ("keep", None):
                raise ValueError(f"unknown policy {policy!r}")
    return new


def start(setup):
    """Zero weights and fresh states for every learner."""
    d = setup.X.shape[1]
    return [np.zeros(d) for _ in range(setup.P)], [fresh_state(d) for _ in range(setup.P)]


def every_learner_steps(setup, W, states, lr):
    """One local update of every learner on its own shard: the inner statement of all the
    pseudo-codes.
    """
    pairs = [
        local_step(W[j], learner_gradient(setup, j, W[j]), states[j], lr, setup.optimiser, setup.m)
        for j in range(setup.P)
    ]
    return [w for w, _ in pairs], [s for _, s in pairs]


def mean(vectors):
    """The plain mean of a list of vectors."""
    return sum(vectors) / len(vectors)


# -------------------------------------------------------------------------------------------- the a


def sgd(setup, T, gamma):
    """Sequential SGD: one learner, whose batch is all the rows; there is nothing to average."""
    w = np.zeros(setup.X.shape[1])
    state = fresh_state(len(w))
    for t in range(1, T + 1):
        g = gradient(w, setup.X, setup.y, setup.l2)
        w, state = local_step(w, g, state, gamma(t), setup.optimiser, setup.m)
    return w, []


def sync(setup, T, gamma):
    """Synchronous SGD: the mean of the P gradients is applied every step, with one common optimiser
    state.
    """
    w = np.zeros(setup.X.shape[1])
    state = fresh_state(len(w))
    averages = []
    for t in range(1, T + 1):
        g = mean([learner_gradient(setup, j, w) for j in range(setup.P)])
        w, state = local_step(w, g, state, gamma(t), setup.optimiser, setup.m)
        averages.append((t, "global"))
    return w, averages


def kavg(setup, T, gamma, K):
    """kavg Algorithm 1; adpsgd Algorithm 1, lines 3-6; lupa Algorithm 1, lines 5-9 (average when K
    divides t).
    """
    W, states = start(setup)  # kavg: "initialize" and "set w_n^j = w~_n"
    averages = []
    for t in range(1, T + 1):
        W, states = every_learner_steps(
            setup, W, states, gamma(t)
        )  # kavg: "update"; adpsgd lines 3-4
        if t % K == 0 or t == T:  # adpsgd line 5; lupa line 6, and line 13 at the end
            w_bar = mean(W)  # kavg: "Synchronize"; adpsgd line 6; lupa line 7
            W = [w_bar for _ in range(setup.P)]
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
    return W[0], averages


def oneshot(setup, T, gamma):
    """lupa section 6: local SGD "with only having one round of communication at the end" (Algorithm
    1, line 13).
    """
    W, states = start(setup)
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
    return mean(W), [(T, "global")]


def linear_period(i, tau0, alpha):
    """lupa section 6: tau_i = (1 + i alpha) tau_0 rounded up, with alpha taken as the decimal
    number it is written as.

    The arithmetic is exact: in binary floating point (1 + 14 * 0.1) * 10 is above 24 and would
    round up to 25.
    """
    return math.ceil((1 + i * Fraction(str(alpha))) * tau0)


def adalupa_linear(setup, T, gamma, tau0, alpha):
    """lupa Algorithm 1 with the periods tau_0, tau_1, ... of `linear_period` one after the
    other.
    """
    W, states = start(setup)
    averages = []
    i = 0
    due = linear_period(0, tau0, alpha)
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))  # lupa line 9
        if t in (due, T):
            w_bar = mean(W)  # lupa line 7
            W = [w_bar for _ in range(setup.P)]
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            i += 1
            due = t + linear_period(i, tau0, alpha)
    return W[0], averages


def qsr(setup, T, gamma, alpha, K_base, p=2, peak=0):
    """Gu et al. 2024, Algorithm 2: every round takes H = max(K_base, floor((alpha / eta)^p)) local
    steps, eta the learning rate of its first step, but never more than are left. A round that
    begins in the first `peak` steps, a warm-up, takes eta of the step after them.
    """
    W, states = start(setup)
    averages, t = [], 0
    while t < T:
        eta = Fraction(gamma(max(t, peak) + 1)).limit_denominator(10**6)
        H = max(K_base, math.floor((Fraction(str(alpha)) / eta) ** p))
        for _ in range(min(H, T - t)):
            t += 1
            W, states = every_learner_steps(setup, W, states, gamma(t))
        W = [mean(W)] * setup.P
        states = states_after_average(states, setup.policy)
        averages.append((t, "global"))
    return W[0], averages


def adalupa_loss(setup, T, gamma, tau0):
    """lupa Algorithm 1 with equation 11 (without F*): tau_i = ceil((F(w_bar_0) / F(w_bar_i))^(1/3))
    tau_0.

    w_bar_i is the mean just after average i; w_bar_0 the initial weights, so the first period is
    tau_0. F is the full regularised objective over all the rows.
    """
    W, states = start(setup)
    averages = []
    F0 = objective(W[0], setup.X, setup.y, setup.l2)
    due = tau0
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))  # lupa line 9
        if t in (due, T):
            w_bar = mean(W)  # lupa line 7
            W = [w_bar for _ in range(setup.P)]
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            Fi = objective(w_bar, setup.X, setup.y, setup.l2)
            due = t + math.ceil((F0 / Fi) ** (1 / 3)) * tau0  # lupa equation 11
    return W[0], averages


def adacomm(setup, T, gamma, tau0, block):
    """Wang and Joshi 2019, section 4, in updates: block l has the updates block l + 1 to block (l + 1).

    At the first average at or after the end of a block: F is the mean loss of all learners in all
    updates since the last decision, each at the learner's own weights before the update; r = ceil(
    tau0 sqrt(F / F0 * gamma0 / gamma)); the period becomes r if that is less, else half, at least 1.
    """
    W, states = start(setup)
    averages, losses, tau, due, l = [], [], tau0, tau0, 0
    F0 = gamma0 = None
    for t in range(1, T + 1):
        shards = [shard(len(setup.y), j, setup.P) for j in range(setup.P)]
        losses.append(
            mean(
                [
                    objective(w, setup.X[rows], setup.y[rows], setup.l2)
                    for w, rows in zip(W, shards, strict=True)
                ]
            )
        )
        W, states = every_learner_steps(setup, W, states, gamma(t))
        if t in (due, T):
            W = [mean(W)] * setup.P
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            gamma0 = gamma0 or gamma(t)
            if t // block > l:
                l, F, losses = t // block, np.mean(losses), []
                F0 = F0 or F
                r = math.ceil(tau0 * math.sqrt(F / F0 * gamma0 / gamma(t)) - 1e-9)
                tau = r if r < tau else max(1, math.ceil(tau / 2))
            due = t + tau
    return W[0], averages


def piecewise(setup, T, gamma, pieces):
    """adpsgd sections III-A and V-B: a period that changes at given updates.

    pieces is a list of (from_step, period) in increasing order, the first from step 0: update t
    belongs to the last piece with from_step < t. There is an average once the updates since the
    last one are at least the period in force.
    """
    W, states = start(setup)
    averages = []
    since = 0
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))  # adpsgd Algorithm 1, lines 3-4
        since += 1
        period = [p for from_step, p in pieces if from_step < t][-1]
        if since >= period or t == T:  # adpsgd Algorithm 1, line 5
            w_bar = mean(W)  # adpsgd Algorithm 1, line 6
            W = [w_bar for _ in range(setup.P)]
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            since = 0
    return W[0], averages


class Adaptation(NamedTuple):
    """What Algorithm 2 of adpsgd did at one average."""

    t: int
    period: int  # the period in force, 1 in the warm-up
    variance: float  # S_k, among the learners just before the average
    C2: float  # after it
    next_period: int
    phase: (
        str  # warmup | sampling | control | final (forced at T; C2 and the period are left alone)
    )


def adpsgd(setup, T, gamma, p_init, K_s, warmup=0, k_from="run"):
    """adpsgd Algorithm 2 after `warmup` updates that are averaged every step; K_s is a number of
    updates.

    Line 4 counts the iterations from k = 0, so update t is iteration k = t - 1 and its step size
    gamma_k is gamma(t); an average at t is a sample when t - 1 < K_s. k_from="warmup" counts k in
    line 13 from the end of the warm-up instead: t - 1 - warmup < K_s. Returns (w_bar, averages,
    trace), the trace a list of `Adaptation`, one for every average.
    """
    first_k = {"run": 0, "warmup": warmup}[k_from]
    W, states = start(setup)
    averages, trace = [], []
    cnt, p, C2, n_C = 0, p_init, 0.0, 0  # lines 1-3
    for t in range(1, T + 1):  # line 4
        lr = gamma(t)
        W, states = every_learner_steps(setup, W, states, lr)  # lines 6-7
        warming = t <= warmup
        if not warming:
            cnt += 1  # line 5
        if warming or cnt == p or t == T:  # line 8
            w_bar = mean(W)  # line 10
            variance = float(mean([np.sum((w_bar - w) ** 2) for w in W]))  # line 11: S_k
            W = [w_bar for _ in range(setup.P)]  # line 12
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            used = 1 if warming else p
            if warming:
                phase = "warmup"
            elif cnt != p:
                phase = "final"
            elif t - 1 - first_k < K_s:  # line 13
                phase = "sampling"
                n_C += 1
                C2 += (variance / lr - C2) / n_C  # line 14
            else:
                phase = "control"
                if variance < 0.7 * lr * C2:  # line 16
                    p += 1  # line 17
                elif variance > 1.3 * lr * C2:  # line 18
                    p = max(1, p - 1)  # line 19
            cnt = 0  # line 9
            trace.append(Adaptation(t, used, variance, C2, p, phase))
    return W[0], averages, trace


def mavg(setup, T, gamma, K, mu, nesterov=False):
    """mavg Algorithm 1; with nesterov, its last line is w~ <- w~ + mu v + d.

    A last partial period ends like any other, with the momentum step. The local optimiser's states
    follow the policy; v is kept, whatever the policy.
    """
    W, states = start(setup)
    w_tilde = np.zeros(setup.X.shape[1])  # "initialize w~_1"
    v = np.zeros(setup.X.shape[1])  # "v <- 0"
    averages = []
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))  # "update"
        if t % K == 0 or t == T:
            a = mean(W)
            d = a - w_tilde
            v = mu * v + d
            w_tilde = w_tilde + mu * v + d if nesterov else w_tilde + v
            W = [w_tilde for _ in range(setup.P)]  # "set w_n^j = w~_n" of the next n
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
    return w_tilde, averages


class OuterState:
    """The outer optimiser of a source, from w~ on; its moments are those of the pseudo-code."""

    def __init__(self, rule, lr, mu, w_tilde):
        self.rule, self.lr, self.mu, self.w_tilde = rule, lr, mu, w_tilde
        self.first = np.zeros(len(w_tilde))
        self.second = np.full(len(w_tilde), 1e-3**2)  # reddi, Algorithm 2: v_{-1} >= tau^2

    def step(self, W, gamma):
        """The new w~ after a round that left the learners at W, with the last step size gamma."""
        x, lr, mu = self.w_tilde, self.lr, self.mu
        if self.rule in ("momentum", "nesterov"):  # diloco, Algorithm 1; torch.optim.SGD
            outer_gradient = mean([x - w for w in W])
            self.first = mu * self.first + outer_gradient
            direction = self.first
            if self.rule == "nesterov":
                direction = outer_gradient + mu * self.first
            x = x - lr * direction
        elif self.rule in ("adam", "yogi"):  # reddi, Algorithm 2
            delta = mean([w - x for w in W])
            self.first = mu * self.first + (1 - mu) * delta
            if self.rule == "adam":
                self.second = 0.99 * self.second + 0.01 * delta**2
            else:
                sign = np.sign(self.second - delta**2)
                self.second = self.second - 0.01 * delta**2 * sign
            x = x + lr * self.first / (np.sqrt(self.second) + 1e-3)
        elif self.rule == "slowmo":  # slowmo, Algorithm 1
            self.first = mu * self.first + (x - mean(W)) / gamma
            x = x - lr * gamma * self.first
        else:
            raise ValueError(f"unknown rule {self.rule!r}")
        self.w_tilde = x
        return x


def outer(setup, T, gamma, rule, lr, mu, schedule):
    """An outer optimiser at the global averages of another oracle, `schedule(setup, T, gamma)`.

    Local averages there are plain means over clusters of schedule.S learners.
    """
    W, states = start(setup)
    server = OuterState(rule, lr, mu, np.zeros(setup.X.shape[1]))
    averages = schedule(setup, T, gamma)[1]
    scopes = dict(averages)
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
        if scopes.get(t) == "global":
            W = [server.step(W, gamma(t))] * setup.P
            states = states_after_average(states, setup.policy)
        elif scopes.get(t) == "local":
            for first in range(0, setup.P, schedule.S):
                cluster = slice(first, first + schedule.S)
                W[cluster] = [mean(W[cluster])] * schedule.S
                states[cluster] = states_after_average(states[cluster], setup.policy)
    return server.w_tilde, averages


def postlocal(setup, T, gamma, t0, due=(), tau0=None, rule=None, lr=None, mu=None):
    """Lin et al. 2020, section 3: the mean gradient up to update t0, with one common optimiser state;
    then local SGD, which averages after the updates `due`, and at T.

    tau0: lupa's eq. 11 from t0 on says when, in place of `due`. rule, lr, mu: an outer optimiser at
    these averages, whose first w~ is the weights at t0.
    """
    w, state, averages = np.zeros(setup.X.shape[1]), fresh_state(setup.X.shape[1]), []
    for t in range(1, t0 + 1):
        g = mean([learner_gradient(setup, j, w) for j in range(setup.P)])
        w, state = local_step(w, g, state, gamma(t), setup.optimiser, setup.m)
        averages.append((t, "global"))
    W, states, due = [w] * setup.P, [state] * setup.P, set(due)
    server = OuterState(rule, lr, mu, w)
    F0 = objective(w, setup.X, setup.y, setup.l2)
    if tau0:
        due.add(t0 + tau0)
    for t in range(t0 + 1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
        if t in due or t == T:
            W = [server.step(W, gamma(t)) if rule else mean(W)] * setup.P
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            if tau0:
                F = objective(W[0], setup.X, setup.y, setup.l2)
                due.add(t + math.ceil((F0 / F) ** (1 / 3)) * tau0)
    return W[0], averages


def fedavg(setup, T, gamma, K, drawn, batch=None, by_rows=True, server=None):
    """mcmahan Algorithm 1: in round r the clients drawn(r) make K updates, the last round those that
    are left of T, and w is their mean, by numbers of rows or plain. Other clients do nothing.

    batch(k, t): the row numbers of client k's mini-batch at update t; by default its whole shard. A
    client's optimiser state is fresh in each round with the policy reset, its own from its last
    round with keep, and with average the mean of the clients' states in the round before. server:
    an `OuterState`, which steps from w towards the mean.
    """
    n = [len(setup.y[shard(len(setup.y), k, setup.P)]) for k in range(setup.P)]
    w, averages = np.zeros(setup.X.shape[1]), []
    states = [fresh_state(len(w)) for _ in range(setup.P)]
    for r, begun in enumerate(range(0, T, K)):  # "for each round t = 1, 2, ..."
        end = min(begun + K, T)
        W, share = {}, {}
        for k in drawn(r):  # "S_t <- (random set of m clients)"; "for each client k in S_t"
            W[k], share[k] = w, n[k] if by_rows else 1
            for t in range(begun + 1, end + 1):  # ClientUpdate(k, w)
                rows = shard(len(setup.y), k, setup.P) if batch is None else batch(k, t)
                g = gradient(W[k], setup.X[rows], setup.y[rows], setup.l2)
                W[k], states[k] = local_step(W[k], g, states[k], gamma(t), setup.optimiser, setup.m)
        m = sum(share.values())
        w = sum(share[k] / m * W[k] for k in W)
        if server is not None:
            w = server.step([w], gamma(end))
        if setup.policy == "reset":
            states = [fresh_state(len(w)) for _ in states]
        elif setup.policy == "average":
            common = {x: sum(share[k] / m * states[k][x] for k in W) for x in ("v", "a", "b")}
            states = [{**states[max(W)], **common} for _ in states]
        averages.append((end, "global"))
    return w, averages


def delayed(
    setup, T, gamma, schedule, tau, merge, a=1.0, rule=None, lr=1.0, mu=0.0, S=None, wire=None
):
    """Averages at the updates of another oracle, schedule(setup, T, gamma), each merged tau updates
    later into the weights of then; the last one at T is taken at once.

    merge: "cocod" (Shen et al. 2019): x <- mean(copies) + (x - copy). "lerp" (Wang et al. 2020):
    x <- (1 - a) x + a z; with tau the period, z is the initial weights before the first copies.
    "daso" (Coquelin et al. 2022): x <- (2 tau x + sum of copies) / (2 tau + n). With an outer
    optimiser z is its new w~, in place of the mean. S: learners in a cluster of a local average.
    wire: a `Wire` by which means of everyone travel; its w~ is the last one that began.
    """
    W, states = start(setup)
    w_tilde = np.zeros(setup.X.shape[1])
    zero = np.zeros(setup.X.shape[1])
    server = OuterState(rule, lr, mu, zero) if rule not in (None, "anchor") else None
    scopes = dict(schedule(setup, T, gamma)[1])
    flight, waiting, merged = None, None, []
    anchor = merge == "lerp" and (rule is None or rule == "anchor") and min(scopes) == tau
    if rule == "anchor":  # Overlap-Local-SGD: v <- beta v + (z - m)/gamma; z <- z - gamma v
        server = OuterState("slowmo", 1.0, mu, zero)
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
        if flight and t == flight[0] + tau:
            _, scope, copies, targets = flight
            n = S if scope == "local" else setup.P
            for j in range(setup.P):
                if merge == "cocod":
                    W[j] = targets[j] + (W[j] - copies[j])
                elif merge == "lerp":
                    W[j] = (1 - a) * W[j] + a * targets[j]
                else:
                    W[j] = (2 * tau * W[j] + n * targets[j]) / (2 * tau + n)
            states = states_after_average(states, setup.policy)
            merged.append((t, scope))
            flight = None
        if t == T:
            if wire:
                W = [wire.mean(W, w_tilde, plain=True)] * setup.P
            w = server.step(W, gamma(t)) if server else mean(W)
            return w, [*merged, (T, "global")]
        waiting = "global" if "global" in (scopes.get(t), waiting) else scopes.get(t) or waiting
        if waiting and flight is None:
            if t + tau <= T:
                if anchor:
                    W = [(1 - a) * w + a * zero for w in W]
                    anchor = False
                size = S if waiting == "local" else setup.P
                means = [mean(W[k : k + size]) for k in range(0, setup.P, size)]
                targets = [means[j // size] for j in range(setup.P)]
                if wire and waiting == "global":
                    w_tilde = wire.mean(W, w_tilde)
                    targets = [w_tilde] * setup.P
                if server and waiting == "global":
                    w_tilde = server.step(targets, gamma(t))
                    targets = [w_tilde] * setup.P
                flight = t, waiting, list(W), targets
            waiting = None
    raise AssertionError("T is at least 1")


def bf16(x):
    """The numbers of 8 significant bits nearest to x, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(x.dtype)


def int8(bucket):
    """Buckets of x as whole multiples of their largest entry over 127."""

    def code(x):
        found = np.zeros_like(x)
        for i in range(0, len(x), bucket):
            s = np.abs(x[i : i + bucket]).max() / x.dtype.type(127)
            if s > 0:
                found[i : i + bucket] = np.rint(x[i : i + bucket] / s) * s
        return found

    return code


class Wire:
    """Averages that cross nodes in code (the pseudo-code of the specification, `--wire`).

    nodes: the learners of each node. One row e a node, one row r, both 0 at the start.
    """

    def __init__(self, nodes, zero, code):
        self.nodes, self.code = nodes, code
        self.P = sum(len(node) for node in nodes)
        self.e = [zero.copy() for _ in nodes]
        self.r = zero.copy()

    def mean(self, W, w_tilde, plain=False, parts=None):
        """What every learner gets; plain: the last average, in float32 and with all feedback.

        parts: how much every learner's change counts, of 1 in all.
        """
        total = np.zeros_like(w_tilde)
        for k, node in enumerate(self.nodes):
            u = self.e[k].copy()
            for j in node:
                u += (W[j] - w_tilde) * (parts[j] if parts is not None else 1)
            D = u if plain else self.code(u)
            self.e[k] = u - D
            total += D
        v = total / total.dtype.type(1 if parts is not None else self.P) + self.r
        reply = v if plain else self.code(v)
        self.r = v - reply
        return w_tilde + reply


class LowRankWire:
    """PowerSGD (Vogels et al. 2019, Algorithm 1) on the nodes' sums of changes.

    tensors: (slice, m, k, Q [k, r] or None), None for one that is not coded.
    """

    def __init__(self, nodes, zero, tensors):
        self.nodes, self.tensors = nodes, [list(tensor) for tensor in tensors]
        self.P = sum(len(node) for node in nodes)
        self.e = [zero.copy() for _ in nodes]

    def mean(self, W, w_tilde, plain=False, parts=None):
        us, each = [], np.ones(len(W), np.float32) if parts is None else parts
        for k, node in enumerate(self.nodes):
            us.append(self.e[k] + sum(each[j] * (W[j] - w_tilde) for j in node))
        total = sum(us)
        es = [np.zeros_like(u) for u in us]
        for tensor in self.tensors:
            where, m, k, Q = tensor
            if plain or Q is None:
                continue
            Ms = [u[where].reshape(m, k) for u in us]
            A, _ = np.linalg.qr(sum(M @ Q for M in Ms))
            Bs = [M.T @ A for M in Ms]
            for e, M, B in zip(es, Ms, Bs, strict=True):
                e[where] = (M - A @ B.T).ravel()
            tensor[3] = sum(Bs)
            total[where] = (A @ tensor[3].T).ravel()
        self.e = es
        return w_tilde + total / (self.P if parts is None else 1)


def wired(setup, T, gamma, K, wire, server=None):
    """K-AVG whose averages travel by a `Wire`; server: an outer optimiser's state."""
    W, states = start(setup)
    w_tilde = np.zeros(setup.X.shape[1])
    averages = []
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
        if t % K == 0 or t == T:
            w_tilde = wire.mean(W, w_tilde, plain=t == T)
            if server:
                w_tilde = server.step([w_tilde] * setup.P, gamma(t))
            W = [w_tilde.copy() for _ in range(setup.P)]
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
    return w_tilde, averages


def fragmented(
    setup, T, gamma, K, ends, tau=0, merge="cocod", a=1.0, rule=None, lr=1.0, mu=0.0, wires=None
):
    """K-AVG of pieces of the weights in turn (Douillard et al. 2025): piece i = ends[i] .. ends[i+1]
    averages at t = floor((i + 1) K / F) mod K, and all pieces do at T.

    Each piece has its own w~ and outer optimiser, and its own wire if there are some. tau, merge, a:
    as in `delayed`, of the piece.
    """
    W, states = start(setup)
    F = len(ends) - 1
    where = [slice(x, y) for x, y in zip(ends, ends[1:], strict=False)]
    w_tilde = [np.zeros(y - x) for x, y in zip(ends, ends[1:], strict=False)]
    servers = [OuterState(rule, lr, mu, zero) if rule else None for zero in w_tilde]
    averages, flight = [], None

    def target(i, W, last, t):
        pieces = [w[where[i]] for w in W]
        new = wires[i].mean(pieces, w_tilde[i], plain=last) if wires else mean(pieces)
        w_tilde[i] = servers[i].step([new] * setup.P, gamma(t)) if servers[i] else new
        return w_tilde[i]

    def put(W, i, news):
        W = [w.copy() for w in W]
        for w, new in zip(W, news, strict=True):
            w[where[i]] = new
        return W

    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
        if flight and t == flight[0] + tau:
            _, i, copies, z = flight
            now = [w[where[i]] for w in W]
            if merge == "cocod":
                news = [z + (w - copy) for w, copy in zip(now, copies, strict=True)]
            else:
                news = [(1 - a) * w + a * z for w in now]
            W, flight = put(W, i, news), None
            averages.append((t, "global"))
        if t == T:
            for i in range(F):
                W = put(W, i, [target(i, W, True, t)] * setup.P)
            averages.append((t, "global"))
            return W[0], averages
        for i in range(F):
            if t % K == ((i + 1) * K // F) % K:
                if not tau:
                    W = put(W, i, [target(i, W, False, t)] * setup.P)
                    averages.append((t, "global"))
                elif t + tau <= T:
                    copies = [w[where[i]].copy() for w in W]
                    flight = t, i, copies, target(i, W, False, t)
    raise AssertionError("T is at least 1")


def hieravg(setup, T, gamma, K1, K2, S):
    """hieravg Algorithm 1 with clusters of S consecutive learners; K1 need not divide K2.

    A global average is due every K2 updates and replaces the local one due at the same update; the
    local count restarts at each global average. A cluster of one has nothing to average: with S = 1
    there are no local ones.
    """
    assert setup.P % S == 0 and K1 <= K2
    W, states = start(setup)
    averages = []
    since_local = since_global = 0
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))  # "local SGD"
        since_local += 1
        since_global += 1
        if since_global == K2 or t == T:  # "Globally average and synchronize"
            w_bar = mean(W)
            W = [w_bar for _ in range(setup.P)]
            states = states_after_average(states, setup.policy)
            averages.append((t, "global"))
            since_local = since_global = 0
        elif since_local == K1 and S > 1:  # "Locally average and synchronize"
            for first in range(0, setup.P, S):
                cluster = slice(first, first + S)
                w_cluster = mean(W[cluster])
                W[cluster] = [w_cluster for _ in range(S)]
                states[cluster] = states_after_average(states[cluster], setup.policy)
            averages.append((t, "local"))
            since_local = 0
    return W[0], averages


def levels(setup, T, gamma, levels, server=None):
    """Averages over a hierarchy: levels are pairs (K, S), innermost first, the last S is P.

    A level is due when its K divides the updates since the last average at any level above it, and
    since 0 for the top one. The highest level that is due averages, and everyone at T. server: an
    `OuterState` that steps at the averages of everyone. The third value is the level of each average.
    """
    W, states = start(setup)
    top = len(levels)
    last = [0] * (top + 1)  # update of the last average at level l; 0 at the start
    averages, at = [], []
    for t in range(1, T + 1):
        W, states = every_learner_steps(setup, W, states, gamma(t))
        due = [
            l
            for l in range(1, top + 1)
            if (t - max([last[above] for above in range(l + 1, top + 1)], default=0))
            % levels[l - 1][0]
            == 0
        ]
        if not due and t < T:
            continue
        l = top if t == T else max(due)
        last[l] = t
        averages.append((t, "global" if l == top else "local"))
        at.append(l)
        S = levels[l - 1][1]
        assert setup.P % S == 0 and (l < top or setup.P == S)
        for first in range(0, setup.P, S):
            group = slice(first, first + S)
            stepped = server is not None and l == top
            new = server.step(W[group], gamma(t)) if stepped else mean(W[group])
            W[group] = [new for _ in range(S)]
            states[group] = states_after_average(states[group], setup.policy)
    return W[0], averages, at


def ring(P):
    """Lian et al. 2017, section 6: each learner and its two neighbours with weight 1/3."""
    W = np.zeros((P, P))
    for j in range(P):
        near = {j, (j - 1) % P, (j + 1) % P}
        for i in near:
            W[j, i] = 1 / len(near)
    return W


def torus(rows, columns):
    """Each learner of a torus and its neighbours with equal weights."""
    W = np.zeros((rows * columns, rows * columns))
    for r in range(rows):
        for c in range(columns):
            near = {(r, c), ((r - 1) % rows, c), ((r + 1) % rows, c)}
            near |= {(r, (c - 1) % columns), (r, (c + 1) % columns)}
            for a, b in near:
                W[r * columns + c, a * columns + b] = 1 / len(near)
    return W


def exponential(P):
    """Assran et al. 2019, appendix A: learner j hears those 1, 2, 4, ... places before it."""
    W, hops = np.zeros((P, P)), [2**i for i in range(P) if 2**i <= P - 1]
    for j in range(P):
        for i in [j, *((j - hop) % P for hop in hops)]:
            W[j, i] += 1 / (1 + len(hops))
    return W


def one_peer(P, k):
    """Assran et al. 2019, appendix A: at the k-th gossip only one of these hops."""
    hops = [2**i for i in range(P) if 2**i <= P - 1]
    W = np.eye(P) / 2
    for j in range(P):
        W[j, (j - hops[k % len(hops)]) % P] += 0.5
    return W


def halves(P, to):
    """Kempe et al. 2003, Push-Sum: learner i keeps a half and sends a half to learner to[i]."""
    W = np.eye(P) / 2
    for i in range(P):
        W[to[i], i] += 0.5
    return W


def gossip(setup, T, gamma, K, W_of, first=False):
    """Gossip with push-sum weights (Assran et al. 2019, Algorithm 1), w_j <- sum_i W[j, i] w_i at
    updates K, 2K, ...; W_of(k) is the matrix of gossip k = 0, 1, ... For doubly stochastic W all s
    stay 1, and this is X <- (X - gamma G) W. `first` mixes before the update, as Lian et al. 2017,
    Algorithm 1: X <- X W - gamma G. At T there is a mean of everyone in place of a gossip.

    States of optimisers: `average` mixes them with the weights of each row divided by their sum.
    """
    X, states = start(setup)
    s, averages, k = np.ones(setup.P), [], 0

    def mix(X, states, s, W):
        X = [sum(W[j, i] * X[i] for i in range(setup.P)) for j in range(setup.P)]
        s = np.array([sum(W[j, i] * s[i] for i in range(setup.P)) for j in range(setup.P)])
        if setup.policy == "average":
            rows = [W[j] / sum(W[j]) for j in range(setup.P)]
            states = [
                {
                    **states[j],  # the step counts, which agree already
                    **{
                        x: sum(r[i] * states[i][x] for i in range(setup.P)) for x in ("v", "a", "b")
                    },
                }
                for j, r in enumerate(rows)
            ]
        elif setup.policy == "reset":
            states = states_after_average(states, "reset")
        return X, states, s

    for t in range(1, T + 1):
        due = t % K == 0 and t < T
        G = [learner_gradient(setup, j, X[j] / s[j]) for j in range(setup.P)]
        if due and first:
            X, states, s = mix(X, states, s, W_of(k))
        pairs = [
            local_step(X[j], G[j], states[j], gamma(t), setup.optimiser, setup.m)
            for j in range(setup.P)
        ]
        X, states = [x for x, _ in pairs], [state for _, state in pairs]
        if due and not first:
            X, states, s = mix(X, states, s, W_of(k))
        if due:
            averages.append((t, "neighbours"))
            k += 1
    return mean(X), [*averages, (T, "global")]


def quantise(g, u, bits=8, bucket=512):
    """QSGD (Alistarh et al. 2017): the decoded stochastic rounding of g, given u uniform in [0, 1)
    of g's length.

    In each bucket of consecutive entries (the last may be short): level = floor(|g| / ||g||_2 * s +
    u) with s = 2^(bits - 1) - 1, at most s; decoded = ||g||_2 * sign(g) * level / s. A zero bucket
    decodes to zeros.
    """
    s = 2 ** (bits - 1) - 1
    decoded = np.zeros(len(g))
    for first in range(0, len(g), bucket):
        part = g[first : first + bucket]
        norm = np.sqrt(np.sum(part * part))
        if norm > 0:
            level = np.minimum(np.floor(np.abs(part) / norm * s + u[first : first + bucket]), s)
            decoded[first : first + bucket] = norm * np.sign(part) * level / s
    return decoded


def qsgd(setup, T, gamma, uniforms, again, bits=8, bucket=512):
    """adpsgd section IV: `sync` on quantised gradients, whose mean is quantised again. uniforms(t,
    j) is learner j's array of length d at update t, again(t) the one for the mean.
    """
    w = np.zeros(setup.X.shape[1])
    state = fresh_state(len(w))
    averages = []
    for t in range(1, T + 1):
        decoded = [
            quantise(learner_gradient(setup, j, w), uniforms(t, j), bits, bucket)
            for j in range(setup.P)
        ]
        g = quantise(mean(decoded), again(t), bits, bucket)
        w, state = local_step(w, g, state, gamma(t), setup.optimiser, setup.m)
        averages.append((t, "global"))
    return w, averages
