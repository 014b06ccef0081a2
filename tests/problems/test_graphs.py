"""Gradients replayed as CUDA graphs in streams, on a stand-in for torch.cuda that keeps what
kernels touch, and after what.
"""

import contextlib
from functools import partial
from inspect import signature
from operator import attrgetter

import numpy as np
import pytest
import torch
from drive import told_of
from mpi import call
from mpi4py import MPI
from samples import Fixed, random_images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from localavg.config import TrainConfig
from localavg.datasets import Augment
from localavg.errors import UserError
from localavg.parallel.fleet import Fleet
from localavg.problems import network
from localavg.problems.graphs import SIDES, WARM_UP, Graphs
from localavg.problems.network import Network

VIEWS = {
    "view",
    "t",
    "transpose",
    "permute",
    "expand",
    "detach",
    "alias",
    "as_strided",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "_unsafe_view",
}  # which touch no memory


class Stream:
    """What was queued here, as a clock: how many operations of every stream come before whatever is
    queued next.
    """

    def __init__(self, name="side"):
        self.name, self.clock = name, {self: 0}

    def wait_stream(self, other):
        for stream, ticks in other.clock.items():
            self.clock[stream] = max(ticks, self.clock.get(stream, 0))


class CUDAGraph:
    """The operations between the ends of a capture; their tensors stay where they are."""

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, outputs in self.operations:
                for old, new in zip(outputs, tensors(function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Gpu(TorchDispatchMode):
    """Stands in for torch.cuda while it is the mode: every operation is logged with its stream; a
    capture does not compute.
    """

    Stream, CUDAGraph = Stream, CUDAGraph

    def __init__(self):
        super().__init__()
        self.now = Stream("main")
        self.log, self.kept, self.graphs, self.pools, self.capturing = [], [], [], 0, None

    def current_stream(self):
        return self.now

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert self.capturing is None and capture_error_mode == "thread_local"
        graph.operations, graph.replays, graph.pool, graph.stream = [], 0, pool, stream
        self.graphs.append(graph)
        self.capturing, self.before, random = graph, {}, torch.get_rng_state()
        with self.stream(stream):
            yield
        self.capturing = None
        torch.set_rng_state(random)
        with _disable_current_modes():
            for x, value in self.before.values():
                x.copy_(value)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.partition("::")[2]
        written = changed(function, name, args, kwargs)
        if self.capturing:
            if name == "_local_scalar_dense":
                raise RuntimeError("operation not permitted when stream is capturing")
            for x in written:
                self.before.setdefault(x.data_ptr(), (x, x.clone()))
        result = function(*args, **kwargs)
        made, inside = tensors(result), [x for a in (*args, *kwargs.values()) for x in tensors(a)]
        self.kept += [
            x.untyped_storage() for x in (*made, *inside)
        ]  # so that no address means two things
        if self.capturing:
            self.capturing.operations.append((function, args, kwargs, made))
        elif name not in VIEWS and not name.startswith(("empty", "new_empty")):
            self.touch(inside, written + [x for x in made if not any(x is y for y in inside)])
        return result

    def touch(self, read, written):
        """Log an operation in the current stream."""
        stream = self.now
        stream.clock[stream] += 1
        for x, writes in [(x, False) for x in read] + [(x, True) for x in written]:
            if x.numel():
                extent = x.element_size() * (
                    1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
                )
                self.log.append(
                    (x.data_ptr(), x.data_ptr() + extent, writes, stream, dict(stream.clock))
                )

    def races(self):
        """How many pairs of operations in two streams touch the same bytes, one of them writing, in
        no order.
        """
        lo, hi, writes = (np.array(column) for column in list(zip(*self.log, strict=True))[:3])
        found = 0
        for k, (a, b, w, _, clock) in enumerate(self.log):
            for i in np.flatnonzero((lo[:k] < b) & (hi[:k] > a) & (writes[:k] | w)):
                other, ticks = self.log[i][3], self.log[i][4]
                found += clock.get(other, 0) < ticks[other]
        return found


def tensors(x):
    if isinstance(x, torch.Tensor):
        return [x]
    return [y for z in x for y in tensors(z)] if isinstance(x, tuple | list) else []


def changed(function, name, args, kwargs):
    """The tensors that an operation writes to in place."""
    formal = function._schema.arguments
    found = [
        kwargs.get(f.name, args[i] if i < len(args) else None)
        for i, f in enumerate(formal)
        if f.alias_info is not None and f.alias_info.is_write
    ]
    if "batch_norm" in name and "backward" not in name:  # whose schema does not say so
        found += args[3:5]
    return [x for x in found if isinstance(x, torch.Tensor)]


def little(shape, classes):
    """A convolution and dropout."""
    conv = nn.Sequential(nn.Conv2d(shape[2], 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5))
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(144, classes))


@pytest.fixture
def drawing(monkeypatch):
    """The model "drawing", whose gradients depend on the seed."""
    make = network.models.make
    monkeypatch.setattr(
        network.models,
        "make",
        lambda name, *args: little(*args) if name == "drawing" else make(name, *args),
    )


class Trained:
    """T updates of L learners of one rank, as the loop makes them; with graphs on a Gpu, or
    eager.
    """

    def __init__(
        self, monkeypatch, model, L=3, T=WARM_UP + 2, replayed=True, short=(), precision="float32"
    ):
        data = random_images(
            (8, 8, 1), 24, augment=Augment(pad=1, flip=True)
        )  # so that batches are made by torch
        self.gpu = Gpu() if replayed else contextlib.nullcontext()
        if replayed:
            monkeypatch.setattr(network, "Graphs", partial(Graphs, cuda=self.gpu))
        self.network = net = Network(
            data, model, 0.01, seed=1, precision=precision, cuda_graphs=replayed
        )
        self.w, g = np.zeros((2, L, net.d), np.float32)
        net.initial_(self.w[0])
        self.w[1:] = self.w[0]
        sampler = Fixed(np.arange(6))
        sampler.batch = lambda j, t: np.random.default_rng((j, t)).integers(
            0, 24, 2 if (j, t) in short else 6
        )
        feed = net.feed(sampler, range(L), T)
        self.losses, self.g, self.clocks = [], [], []
        with self.gpu:
            weights, gradients = torch.from_numpy(self.w), torch.from_numpy(g)
            for t in range(1, T + 1):
                for j in range(L):
                    self.losses.append(net.gradient_(self.w[j], feed(j, t), out=g[j]))
                if replayed:
                    self.clocks.append([dict(side.stream.clock) for side in net._graphs.sides])
                self.g.append(gradients.clone())
                weights.sub_(gradients, alpha=0.05)
            self.losses = torch.stack(list(map(torch.as_tensor, self.losses))).tolist()


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("mlp", "float32"),
        ("mlp", "bf16"),
        ("nin", "float32"),
        ("resnet8", "float32"),
        ("drawing", "float32"),
    ],
)
def test_replays_give_the_eager_gradients_losses_and_statistics(
    model, precision, monkeypatch, drawing
):
    eager, replayed = (
        Trained(monkeypatch, model, replayed=r, precision=precision) for r in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(eager.g, replayed.g, strict=True))
    assert np.array_equal(eager.w, replayed.w) and eager.losses == pytest.approx(
        replayed.losses, rel=1e-6
    )
    assert [g.replays for g in replayed.gpu.graphs] == [2] * 3  # captured once a learner


