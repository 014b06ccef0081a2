"""What `attach` saves while a delayed average is on its way."""

from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

import localavg
from localavg.attaching.saved import saved
from localavg.parallel.places import What, differ

pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)


def test_the_outer_optimiser_is_saved_after_the_step_of_a_mean_that_is_on_its_way():
    """Its state is complete when the mean has arrived, which the averages wait for."""
    algorithm = localavg.kavg(K=4, delay=3, outer="nesterov")
    average = algorithm.average
    average.state = np.zeros((2, 5), np.float32)

    def arrived():
        average.state[...] = 1
        return {"about": np.zeros(2)}

    flat = SimpleNamespace(size=5, masters=dict)
    state = saved(algorithm, flat, "shared", SimpleNamespace(state_dict=arrived))
    assert (state["combine"]["w_tilde"] == 1).all() and (state["combine"]["v"] == 1).all()
    assert [*state["averaging"]] == ["about"]


def attached():
    """An averager of one rank, which has made two updates."""
    import torch

    averager = localavg.attach(
        torch.nn.Linear(3, 1), localavg.Fleet(MPI.COMM_SELF), localavg.kavg(K=2)
    )
    averager.step()
    averager.step()
    return averager


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"P": 2}, r"^attach: the state is of a job of 2 ranks, not 1: start as many as before$"),
        ({"rank": 3}, r"^attach: the state is of rank 3, and this is rank 0: save a file on every"),
    ],
)
def test_a_state_is_loaded_by_its_own_rank_of_as_many(other, told):
    averager = attached()
    state = averager.state_dict()
    with pytest.raises(localavg.UserError, match=told):
        averager.load_state_dict(state | other)
    for earlier in (state, {k: x for k, x in state.items() if k not in ("P", "rank")}):
        averager.load_state_dict(earlier)
    averager.finish()


def test_a_loop_that_made_no_update_is_told_so(capsys):
    import torch

    attached().finish()
    assert capsys.readouterr().err == ""
    fleet = localavg.Fleet(MPI.COMM_SELF)
    localavg.attach(torch.nn.Linear(3, 1), fleet, localavg.kavg()).finish()
    said = capsys.readouterr().err
    assert said.startswith("localavg: averager.finish(): no update was made: is the batch larger ")
    assert said.count("\n") == 1


def test_ranks_elsewhere_after_different_updates_may_have_lost_count():
    """It need not be a call under `if rank == 0`."""

    def remedy(*places):
        ranks = [(rank, what, t, 0, "", ()) for rank, (what, t) in enumerate(places)]
        return differ(ranks).partition("; ")[2]

    count = "give every rank the same number of updates, as by DistributedSampler and drop_last="
    both = remedy((What.AVERAGED, 7), (What.AVERAGE, 8))
    assert both.startswith(f"make this call on every rank, not under `if rank == 0`, and {count}")
    assert remedy((What.AVERAGE, 7), (What.AVERAGE, 8)).startswith(count)
    assert both.endswith("and checkpoints of the same update")
    assert remedy((What.AVERAGED, 8), (What.FINISH, 8)).endswith("not under `if rank == 0`")
