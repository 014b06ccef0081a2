"""Networks in the flat matrix: the same gradients as an ordinary module's, learners that average,
and what may not be run.
"""

import copy
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from drive import told_of
from mpi import LIMIT_S, ROOT, call, train, train_all
from mpi4py import MPI
from samples import Fixed, random_images
from torch import nn
from torch.nn.functional import cross_entropy

from localavg import datasets, models
from localavg.datasets import Augment
from localavg.files import record
from localavg.learner.flat import Flat, Places
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
from localavg.problems.network import Network
from localavg.scope import Scope


def ordinary(network, data, rows):
    """An ordinary module with the network's initial weights, and the batch of `rows` as anyone
    would make it.
    """
    torch.manual_seed(network.seed)
    module = models.make(network.model, data.shape, len(data.classes))
    x = (torch.from_numpy(data.train.x[rows].astype(np.float32)) - data.mean[0]) / data.std[0]
    return module, x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data.train.y[rows])


CASES = [
    ("mlp", 8),
    ("nin", 8),
    ("resnet8", 8),
    ("resnet18", 32),
    ("mobilenet", 32),
]  # nin at 32 drops out


@pytest.mark.parametrize(
    "model, shape",
    [
        pytest.param(model, (side, side, 1 if side == 8 else 3), id=f"{model}-{side}")
        for model, side in CASES
    ],
)
def test_flat_gradients_and_statistics_are_those_of_an_ordinary_module(model, shape, smooth):
    data, decay, rows = random_images(shape, 12), 0.01, np.array([3, 1, 4, 1, 5, 9])
    network = Network(data, model, decay, seed=5)
    w, g = np.zeros((2, network.d), np.float32)
    network.initial_(w)
    start = w.copy()
    batch = network.feed(Fixed(rows), range(1), 1)(0, 1)
    loss = network.gradient_(w, batch, out=g)

    module, x, y = ordinary(network, data, rows)
    exact = copy.deepcopy(module).double()
    for m, pixels in ((exact, x.double()), (module, x)):
        expected = cross_entropy(m(pixels), y)
        expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    mine, before, true = network.views(g), network.views(start), dict(exact.named_parameters())
    for name, p in module.named_parameters():
        torch.testing.assert_close(before[name], p.detach(), rtol=0, atol=0)
        rounding = (
            p.grad.double() - true[name].grad
        ).norm()  # of an ordinary module: deep networks magnify it
        gap = mine[name].double() - decay * p.detach().double() - true[name].grad
        assert gap.norm() <= 10 * rounding + 1e-4 * true[name].grad.norm() + 1e-6, name
    for name, b in module.named_buffers():
        if b.is_floating_point():
            torch.testing.assert_close(network.views(w)[name], b, rtol=1e-3, atol=1e-4)
    assert network.d == sum(
        64 * math.ceil(p.numel() / 64)  # each begins at a multiple of 64 floats
        for p in [*module.parameters(), *module.buffers()]
        if p.is_floating_point()
    )


def test_a_second_gradient_forgets_the_first():
    data = random_images((8, 8, 1), 12)
    network = Network(data, "nin", 0.0, seed=0)
    w, g = np.zeros((2, network.d), np.float32)
    network.initial_(w)
    batch = network.feed(Fixed(np.arange(6)), range(1), 1)(0, 1)
    network.gradient_(w, batch, out=g)
    first = g.copy()
    network.gradient_(w, batch, out=g)
    n = Places(network.shapes, network.parameters, network.align).d_trained
    assert np.array_equal(first[:n], g[:n]) and np.abs(first).max() > 0


def test_kernels_lie_with_their_input_channels_last():
    network = Network(random_images((8, 8, 1), 4), "resnet8", 0.0, seed=0)
    w = np.arange(network.d, dtype=np.float32)
    kernels = [
        view for view in network.views(w).values() if view.dim() == 4 and min(view.shape) > 1
    ]
    assert kernels and all(
        view.is_contiguous(memory_format=torch.channels_last) for view in kernels
    )
    covered = np.concatenate(
        [
            view.permute(0, 2, 3, 1).flatten() if view.dim() == 4 else view.flatten()
            for view in network.views(w).values()
        ]
    )
    places = Places(network.shapes, network.parameters, network.align)
    assert np.array_equal(covered, places.packed(w))  # every number once, in order