@pytest.mark.parametrize(
    ("model", "L"), [("mlp", 1), ("mlp", 3), ("nin", 3), ("drawing", 3), ("mlp", SIDES + 2)]
)
def test_main_and_side_streams_never_touch_memory_out_of_order(model, L, monkeypatch, drawing):
    assert Trained(monkeypatch, model, L).gpu.races() == 0


def test_learners_of_a_step_wait_for_the_step_before_and_not_for_each_other(monkeypatch):
    trained = Trained(monkeypatch, "mlp")
    sides = [side.stream for side in trained.network._graphs.sides]
    assert len(sides) == 3 and len({g.pool for g in trained.gpu.graphs}) == 3
    for before, now in zip(trained.clocks, trained.clocks[1:], strict=False):
        for own, clock in zip(sides, now, strict=True):
            for k, other in enumerate(sides):
                assert clock[own] > before[k].get(own, 0)
                assert other is own or clock[other] == before[k][other]


@pytest.mark.parametrize("broken", ["join", "start", "order", "feed"])
def test_the_stand_in_finds_a_wait_that_is_missing(broken, monkeypatch):
    waits = Stream.wait_stream
    if broken == "join":
        monkeypatch.setattr(Graphs, "join", lambda self: self._begun.clear())
    elif broken == "start":
        monkeypatch.setattr(
            Stream, "wait_stream", lambda self, other: other.name == "main" or waits(self, other)
        )
    elif broken == "order":
        monkeypatch.setattr(Graphs, "_at_side", at_side_copying_late)
    else:
        monkeypatch.setattr(Graphs, "_at_side", at_side_without_copying)
    assert Trained(monkeypatch, "mlp").gpu.races() > 0


