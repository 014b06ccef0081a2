"""The local update against torch.optim, and what the policies do to its state at an average."""

from functools import partial

import numpy as np
import pytest

from localavg.learner import optim
from localavg.scope import Scope

L, N, STEPS = 3, 40, 400
OPTIMIZERS = {
    "sgd": lambda torch, w: torch.optim.SGD([w], lr=1.0),
    "momentum": lambda torch, w: torch.optim.SGD([w], lr=1.0, momentum=0.9),
    "nesterov": lambda torch, w: torch.optim.SGD([w], lr=1.0, momentum=0.9, nesterov=True),
    "adam": lambda torch, w: torch.optim.Adam([w], lr=1.0),
    "adamw": lambda torch, w: torch.optim.AdamW([w], lr=1.0),
}


class Recorder:
    """Stands in for a transport: one rank that holds everyone; remembers what it was asked for and
    what it gave.
    """

    def __init__(self):
        self.asked, self.given = [], []

    def zeros(self, shape):
        self.given.append(np.zeros(shape, np.float32))
        return self.given[-1]

    def mean_(self, x, scope):
        self.asked.append((x, scope))
        x[:] = x.mean(axis=0)


def gamma(t):
    return 0.01 / (1 + t / 100)


def gradients(steps=STEPS, rows=L):
    """[steps, rows, N] float32, of sizes from 1e-3 to 10 by column, drifting, with some exact
    zeros.
    """
    rng = np.random.default_rng(1)
    g = rng.normal(size=(steps, rows, N)) + np.sin(np.arange(steps) / 30)[:, None, None]
    g *= np.logspace(-3, 1, N)
    g[:, :, ::7] *= rng.random((steps, rows, len(range(0, N, 7)))) < 0.3
    return g.astype(np.float32)


def weights():
    return np.random.default_rng(2).normal(size=(L, N)).astype(np.float32)  # [L, N]


def stepped(name, g, policy="keep", m=0.9):
    """An optimiser after updates with g [steps, L, N], and its weights [L, N]."""
    optimizer, w = optim.make(name, m, policy), weights()[: g.shape[1]]
    optimizer.start(w.shape, Recorder().zeros)
    for t, g_t in enumerate(g, start=1):
        optimizer.update_(w, g_t.copy(), gamma(t))
    return optimizer, w


def copies(optimizer):
    return [s.copy() for s in optimizer.state]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_many_updates_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    w = weights()
    theirs = torch.nn.Parameter(torch.from_numpy(w.copy()))
    ours, reference = optim.make(name, 0.9, "keep"), OPTIMIZERS[name](torch, theirs)
    ours.start(w.shape, Recorder().zeros)
    for t, g in enumerate(gradients(), start=1):
        theirs.grad = torch.from_numpy(g.copy())
        reference.param_groups[0]["lr"] = gamma(t)
        reference.step()
        ours.update_(w, g, gamma(t))
        np.testing.assert_allclose(
            w, theirs.detach().numpy(), rtol=2e-6, atol=2e-6, err_msg=f"update {t}"
        )
    assert w.dtype == np.float32


def test_another_coefficient_of_momentum():
    for name, nesterov in (("momentum", False), ("nesterov", True)):
        w, v = weights().astype(np.float64), np.zeros((L, N))
        for t, g in enumerate(gradients(20).astype(np.float64), start=1):
            v = 0.5 * v + g
            w -= gamma(t) * (g + 0.5 * v if nesterov else v)
        np.testing.assert_allclose(stepped(name, gradients(20), m=0.5)[1], w, rtol=1e-5, atol=1e-5)