def test_evaluation_uses_the_statistics_and_sums_over_rows():
    data = random_images((8, 8, 1), 600)
    network = Network(data, "nin", 0.0, seed=1)
    w = np.zeros(network.d, np.float32)
    network.initial_(w)
    module, x, y = ordinary(network, data, np.arange(600))
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    for name, b in module.named_buffers():
        if b.is_floating_point():
            network.views(w)[name].copy_(b)
    module.eval()
    z = module(x[100:500])
    loss = cross_entropy(z, y[100:500], reduction="sum")
    loss.backward()
    total, right, gradient = network.sums(w, data.train, 100, 500, gradient=True)
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert right == int((z.argmax(1) == y[100:500]).sum())
    views = network.views(
        np.concatenate([gradient, np.zeros(network.d - len(gradient))]).astype(np.float32)
    )
    for name, p in module.named_parameters():
        torch.testing.assert_close(views[name], p.grad, rtol=1e-3, atol=1e-3)
    assert network.sums(w, data.train, 100, 500)[2] is None
    again = network.sums(w, data.train, 100, 500, gradient=True)[2]
    assert np.array_equal(again, gradient)  # not added to the first


def test_calibration_puts_the_mean_over_batches_in_the_place_of_statistics():
    data = random_images((8, 8, 1), 64)
    network = Network(data, "resnet8", 0.0, seed=1, calibrate=3)
    w = np.zeros(network.d, np.float32)
    network.initial_(w)
    network.feed(Fixed(np.arange(16)), range(1), 1)
    before = w.copy()
    network.calibrate_(w)
    first = next(name for name in network.shapes if name.endswith("running_mean"))
    names = list(network.shapes)[: network.parameters]
    assert all(np.array_equal(network.views(w)[n], network.views(before)[n]) for n in names)
    assert not torch.equal(network.views(w)[first], network.views(before)[first])
    module, _, _ = ordinary(network, data, np.arange(1))
    seen = []
    layer = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    layer.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    from localavg.learner.sampling import IID
    from localavg.problems.feed import make_feed

    draw = make_feed(data, IID(64, 1, 16, 1), 1, range(1), 3, "cpu", False)
    for t in (1, 2, 3):
        module(draw(0, t)[0])
    torch.testing.assert_close(
        network.views(w)[first], torch.stack(seen).mean(0).detach(), rtol=1e-4, atol=1e-5
    )
    again = w.copy()
    network.calibrate_(again)
    assert np.array_equal(again, w)  # the same batches every time


def test_dropout_is_drawn_from_the_learner_and_the_update():
    data = random_images((32, 32, 3), 8)
    network = Network(data, "nin", 0.0, seed=0)
    w, g = np.zeros((2, network.d), np.float32)
    network.initial_(w)
    feed = network.feed(Fixed(np.arange(4)), range(2), 2)
    losses = [network.gradient_(w, feed(j, t), out=g) for j, t in [(0, 1), (1, 1), (0, 2), (0, 1)]]
    assert losses[0] == losses[3] and len(set(losses)) == 3


# ---------------------------------------------------------------------------------------------- lea


def statistics_before_and_after(world):
    """On 2 ranks of 2 learners: rows before an average, after it, and the running means that a
    module sees then.
    """
    fleet = Fleet(world, 4)
    data = datasets.load("digits", fleet)
    network = Network(data, "nin", 0.0, seed=0)
    transport = choose("auto", fleet, (), 8 * fleet.L * network.d)
    flat = Flat(network.shapes, fleet.L, network.parameters, transport.zeros, network.align)
    network.initial_(flat.w[0])
    flat.w[1] = flat.w[0]
    g = np.zeros_like(flat.w)
    from localavg.learner.sampling import IID

    feed = network.feed(IID(network.n, 4, 16, 0), fleet.learners, 3)
    for t in (1, 2, 3):
        for l, j in enumerate(fleet.learners):
            network.gradient_(flat.w[l], feed(j, t), out=g[l])
            flat.w[l, : flat.d_trained] -= 0.1 * g[l, : flat.d_trained]
    before = flat.w.copy()
    transport.mean_(flat.w, Scope.WORLD)
    seen = torch.cat(
        [b.flatten() for b in network._at(flat.w[1], g[1]).module.buffers() if b is not None]
    )
    theirs = flat.packed(flat.w[1])[-len(seen) :]
    return before, flat.w.copy(), np.array_equal(seen.numpy(), theirs), flat.d_trained