def at_side_copying_late(self, capture, bound, x, y):
    """Copies the batch after the side stream has begun."""
    capture.side.stream.wait_stream(self.cuda.current_stream())
    capture.x.copy_(x)
    capture.y.copy_(y)
    with self.cuda.stream(capture.side.stream):
        return bound.gradient_(capture.x, capture.y)


def at_side_without_copying(self, capture, bound, x, y):
    """Reads the feed's buffers, which the next learner's batch overwrites."""
    capture.side.stream.wait_stream(self.cuda.current_stream())
    with self.cuda.stream(capture.side.stream):
        return bound.gradient_(x, y)


def test_a_network_that_draws_has_one_side_stream_and_its_graphs_one_pool(monkeypatch, drawing):
    trained = Trained(monkeypatch, "drawing")
    assert len(trained.network._graphs.sides) == 1 and {g.pool for g in trained.gpu.graphs} == {1}
    assert len({id(g.stream) for g in trained.gpu.graphs}) == 1
    assert [len(Graphs(L, False, Gpu()).sides) for L in (1, SIDES, SIDES + 1)] == [1, SIDES, SIDES]


def test_dropout_of_a_replay_is_drawn_from_the_learner_and_the_update(monkeypatch, drawing):
    monkeypatch.setattr(network, "Graphs", partial(Graphs, cuda=(gpu := Gpu())))
    net = Network(random_images((8, 8, 1), 8), "drawing", 0.0, seed=0, cuda_graphs=True)
    w, g = np.zeros((2, net.d), np.float32)
    net.initial_(w)
    feed = net.feed(Fixed(np.arange(4)), range(1), 9)
    with gpu:
        for t in range(WARM_UP):
            net.gradient_(w, feed(0, t + 1), out=g)
        losses = [
            float(net.gradient_(w, feed(j, t), out=g)) for j, t in [(0, 1), (1, 1), (0, 2), (0, 1)]
        ]
    assert losses[0] == losses[3] and len(set(losses)) == 3 and gpu.graphs[0].replays == 4


def test_a_short_batch_is_done_eagerly_and_the_graphs_go_on(monkeypatch):
    short = [(1, 2), (1, 5), (2, 5)]
    eager, replayed = (
        Trained(monkeypatch, "mlp", T=7, replayed=r, short=short) for r in (False, True)
    )
    assert np.array_equal(eager.w, replayed.w) and eager.losses == pytest.approx(
        replayed.losses, rel=1e-6
    )
    assert sorted(g.replays for g in replayed.gpu.graphs) == [2, 3, 4]
    assert replayed.gpu.races() == 0


