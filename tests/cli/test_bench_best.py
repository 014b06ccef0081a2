"""The loops by hand of `bench train` do the work that ours does: the same weights and statistics
after the same updates. CUDA graphs are those of a stand-in for torch.cuda.
"""

import contextlib
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_stand_in import Gpu
from mpi4py import MPI
from samples import random_images

from localavg.cli.bench import best, best_logistic, best_network
from localavg.cli.bench.logistic import _settings
from localavg.cli.bench.loop import train_alone
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.learner.optim import SGD, Momentum
from localavg.learner.sampling import IID, Block
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.problems.engines.choose import make
from localavg.problems.logistic import Logistic
from localavg.problems.network import Network
from localavg.training.build import assemble, load_task

P, B, T = 3, 4, 3


def network(model, **how):
    return Network(random_images((8, 8, 1), 40), model, 0.01, 5, **how)


def ours(net, updates):
    """Rows w [P, d] after these updates."""
    w, sampler = np.zeros((P, net.d), np.float32), IID(net.n, P, B, 3)
    for row in w:
        net.initial_(row)
    g, n = np.zeros_like(w), net.rows.n
    engine = make("loop", net, net.feed(sampler, range(P), 100), range(P))
    optimizer = Momentum(0.9)
    optimizer.start((P, n), np.zeros)
    for t in updates:
        engine.gradients_(w, t, g)
        optimizer.update_(w[:, :n], g[:, :n], best_network.LR)
    return w


def tensors(way, l):
    """The tensors of learner l by name."""
    if isinstance(way, best_network.Vmapped):
        return {name: x[l] for name, x in (way.parameters | way.buffers).items()}
    return way.modules[l].state_dict()


