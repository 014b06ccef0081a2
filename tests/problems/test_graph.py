"""The gradients of all learners as one CUDA graph, on a stand-in for torch.cuda that keeps what
kernels touch, and after what.
"""

import contextlib
import copy
import gc
import sys
from dataclasses import replace
from inspect import signature
from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_stand_in import CUDAGraph, Event, Gpu, Stream
from drive import told_of
from mpi import call
from mpi4py import MPI
from samples import Fixed, random_images
from torch import nn

from localavg.config import TrainConfig
from localavg.datasets import Augment
from localavg.errors import UserError
from localavg.learner.sampling import IID
from localavg.parallel.aligned import host_zeros
from localavg.parallel.fleet import Fleet
from localavg.problems import network
from localavg.problems.engines import capture, choose
from localavg.problems.engines.capture import WARM_UP
from localavg.problems.engines.graph import SIDES
from localavg.problems.network import Network
from localavg.problems.rows import Bound


def little(shape, classes):
    """A convolution and two kinds of dropout."""
    conv = nn.Sequential(nn.Conv2d(shape[2], 4, 3), nn.Dropout2d(0.5), nn.ReLU(inplace=True))
    return nn.Sequential(conv, nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(144, classes))


@pytest.fixture
def drawing(monkeypatch):
    """The model "drawing", whose gradients depend on the seed."""
    make = network.models.make
    monkeypatch.setattr(
        network.models,
        "make",
        lambda name, *args: little(*args) if name == "drawing" else make(name, *args),
    )


class Varied(Fixed):
    """A sampler of 6 of 24 rows, or 2 for the (j, t) in `short`."""

    def __init__(self, short):
        super().__init__(np.arange(6))
        self.short = short

    def batch(self, j, t):
        return np.random.default_rng((j, t)).integers(0, 24, 2 if (j, t) in self.short else 6)


class Trained:
    """T updates of learners of one rank, as the loop makes them; by the graph on a Gpu, or by the
    loop on the CPU.
    """

    def __init__(
        self,
        model,
        L=3,
        T=WARM_UP + 3,
        replayed=True,
        short=(),
        precision="float32",
        learners=None,
        engine="graph",
    ):
        data = random_images((8, 8, 1), 24, augment=Augment(pad=1, flip=True))
        self.network = net = Network(data, model, 0.01, seed=1, precision=precision)
        self.gpu = net.cuda = Gpu() if replayed else None
        self.learners = learners or range(L)
        self.w, self.out = np.zeros((2, L, net.d), np.float32)
        net.initial_(self.w[0])
        self.w[1:] = self.w[0]
        self.feed = net.feed(Varied(short), self.learners, T)
        self.losses, self.g, self.T = [], [], T
        with self.gpu or contextlib.nullcontext():
            name = "loop" if engine == "graph" and not replayed else engine
            self.engine = choose.make(name, net, self.feed, self.learners)
            self.train()
        net.close()

    def train(self):
        weights, gradients = torch.from_numpy(self.w), torch.from_numpy(self.out)
        for t in range(1, self.T + 1):
            self.losses += self.engine.gradients_(self.w, t, self.out)
            self.g.append(gradients.clone())
            weights.sub_(gradients, alpha=0.05)
        self.losses = torch.cat([torch.as_tensor(x).view(-1) for x in self.losses]).tolist()


def check_same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a.g, b.g, strict=True))
    assert np.array_equal(a.w, b.w) and a.losses == pytest.approx(b.losses, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("mlp", "float32"),
        ("mlp", "bf16"),
        ("nin", "float32"),
        ("resnet8", "float32"),
        ("drawing", "float32"),
        ("drawing", "bf16"),
    ],
)
def test_replays_give_the_gradients_losses_and_statistics_of_the_loop(model, precision, drawing):
    eager, replayed = (Trained(model, replayed=r, precision=precision) for r in (False, True))
    check_same(eager, replayed)
    assert [g.replays for g in replayed.gpu.graphs] == [3]  # one for all learners