def test_averaged_statistics_are_the_mean_of_the_learners(watched):
    answers = watched.averaged
    before = np.concatenate([a[0] for a in answers]).astype(np.float64)
    n = answers[0][3]
    assert np.ptp(before[:, n:], axis=0).max() > 0.01  # they differed
    for _, after, seen, _ in answers:
        np.testing.assert_allclose(
            after, np.broadcast_to(before.mean(0), after.shape), rtol=1e-6, atol=1e-7
        )
        assert seen


def test_digits_are_learnt(tmp_path):
    line = (
        "kavg --K 4 --data digits --model nin --learners 4 --sampling shuffle --batch-size 16 --lr "
        "0.05 "
        "--optimizer momentum --epochs 6 --eval-every 1000"
    )
    found = train(tmp_path, 2, line)
    assert found.eval.test_accuracy.iloc[-1] >= 0.97 and found.config["problem"] == "network"


SHORT = (
    "--data digits --learners 12 --sampling shuffle --batch-size 8 --lr 0.02 --optimizer momentum "
    "--steps 12 "
    "--save-weights --eval-every 12"
)
MODELS = {"mlp": "mlp", "nin": "nin"}
LINES = {
    **{f"kavg-{m}": f"kavg --K 5 --model {m} {SHORT}" for m in MODELS},
    **{f"one-{m}": f"kavg --K 1 --model {m} {SHORT}" for m in MODELS},
    **{f"sync-{m}": f"sync --model {m} {SHORT}" for m in MODELS},
    "keep": f"kavg --K 5 --model nin --statistics keep {SHORT}",
    "adpsgd": f"adpsgd --p-init 2 --warmup 0 --model nin {SHORT}",
    "bf16": f"kavg --K 5 --model nin --precision bf16 {SHORT}",
    "calibrated": f"kavg --K 5 --model nin --calibrate 4 {SHORT}",
    "some": f"kavg --K 5 --model nin --eval-examples 96 {SHORT}",
    "again": f"kavg --K 5 --model nin {SHORT}",
}
SOME = ("kavg-nin", "one-nin", "sync-nin", "keep", "adpsgd")
WORLDS = {
    ("openmpi", 2): (*LINES,),
    ("openmpi", 3): SOME,
    ("openmpi", 4): (*LINES,),
    ("mpich", 2): SOME,
}


@pytest.fixture
def short(request, once, tmp_path_factory):
    """The runs of a world by name: one launch."""
    mpi, ranks = request.param
    lines = {name: LINES[name] for name in WORLDS[request.param]}
    return once(request.param, train_all, tmp_path_factory.getbasetemp(), ranks, lines, mpi=mpi)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_all(tmp_path_factory.mktemp("alone"), 1, LINES)


def everywhere(names, *worlds):
    """Parameters `short` and `name`: those of `names` that run in a world; in the long tests but on
    two ranks of Open MPI.
    """
    return pytest.mark.parametrize(
        ("short", "name"),
        [
            pytest.param(
                (mpi, ranks),
                name,
                id=f"{mpi}-{ranks}-{name}",
                marks=[pytest.mark.long] * ((mpi, ranks) != ("openmpi", 2)),
            )
            for (mpi, ranks), there in WORLDS.items()
            for name in names
            if name in there
        ],
        indirect=["short"],
    )


@everywhere([name for name in LINES if not name.startswith(("one", "sync"))])
def test_a_run_does_not_depend_on_how_learners_lie_over_ranks(short, alone, name):
    close = {"rtol": 2e-3, "atol": 2e-3} if name in ("bf16",) else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(short[name].weights, alone[name].weights, **close)
    if short[name].provenance["transport"] == alone[name].provenance["transport"] == "shared":
        assert np.array_equal(short[name].weights, alone[name].weights)


