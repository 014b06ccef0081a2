"""Ranks are killed and the others go on, with rows on a GPU: by the stand-in for CuPy.

Its NCCL never notices a death: a sum that a dead rank has begun with others hangs, until it is
aborted. No GPU is claimed.
"""

import os
import threading
from types import SimpleNamespace
from unittest import mock

import killing
import numpy as np
import pytest
import stand_in
from drive import command_lines
from mpi4py import MPI
from test_survive import LINES, SURVIVING, Hit, check, failing, launched, runs_on_one_rank, words

from localavg.algorithms.base import Due, Mean
from localavg.files.record import load
from localavg.parallel import survive
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.nccl import Nccl
from localavg.problems.logistic import Logistic
from localavg.scope import Scope
from localavg.training.copies import Copies
from localavg.training.flights import Flights
from localavg.training.recorder import Recorder

CARD = ("--device", "cuda", "--engine", "loop")
LIMIT_S = 60  # of a wait of a thread


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setattr("localavg.training.where.choose_device", killing.device_of)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By name, the run on one rank and the stand-in."""
    get = runs_on_one_rank(tmp_path_factory, *CARD)

    def on_the_stand_in(name):
        with mock.patch("localavg.training.where.choose_device", killing.device_of):
            return get(name)

    return on_the_stand_in


# What is rolled back differs: moments, an outer optimiser, gradients that travel, a mean that is on
# its way, pieces, each learner's rows.
SHORT = ("kavg", "cocod", "gossip")
LONG = ("mavg", "slowmo", "sync", "pieces delayed", "push", "adalupa", "switch")


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(x, marks=pytest.mark.long) for x in LONG)])
def test_what_is_rolled_back_on_a_device_is_made_again_to_the_same_bits(
    name, whole, on_device, tmp_path, hooks
):
    """On one rank in this process."""
    again = words(LINES[name], tmp_path / "run.h5", *CARD, *SURVIVING)
    with failing(Logistic, "gradient_", 6 * 26 + 3):
        assert command_lines(MPI.COMM_WORLD, [again]) == [0]
    found = load(tmp_path / "run.h5")
    check(found, whole(name), name)
    (event,) = found.events.to_dict("records")
    assert 0 < event["t"] <= 26 and event["t"] + event["repeated"] == 26


LAUNCHES = {  # by name, the ranks at the start, and runs
    # in a sum of NCCL's; in one in the background; before one, in clusters
    "nccl": (
        4,
        [Hit("kavg", "sum@3:6", 3), Hit("cocod", "aside@1:3", 2), Hit("hieravg", "nccl@0:12", 1)],
    ),
    # in a mean by each way over MPI
    "host": (
        3,
        [
            Hit("mavg", "staged@1:7", 2, ("--transport", "staged")),
            Hit("sync", "aware@0:20", 1, ("--transport", "cuda_aware")),
        ],
    ),
}
LATER = {
    # where no sum is on its way, while the others are in one or before it
    "elsewhere": (
        4,
        [
            Hit("slowmo", "gradient@2:30", 3),
            Hit("adalupa", "evaluation@0:4", 2),
            Hit("lerp", "gradient@1:40", 1),
        ],
    ),
    "in the background": (
        4,
        [
            Hit("cocod", "travel@2:3", 3),
            Hit("outer", "merge@0:2", 2, ("--transport", "staged")),
            Hit("lerp", "travel@1:3", 1, ("--transport", "cuda_aware")),
        ],
    ),
    "two at once": (4, [Hit("mavg", "sum@0:9,sum@2:9", 2), Hit("gossip", "gradient@1:60", 1)]),
    "auto": (4, [Hit("kavg", "gradient@3:50", 3, ("--transport", "auto"))]),
}
EVERY = [*LAUNCHES, *(pytest.param(x, marks=pytest.mark.long) for x in LATER)]


@pytest.mark.parametrize("launch", EVERY)
def test_ranks_with_a_gpu_each_go_on_to_the_same_weights(launch, whole, tmp_path, hooks):
    ranks, hits = (LAUNCHES | LATER)[launch]
    hits = [hit._replace(more=(*CARD, *(hit.more or ("--transport", "nccl")))) for hit in hits]
    done, statuses = launched(ranks, hits, tmp_path, env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, statuses) == (0, [0] * len(hits)), done.stderr[-4000:]
    for i, hit in enumerate(hits):
        found = load(tmp_path / f"{i}.h5")
        check(found, whole(hit.name), hit.name, rounded=True)
        assert [*found.events.ranks_after][-1:] == [hit.left]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "limit_s"),
    [("~connect@0:2", 3), ("connect@2:2", 25)],  # the second time, in a recovery
    ids=["stands still", "dies"],
)
def test_ranks_that_nccl_never_connects_end_the_job_to_be_resumed(
    kills, limit_s, whole, tmp_path, hooks, on_device
):
    hit = Hit("mavg", f"gradient@1:40,{kills}", 2, (*CARD, "--transport", "nccl"))
    done, statuses = launched(4, [hit], tmp_path, 60, env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, statuses) == (75, []), done.stderr[-4000:]
    assert f"without the lost ranks within {limit_s} s" in done.stderr
    again = words(LINES["mavg"], tmp_path / "0.h5", *CARD, "--resume")
    assert command_lines(MPI.COMM_WORLD, [again]) == [0]
    check(load(tmp_path / "0.h5"), whole("mavg"), "mavg", rounded=True)


# ------------------------------------------------------------------------------- one rank of NCCL's


class Rank:
    """A communicator of rank 0 of some ranks, and a barrier that may fail."""

    rank = 0

    def __init__(self, size=1, fails=False):
        self.size, self.fails = size, fails
        self.key = stand_in.nccl.get_unique_id()

    def bcast(self, key):
        os.unlink(key)
        return self.key

    def Barrier(self):
        if self.fails:
            raise MPI.Exception(MPI.ERR_OTHER)


def nccl_of(comm):
    """A transport whose group is that of `comm`, and whose run outlives ranks."""
    fleet = Fleet(MPI.COMM_SELF, outlives=True)
    fleet.groups = lambda S: [Group(slice(0, 1), comm, comm.size, 1)]
    fleet.made.clear()  # those of this process, which go on
    transport = Nccl(fleet, killing.device_of("cuda", fleet))
    return transport, transport._of[id(comm)]


def with_one_that_is_dead():
    """The same of two ranks, of which the other one has connected and died."""
    comm, last = Rank(2), []
    other = threading.Thread(
        target=lambda: last.append(stand_in.nccl.NcclCommunicator(2, comm.key, 1))
    )
    other.start()
    made = nccl_of(comm)
    other.join(LIMIT_S)
    assert last
    return made


def test_ranks_meet_before_a_sum_and_do_not_begin_it_with_a_dead_one():
    transport, _ = nccl_of(Rank(fails=True))
    stand_in.log.clear()
    with pytest.raises(MPI.Exception):
        transport.mean_(transport.zeros((1, 8)), Scope.WORLD)
    assert "allReduce" not in [what for _, what in stand_in.log]


@pytest.mark.parametrize("background", [False, True], ids=["", "in the background"])
def test_a_sum_with_a_rank_that_is_dead_is_ended(background):
    """MPI reports the death a little later."""
    transport, ring = with_one_that_is_dead()
    w, told, late = transport.zeros((1, 8)), iter([False] * 5), []

    def give_up(world, why, *how):
        late.append(why)
        ring.ranks.abort()

    with (
        mock.patch.object(survive, "reported", lambda world: next(told, True)),
        mock.patch.multiple(survive, give_up=give_up, LIMIT_S=5),
        pytest.raises(survive.Lost),
    ):
        if background:
            flights = Flights(Mean(), w, transport, own=False)
            flights.begin(w, Due(Scope.WORLD, 1, 0.1))
            flights.end()
        else:
            transport.mean_(w, Scope.WORLD)
    assert ring.Is_revoked() and ring.ranks.over and late == []
    transport.settle()  # nothing waits on the device


def test_a_sum_that_another_thread_has_ended_is_no_sum():
    """A rank that fails in a gradient revokes, while its other thread waits for a sum."""
    transport, ring = with_one_that_is_dead()
    w = transport.zeros((1, 8))
    timer = threading.Timer(0.2, survive.revoke, [transport.fleet.made])
    with mock.patch.object(survive, "reported", lambda world: False):
        timer.start()
        with pytest.raises(survive.Lost):
            transport.mean_(w, Scope.WORLD)
    aborted = stand_in.NcclCommunicator.aborted
    ring.Revoke()  # twice is once
    assert stand_in.NcclCommunicator.aborted == aborted
    with pytest.raises(survive.Lost):
        ring.sum_(w[0], transport.device.stream())


def test_a_sum_that_nccl_never_begins_ends_the_job():
    """It connects the ranks at the first sum of a length, and waits for a dead one there."""
    transport, ring = nccl_of(Rank())
    ended, said, begin = threading.Event(), [], ring.ranks.allReduce
    ring.ranks.allReduce = lambda *how: (ended.wait(10), begin(*how))

    def give_up(world, why, *how):
        said.append(why)
        ended.set()

    with mock.patch.multiple(survive, give_up=give_up, HEARD_S=0.05):
        for n in (8, 8, 9):
            transport.mean_(transport.zeros((1, n)), Scope.WORLD)
    assert said == ["NCCL did not connect the ranks within 0.05 s"]


# --------------------------------------------------------------------------------- what is copied


def test_losses_that_are_vectors_count_as_their_updates():
    """The engine `batch` gives a vector of all learners on a GPU, others a scalar a learner."""
    fleet = SimpleNamespace(L=4)
    mixed = [1.0] * 4 + [stand_in.asarray(np.ones(4, np.float32))]
    assert Recorder.updates.fget(SimpleNamespace(losses=mixed, fleet=fleet)) == 2
    monitor = SimpleNamespace(losses=mixed, reported=0)
    copies = SimpleNamespace(
        _losses=(0, 1),
        _reported=0,
        monitor=monitor,
        e=SimpleNamespace(fleet=fleet),
        losses=np.zeros((2, 4, 9)),
        mine=slice(0, 4),
    )
    new = Copies._copy_losses(copies)
    assert new.tolist() == [[1.0]] * 4 and copies._losses == (0, 2)
    assert monitor.losses == [1.0] * 8 and copies.losses[0].sum() == 4
