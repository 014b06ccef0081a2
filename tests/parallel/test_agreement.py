"""The ranks' agreement on what comes next, with the other rank played by the test."""

import gc
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from localavg.errors import SharedError
from localavg.parallel.agreement import Agreement
from localavg.parallel.places import Taking, What
from localavg.parallel.watchdog import Watchdog
from localavg.scope import Scope


class World:
    """Rank 0 of two; `other` is what rank 1 does: (what, t, mark, fault, names)."""

    rank, size = 0, 2

    def __init__(self, other):
        self.other, self.reductions = other, 0

    def Allreduce(self, place, buffer, operation):
        assert place is MPI.IN_PLACE and operation is MPI.MIN
        self.reductions += 1
        what, t, mark, fault, names = (*self.other, ())[:5]
        code = -1 if fault else t << 28 | mark << 8 | what
        number = Taking.part(names).number if names else 0
        np.minimum(buffer[0], [code, -code, number, -number], out=buffer[0])

    def bcast(self, number):
        return 0

    def allgather(self, mine):
        return [mine, (1, *(*self.other, ())[:5])]


def agreement(other, *clusters):
    world = World(other)
    groups = [SimpleNamespace(comm=world)]
    fleet = SimpleNamespace(world=world, P=8 if clusters else 2, ranks=2, groups=lambda S: groups)
    return Agreement(fleet, clusters, 300.0, None), world


SAME = (What.AVERAGE, 24, 0, "")
DIFFERENT = [
    ((What.AVERAGE, 26, 0, ""), "rank 0 is in the average after update 24, but rank 1 is in the average after update 26"),
    ((What.FINISH, 24, 0, ""), "but rank 1 is in averager.finish.. after update 24"),
    ((What.AVERAGED, 24, 0, ""), "averager.averaged.. after update 24; make this call on every rank"),
    ((What.AVERAGE, 24, 3, ""), "stepped optimisers: none., but .*stepped optimisers: 0, 1"),
    ((What.AVERAGE, 24, 3 << 16, ""), "rank 0 is in the average after update 24 of averager 1, but rank 1 .* of averager 4; call the averagers in the same order"),
    ((What.AVERAGE, 24, 0, "attach: it is broken"), "attach: on rank 1, it is broken"),
]  # fmt: skip


def test_ranks_that_do_the_same_meet_with_one_reduction():
    made, world = agreement(SAME)
    made.meet(What.AVERAGE, 24)
    assert made.watchdog.here == ("the average after update {t}", 24)
    made.leave()
    assert world.reductions == 1 and made.watchdog.here is None and not made.failed


@pytest.mark.parametrize(("other", "words"), DIFFERENT)
def test_ranks_that_differ_get_an_error(other, words):
    made, _ = agreement(other)
    ends = []
    made.ended = lambda *how: ends.append(how)
    with pytest.raises(SharedError, match=words) as e:
        made.meet(What.AVERAGE, 24)
    assert made.failed and made.watchdog.here is None
    assert ends == [("failed", str(e.value))]


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        (("a", "b"), ("a",), "update 4 has gradients of b on rank 0, but not on rank 1; train and"),
        (("a",), ("a", "c", "d"), "gradients of c, d on rank 1, but not on rank 0"),
        (("a", "b"), ("c",), "gradients of a, b on rank 0, but not on rank 1"),
        (("a",), (), "gradients of a on rank 0, but not on rank 1"),
    ],
)
def test_ranks_that_train_different_parameters_get_an_error(mine, theirs, words):
    made, _ = agreement((What.EXCHANGE, 4, 1, "", theirs))
    with pytest.raises(SharedError, match=words):
        made.meet(What.EXCHANGE, 4, mark=1, taking=Taking.part(mine))


def test_ranks_that_train_the_same_parameters_meet():
    made, world = agreement((What.EXCHANGE, 4, 1, "", ("a", "b")))
    made.meet(What.EXCHANGE, 4, mark=1, taking=Taking.part(("a", "b")))
    assert world.reductions == 1 and not made.failed


def test_a_fault_on_all_ranks_is_told_as_it_is():
    made, _ = agreement((What.STEP, 3, 0, "attach: it is broken"))
    with pytest.raises(SharedError, match=r"^attach: it is broken$"):
        made.meet(What.STEP, 3, fault="attach: it is broken")


def test_a_cluster_meets_alone_and_before_the_larger_ones_and_everyone():
    made, world = agreement(SAME, 2, 4)
    for scope, reductions in ((Scope.CLUSTER, 1), (Scope(2), 1 + 2), (Scope.WORLD, 1 + 2 + 3)):
        made.meet(What.AVERAGE, 24, scope)
        assert world.reductions == reductions


def test_a_watchdog_prints_again_and_again_and_ends_with_its_owner(capsys):
    class Owner:
        pass

    dog, owner = Watchdog(SimpleNamespace(rank=3), 0.2, None), Owner()
    dog.start(owner)
    (thread,) = (x for x in threading.enumerate() if x.name == "localavg")
    dog.here = "the average after update {t}", 8
    time.sleep(0.7)
    dog.here = None
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 3
    assert all("rank 3 has been waiting for" in x and "update 8 (t = 8)" in x for x in lines)
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
    del owner
    gc.collect()
    thread.join(2)
    assert thread.daemon and not thread.is_alive()