@pytest.mark.parametrize(
    ("model", "L"), [("mlp", 1), ("mlp", 3), ("nin", 3), ("drawing", 3), ("mlp", SIDES + 2)]
)
def test_main_and_side_streams_never_touch_memory_out_of_order(model, L, drawing):
    trained = Trained(model, L)
    assert trained.gpu.races() == 0
    assert len(trained.engine.sides) == min(L, SIDES)


def test_learners_of_a_step_do_not_wait_for_each_other():
    (captured,) = Trained("mlp").gpu.graphs
    lanes = [stream for stream in captured.ends if stream.name == "side" and captured.ends[stream]]
    own = {operation[4] for operation in captured.operations if "mm" in operation[0].__name__}
    assert len(own) == 3 and own < set(lanes)
    for *_, stream, clock in captured.operations:
        assert stream not in own or not (own - {stream}) & clock.keys()


class Unjoined(Gpu):
    """A GPU whose current stream waits for no side stream."""

    def __init__(self):
        super().__init__()
        self.now.wait_stream = lambda other: None


def test_the_stand_in_finds_a_wait_that_is_missing(monkeypatch):
    waits = Stream.wait_stream
    monkeypatch.setattr(capture, "WARM_UP", 99)  # eager alone
    monkeypatch.setitem(globals(), "Gpu", Unjoined)
    assert Trained("mlp").gpu.races() > 0
    monkeypatch.undo()
    monkeypatch.setattr(capture, "WARM_UP", 99)
    monkeypatch.setattr(
        Stream, "wait_stream", lambda self, other: other.name == "main" or waits(self, other)
    )
    assert Trained("mlp").gpu.races() > 0


@pytest.mark.parametrize(
    ("broken", "why"), [("join", "unjoined work"), ("fork", "uncaptured work in another stream")]
)
def test_a_capture_without_its_forks_or_joins_is_refused(broken, why, monkeypatch):
    waits = Stream.wait_stream

    def wait(self, other):
        if Stream.capture is None or (self is Stream.capture.origin) == (broken == "fork"):
            waits(self, other)

    monkeypatch.setattr(Stream, "wait_stream", wait)
    with pytest.raises(UserError, match=why):
        Trained("mlp")


def test_losses_that_are_kept_do_not_change_with_later_replays():
    trained = Trained("mlp", T=WARM_UP + 4)
    assert len(set(trained.losses)) == 3 * (WARM_UP + 4)


@pytest.mark.parametrize("model", ["drawing", "mlp"])
def test_dropout_and_batches_are_those_of_the_learner_and_the_update(model, drawing):
    """However learners lie over ranks."""
    whole, part = Trained(model, 3), Trained(model, 1, learners=range(2, 3))
    assert np.array_equal(whole.w[2], part.w[0])
    assert not np.array_equal(whole.w[1], whole.w[2])


def test_masks_are_drawn_from_the_learner_and_the_update(drawing):
    trained = Trained("drawing")
    masks = trained.engine._masks
    assert [ones.shape[1:] for _, ones in masks.draws] == [(4, 1, 1), (144,)]

    def drawn(j, t):
        return masks.draw_(trained.feed.seeds(range(j, j + 1), t), masks.places(1))

    first = drawn(0, 1)
    for pair in [(0, 2), (1, 1)]:
        assert not torch.equal(first[1], drawn(*pair)[1])
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(0, 1), strict=True))


def test_a_network_that_draws_in_its_graph_gives_other_numbers(monkeypatch, drawing):
    """The masks are what makes it right."""
    monkeypatch.setattr(network, "masked_", lambda module, masks: module)
    assert not np.array_equal(Trained("drawing").w, Trained("drawing", replayed=False).w)


def test_a_short_batch_is_left_to_the_loop_and_the_graph_goes_on(drawing):
    short = [(1, 2), (1, 6), (2, 6)]
    for model in ("mlp", "drawing"):
        eager, replayed = (Trained(model, T=8, replayed=r, short=short) for r in (False, True))
        check_same(eager, replayed)
        assert [g.replays for g in replayed.gpu.graphs] == [8 - WARM_UP - 2]
        assert replayed.gpu.races() == 0