def test_two_updates_by_hand():
    g = np.full((2, 1, N), 2.0, np.float32)
    start = weights()[:1]
    for name, moved in [
        ("sgd", 2 + 2),
        ("momentum", 2 + 3.8),
        ("nesterov", 3.8 + 5.42),
        ("adam", 1 + 1),
    ]:
        optimizer, w = optim.make(name, 0.9, "keep"), start.copy()
        optimizer.start(w.shape, Recorder().zeros)
        for g_t in g:
            optimizer.update_(w, g_t.copy(), 0.5)
        np.testing.assert_allclose(start - w, np.full((1, N), 0.5 * moved), rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learners_do_not_feel_their_neighbours(name):
    g = gradients(50)
    together = stepped(name, g)[1]
    for l in range(L):
        optimizer, w = optim.make(name, 0.9, "keep"), weights()[l : l + 1]
        optimizer.start(w.shape, Recorder().zeros)
        for t, g_t in enumerate(g, start=1):
            optimizer.update_(w, g_t[l : l + 1].copy(), gamma(t))
        assert (w[0] == together[l]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_in_place_and_leaves_statistics_alone(name):
    w = np.concatenate([weights(), np.full((L, 5), 7, np.float32)], axis=1)  # [L, N + 5]
    trained, optimizer = w[:, :N], optim.make(name, 0.9, "keep")
    optimizer.start(trained.shape, Recorder().zeros)
    for t, g in enumerate(gradients(20), start=1):
        optimizer.update_(trained, g, gamma(t))
    assert (trained == stepped(name, gradients(20))[1]).all()
    assert (w[:, N:] == 7).all()


def test_what_the_state_is():
    assert {name: len(stepped(name, gradients(1))[0].state) for name in OPTIMIZERS} == {
        "sgd": 0,
        "momentum": 1,
        "nesterov": 1,
        "adam": 2,
        "adamw": 2,
    }
    g = gradients(2)
    v = stepped("momentum", g)[0].state[0]
    np.testing.assert_allclose(v, np.float32(0.9) * g[0] + g[1], rtol=1e-6, atol=1e-7)
    m, u = stepped("adam", g)[0].state
    np.testing.assert_allclose(m, 0.09 * g[0] + 0.1 * g[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(u, 0.000999 * g[0] ** 2 + 0.001 * g[1] ** 2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("policy", ["keep", "average", "reset"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_will_be_averaged_lies_where_the_transport_wants_it(name, policy):
    optimizer, transport = optim.make(name, 0.9, policy), Recorder()
    optimizer.start((L, N), transport.zeros)
    assert [s.shape for s in optimizer.state] == [(L, N)] * len(optimizer.moments)
    assert all(s.dtype == np.float32 and not s.any() for s in optimizer.state)
    if policy == "average":
        assert all(s is given for s, given in zip(optimizer.state, transport.given, strict=True))
    else:
        assert transport.given == []
    assert optimizer.averaged == len(transport.given)


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [Scope.CLUSTER, Scope.WORLD])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keep_touches_nothing(name, scope):
    optimizer, transport = stepped(name, gradients(5), "keep")[0], Recorder()
    before = copies(optimizer)
    optimizer.at_average_(partial(transport.mean_, scope=scope))
    assert transport.asked == []
    assert all((a == b).all() for a, b in zip(before, optimizer.state, strict=True))


@pytest.mark.parametrize("scope", [Scope.CLUSTER, Scope.WORLD])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_average_takes_the_mean_of_the_state_over_the_learners_that_average(name, scope):
    optimizer, transport = stepped(name, gradients(5), "average")[0], Recorder()
    before = copies(optimizer)
    optimizer.at_average_(partial(transport.mean_, scope=scope))
    assert [s for _, s in transport.asked] == [scope] * len(before)
    assert all(
        x is s for (x, _), s in zip(transport.asked, optimizer.state, strict=True)
    )  # itself, not a copy
    for a, b in zip(before, optimizer.state, strict=True):
        np.testing.assert_allclose(b, np.broadcast_to(a.mean(axis=0), a.shape), rtol=1e-6)
        assert not np.allclose(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_forgets_everything(name):
    """After it the optimiser is a new one; Adam's bias correction starts over too."""
    optimizer, transport = stepped(name, gradients(30), "reset")[0], Recorder()
    new = optim.make(name, 0.9, "reset")
    ours, fresh = weights(), weights()
    new.start(fresh.shape, Recorder().zeros)
    optimizer.at_average_(partial(transport.mean_, scope=Scope.WORLD))
    assert transport.asked == []
    assert all((s == 0).all() for s in optimizer.state)
    for t, g in enumerate(gradients(10), start=1):
        optimizer.update_(ours, g.copy(), gamma(t))
        new.update_(fresh, g.copy(), gamma(t))
    assert (ours == fresh).all()


def test_each_moment_has_its_own_policy():
    """m=reset,v=average: m and its step count start over, v is the mean and counts on."""
    optimizer, transport = optim.make("adam", 0.9, "m=reset,v=average"), Recorder()
    optimizer.start((L, N), transport.zeros)
    assert optimizer.averaged == 1
    assert transport.given[0] is optimizer.state[1]
    w = weights()
    for t, g in enumerate(gradients(5), start=1):
        optimizer.update_(w, g.copy(), gamma(t))
    before = copies(optimizer)[1]
    optimizer.at_average_(partial(transport.mean_, scope=Scope.WORLD))
    m, v = optimizer.state
    assert [x is v for x, _ in transport.asked] == [True]
    np.testing.assert_allclose(v, np.broadcast_to(before.mean(axis=0), v.shape), rtol=1e-6)
    assert not m.any()
    start, g = w.copy(), gradients(6)[5]
    optimizer.update_(w, g.copy(), 0.5)
    m_hat = 0.1 * g / (1 - 0.9)  # its first update since then
    v_hat = (0.999 * before.mean(axis=0) + 0.001 * g.astype(np.float64) ** 2) / (1 - 0.999**6)
    np.testing.assert_allclose(start - w, 0.5 * m_hat / (np.sqrt(v_hat) + 1e-8), rtol=1e-4)


def test_a_moment_that_is_not_named_is_kept_and_a_single_one_has_both_names():
    for name, policy, effect in [
        ("adam", "v=reset", ("keep", "reset")),
        ("adamw", "m=average", ("average", "keep")),
        ("momentum", "m=reset", ("reset",)),
        ("nesterov", "v=average", ("average",)),
        ("sgd", "average", ()),
    ]:
        assert optim.make(name, 0.9, policy).policies == effect


def test_a_checkpoint_of_an_earlier_version_has_one_step_count():
    old, new = stepped("adam", gradients(5))[0], optim.make("adam", 0.9, "keep")
    new.start((L, N), Recorder().zeros)
    new.load_state_dict({**old.state_dict(), "t": np.array(5)})
    assert new.t == [5, 5]


def test_the_state_in_use_is_what_the_policies_act_on():
    for name in ("momentum", "nesterov", "adam"):
        averaged, w = stepped(name, gradients(5), "average")
        kept, w_kept = stepped(name, gradients(5), "keep")
        averaged.at_average_(partial(Recorder().mean_, scope=Scope.WORLD))
        kept.at_average_(partial(Recorder().mean_, scope=Scope.WORLD))
        g = np.zeros((L, N), np.float32)
        averaged.update_(w, g.copy(), 0.1)
        kept.update_(w_kept, g.copy(), 0.1)
        assert not np.allclose(w, w_kept)


def test_weight_decay_shrinks_the_weights_alone():
    """Without gradient Adam's step is zero, and w falls by γλw."""
    optimizer, w = optim.make("adamw", 0.9, "keep", 0.5), weights()
    optimizer.start(w.shape, Recorder().zeros)
    optimizer.update_(w, np.zeros((L, N), np.float32), 0.1)
    np.testing.assert_allclose(w, 0.95 * weights(), rtol=1e-6)
    assert optim.make("adamw", 0.9, "keep").decay == 0.01
    assert optim.make("adamw", 0.9, "keep", 0.0).decay == 0


# ------------------------------------------------------------------------------- some of the rows


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rows", [[], [1], [0, 2]])
def test_an_update_of_some_rows_is_that_of_their_learners_alone(name, rows):
    """The other rows of weights and state stay; those that work have the bits of an update of
    all.
    """
    g = gradients(20)
    everyone, w_all = stepped(name, g)
    some, w = optim.make(name, 0.9, "keep"), weights()
    some.start(w.shape, Recorder().zeros)
    for t, g_t in enumerate(g, start=1):
        some.update_(w, g_t.copy(), gamma(t), rows)
    rest = [l for l in range(L) if l not in rows]
    assert np.array_equal(w[rows], w_all[rows]) and np.array_equal(w[rest], weights()[rest])
    for mine, theirs in zip(some.state, everyone.state, strict=True):
        assert np.array_equal(mine[rows], theirs[rows]) and not mine[rest].any()
