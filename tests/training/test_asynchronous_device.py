"""Downpour and EAMSGD with learners on a device, by the stand-in for CuPy whose streams run late.

Servers that ask for a GPU fail, and so does a message in the device's memory. No GPU is claimed.
"""

import time
from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi import call

from localavg.parallel.device import choose_device
from localavg.training.asynchronous import run as module
from localavg.training.asynchronous.messages import Roles

RULES = {
    "downpour": "downpour --K 3 --lr 0.2",
    "eamsgd": "eamsgd --K 2 --alpha 0.2 --momentum 0.8 --lr 0.1",
}
SLEEP_S = 0.01  # of the device, an update


class Host:
    """A communicator that sends and receives the host's memory only."""

    def __init__(self, comm):
        self.comm = comm

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Isend(self, x, *where):
        assert type(x) is np.ndarray
        return self.comm.Isend(x, *where)

    def Irecv(self, x, *where):
        assert type(x) is np.ndarray
        return self.comm.Irecv(x, *where)


class Watched(Roles):
    def __init__(self, *how):
        super().__init__(*how)
        self.vectors = Host(self.vectors)


def device_for(name, fleet):
    def load(_):
        assert fleet.ranks == 1 or fleet.rank < 2, "a server asked for a GPU"
        return stand_in

    return choose_device(name, fleet, load=load, driver=lambda: None)


def slowed(name):
    """The device as it is; for the run `slow`, one that needs SLEEP_S more for every gradient."""
    dot = stand_in.dot

    def slowly(*how, **more):
        stand_in.null.queue("sleep", lambda: time.sleep(SLEEP_S))
        return dot(*how, **more)

    return mock.patch.object(stand_in, "dot", slowly if name == "slow" else dot)


def on_the_stand_in(world, lines, folder):
    """What the runs of {name: line} left, on rank 0."""
    from drive import command_lines

    from localavg.files import record

    with (
        mock.patch.object(module, "choose_device", device_for),
        mock.patch.object(module, "Roles", Watched),
    ):
        for name, line in lines.items():
            with slowed(name):
                words = ["train", *line.split(), "--out", f"{folder}/{name}.h5"]
                assert command_lines(world, [words]) == [0], name
            world.barrier()  # a server writes the file, which others replay
    return {name: record.load(f"{folder}/{name}.h5") for name in lines} if world.rank == 0 else None


def lines_of(data, folder, name, ranks):
    """A run on the device, and the same order of arrival on the CPU."""
    how = f"{RULES[name]} --data {data.path} --l2 0.01 --batch-size 7 --learners 4 --steps 11 "
    how += "--grad-norm --save-weights --log-every 2 --eval-every 4"
    there, here = ("--simulate --step-cv 0.5",) * 2
    if ranks > 1:
        there, here = "--servers 1", f"--servers 1 --replay {folder}/{name}.h5"
    return {name: f"{how} --device cuda {there}", f"{name} on the CPU": f"{how} {here}"}


@pytest.fixture
def made(once, shards, tmp_path_factory):
    """made(ranks): the runs of one launch by name."""

    def launch(ranks):
        folder, lines = tmp_path_factory.mktemp("device"), {}
        for name in RULES:
            lines |= lines_of(shards, folder, name, ranks)
        if ranks > 1:
            how = "--learners 2 --device cuda --servers 1 --log-every 12 --eval-every 12"
            data = f"--data {shards.path} --batch-size 4 --steps 12 --lr 0.1"
            lines["slow"] = f"downpour --K 4 {data} {how}"
        return call(ranks, on_the_stand_in, lines, str(folder))[0]

    return lambda ranks: once(f"asynchronous device {ranks}", launch, ranks)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("ranks", [3, 1], ids=["over MPI", "simulated"])
def test_the_device_gives_the_center_of_the_cpu_in_the_same_order(ranks, name, made):
    there, here = made(ranks)[name], made(ranks)[f"{name} on the CPU"]
    assert there.staleness.learner.tolist() == here.staleness.learner.tolist()
    assert np.abs(here.weights).max() > 1e-2
    np.testing.assert_allclose(there.weights, here.weights, rtol=1e-5, atol=1e-6)
    for column in ("train_loss", "train_accuracy", "grad_norm_sq"):
        np.testing.assert_allclose(there.eval[column], here.eval[column], rtol=1e-4)
    np.testing.assert_allclose(there.train.loss, here.train.loss, rtol=1e-5)
    assert len(there.provenance["gpus"]) == max(1, ranks - 1)  # servers have none


def test_the_time_in_which_the_device_computes_is_computing(made):
    last = made(3)["slow"].train.iloc[-1]
    assert last.compute_s >= 12 * SLEEP_S
    assert last.communicate_s + last.data_s < 6 * SLEEP_S