def test_other_matrices_are_captured_anew():
    trained = Trained("mlp", T=WARM_UP + 1)
    trained.w, trained.out, trained.T, trained.losses = *np.copy([trained.w, trained.out]), 9, []
    trained.feed = trained.network.feed(Varied(()), trained.learners, 9)
    trained.engine.feed, trained.engine.images = trained.feed, trained.feed.feed
    with trained.gpu:
        trained.train()
    trained.network.close()
    assert len(trained.gpu.graphs) == 2 and np.isfinite(trained.losses).all()


def test_a_gradient_that_cannot_be_captured_is_one_clear_line(monkeypatch):
    gradient_ = network.Bound.gradient_
    monkeypatch.setattr(
        network.Bound, "gradient_", lambda *args: (loss := gradient_(*args)) + 0 * loss.item()
    )
    with pytest.raises(
        UserError,
        match=r"^`engine = graph`: .*cannot be captured \(operation not permitted.*\); use "
        "`engine = loop`$",
    ):
        Trained("mlp")


@pytest.mark.parametrize("replayed", [False, True])
def test_memory_that_is_used_up_is_one_clear_line(replayed, monkeypatch):
    def none_left(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr(network.Bound, "gradient_", none_left)
    name = "graph" if replayed else "loop"
    with pytest.raises(UserError, match=f"^`engine = {name}`: memory is used up; use .*batch_size"):
        Trained("mlp", replayed=replayed)


def test_a_shortage_in_a_capture_is_not_taken_for_what_cannot_be_captured(monkeypatch):
    gradient_ = network.Bound.gradient_

    def none_left(*args):
        if Stream.capture:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient_(*args)

    monkeypatch.setattr(network.Bound, "gradient_", none_left)
    with pytest.raises(UserError, match=r"^`engine = graph`: memory is used up"):
        Trained("mlp")


class Fake:
    """Pictures of one colour each."""

    def decode(self, i, size, numbers):
        return np.full((*size, 3), 10 * i + int(9 * numbers[0]), np.uint8)


def test_pictures_are_trained_on_by_the_graph_as_by_the_loop(monkeypatch):
    data = random_images((8, 8, 3), 24, augment=Augment(resized=True))
    data = replace(data, kind="jpeg", train=replace(data.train, x=Fake()))
    monkeypatch.setitem(globals(), "random_images", lambda *args, **how: data)
    eager, replayed = (Trained("nin", replayed=r, short=[(0, 5)]) for r in (False, True))
    check_same(eager, replayed)
    assert replayed.gpu.races() == 0 and replayed.gpu.graphs[0].replays == 2


# ----------------------------------------------------------------------------- the engine batch


@pytest.mark.parametrize(
    ("model", "precision"),
    [("mlp", "float32"), ("mlp", "bf16"), ("nin", "float32"), ("resnet8", "float32")],
)
def test_a_replayed_batch_gives_the_bits_of_the_batch(model, precision):
    how = {"precision": precision, "engine": "batch"}
    eager, replayed = (Trained(model, replayed=r, **how) for r in (False, True))
    check_same(eager, replayed)
    assert [g.replays for g in replayed.gpu.graphs] == [3]
    assert replayed.gpu.races() == 0


def test_a_replayed_batch_has_each_learners_masks_and_leaves_short_batches_to_the_loop(drawing):
    how = {"T": 8, "engine": "batch"}
    eager, replayed = (Trained("drawing", replayed=r, **how) for r in (False, True))
    check_same(eager, replayed)
    assert len(set(replayed.losses)) == 8 * 3  # none is that of a later replay
    short = Trained("mlp", short=[(1, 2), (1, 6)], **how)
    looped = Trained("mlp", replayed=False, short=[(1, 2), (1, 6)], T=8)
    assert [g.replays for g in short.gpu.graphs] == [8 - WARM_UP - 2]
    np.testing.assert_allclose(short.w, looped.w, rtol=1e-5, atol=1e-6)
    assert short.gpu.races() == replayed.gpu.races() == 0


def test_a_batch_that_cannot_be_captured_is_one_clear_line(monkeypatch):
    from localavg.problems.engines.together import Together

    gradient_ = Together.gradient_

    def read(self, *batch):
        losses = gradient_(self, *batch)
        return losses + 0 * losses.sum().item()

    monkeypatch.setattr(Together, "gradient_", read)
    with pytest.raises(UserError, match=r"^`engine = batch`: .*cannot be captured \(operation not"):
        Trained("mlp", engine="batch")


# ---------------------------------------------------------------------------------------------- mis

MISTAKES = {
    "--data digits --model nin "
    "--engine graph": "--engine graph means nothing to --device cpu, and graphs are a GPU's; use --device cuda",
    "--data digits --model nin --engine graph --device cuda "
    "--compile": "--engine graph means nothing to a run with --compile",
    "--problem logistic --engine graph": "--engine graph means nothing to --problem logistic",
    "--engine fast": "--engine: invalid choice: 'fast'",
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """The exit status of every mistake and what was said of it, in one launch."""
    out = tmp_path_factory.mktemp("mistakes") / "run.h5"
    lines = [
        ["train", "kavg", *line.split(), "--steps", "1", "--out", str(out)] for line in MISTAKES
    ]
    lines.append(["train", "downpour", "--engine", "loop"])
    return dict(zip([*MISTAKES, "downpour"], call(1, told_of, lines)[0], strict=True))


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line, mistaken):
    status, said = mistaken[line]
    assert status == 2 and said.count("\n") == 1 and MISTAKES[line] in said, said


def test_servers_have_no_engine(mistaken):
    assert (
        "--engine loop means nothing to downpour, whose learners compute" in mistaken["downpour"][1]
    )


@pytest.mark.parametrize(
    ("data", "model", "why"),
    [
        ("epsilon-like:60x5", None, "means nothing to `problem = logistic`; leave it out"),
        ("digits", "mlp", "network on this device has loop; use one of these"),
    ],
)
def test_an_engine_that_the_problem_does_not_have_is_refused_before_the_run(data, model, why):
    from localavg import datasets
    from localavg.training.build import make_problem

    fleet = Fleet(MPI.COMM_SELF)
    c = TrainConfig(algorithm="kavg", data=data, model=model, device="cuda", engine="graph")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "set_up_torch", lambda *args: None)
        patch.setattr(Network, "engines", lambda self: {})
        with pytest.raises(UserError) as e:
            make_problem(c, datasets.load(c.data, fleet), fleet)
    assert str(e.value).startswith("`engine = graph`") and why in str(e.value)


