"""Rows on a GPU: means by every transport on 1, 2 and 4 ranks that share it, and the kernels."""

import numpy as np
import pytest
from gpus import answered, at_once, aware, guarded, launch, place, take
from rows import ordered, values

RANKS, TRANSPORTS, ROWS = (1, 2, 4), ("staged", "cuda_aware", "nccl"), (1, 3, 8)  # rows of a rank
LENGTHS = (1, 1000, 300_001)


def means(world, aware):
    """{(transport, rows of a rank): what is wrong, or why the transport is not there}."""
    from localavg.errors import UserError
    from localavg.parallel.probe import Probe
    from localavg.parallel.transport import choose

    def compared(name, L):
        fleet, device = place(world, L * world.size)
        found = Probe(*aware)
        try:
            transport = choose(name, fleet, (L,), 0, device, found)
        except UserError as e:
            return str(e)
        return [wrong for n in LENGTHS for wrong in one_length(fleet, transport, L, n)]

    return guarded(
        {(name, L): lambda name=name, L=L: compared(name, L) for name in TRANSPORTS for L in ROWS}
    )


def one_length(fleet, transport, L, n):
    """What is wrong with means of rows of n floats; S of them too."""
    from localavg.parallel.device import on_host, put_
    from localavg.scope import Scope

    mine, wrong = slice(fleet.learners.start, fleet.learners.stop), []
    for whole in (True, False):
        rows = values(fleet.P, n, whole)
        one = np.broadcast_to(ordered(rows), rows.shape)
        own = np.broadcast_to(ordered(rows[mine]), rows[mine].shape)
        for scope, expected in ((Scope.WORLD, one[mine]), (Scope.CLUSTER, own)):
            w = transport.zeros((fleet.L, n))
            put_(w, rows[mine])
            spread = transport.mean_(w, scope, scope is Scope.WORLD)
            transport.settle()
            got = on_host(w)
            exact = whole or fleet.ranks == 1 or scope is Scope.CLUSTER
            if not (
                np.array_equal(got, expected) if exact else np.allclose(got, expected, 1e-5, 1e-6)
            ):
                wrong.append((n, whole, int(scope), float(np.abs(got - expected).max())))
            S = float(np.sum((one - rows).astype(np.float64) ** 2)) / fleet.P
            if scope is Scope.WORLD and not np.isclose(spread, S, 1e-4, 1e-6):
                wrong.append((n, whole, "S", float(spread), S))
    return wrong


def begin_averaged(folder):
    """Whether MPI takes a GPU's memory, and {ranks: answers}."""
    found = aware()
    return found, {ranks: launch(ranks, means, found, timeout=100) for ranks in RANKS}


averaged = answered("averaged")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", TRANSPORTS)
def test_means_on_a_gpu_are_the_sum_in_order_divided_once(name, ranks, averaged):
    (works, why), answers = averaged
    if name == "cuda_aware" and not works:
        pytest.skip(f"MPI takes no device memory: {why}")
    for L in ROWS:
        found = [take(each, (name, L)) for each in answers[ranks]]
        if name == "nccl" and isinstance(found[0], str):
            if ranks == 1:
                pytest.skip(found[0])
            assert "one rank a GPU" in found[0] or "without NCCL" in found[0]
        else:
            assert found == [[]] * ranks


# ------------------------------------------------------------------------------------- kernels


def kernels_alone(world):
    """What each kernel gives, and what NumPy gives."""
    import cupy

    from localavg.algorithms.outer import RULES
    from localavg.learner import optim
    from localavg.parallel import kernels

    place(world, 1)
    n = 100_003
    rng = np.random.default_rng(0)

    def mean(l):
        rows = values(l, n, whole=False)
        x, total = cupy.asarray(rows), cupy.zeros(n, np.float32)
        kernels.mean_(cupy, x)
        y = cupy.asarray(rows)
        kernels.sum_rows_(cupy, y, total)
        kernels.finish_(cupy, total, l, y)
        expected = np.broadcast_to(ordered(rows), rows.shape)
        return x.get(), expected, y.get(), expected

    def spread():
        rows = values(5, n, whole=False)
        found = kernels.spread(cupy, cupy.asarray(rows), cupy.asarray(ordered(rows)))
        return found, np.sum((rows.astype(np.float64) - ordered(rows)) ** 2)

    def outer(rule):
        host, there = (RULES[rule](0.3, 0.7) for _ in range(2))
        w = rng.normal(size=(1, n)).astype(np.float32)
        host.start(w, n, Memory(np))
        there.start(cupy.asarray(w), n, Memory(cupy))
        for gamma in (0.1, 0.1, 0.01):
            host.gamma = there.gamma = gamma
            mean = rng.normal(size=n).astype(np.float32)
            found = there.step(cupy.asarray(mean), slice(0, n))
            expected = host.step(mean, slice(0, n))
        return found.get(), expected

    def update(name):
        host, there = (optim.make(name, 0.9, "keep") for _ in range(2))
        w = rng.normal(size=(3, n)).astype(np.float32)
        x = cupy.asarray(w)
        host.start(w.shape, None)
        there.start(w.shape, None, lambda shape: cupy.zeros(shape, np.float32))
        for gamma in (0.1, 0.01):
            g = rng.normal(size=w.shape).astype(np.float32)
            there.update_(x, cupy.asarray(g), gamma)
            host.update_(w, g, gamma)
        return x.get(), w

    cases = {f"mean of {l}": lambda l=l: mean(l) for l in ROWS}
    cases |= {"spread": spread}
    cases |= {f"outer {rule}": lambda rule=rule: outer(rule) for rule in RULES}
    cases |= {name: lambda name=name: update(name) for name in UPDATES}
    return guarded(cases)


UPDATES = ("sgd", "momentum", "nesterov", "adam", "adamw")


OUTER = tuple(f"outer {rule}" for rule in ("momentum", "nesterov", "adam", "yogi", "slowmo"))


class Memory:
    """The part of a transport that gives memory for state, of the array module xp."""

    def __init__(self, xp):
        self.common = lambda shape: xp.zeros(shape, np.float32)


def begin_computed(folder):
    return at_once((kernels_alone,))


computed = answered("computed")


@pytest.mark.parametrize("l", ROWS)
def test_a_mean_of_a_ranks_own_rows_has_the_bits_of_the_sum_in_order(l, computed):
    one, expected, other, again = take(computed, f"mean of {l}")
    assert np.array_equal(one, expected) and np.array_equal(other, again)


@pytest.mark.parametrize("name", ["spread", *OUTER, *UPDATES])
def test_a_kernel_does_what_numpy_does(name, computed):
    found, expected = take(computed, name)
    near = np.isclose(found, expected, rtol=2e-5, atol=2e-6)
    # A moment whose terms nearly cancel keeps the rounding of the terms; a small √v magnifies it.
    few = 1e-3 if name in ("outer adam", "outer yogi") else 0
    assert np.mean(~near) <= few and np.allclose(found, expected, rtol=0, atol=1e-3)