def check_same(net, way, w):
    for l, row in enumerate(w):
        for name, expected in net.views(row).items():
            torch.testing.assert_close(
                tensors(way, l)[name].detach(), expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
@pytest.mark.parametrize("kind", [best_network.OneByOne, best_network.Vmapped])
def test_a_loop_by_hand_has_the_weights_and_statistics_of_ours(kind, model, smooth):
    net, kept = network(model), []
    work = best_network.Work(net, IID(net.n, P, B, 3), P, T, 0.9)
    go = best_network._plain(lambda work: kept.append(kind(work)) or kept[0], work)
    go(T)
    w = ours(net, range(1, T + 1))
    check_same(net, kept[0], w)
    assert not np.allclose(w[0], w[1])  # this test can fail


@pytest.mark.parametrize("kind", [best_network.OneByOne, best_network.Vmapped])
def test_a_graph_by_hand_has_the_weights_of_ours(kind, smooth):
    """The updates before the capture are of the first batches, and then every batch comes again."""
    net, updates = network("resnet8"), [*range(1, best_network.WARM_UP + 1), 1, 2]
    net.cuda = gpu = Gpu()
    work = best_network.Work(net, IID(net.n, P, B, 3), P, 5, 0.9)
    with gpu:
        graphed = best_network._graphed(kind, work)
        graphed(2)
    net.cuda = None
    check_same(net, graphed.way, ours(net, updates))
    assert gpu.races() == 0 and gpu.graphs[0].replays == 2


def test_one_learner_has_one_way_and_several_have_two():
    net = network("mlp")
    for learners, names in ((1, {"loop"}), (2, {"loop", "vmap"})):
        ways = best_network.makers(net, IID(net.n, learners, B, 3), learners, T, 0.9)
        assert set(ways) == names
    net.cuda = Gpu()
    ways = best_network.makers(net, IID(net.n, 2, B, 3), 2, T, 0.9)
    assert set(ways) == {"graph", "vmap"}


def test_bf16_is_computed_by_hand_in_bf16_too():
    for precision, expected in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        net = network("mlp", precision=precision)
        work = best_network.Work(net, IID(net.n, P, B, 3), P, T, 0.9)
        with work.autocast:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_kernels_that_do_not_repeat_their_bits_are_for_the_loop_by_hand_alone():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with best_network._any_kernel():
            assert torch.backends.cudnn.benchmark
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------- logistic


def logistic(n=60, d=7):
    draw = np.random.default_rng(2)
    x = draw.normal(size=(n, d)).astype(np.float32)
    y = np.sign(draw.normal(size=n)).astype(np.float32)
    return Logistic(Dataset("noise", "features", Split(x, y), None, ("-1", "1"), True, None), 0.01)


def ours_logistic(problem, rows):
    w, g, sgd = np.zeros((2, P, problem.d), np.float32)[0], np.zeros((P, problem.d)), SGD()
    g = g.astype(np.float32)
    for each in rows:
        for l, batch in enumerate(each):
            problem.gradient_(w[l], problem.fetch(batch), out=g[l])
        sgd.update_(w, g, best_logistic.LR)
    return w


def drawn(problem, T=5):
    sampler = Block(problem.n, P, 40, 3)  # so large that some go on at the first row
    return [[sampler.batch(j, t) for j in range(P)] for t in range(1, T + 1)]


def test_logistic_regression_by_hand_has_the_weights_of_ours():
    problem, kept = logistic(), []
    rows = drawn(problem)
    device = SimpleNamespace(
        zeros=lambda shape: kept.append(np.zeros(shape, np.float32)) or kept[0], settle=lambda: None
    )
    best_logistic._looped(problem, rows, device)(len(rows))
    step, w = best_logistic.batched(
        torch.from_numpy(problem.x), torch.from_numpy(problem.y), rows, problem.l2
    )
    for _ in rows:
        step()
    expected = ours_logistic(problem, rows)
    np.testing.assert_allclose(kept[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-6)
    assert abs(expected).max() > 1e-3


def test_on_the_cpu_logistic_regression_is_a_loop():
    problem = logistic()
    assert set(best_logistic.makers(problem, drawn(problem), Cpu())) == {"loop"}


# ----------------------------------------------------------------------------------------- ours


def test_updates_that_warm_up_are_not_in_the_time_of_ours():
    """Here the first two take 0.4 s each, as where a graph is captured."""

    def wall_s(warm):
        fleet = Fleet(MPI.COMM_SELF)
        e = assemble(load_task(_settings("epsilon-like:60x5", 4, 6, Cpu(), "loop"), fleet, 1))
        gradients_ = e.engine.gradients_

        def slow(w, t, out, rows=None):
            time.sleep(0.4 if t <= 2 else 0)
            return gradients_(w, t, out, rows)

        e.engine.gradients_ = slow
        return train_alone(e, warm)[0]

    assert wall_s(2) < 0.4 and wall_s(0) >= 0.8


# ---------------------------------------------------------------------------------- which is best


def broken():
    raise RuntimeError("CUDA out of memory\nby far")


def test_ways_that_fail_or_are_far_slower_are_left_out_with_a_reason(capsys, monkeypatch):
    took = iter([1.0, 3.0])
    monkeypatch.setattr(best, "seconds", lambda work: work() or next(took))
    made = {"quick": lambda: lambda steps: None, "slow": lambda: lambda steps: None}
    found = best.fastest_few({**made, "broken": lambda: broken()})
    assert list(found) == ["quick"]
    said = capsys.readouterr().err
    assert "broken: CUDA out of memory;" in said and "slow: 1e+03 ms an update" in said
    with pytest.raises(UserError, match=r"no loop by hand works here \(a: CUDA out of memory\)"):
        best.fastest_few({"a": broken})


def test_best_is_the_shortest_time_of_those_by_hand():
    ways = dict.fromkeys(["loop", "vmap"], contextlib.nullcontext)
    assert best.of({"ours": 0.1, "loop": 3.0, "vmap": 2.0}, ways) == "vmap"
    calls = []
    best.timed({"a": calls.append}, 7)["a"]()
    assert calls == [7]
