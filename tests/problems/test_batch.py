"""The engine `batch`: the gradients of all learners at once are those of one after the other."""

import numpy as np
import pytest
import torch
from near import apart, different_rows, tolerance
from samples import random_images
from torch import nn

from localavg import models
from localavg.datasets import Augment
from localavg.errors import UserError
from localavg.learner.optim import Momentum
from localavg.learner.sampling import IID, Block
from localavg.problems.batches import Batches
from localavg.problems.engines import memory, together
from localavg.problems.engines.choose import make
from localavg.problems.network import Network

L, B, P = 3, 4, 8
SIDES = {"mlp": 8, "nin": 8, "resnet8": 8, "alexnet": 63, "resnet50": 64}  # the others: 32
"""smaller ones leave BatchNorm 4 numbers in the last layers: float32 then errs by 1e-3 in any way"""
DEFAULT = "mlp", "nin", "resnet8", "mobilenet", "nin-32"  # nin-32 drops out, mobilenet has groups


def network(model, **more):
    """A network for random images; a model's name may carry their side."""
    name, _, side = model.partition("-")
    side = int(side or SIDES.get(name, 32))
    shape = side, side, 1 if side == 8 else 3
    change = more.pop("change", Augment())
    return Network(random_images(shape, 50, augment=change), name, 0.01, 5, **more)


def engine(name, net, learners=range(L), size=None, sampling=IID):
    made = make(name, net, net.feed(sampling(net.n, P, B, 3), learners, 100), learners)
    made.book = Book()
    if size:
        made.size = size
    return made


class Book(dict):
    """Seconds by purpose."""

    def __call__(self, purpose, seconds):
        self[purpose] = self.get(purpose, 0.0) + seconds


def gradients(name, net, w, t=1, **how):
    """(losses, w with its new statistics, g) of one call; the argument w stays."""
    w, g = w.copy(), np.full_like(w, np.nan)
    losses = engine(name, net, **how).gradients_(w, t, g)
    g[:, net.rows.n :] = 0  # not a gradient's
    return np.array(losses), w, g


def steps(name, net, w, ts, moments=None, **how):
    """(w, momentum) after the local updates ts."""
    w, g, n, computing = w.copy(), np.zeros_like(w), net.rows.n, engine(name, net, **how)
    optimizer = Momentum(0.9)
    optimizer.start((len(w), n), np.zeros)
    if moments is not None:
        optimizer.state[0][...] = moments
    for t in ts:
        computing.gradients_(w, t, g)
        optimizer.update_(w[:, :n], g[:, :n], 0.01)
    return w, optimizer.state[0]


def long_unless_default(names):
    mark = pytest.mark.long
    return [pytest.param(name, marks=() if name in DEFAULT else mark) for name in names]


@pytest.mark.parametrize("model", long_unless_default([*models.MODELS, "nin-32"]))
def test_every_model_has_the_gradients_of_the_loop_and_trains_alike(model, smooth):
    net = network(model)
    w, bound = different_rows(net, L), tolerance(net)
    losses, w_loop, g_loop = gradients("loop", net, w)
    mine, w_batch, g_batch = gradients("batch", net, w)
    np.testing.assert_allclose(mine, losses, rtol=1e-5)
    for a, b in zip(g_batch, g_loop, strict=True):
        assert apart(net, a, b) <= bound
    np.testing.assert_allclose(w_batch, w_loop, rtol=1e-5, atol=1e-6)  # the statistics
    assert apart(net, g_batch[0], g_loop[1]) > 100 * bound  # this test can fail

    trained = [steps(name, net, w, range(1, 4))[0] for name in ("batch", "loop")]
    for mine, other, start in zip(*trained, w, strict=True):
        assert apart(net, mine, other, other - start) <= 10 * bound


@pytest.mark.parametrize("model", ["mlp", "resnet8", "nin-32"])
def test_a_learners_result_does_not_depend_on_chunks_or_on_who_else_is_on_the_rank(model, smooth):
    net = network(model)
    w, bound = different_rows(net, L), tolerance(net)
    _, w_all, g_all = gradients("batch", net, w, size=L)
    for size in (1, 2) if model != "nin-32" else (2,):
        _, w_cut, g_cut = gradients("batch", net, w, size=size)
        assert max(apart(net, *pair) for pair in zip(g_cut, g_all, strict=True)) <= bound
        np.testing.assert_allclose(w_cut, w_all, rtol=1e-5, atol=1e-6)
    _, _, g_last = gradients("batch", net, w[1:], learners=range(1, L))
    assert max(apart(net, *pair) for pair in zip(g_last, g_all[1:], strict=True)) <= bound