def test_a_step_that_was_left_early_is_joined_before_its_learner_begins_again(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(network, "Graphs", lambda L, draws: Graphs(L + 1, draws, gpu))
    net = Network(random_images((8, 8, 1), 8), "mlp", 0.0, seed=0, cuda_graphs=True)
    w, g = np.zeros((2, net.d), np.float32)
    feed = net.feed(Fixed(np.arange(4)), range(1), 9)
    with gpu:
        for t in range(1, 6):
            net.gradient_(w, feed(0, t), out=g)
    assert gpu.races() == 0


def test_a_gradient_that_cannot_be_captured_is_one_clear_line(monkeypatch):
    gradient_ = network.Bound.gradient_
    monkeypatch.setattr(
        network.Bound, "gradient_", lambda *args: (loss := gradient_(*args)) + 0 * loss.item()
    )
    with pytest.raises(
        UserError,
        match=r"^`cuda_graphs`: .*cannot be captured \(operation not permitted.*\); leave",
    ):
        Trained(monkeypatch, "mlp")


# ---------------------------------------------------------------------------------------------- mis

MISTAKES = {
    "--data digits --model nin "
    "--cuda-graphs": "--cuda-graphs means nothing to --device cpu, and graphs are a GPU's; use --device cuda",
    "--data digits --model nin --cuda-graphs --device cuda "
    "--compile": "--cuda-graphs means nothing to a run with --compile",
    "--problem logistic --cuda-graphs": "--cuda-graphs means nothing to --problem logistic",
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """The exit status of every mistake and what was said of it, in one launch."""
    out = tmp_path_factory.mktemp("mistakes") / "run.h5"
    lines = [
        ["train", "kavg", *line.split(), "--steps", "1", "--out", str(out)] for line in MISTAKES
    ]
    return dict(zip(MISTAKES, call(1, told_of, lines)[0], strict=True))


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line, mistaken):
    status, said = mistaken[line]
    assert status == 2 and said.count("\n") == 1 and MISTAKES[line] in said, said


def test_data_of_logistic_regression_has_no_graphs():
    from localavg import datasets
    from localavg.training.build import make_problem

    fleet = Fleet(MPI.COMM_SELF)
    c = TrainConfig(algorithm="kavg", data="epsilon-like:60x5", device="cuda", cuda_graphs=True)
    with pytest.raises(UserError) as e:
        make_problem(c, datasets.load(c.data, fleet), fleet)
    assert str(e.value).startswith(
        "`cuda_graphs`: `data = epsilon-like:60x5` calls for logistic regression"
    )


# ------------------------------------------------------------------------------------------- the wh


def whole_runs(world, folder):
    """Final weights and losses of runs of 3 learners, eager and with graphs, and how often each
    learner's was replayed.
    """
    from localavg.files import record
    from localavg.learner import optim
    from localavg.training.run import run

    answers, update_ = [], optim.Optimizer.update_
    for replayed in (False, True):
        c = TrainConfig(
            algorithm="mavg",
            options={"K": 3, "mu": 0.5},
            data="digits",
            model="nin",
            learners=3,
            steps=8,
            batch_size=8,
            optimizer="momentum",
            out=f"{folder}/{replayed}.h5",
            save_weights=True,
            eval_examples=50,
            eval_every=4,
            log_every=3,
            l2=0.01,
        )
        gpu = Gpu()
        with pytest.MonkeyPatch.context() as patch, gpu if replayed else contextlib.nullcontext():
            patch.setattr(
                network,
                "Network",
                lambda *a, on=replayed, **how: Network(*a, **how | {"cuda_graphs": on}),
            )
            patch.setattr(network, "Graphs", partial(Graphs, cuda=gpu))
            patch.setattr(
                optim.Optimizer,
                "update_",
                lambda self, w, g, gamma, gpu=gpu: (
                    gpu.touch([], [torch.from_numpy(w), torch.from_numpy(g)]),
                    update_(self, w, g, gamma),
                ),
            )
            assert run(c, world).status == 0
        found = record.load(c.out)
        answers.append(
            (
                found.weights,
                found.train.loss.to_numpy(),
                [g.replays for g in gpu.graphs],
                gpu.races(),
            )
        )
    return answers


def test_a_run_with_graphs_is_the_run_without(tmp_path):
    (weights, losses, none, _), (again, losses_again, replays, races) = call(
        1, whole_runs, str(tmp_path)
    )[0]
    assert np.array_equal(weights, again) and losses == pytest.approx(losses_again, rel=1e-6)
    assert (none, replays, races) == ([], [8 - WARM_UP] * 3, 0)


def test_torch_has_what_the_stand_in_has():
    cuda = signature(Graphs).parameters["cuda"].default
    assert cuda is torch.cuda
    assert {"pool", "stream", "capture_error_mode"} <= set(signature(cuda.graph).parameters)
    for name in (
        "Stream.wait_stream",
        "CUDAGraph.replay",
        "current_stream",
        "graph_pool_handle",
        "stream",
    ):
        ours, theirs = attrgetter(name)(Gpu), attrgetter(name)(cuda)
        assert len(set(signature(ours).parameters) - {"self"}) <= len(signature(theirs).parameters)