def test_the_same_seed_gives_the_same_bits(alone):
    assert np.array_equal(alone["kavg-nin"].weights, alone["again"].weights)
    assert alone["kavg-nin"].train.loss.equals(alone["again"].train.loss)


@everywhere([f"one-{model}" for model in MODELS])
def test_a_period_of_one_is_synchronous_sgd(short, name):
    """With BatchNorm too: running statistics are linear in the batches', so their mean at every
    step or at the end is one.
    """
    model = name.removeprefix("one-")
    tolerance = (
        1e-5 if model == "mlp" else 1e-4
    )  # BatchNorm divides by small deviations, which magnifies rounding
    np.testing.assert_allclose(
        short[f"one-{model}"].weights,
        short[f"sync-{model}"].weights,
        rtol=tolerance,
        atol=tolerance,
    )
    assert (
        np.abs(short[f"kavg-{model}"].weights - short[f"sync-{model}"].weights).max()
        > 10 * tolerance
    )


def rows_at_the_end(world, line, out):
    """Every learner's row of this rank after the last average, before the run's end makes them
    equal, and how much of it is trained.
    """
    from localavg.__main__ import parser
    from localavg.training.averaging import Averaging

    rows, finish_ = [], Averaging.finish_

    def watched(self):
        rows.append((self.flat.w.copy(), self.flat.d_trained))
        return finish_(self)

    Averaging.finish_ = watched
    args = parser().parse_args(["train", *line.split(), "--out", out])
    assert args.call(args) == 0
    Averaging.finish_ = finish_
    return rows[0]


def test_kept_statistics_stay_each_learners_own(watched):
    """The weights are equal after the last average, the statistics of no two learners; /weights has
    their mean.
    """
    rows, trained = np.concatenate([w for w, _ in watched.kept]), watched.kept[0][1]  # [P, d]
    assert (rows[:, :trained] == rows[0, :trained]).all()
    assert len(np.unique(rows[:, trained:], axis=0)) == len(rows) == 12
    found = record.load(watched.folder / "kept.h5")
    network = Network(random_images((8, 8, 1), 4), "nin", 0.0, seed=0)
    row = Places(network.shapes, network.parameters, network.align).unpacked(found.weights)
    assert np.array_equal(row[:trained], rows[0, :trained])
    np.testing.assert_allclose(row[trained:], rows[:, trained:].mean(0), rtol=1e-5, atol=1e-6)
    assert (found.averages.bytes_node == 2 * 4 * trained).all()


STEERED = (
    "adalupa --rule loss --tau0 2 --data digits --model nin --statistics keep --learners 4 "
    "--sampling shuffle "
    "--batch-size 8 --lr 0.1 --optimizer momentum --l2 0.001 --steps 30 --eval-every 30"
)


def rows_that_steer(world, out):
    """What the schedule of STEERED observes: [(t, value, this rank's rows then)], how much of a row
    is trained, and due.
    """
    from localavg.__main__ import parser
    from localavg.training import run

    seen, train = [], run.train

    def watched(e, *args):
        flat, schedule = e.flat, e.algorithm.schedule
        observe = schedule.observe

        def noted(t, value, gamma):
            observe(t, value, gamma)
            seen.append((t, value, flat.w.copy(), flat.d_trained, schedule.due))

        schedule.observe = noted
        train(e, *args)

    run.train = watched
    args = parser().parse_args(["train", *STEERED.split(), "--out", out])
    assert args.call(args) == 0
    return seen


class Watched(NamedTuple):
    """What one launch on two ranks showed, rank by rank, and where its run files are."""

    averaged: list  # of statistics_before_and_after
    kept: list  # of rows_at_the_end
    steered: list  # of rows_that_steer
    folder: Path