@pytest.mark.parametrize("repeats", [True, False])
def test_torch_repeats_its_bits_if_asked_and_loads_no_compiler_for_it(repeats, monkeypatch):
    loaded = {*sys.modules}
    for name in ("is_available", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    try:
        network.set_up_torch(1, SimpleNamespace(name="cuda", index=0), "float32", repeats)
        assert torch.are_deterministic_algorithms_enabled() == repeats
        assert torch.is_deterministic_algorithms_warn_only_enabled() == repeats
    finally:
        torch.set_deterministic_debug_mode("default")
    assert not any(name.startswith("torch._inductor") for name in {*sys.modules} - loaded)


@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_gradients_that_are_added_at_once_have_the_bits_of_those_added_one_by_one(model, l2):
    net = Network(random_images((8, 8, 1), 12), model, l2, 0)
    net.B = 6
    x, y, _ = net.feed(IID(net.n, 1, 6, 3), range(1), 2)(0, 1)
    found = []
    for at_once in (False, True):
        w, g = host_zeros((net.d,)), host_zeros((net.d,))
        net.initial_(w)
        module = copy.deepcopy(net._skeleton)
        bound = Bound(module, net.rows, w, g, l2, net.autocast, False, at_once)
        losses = [float(bound.gradient_(x, y)) for _ in range(2)]  # the second of the same g
        assert all((p.grad is None) == at_once for p in module.parameters())
        found.append((losses, w, g[: net.rows.n]))
    (losses, w, g), again = found
    assert losses == again[0] and np.array_equal(w, again[1]) and np.array_equal(g, again[2])
    assert np.abs(g).max() > 0


def test_no_garbage_is_freed_in_a_capture(monkeypatch):
    """What is garbage before goes before, and Python looks for no more until the end."""
    seen, x, gpu = [], torch.zeros(2), Gpu()
    monkeypatch.setattr(capture.gc, "collect", lambda: seen.append("collect"))
    with gpu:
        capture.captured(
            "graph", lambda: seen.append(gc.isenabled()) or x.add_(1), gpu, gpu.Stream()
        )
    assert seen == ["collect", False] and gc.isenabled()


def test_a_compiled_network_and_one_on_the_cpu_have_no_graph():
    data = random_images((8, 8, 1), 8)
    compiled = Network(data, "mlp", 0.0, 0, compiled=True)
    compiled.cuda = Gpu()
    assert "graph" not in compiled.engines()
    plain = Network(data, "mlp", 0.0, 0)
    assert "graph" not in plain.engines()
    plain.cuda = Gpu()
    assert "graph" in plain.engines()


# ------------------------------------------------------------------------------------------- the wh


def whole_runs(world, folder):
    """Final weights and losses of runs of 3 learners, by the loop and by the graph, and how often
    the graph was replayed.
    """
    from localavg.files import record
    from localavg.learner import optim
    from localavg.training.run import run

    answers, update_, make = [], optim.Optimizer.update_, choose.make
    for engine in ("loop", "graph"):
        c = TrainConfig(
            algorithm="mavg",
            options={"K": 3, "mu": 0.5},
            data="digits",
            model="nin",
            learners=3,
            steps=8,
            batch_size=8,
            optimizer="momentum",
            out=f"{folder}/{engine}.h5",
            save_weights=True,
            eval_examples=20,
            eval_every=4,
            log_every=3,
            l2=0.01,
        )
        gpu = Gpu() if engine == "graph" else None
        with pytest.MonkeyPatch.context() as patch, gpu or contextlib.nullcontext():
            if gpu:

                def on_gpu(*args, **how):
                    made = Network(*args, **how)
                    made.cuda = Event.gpu
                    return made

                patch.setattr(network, "Network", on_gpu)
            patch.setattr(choose, "make", lambda _, *a, e=engine: make(e, *a))
            patch.setattr(
                optim.Optimizer,
                "update_",
                lambda self, w, g, gamma, rows=None, gpu=gpu: (
                    gpu and gpu.touch([], [torch.from_numpy(w), torch.from_numpy(g)]),
                    update_(self, w, g, gamma, rows),
                ),
            )
            assert run(c, world).status == 0
        found = record.load(c.out)
        answers.append(
            (
                found.weights,
                found.train.loss.to_numpy(),
                [g.replays for g in gpu.graphs] if gpu else [],
                gpu.races() if gpu else 0,
            )
        )
    return answers


def test_a_run_by_the_graph_is_the_run_by_the_loop(tmp_path):
    (weights, losses, none, _), (again, losses_again, replays, races) = call(
        1, whole_runs, str(tmp_path)
    )[0]
    assert np.array_equal(weights, again) and losses == pytest.approx(losses_again, rel=1e-6)
    assert (none, replays, races) == ([], [8 - WARM_UP], 0)


def test_torch_has_what_the_stand_in_has():
    cuda = torch.cuda
    assert {"stream", "capture_error_mode"} <= set(signature(cuda.graph).parameters)
    for ours in (
        Stream.wait_stream,
        Stream.wait_event,
        Event.record,
        Event.synchronize,
        CUDAGraph.replay,
        Gpu.current_stream,
        Gpu.set_stream,
        Gpu.stream,
    ):
        theirs = attrgetter(ours.__qualname__.removeprefix("Gpu."))(cuda)
        assert len(set(signature(ours).parameters) - {"self"}) <= len(signature(theirs).parameters)