@pytest.mark.parametrize("model", ["resnet8", "nin-32"])
def test_a_run_and_one_that_starts_again_in_its_middle_have_the_same_bits(model):
    net = network(model)
    w = different_rows(net, L)
    through, moments = steps("batch", net, w, range(1, 3))
    half = steps("batch", net, w, range(1, 2))
    again, moments_again = steps("batch", net, half[0], range(2, 3), half[1])
    np.testing.assert_array_equal(again, through)
    np.testing.assert_array_equal(moments_again, moments)


def test_a_resumed_run_keeps_the_size_of_its_chunks_whatever_memory_is_free_now(monkeypatch):
    net, free = network("mlp-16"), memory.free_bytes("cpu")
    w = different_rows(net, L)
    g, first, resumed = np.zeros_like(w), engine("batch", net), engine("batch", net)
    first.gradients_(w, 1, g)
    assert first.size > 1
    monkeypatch.setattr(memory, "free_bytes", lambda device: free // 10**6)
    resumed.load_state_dict({name: np.int64(x) for name, x in first.state_dict().items()})
    resumed.gradients_(w, 2, g)
    assert resumed.size == first.size


@pytest.mark.parametrize("sampling", [IID, Block])
@pytest.mark.parametrize("change", [Augment(), Augment(pad=2, flip=True)])
def test_the_batches_of_a_step_are_those_of_each_learner(sampling, change, smooth):
    net = network("resnet8-9", change=change)
    feed = net.feed(sampling(net.n, P, B, 3), range(2, 6), 100)
    for t in (1, 2):
        x, y, seeds = feed.step(range(2, 6), t)
        assert seeds == []
        x, y = x.clone(), y.clone()
        for l, j in enumerate(range(2, 6)):
            images, labels, _ = feed(j, t)
            assert torch.equal(x[l], images) and torch.equal(y[l], labels)


def test_batches_of_a_feed_that_gives_one_at_a_time_in_its_buffer_are_stacked():
    class Reusing:
        sampler = IID(50, P, B, 3)
        x = torch.zeros(B, 5, 5, 3)

        def __call__(self, j, t):
            return self.x.fill_(10 * j + t).permute(0, 3, 1, 2), torch.full((B,), j)

    x, y, seeds = Batches(Reusing(), True, 7).step(range(2, 5), 1)
    assert x.shape == (3, B, 3, 5, 5) and x.stride()[2] == 1
    assert x[:, 0, 0, 0, 0].tolist() == [21, 31, 41] and y[:, 0].tolist() == [2, 3, 4]
    assert seeds == [Batches(Reusing(), True, 7)(j, 1)[2] for j in range(2, 5)]


def test_gaps_between_tensors_are_zero_in_the_gradients_and_stay(smooth):
    net = network("resnet8")
    gaps = np.ones(net.d, bool)
    for place in net.rows.segments.values():
        gaps[place] = False
    w = different_rows(net, L)
    assert gaps.sum() > 64
    _, w_loop, g_loop = gradients("loop", net, w)
    _, w_batch, g_batch = gradients("batch", net, w)
    assert not g_batch[:, gaps].any() and not w_batch[:, gaps].any()
    assert max(apart(net, *pair) for pair in zip(g_batch, g_loop, strict=True)) <= 1e-4
    np.testing.assert_allclose(w_batch, w_loop, rtol=1e-5, atol=1e-6)


class Own(nn.Module):
    """Operations that no layer of the engine takes over, and a parameter in a formula."""

    def __init__(self, branch=False):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.gain = nn.Parameter(torch.rand(()))
        self.first = nn.Conv2d(3, 4, 3, 2, "valid", dilation=2)
        self.second = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0))
        self.norm = nn.LayerNorm(5)
        self.third = nn.Conv2d(6, 4, 1, 2, groups=2)
        self.drop = nn.Dropout2d(0.5)
        self.out = nn.Linear(4, 10)
        self.branch = branch

    def forward(self, x):
        x = self.first(x * self.scale)
        x = self.drop(self.norm(self.second(x)))
        x = self.third(x).permute(0, 2, 3, 1)
        if self.branch and x.sum() > 0:
            x = -x
        return self.gain * self.out(torch.tanh(x)).mean((1, 2))