def all_of_these(world, folder):
    return (
        statistics_before_and_after(world),
        rows_at_the_end(world, LINES["keep"], f"{folder}/kept.h5"),
        rows_that_steer(world, f"{folder}/steered.h5"),
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    return Watched(*zip(*call(2, all_of_these, str(folder)), strict=True), folder)


@cache
def digits():
    return datasets.load("digits", Fleet(MPI.COMM_SELF))


def objective(w):
    """F of a row over the digits, by an ordinary module as it is evaluated; weight decay is no part
    of it.
    """
    data = digits()
    network = Network(data, "nin", 0.0, seed=0)
    module = models.make("nin", data.shape, len(data.classes)).eval()
    views = network.views(w.astype(np.float32))
    module.load_state_dict({name: x.clone() for name, x in views.items()}, strict=False)
    x = (torch.from_numpy(data.train.x).float() - data.mean[0]) / data.std[0]
    with torch.no_grad():
        return cross_entropy(module(x.permute(0, 3, 1, 2)), torch.from_numpy(data.train.y)).item()


@pytest.fixture(scope="module")
def steered(watched):
    """[(t, value told to the schedule, everyone's rows after that average, due)], how much of a row
    is trained, the run.
    """
    ranks = watched.steered
    told = [
        (t, value, np.concatenate([rank[i][2] for rank in ranks]), due)
        for i, (t, value, *_, due) in enumerate(ranks[0])
    ]
    assert [each[:2] for each in ranks[1]] == [
        each[:2] for each in told
    ]  # all ranks are steered by the same numbers
    return told, ranks[0][0][3], record.load(watched.folder / "steered.h5")


def test_kept_statistics_differ_after_the_averages_of_a_steered_run(steered):
    told, n, _ = steered
    assert len(told) > 2
    for t, _, rows, _ in told:
        assert (rows[:, :n] == rows[0, :n]).all()
        assert len(np.unique(rows[:, n:], axis=0)) == (4 if t else 1)


def test_the_objective_that_steers_is_that_of_averaged_weights_and_averaged_statistics(steered):
    for _, value, rows, _ in steered[0]:
        assert value == pytest.approx(objective(rows.mean(axis=0, dtype=np.float64)), rel=1e-5)
    assert (
        np.ptp([objective(row) for row in rows]) > 1e-3 * value
    )  # so it makes a difference whose statistics they are


def test_the_periods_of_a_steered_run_follow_from_those_objectives(steered):
    """lupa eq. 11, with τ_0 = 2; the last average is at T."""
    told, _, found = steered
    F = {t: value for t, value, *_ in told}
    for t, _, _, due in told:
        assert due - t == 2 * math.ceil((F[0] / F[t]) ** (1 / 3))
    assert {due - t for t, *_, due in told} >= {2, 4}
    ends = [due for *_, due in told if due < 30]
    assert found.averages.t.tolist() == [*ends, 30]
    assert found.averages.t.tolist() == [t for t in F if t]


@everywhere(LINES)
def test_evaluations_do_not_depend_on_how_learners_lie_over_ranks(short, alone, name):
    close = 2e-2 if name == "bf16" else 1e-3
    np.testing.assert_allclose(short[name].eval.train_loss, alone[name].eval.train_loss, rtol=close)
    np.testing.assert_allclose(short[name].eval.test_loss, alone[name].eval.test_loss, rtol=close)


def test_calibration_draws_no_dropout():
    """Whatever torch's generator has been through: it differs from rank to rank."""
    network = Network(random_images((32, 32, 3), 8), "vgg", 0.0, seed=0, calibrate=2)
    start = np.zeros(network.d, np.float32)
    network.initial_(start)
    network.feed(Fixed(np.arange(4)), range(1), 1)
    ends = []
    for seed in (1, 2):
        w = start.copy()
        torch.manual_seed(seed)
        network.calibrate_(w)
        ends.append(w)
    assert np.array_equal(*ends) and not np.array_equal(ends[0], start)


def test_some_examples_are_evaluated_where_asked(alone):
    whole, some = alone["kavg-nin"].eval, alone["some"].eval
    assert (some.train_accuracy * 96).round(6).apply(float.is_integer).all()
    assert not whole.train_loss.equals(some.train_loss)
    assert abs(whole.train_accuracy.iloc[-1] - some.train_accuracy.iloc[-1]) < 0.2


def test_calibration_is_of_the_evaluated_model_only(alone):
    assert np.array_equal(alone["calibrated"].weights, alone["kavg-nin"].weights)
    assert (
        not alone["calibrated"]
        .eval.test_loss.iloc[-1:]
        .equals(alone["kavg-nin"].eval.test_loss.iloc[-1:])
    )


def test_a_network_of_cifar_size_trains(tmp_path):
    line = (
        "kavg --K 2 --learners 2 --data cifar10-like:600 --model resnet18 --batch-size 4 --steps 2 "
        "--eval-every 2 "
        "--eval-examples 16 --lr 0.02 --optimizer momentum"
    )
    found = train(tmp_path, 2, line)
    assert found.config["rows"] == 600 and found.config["d"] == 11_173_962 + 9600
    assert np.isfinite(found.train.loss).all()


MEMORY = """
import resource, sys
import numpy as np
from samples import Fixed, random_images
from localavg.problems.network import Network
from localavg.learner import optim

data = random_images((32, 32, 3), 4)
network = Network(data, "vgg16", 1e-4, seed=0)
L = int(sys.argv[1])
w, g = np.zeros((2, L, network.d), np.float32)
network.initial_(w[0])
w[:] = w[0]
feed = network.feed(Fixed(np.arange(2)), range(1), 1)
o = optim.Momentum(0.9)
o.start(w.shape, lambda shape: np.zeros(shape, np.float32))
for t in (1, 2):
    for l in range(L):
        network.gradient_(w[l], feed(0, t), out=g[l])
    o.update_(w, g, 0.01)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, network.d)
"""


@pytest.mark.long
def test_a_learner_takes_its_weights_gradients_and_momentum_and_nothing_more():
    def peak(L):
        words = [sys.executable, "-c", MEMORY, str(L)]
        paths = f"{ROOT}:{ROOT / 'tests' / 'support'}"
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMPI_MCA_btl": "self"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, env=env)
        assert done.returncode == 0, done.stderr
        return map(int, done.stdout.split())

    (one, d), (four, _) = peak(1), peak(4)
    assert (four - one) / (3 * 4 * d) <= 3.1  # matrices of d floats a learner


# ---------------------------------------------------------------------------------------------- mis

MISTAKES = {
    "--data digits --model resnet81": r"--model resnet81: must be one of mlp, resnet8, nin,",
    "--data digits --model alexnet": r"--model alexnet takes images from 63×63 pixels on, not 8×8",
    "--data digits": r"--data digits: images need a network; add --model with one of mlp",
    "--data digits --problem logistic": r"needs a feature matrix",
    "--data epsilon-like:60x5 --model mlp": r"networks need images, not a feature matrix",
    "--data digits --model nin --batch-size "
    "1": r"--batch-size 1: nin has BatchNorm, which needs at least 2 examples",
    "--data digits --model nin --device cuda": r"--device cuda",
    "--data digits --problem logistic --model "
    "nin": r"--model nin means nothing to --problem logistic",
    "--data digits --model nin --precision fp8": r"precision",
    "--data digits --model nin --calibrate -1": r"--calibrate -1: must be at least 0",
    "--data epsilon-like:60x5 --problem logistic "
    "--compile": r"--compile .*means nothing to --problem logistic",
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """The exit status of every mistake and what was said of it, in one launch, and the folder of
    their run files.
    """
    folder = tmp_path_factory.mktemp("mistakes")
    lines = [
        ["train", "kavg", *line.split(), "--steps", "1", "--out", f"{folder}/run.h5"]
        for line in MISTAKES
    ]
    return dict(zip(MISTAKES, call(1, told_of, lines)[0], strict=True)), folder


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line, mistaken):
    ends, folder = mistaken
    status, said = ends[line]
    assert status == 2 and said.count("\n") == 1 and re.search(MISTAKES[line], said), said
    assert not [*folder.iterdir()]


def test_random_changes_are_left_out_where_asked():
    data = random_images((8, 8, 1), 12, augment=Augment(pad=2, flip=True))
    draw = {
        augment: Network(data, "nin", 0.0, 0, augment=augment).feed(
            Fixed(np.arange(12)), range(1), 1
        )(0, 1)[0]
        for augment in (True, False)
    }
    expected = (torch.from_numpy(data.train.x).permute(0, 3, 1, 2).float() - 100) / 60
    torch.testing.assert_close(draw[False], expected)
    assert not torch.allclose(draw[True], expected)
