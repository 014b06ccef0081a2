"""Averages in the background and in code, against the stand-in and on a GPU alike: rows, and runs."""

from contextlib import nullcontext
from unittest import mock

import numpy as np
from rows import ordered, values

NODES = {"ranks_per_node": 1}
RUNS = {  # name: (algorithm, its options, settings)
    "delay": ("kavg", {"K": 3, "delay": 2}, {"optimizer": "momentum"}),
    "overlap": ("kavg", {"K": 3, "delay": 3, "merge": "lerp", "anchor_mu": 0.5}, {}),
    "pieces": ("diloco", {"K": 4, "fragments": 2, "delay": 1}, {}),
    "S": ("adpsgd", {"p_init": 3, "delay": 2}, {"variance": "averages"}),
    "clusters": ("hieravg", {"K1": 2, "K2": 4, "S": 2, "delay": 2}, {}),
    "wire": ("mavg", {"K": 3, "mu": 0.5, "wire": "bf16"}, NODES),
    "delayed wire": ("mavg", {"K": 3, "mu": 0.5, "delay": 2, "wire": "bf16"}, NODES),
}
RESUMED = ("overlap", "pieces", "delayed wire")
STOPPED_AT = 9  # with a checkpoint after update 5, when a mean is on its way in some runs


def train(world, name, path, device="cuda", choose=None, stop=False, **more):
    """The status of a run on the CPU or on a GPU, and on rank 0 its run file.

    choose: in the place of `choose_device`. stop: whether it fails at update STOPPED_AT.
    """
    from localavg.config import TrainConfig
    from localavg.files import record
    from localavg.training import build, where
    from localavg.training import run as module

    algorithm, options, settings = RUNS[name]
    c = TrainConfig(
        algorithm=algorithm, options=options, data="epsilon-like:80x150", learners=4, steps=14,
        batch_size=8, lr=0.5, out=path, save_weights=True, device=device, checkpoint_every="5",
        log_every=7, engine="loop", **settings, **more,
    )  # fmt: skip  # auto takes the fastest engine of the moment, with other bits

    def step_size(t):
        if t == STOPPED_AT and stop:
            raise RuntimeError("stop")
        return 0.5

    chosen = mock.patch.object(where, "choose_device", choose) if choose else nullcontext()
    with chosen, mock.patch.object(build.stepsizes, "make", lambda c, epoch: step_size):
        status = module.run(c, world).status
    world.Barrier()
    return status, record.load(path) if world.rank == 0 else None


def left(status, run):
    """What a run left: status, weights, losses, averages, how often it was resumed, seconds."""
    if run is None:
        return None
    averages = run.averages[["t", "begun", "scope", "bytes_cross", "bytes_node"]].to_numpy()
    return (status, run.weights, run.train.loss.to_numpy(), averages,
            int(run.provenance.get("resumes", 0)), run.averages.seconds.to_numpy())  # fmt: skip


def flown(fleet, transport, background, n, busy=lambda: None):
    """The turns in which a mean of rows of n in the background was wrong.

    busy: queues work, behind which the copies are late.
    """
    from localavg.algorithms.base import Due, Mean
    from localavg.parallel.device import put_
    from localavg.scope import Scope
    from localavg.training.flights import Flights

    mine, wrong = slice(fleet.learners.start, fleet.learners.stop), []
    rows = values(fleet.P, n, whole=False)
    S = np.mean(np.sum((2.0 * (rows - ordered(rows))) ** 2, axis=1))
    w = transport.zeros((fleet.L, n))
    flights = Flights(Mean(), w, background, own=True)
    for turn in range(3):
        put_(w, rows[mine])
        busy()
        w += w  # queued, as an update is: the copies come after it
        flights.begin(w, Due(Scope.WORLD, turn, 0.1, variance=turn == 1))
        w *= np.float32(0)  # the learners go on from their own weights
        flight, arrived = flights.end()
        own, z = flights.own * np.float32(1), flights.z * np.float32(1)  # in the learners' stream
        good = np.allclose(z.get(), 2 * ordered(rows), 1e-5, 1e-6)
        good &= np.array_equal(own.get(), 2 * rows[mine])
        good &= flight.t == turn and arrived.seconds > 0
        good &= np.isclose(arrived.S, S, 1e-4) if turn == 1 else np.isnan(arrived.S)
        if not good or w.get().any():
            wrong.append(turn)
    return wrong