def test_any_module_is_computed_though_the_engine_knows_few_layers(monkeypatch):
    monkeypatch.setattr(models, "make", lambda *a: Own())
    net = network("mlp-16")
    w = different_rows(net, L)
    _, _, g_loop = gradients("loop", net, w)
    _, _, g_batch = gradients("batch", net, w)
    assert max(apart(net, *pair) for pair in zip(g_batch, g_loop, strict=True)) <= 1e-4
    assert len(net.rows.segments) == net.parameters == 12


def test_large_convolutions_are_done_learner_by_learner_to_the_same_gradients(monkeypatch, smooth):
    net = network("resnet8")
    w = different_rows(net, L)
    g = []
    for limit in (-1, 1 << 40):
        monkeypatch.setattr(together, "GATHERED_BYTES", limit)
        g.append(gradients("batch", net, w)[2])
    assert max(apart(net, *pair) for pair in zip(*g, strict=True)) <= 1e-4
    assert (g[0] != g[1]).any()  # they are two ways


def test_bf16_is_as_near_to_float32_as_in_the_loop(smooth):
    exact = network("resnet8")
    w = different_rows(exact, L)
    _, _, g = gradients("loop", exact, w)
    net = network("resnet8", precision="bf16")
    far = {}
    for name in ("loop", "batch"):
        _, _, rough = gradients(name, net, w)
        far[name] = [
            np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(rough, g, strict=True)
        ]
    assert 1e-4 < max(far["batch"]) < 1.5 * max(far["loop"]) < 0.2


def refusal(net, **how):
    with pytest.raises(UserError) as e:
        gradients("batch", net, different_rows(net, L), **how)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_what_cannot_be_computed_at_once_is_refused_in_one_line(monkeypatch):
    assert "network on this device has loop" in refusal(network("mlp", compiled=True))
    monkeypatch.setattr(models, "make", lambda *a: Own(branch=True))
    for size in (None, 2):
        message = refusal(network("mlp-16"), size=size)
        assert "mlp cannot" in message and "data-dependent" in message and "loop" in message
    monkeypatch.setattr(models, "make", lambda *a: nn.BatchNorm2d(3, momentum=None))
    assert "momentum" in refusal(network("mlp-16"))


def test_chunks_fit_the_memory_and_a_shortage_is_told_with_what_would_fit(monkeypatch):
    M = 1 << 20
    assert memory.chunk(4096, M, 1 << 40, "cpu", 16) == 36
    assert memory.chunk(37, M, 1 << 40, "cpu", 16) == 19  # 19 and 18
    assert memory.chunk(4096, M, 10 * M, "cpu", 16) == 8
    assert memory.chunk(4096, M, 1 << 40, "cuda", 16) == 4096
    assert memory.chunk(10, M, 5 * M, "cuda", 16) == 4
    with pytest.raises(UserError, match="use `batch_size = 6`"):
        memory.chunk(10, 2 * M, M, "cpu", 16)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100)
    assert "use a smaller model" in refusal(network("mlp"))

    def none_left(*a, **k):
        raise MemoryError

    monkeypatch.setattr(together.Together, "gradient_", none_left)
    message = refusal(network("mlp"))
    assert "memory is used up" in message and "use `batch_size = " in message


@pytest.mark.parametrize("version", [1, 2])
def test_memory_that_holds_copies_of_files_is_free(version, tmp_path, monkeypatch):
    """A job that has read much has filled its control group, and can still take that memory."""
    names = {
        1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        2: ("memory.max", "memory.current", "memory.stat"),
    }
    total = {1: "total_", 2: ""}[version]
    stat = f"anon 100\n{total}inactive_file 700\n{total}active_file 150\n"
    for name, text in zip(names[version], ("1000\n", "950\n", stat), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.host_free_bytes() == 1000 - 950 + 850
    (tmp_path / names[version][2]).unlink()
    assert memory.host_free_bytes() == 50


def test_what_is_kept_for_the_gradient_is_counted_once():
    x, w = torch.ones(10, 4), torch.ones(4, requires_grad=True)

    def compute():
        y = x * w  # keeps both
        (y.exp() * y.sin()).sum()  # keeps e^y, y once, and sin y

    assert memory.kept_bytes(compute, [x, w]) == 3 * 160


def test_the_time_of_batches_is_booked():
    net = network("mlp")
    computing = engine("batch", net)
    w = different_rows(net, L)
    computing.gradients_(w, 1, np.zeros_like(w))
    assert list(computing.book) == ["data"] and computing.book["data"] > 0
