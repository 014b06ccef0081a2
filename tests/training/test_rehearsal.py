"""What a run calls on a GPU is compiled before its clock starts, and changes nothing; against the
stand-in for CuPy. No GPU is claimed.
"""

from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi4py import MPI

from localavg.algorithms import ALGORITHMS
from localavg.config import TrainConfig
from localavg.parallel import kernels
from localavg.parallel.device import choose_device
from localavg.parallel.fleet import Fleet
from localavg.training import where
from localavg.training.build import build
from localavg.training.loop import train
from localavg.training.rehearsal import rehearse
from localavg.training.run import watched

CASES = {
    "kavg": ({"K": 2}, {"optimizer": "momentum"}),
    "one learner": ({"K": 2}, {"optimizer": "adam", "learners": 1}),
    "mavg": ({"K": 2, "mu": 0.5}, {"optimizer": "nesterov", "state": "average"}),
    "hieravg": ({"K1": 1, "K2": 2, "S": 2}, {"variance": "averages"}),
    "adpsgd": ({"p_init": 2, "Ks": 4}, {"optimizer": "adam", "state": "reset"}),
    "gossip": ({"K": 2}, {"optimizer": "momentum", "state": "average"}),
    "sync": ({}, {}),
    "fours": ({"K": 2}, {"data": "epsilon-like:60x8"}),
    "delay": ({"K": 2, "delay": 1}, {"optimizer": "momentum"}),
    "anchored": ({"K": 2, "delay": 2, "merge": "lerp"}, {}),
    "delayed pieces": ({"K": 4, "fragments": 2, "delay": 1}, {"data": "epsilon-like:60x200"}),
    "pieces": ({"K": 2, "fragments": 2, "switch": 0.2}, {"data": "epsilon-like:60x200"}),
}


def built(name):
    options, more = CASES[name]
    algorithm = name if name in ALGORITHMS else "kavg"
    given = {"learners": 4, "steps": 6, "batch_size": 4, "data": "epsilon-like:60x5", **more}
    c = TrainConfig(algorithm=algorithm, options=options, device="cuda", **given)
    kernels.kernel.cache_clear()
    stand_in.compiled.clear()
    on = lambda name, fleet: choose_device(name, fleet, lambda _: stand_in, lambda: None)  # noqa: E731
    with mock.patch.object(where, "choose_device", on):
        return build(c, Fleet(MPI.COMM_SELF, c.learners))


@pytest.mark.parametrize("name", CASES)
def test_training_compiles_nothing_that_the_rehearsal_did_not(name):
    e = built(name)
    rehearse(e)
    before = set(stand_in.compiled)
    train(e, *watched(e, None))
    assert stand_in.compiled == before and before
    e.problem.close()


@pytest.mark.parametrize("name", ["kavg", "adpsgd", "mavg", "delay"])
def test_the_rehearsal_leaves_the_run_as_it_was(name):
    weights = []
    for rehearsed in (True, False):
        e = built(name)
        if rehearsed:
            rehearse(e)
        train(e, *watched(e, None))
        weights.append(e.flat.w.get())
        e.problem.close()
    assert np.array_equal(*weights) and np.any(weights[0])


def test_a_run_rehearses_before_its_clock_starts():
    from localavg.training import run as module

    class Stop(Exception):
        pass

    def stop(e):
        raise Stop

    c = TrainConfig(algorithm="sync", data="epsilon-like:200x5", steps=1, device="cpu")
    with mock.patch.object(module, "rehearse", stop), pytest.raises(Stop):
        module.run(c, MPI.COMM_SELF)
