"""A run ends averaged, whatever a combine step or an exchange of one's own does."""

import numpy as np
import pytest
from mpi import call
from mpi4py import MPI

from localavg import algorithms
from localavg.algorithms.base import Algorithm, Exchange, Mean, Never, NoExchange
from localavg.algorithms.kavg import Every
from localavg.learner.flat import Flat
from localavg.learner.optim import SGD
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mpi import HostMPI
from localavg.scope import Scope
from localavg.training.averaging import Averaging

P, L2 = 6, 0.01


class Elastic(Mean):
    """w_j ← w_j + ρ (w̄ − w_j): the learners come closer and stay apart."""

    def average_(self, w, due, transport):
        w += 0.05 * (transport.mean(w) - w)
        return np.nan


class OwnShare(Exchange):
    """Gradients are exchanged, and each learner keeps its own as well: g_j ← (ḡ + g_j) / 2."""

    scope = Scope.WORLD

    def exchange_(self, g, t, transport):
        g += transport.mean(g)
        g /= 2


def elastic(K: int = 4) -> Algorithm:
    """Elastic averages."""
    return Algorithm(Every(K), Elastic(), NoExchange())


def own_share() -> Algorithm:
    """Gradients that stay apart."""
    return Algorithm(Never(), Mean(), OwnShare())


def trained(world, data, folder):
    """Train both; what the run files hold on rank 0."""
    from localavg.config import TrainConfig
    from localavg.files import record
    from localavg.training.run import run

    found = {}
    for own in (elastic, own_share):
        algorithms.ALGORITHMS[own.__name__] = algorithms.BOTH[own.__name__] = own
        path = f"{folder}/{own.__name__}-{world.size}.h5"
        run(
            TrainConfig(algorithm=own.__name__, data=data, learners=P, steps=42, batch_size=5,
                        lr=0.5, l2=L2, sampling="shard", save_weights=True, out=path),
            world,
        )  # fmt: skip
        if world.rank == 0:
            done = record.load(path)
            found[own.__name__] = done.status, done.weights, done.eval.train_loss.iloc[-1]
    return found


@pytest.fixture(scope="module")
def on_one_and_two_ranks(shards, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("own"))
    return [call(ranks, trained, shards.path, folder)[0] for ranks in (1, 2)]


@pytest.mark.parametrize("name", ["elastic", "own_share"])
def test_the_weights_of_the_file_are_those_of_the_last_evaluation(
    name, on_one_and_two_ranks, shards
):
    X, y = shards.X, shards.y
    for found in on_one_and_two_ranks:
        status, w, train_loss = found[name]
        F = np.logaddexp(0, -y * (X @ w)).mean() + L2 / 2 * float(w @ w)
        assert status == "finished" and train_loss == pytest.approx(F, rel=1e-6)


@pytest.mark.parametrize("name", ["elastic", "own_share"])
def test_they_do_not_depend_on_the_layout(name, on_one_and_two_ranks):
    one, two = (found[name][1] for found in on_one_and_two_ranks)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def attached(world):
    """A model of one parameter, apart on every rank and averaged elastically; what it ends with."""
    import torch

    from localavg.attaching.attach import attach

    model = torch.nn.Linear(1, 1, bias=False)
    averager = attach(model, Fleet(world), elastic(K=2))
    for _ in range(3):
        with torch.no_grad():
            model.weight += 1 + world.rank
        averager.step()
    mean = float(averager.transport.mean(averager.flat.w)[0])
    return mean, averager.finish(), float(model.weight), averager.finish()


def test_attach_ends_averaged_too():
    (_, *first), (_, *second) = call(2, attached, timeout=60)
    assert first == second and first[0] is Scope.WORLD and first[2] is Scope.NONE


def averaging(rows):
    """An Averaging over these rows [L, d] of one rank."""
    fleet = Fleet(MPI.COMM_SELF, len(rows))
    flat = Flat({"w": rows.shape[1:]}, len(rows))
    flat.w[...] = rows
    transport = HostMPI(fleet)
    return Averaging(
        algorithms.make("kavg", {}, 10, 1.0), transport, flat, SGD(), objective=None, before=None,
        after=None,
    )  # fmt: skip


def test_equal_rows_stay_as_they_are_to_the_bit():
    """Of three, the mean of which may round to another number."""
    rng = np.random.default_rng(0)
    rows = np.tile(rng.standard_normal(1000, np.float32), (3, 1))
    assert not np.array_equal(rows.sum(axis=0) / np.float32(3), rows[0])
    made = averaging(rows)
    assert made.finish_() is Scope.NONE and np.array_equal(made.flat.w, rows)
    assert np.array_equal(made.mean(), rows[0])


def test_rows_that_differ_become_their_mean():
    rows = np.array([[1, 2], [1, 2], [4, 2]], np.float32)
    made = averaging(rows)
    assert made.mean().tolist() == [2, 2] and np.array_equal(made.flat.w, rows)
    assert made.finish_() is Scope.WORLD and made.flat.w.tolist() == [[2, 2]] * 3
