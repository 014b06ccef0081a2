"""Ranks are killed and the others go on: to the bits of a run that nobody hit.

The promise is of one host over shared memory with all state kept. The reference is a run on one
rank.
"""

import gc
import json
import os
import signal
import time
import weakref
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from drive import command_lines
from mpi import SUPPORT, call, run
from mpi4py import MPI

from localavg.errors import SharedError, UserError
from localavg.files import checkpoint
from localavg.files.mirror import Mirror
from localavg.files.record import load
from localavg.learner.optim import Momentum
from localavg.parallel import survive
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import in_background
from localavg.parallel.transport.shared import SharedMemory
from localavg.problems.logistic import Logistic
from localavg.problems.network import Network
from localavg.training.averaging import Averaging
from localavg.training.beyond import Beyond
from localavg.training.ending import Interrupted
from localavg.training.evaluate import Evaluator
from localavg.training.keeper import Keeper
from localavg.training.kept import Kept, Offer
from localavg.training.marks import Marks
from localavg.training.monitor import Monitor

WIDE = "--data epsilon-like:60x100 --sampling shuffle --batch-size 3 --lr 0.3 --steps 40"
NETWORK = "--data digits --model nin --sampling shuffle --batch-size 8 --lr 0.02 --steps 12"
COMMON = "--learners 6 --save-weights --seed 3 --log-every 6 --eval-every 9"
SURVIVING = ("--on-failure", "continue", "--recovery-state", "all")
LINES = {  # what is rolled back differs
    "kavg": f"kavg --K 7 {WIDE} --optimizer momentum",
    "mavg": f"mavg --K 6 --mu 0.6 --nesterov {WIDE}",
    "hieravg": f"hieravg --K1 3 --K2 7 --S 2 --outer yogi {WIDE}",
    "levels": f"hieravg --levels 2:2,4:P {WIDE} --state average --optimizer momentum",
    "sync": f"sync {WIDE} --optimizer adam",
    "qsgd": f"qsgd {WIDE}",
    "slowmo": f"slowmo --K 5 {WIDE} --state reset --optimizer adam",
    "fedavg": f"fedavg --K 4 --participants 3 {WIDE}",
    "adpsgd": f"adpsgd --p-init 2 --Ks 12 --warmup 0.2 {WIDE}",
    "adalupa": f"adalupa --tau0 3 --alpha 0.5 {WIDE}",
    "loss": f"adalupa --tau0 3 --rule loss {WIDE}",
    "adacomm": f"adacomm --tau0 8 --block 9 {WIDE}",
    "qsr": f"qsr --K 2 --alpha 0.2 {WIDE}",
    "switch": f"kavg --K 5 --switch 2 {WIDE} --optimizer momentum",
    "moments": f"kavg --K 5 {WIDE} --optimizer adam --state m=reset,v=keep",
    "V": f"kavg --K 7 {WIDE} --variance steps",
    "iid": f"kavg --K 3 {WIDE} --sampling iid",
    "oneshot": f"oneshot {WIDE}",
    "mpi": f"kavg --K 4 {WIDE} --transport mpi --optimizer momentum",
    "cocod": f"kavg --K 5 --delay 5 {WIDE} --optimizer momentum",
    "lerp": f"kavg --K 4 --delay 4 --merge lerp {WIDE}",
    "anchor": f"kavg --K 6 --delay 3 --merge lerp --anchor-mu 0.6 --switch 1 {WIDE}",
    "outer": f"diloco --K 6 --delay 6 {WIDE} --state reset --optimizer adam",
    "levels delayed": f"hieravg --K1 2 --K2 6 --S 2 --delay 2 {WIDE}",
    "pieces": f"diloco --K 10 --fragments 2 {WIDE} --optimizer momentum",
    "pieces delayed": f"kavg --K 6 --fragments 2 --delay 1 --outer adam {WIDE}",
    "gossip": f"gossip --K 2 {WIDE} --optimizer momentum --state average",
    "push": f"gossip --graph push {WIDE}",
    "matching": f"gossip --K 2 --graph matching --mix first {WIDE}",
    "complete": f"gossip --K 4 --graph complete --mix first {WIDE}",
    "network": f"kavg --K 3 {NETWORK} --optimizer momentum",
    "kept": f"hieravg --K1 2 --K2 4 --S 2 {NETWORK} --statistics keep",
}
LATER = ("levels", "kept", "iid", "oneshot", "V", "qsr")  # in the long tests
LATER += ("anchor", "levels delayed", "pieces delayed", "matching")
ROUNDED = ("mpi",)  # MPI decides the order of the sums over ranks


class Hit(NamedTuple):
    """A run whose ranks die, and the ranks that are left."""

    name: str
    kills: str
    left: int
    more: tuple[str, ...] = ()  # options


LAUNCHES = {  # by the number of ranks at the start
    # rank 0 in the midst of an average; in a gradient; the new rank 0, after a barrier
    4: [
        Hit("mavg", "lanes@0:2", 3),
        Hit("cocod", "gradient@2:31", 2),
        Hit("sync", "-slots@1:3", 1),
    ],
    # two at once; of three, one while the others recover
    3: [Hit("levels", "copy@1:4,gradient@0:40", 1)],
}


def words(line, out, *more):
    return ["train", *line.split(), *COMMON.split(), "--out", str(out), *more]


def launched(ranks, hits, folder, timeout=120, more=(), env=None):
    """How a launch ended, and the exit statuses of its runs."""
    request, reply = folder / "request.json", folder / "reply.json"
    how = (*SURVIVING, "--checkpoint-every", "7", *more)
    runs = [
        [hit.kills, words(LINES[hit.name], folder / f"{i}.h5", *how, *hit.more)]
        for i, hit in enumerate(hits)
    ]
    request.write_text(json.dumps(runs))
    done = run(ranks, SUPPORT / "killing.py", request, reply, ft=True, timeout=timeout, env=env)
    return done, json.loads(reply.read_text()) if reply.exists() else []


def runs_on_one_rank(folders, *more):
    """By name, the run on one rank, made when it is asked for first. more: words of its line."""

    @cache
    def get(name):
        out = folders.mktemp("whole") / "run.h5"
        assert command_lines(MPI.COMM_WORLD, [words(LINES[name], out, *more)]) == [0]
        return load(out)

    return get


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs_on_one_rank(tmp_path_factory)


def check(found, whole, name, rounded=False):
    """That a run ended as the one on one rank did, or as it but for rounding."""
    assert found.status == "finished" and "failure" not in found.attrs
    if rounded or name in ROUNDED:
        np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-4, atol=1e-6)
    else:
        assert np.array_equal(found.weights, whole.weights), name
    assert np.array_equal(found.initial_weights, whole.initial_weights)
    for group in ("train", "eval"):
        mine, theirs = getattr(found, group), getattr(whole, group)
        assert mine.t.tolist() == theirs.t.tolist()
        column = {"train": "loss", "eval": "train_loss"}[group]
        # of learners whose node died the losses since the last row are not known
        np.testing.assert_allclose(mine[column], theirs[column], rtol=1e-2 if rounded else 1e-4)
    columns = ["t", "scope", "level", "period"]
    assert found.averages[columns].equals(whole.averages[columns])


@contextmanager
def failing(owner, function, N):
    """The Nth call of a function fails, once, as MPI does when a rank has died.

    Then this rank alone goes on with itself: what it does is what living ranks do.
    """
    plain, calls = getattr(owner, function), [0]

    def fail(*args, **how):
        calls[0] += 1
        if calls[0] == N:
            raise MPI.Exception(MPI.ERR_OTHER)
        return plain(*args, **how)

    with (
        mock.patch.object(owner, function, fail),
        mock.patch.multiple(
            survive,
            check=lambda: None,
            is_loss=lambda world, error, *wait: isinstance(error, MPI.Exception),
            agreed=lambda world, done: done,
            shrunk=lambda world: MPI.COMM_SELF,
            revoke=lambda communicators: None,
            survivors=[],
        ),
    ):
        yield


def points(name, run):
    """The updates after which a run can be gone on with: see docs/failures.md."""
    if "gossip" in LINES[name]:
        return {*run.train.t, *run.eval.t}
    t = run.averages.query("scope == 2").t
    if "pieces" in name:  # the second one, which averages after a multiple of K
        t = t[run.averages.begun % int(LINES[name].split()[2]) == 0]
    return {*t}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.long] * (x in LATER)) for x in LINES]
)
def test_what_is_rolled_back_is_made_again_to_the_same_bits(name, whole, tmp_path, hooks):
    """Of all algorithms, on one rank in this process."""
    owner, made = (Network, 8) if NETWORK in LINES[name] else (Logistic, 26)  # updates
    N = (3 if name == "fedavg" else 6) * made + 3
    again = words(LINES[name], tmp_path / "run.h5", *SURVIVING)
    with failing(owner, "gradient_", N):
        assert command_lines(MPI.COMM_WORLD, [again]) == [0]
    found = load(tmp_path / "run.h5")
    check(found, whole(name), name)
    (event,) = found.events.to_dict("records")
    assert event["t"] + event["repeated"] == made
    assert event["t"] == max((t for t in points(name, whole(name)) if t <= made), default=0)


@pytest.mark.parametrize(
    ("owner", "function", "N", "t"),
    [
        (Kept, "_copy_losses", 5, 28),  # in the midst of a copy: the one before it
        (Averaging, "_average_", 14, 7),
        (Monitor, "report", 4, 14),
        (Evaluator, "_means", 5, 14),
        (Mirror, "save_weights", 2, 40),
    ],
)
def test_a_run_goes_on_from_any_point(owner, function, N, t, whole, tmp_path, hooks):
    again = words(LINES["kavg"], tmp_path / "run.h5", *SURVIVING)
    with failing(owner, function, N):
        assert command_lines(MPI.COMM_WORLD, [again]) == [0]
    found = load(tmp_path / "run.h5")
    check(found, whole("kavg"), "kavg")
    assert found.events.t.tolist() == [t]


@pytest.mark.parametrize(("name", "update", "t"), [("kavg", 26, 21), ("switch", 28, 26)])
def test_moments_that_nobody_kept_are_zero_after_a_recovery(name, update, t, tmp_path, hooks):
    """By an optimiser that counts: t had moments, which are gone."""
    assert moments_after(name, update, tmp_path) == [0.0]
    assert load(tmp_path / "run.h5").events.t.tolist() == [t]


def test_moments_are_kept_while_gradients_are_exchanged(whole, tmp_path, hooks):
    """Without `recovery_state`, before the switch to averages."""
    (moment,) = moments_after("switch", 5, tmp_path)
    assert moment > 0 and load(tmp_path / "run.h5").events.t.tolist() == [5]
    check(load(tmp_path / "run.h5"), whole("switch"), "switch")


def moments_after(name, update, folder):
    """The largest number in the moments after a recovery in the midst of update + 1."""
    seen = []
    load_state = Momentum.load_state_dict

    def noted(self, state):
        load_state(self, state)
        seen.append(abs(self.state[0]).max())

    again = words(LINES[name], folder / "run.h5", "--on-failure", "continue")
    N = 6 * update + 4
    with failing(Logistic, "gradient_", N), mock.patch.object(Momentum, "load_state_dict", noted):
        assert command_lines(MPI.COMM_WORLD, [again]) == [0]
    return seen


def test_a_recovery_removes_checkpoints_that_it_rolled_back_and_saves_soon(whole, tmp_path, hooks):
    """Of 20 and 25, after update 26, back at 21: 25 goes. Stopped there, the run resumes."""
    out, saved = tmp_path / "run.h5", []
    write = checkpoint.write

    def noted(folder, t, fleet, state):
        saved.append((t, checkpoint.found(folder)))
        if saved[-1][1] == [20]:
            raise Interrupted("stopped")
        write(folder, t, fleet, state)

    line = words(LINES["kavg"], out, *SURVIVING, "--checkpoint-every", "5")
    with failing(Logistic, "gradient_", 160), mock.patch.object(checkpoint, "write", noted):
        assert command_lines(MPI.COMM_WORLD, [line]) == [75]
    assert (22, [20]) == saved[-1] and (25, [20, 15]) in saved
    assert command_lines(MPI.COMM_WORLD, [words(LINES["kavg"], out, "--resume")]) == [0]
    found = load(out)
    check(found, whole("kavg"), "kavg")
    assert found.events.t.tolist() == [21]  # which the checkpoint does not count


def test_the_rows_before_a_loss_are_freed_two_averages_later(tmp_path, hooks):
    runs, alive = [], []
    init, copy = Kept.__init__, Kept.copy

    def noted(self, e, *args, **how):
        runs.append(weakref.ref(e))
        init(self, e, *args, **how)

    def counted(self, t):
        copy(self, t)
        if len(runs) == 2:
            gc.collect()
            alive.append(runs[0]() is not None)

    line = words(LINES["kavg"], tmp_path / "run.h5", *SURVIVING)
    with (
        failing(Logistic, "gradient_", 160),
        mock.patch.multiple(Kept, __init__=noted, copy=counted),
    ):
        assert command_lines(MPI.COMM_WORLD, [line]) == [0]
    assert alive[0] and not any(alive[2:]) and len(alive) > 2


def test_a_signal_during_a_recovery_stops_the_run_and_saves_it(whole, tmp_path, hooks):
    line, back_to = words(LINES["kavg"], tmp_path / "run.h5", *SURVIVING), Mirror.back_to

    def told(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return back_to(self, *args)

    with failing(Logistic, "gradient_", 160), mock.patch.object(Mirror, "back_to", told):
        assert command_lines(MPI.COMM_WORLD, [line]) == [75]
    assert "stopped by SIGTERM after step 22" in load(tmp_path / "run.h5").attrs["failure"]


def test_losses_before_the_first_average_stay_on_the_clock(tmp_path, hooks):
    """Each is counted once, and the rows of the run file have all of them."""
    line, plain, calls = words(LINES["oneshot"], tmp_path / "run.h5", *SURVIVING), Logistic, [0]
    gradient_ = plain.gradient_

    def fail(self, *args, **how):
        calls[0] += 1
        if calls[0] in (60, 120):
            time.sleep(0.2)
            raise MPI.Exception(MPI.ERR_OTHER)
        return gradient_(self, *args, **how)

    with failing(plain, "gradient_", 0), mock.patch.object(plain, "gradient_", fail):
        began_s = time.perf_counter()
        assert command_lines(MPI.COMM_WORLD, [line]) == [0]
        took_s = time.perf_counter() - began_s
    found = load(tmp_path / "run.h5")
    lost_s = found.events.seconds
    assert found.events.t.tolist() == [0, 0] and (lost_s >= 0.2).all() and lost_s.sum() < took_s
    assert lost_s.sum() <= found.train.wall_s.iloc[0] < took_s


def test_memory_that_is_short_is_that_of_the_copies(tmp_path, hooks):
    """The error names them, and the option that asked for them."""
    plain = Fleet.node_array

    def short(self, *args, what="", instead="", **how):
        if "copies" in what:
            raise UserError(f"no room for {what}; {instead}")
        return plain(self, *args, **how)

    line = words(LINES["kavg"], tmp_path / "run.h5", *SURVIVING)
    with failing(Logistic, "gradient_", 0), mock.patch.object(Fleet, "node_array", short):
        assert command_lines(MPI.COMM_WORLD, [line]) == [1]
    why = load(tmp_path / "run.h5").attrs["failure"]
    assert "no room for the copies that living ranks go on from; leave `on_failure` out" in why


@pytest.mark.parametrize(
    ("marks", "gone", "t"),
    [
        ([[7, 7], [14, 14]], [1], 14),  # a rank of my node died after its copy
        ([[7, 7], [14, -16]], [1], 7),  # in the midst of it
        ([[7, 7], [-1, 14]], [0], 7),
        ([[7, 7], [14, 14]], [2, 3], 7),  # who knows what the other node has made
        ([[7, 7], [-16, -16]], [2, 3], 7),  # but all have made 7, or nobody would copy 14
        ([[7, 7], [14, 14]], [3], 14),
        ([[7, 7], [-1, -1]], [2, 3], -1),
    ],
)
def test_survivors_go_on_from_a_copy_that_all_have_finished(marks, gone, t):
    """Marks of the two ranks of my node, of two; the other node agrees."""
    fleet = SimpleNamespace(ranks=4, node_of=(0, 0, 1, 1), world=None)
    mine, world = Marks(fleet), SimpleNamespace(allgather=lambda x: [x])
    mine.marks = np.array(marks)
    with mock.patch.object(survive, "lost", lambda before, after: gone):
        assert mine.last(world) == t


def test_any_error_may_follow_from_a_death():
    """MPI tells of it a little later. Without a death, an error is what it is."""
    told = iter([0, 0, 1])
    failed = lambda: SimpleNamespace(size=next(told, 0))  # noqa: E731
    world = SimpleNamespace(Iprobe=lambda: None, Is_revoked=lambda: False, Get_failed=failed)
    assert survive.is_loss(world, ValueError("of garbage"))
    assert not survive.is_loss(world, ValueError("a defect"), 0.05)


def comms_of(world):
    """How many communicators of clusters, lanes, short rows and messages a fleet does not know."""
    fleet = Fleet(world, 4)
    transport = SharedMemory(fleet, (2,))
    background = in_background(transport, fleet)
    used = [group.comm for S in (2, 4) for group in fleet.groups(S) if group.comm is not None]
    used += [transport._messages(), background.world]
    for parts in (*transport.parts.values(), *background.parts.values()):
        for part in parts:
            used += [part.here, *(comm for _, comms in part.handled for comm in comms)]
    return len({comm.py2f() for comm in used if comm} - {comm.py2f() for comm in fleet.made})


def test_every_communicator_of_a_run_is_revoked():
    assert call(4, comms_of) == [0] * 4


def kept_beyond(world):
    """What the node of this rank has of the node before, of nodes of three ranks and of one."""
    fleet = Fleet(world, 7, ranks_per_node=3)
    beyond = Beyond(fleet, {"w": 2, "moment 0": 1}, 4, fleet.node_array)
    own = np.array([*fleet.learners], np.float32)[:, None]
    for slot, round in ((0, 1), (1, 2)):
        mine = {"w": np.repeat(10 * own + round, 2, 1), "moment 0": -own - round}
        beyond.exchange(slot, mine, 0, (own + round).astype(float), round - 1)
    fleet.node.Barrier()
    return beyond.learners, {k: x.copy() for k, x in beyond.rows.items()}, beyond.losses.copy()


def test_the_next_node_has_what_the_learners_of_a_node_have():
    for rank, (learners, rows, losses) in enumerate(call(4, kept_beyond)):
        assert learners == ([5, 6] if rank < 3 else [0, 1, 2, 3, 4])
        j = np.array(learners)
        for slot in (0, 1):
            assert np.array_equal(rows["w"][slot], np.array([10 * j + slot + 1] * 2).T)
            assert np.array_equal(rows["moment 0"][slot], -j[:, None] - slot - 1)
        assert np.array_equal(losses[0, :, :2], j[:, None] + [[1, 2]])


def test_a_learner_whose_two_nodes_died_ends_the_run():
    kept = SimpleNamespace(beyond=object())
    give = partial(Kept._givers, kept)
    a, b = Offer([0, 1], [4, 5], range(3)), Offer([2, 3], [0, 1], range(3, 6))
    assert [(j, giver, far) for j, _, giver, far in give([a, b])] == [
        (0, 0, False), (1, 0, False), (2, 1, False), (3, 1, False), (4, 0, True), (5, 0, True)
    ]  # fmt: skip
    with pytest.raises(SharedError, match="learner 4 died"):
        [*give([a._replace(beyond=[]), b])]


@pytest.mark.parametrize("ranks", LAUNCHES)
def test_the_ranks_that_live_go_on_to_the_same_bits(ranks, whole, tmp_path, hooks):
    hits = LAUNCHES[ranks]
    done, statuses = launched(ranks, hits, tmp_path)
    assert (done.returncode, statuses) == (0, [0] * len(hits)), done.stderr[-4000:]
    said = done.stderr
    for i, hit in enumerate(hits):
        found = load(tmp_path / f"{i}.h5")
        check(found, whole(hit.name), hit.name)
        events, before = found.events, ranks if i == 0 else hits[i - 1].left
        assert events.ranks_before.iloc[0] == before and events.ranks_after.iloc[-1] == hit.left
        t = set(whole(hit.name).averages.t) | {0} if hit.name != "sync" else set(range(41))
        assert set(events.t) <= t and (events.repeated >= 0).all() and (events.seconds > 0).all()
        assert f"{hit.left} rank{'s' * (hit.left > 1)} go" in said
    assert said.count("died") == sum(
        len(load(tmp_path / f"{i}.h5").events) for i in range(len(hits))
    )


def test_a_recovery_that_stands_still_ends_the_job_to_be_resumed(whole, tmp_path, hooks):
    """Rank 1 dies, and rank 0 does not come back from building the smaller run."""
    done, statuses = launched(3, [Hit("mavg", "gradient@1:50,~build@0:1", 2)], tmp_path, 60)
    assert (done.returncode, statuses) == (75, [])
    assert "could not go on without the lost ranks within 3 s" in done.stderr
    assert time.time() - (tmp_path / "reply.json.hits").stat().st_mtime < 30  # when rank 1 died
    assert command_lines(MPI.COMM_WORLD, [words(LINES["mavg"], tmp_path / "0.h5", "--resume")]) == [
        0
    ]
    found = load(tmp_path / "0.h5")
    check(found, whole("mavg"), "mavg")
    assert found.provenance["resumes"] == 1


@pytest.mark.parametrize("why", ["run.h5 is gone", "a defect", "no average of everyone"])
def test_what_nobody_can_go_on_from_ends_the_job_with_its_reason(why, tmp_path, hooks, capsys):
    """A run file that is not there; a defect; a run that was resumed and has not averaged yet."""
    resumed = why.startswith("no average")
    line = words(LINES["oneshot"], tmp_path / "run.h5", *SURVIVING)

    class GaveUp(Exception):
        pass

    def give_up(world, why, shared=False, remedy=""):
        raise GaveUp(f"{why}, shared = {shared}")

    def lost(self, path):
        raise KeyError("a defect") if why == "a defect" else UserError(f"{path} is gone")

    take_over = Mirror.take_over if resumed else lost
    if resumed:
        with mock.patch.object(Keeper, "visit", stop_at_20), mock.patch.object(survive, "check"):
            assert command_lines(
                MPI.COMM_WORLD, [words(LINES["oneshot"], tmp_path / "run.h5")]
            ) == [75]
        line.append("--resume")
    with (
        failing(Logistic, "gradient_", 50),
        mock.patch.object(Mirror, "take_over", take_over),
        mock.patch.object(survive, "give_up", give_up),
        pytest.raises(GaveUp, match=f"{why}.*shared = {why != 'a defect'}"),
    ):
        command_lines(MPI.COMM_WORLD, [line])


def stop_at_20(keeper, t):
    keeper.due = t + 1
    if t == 20:
        keeper.save(t)
        raise Interrupted("stopped")


NARROW = WIDE.replace("--lr 0.3", "--lr 0.001")
CODED = {  # with hardly any step the gradients do not depend on what the codes have lost so far
    "int8": f"kavg --K 5 {NARROW}",
    "bf16": f"kavg --K 5 {NARROW} --delay 5",
    "pieces in code": f"kavg --K 6 --fragments 2 {NARROW}",
    "low rank": f"kavg --K 3 {NETWORK}".replace("--lr 0.02", "--lr 0.00001"),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("wire", "hits"),
    [
        # a rank of each node, so that both go on, first as two nodes and then as one
        ("int8", [Hit("int8", "gradient@1:60", 3), Hit("int8", "gradient@2:60", 2)]),
        ("bf16", [Hit("bf16", "gradient@1:60", 3), Hit("bf16", "gradient@2:60", 2)]),
        ("int8", [Hit("pieces in code", "gradient@1:60,gradient@2:31", 2)]),
        ("lowrank:1", [Hit("low rank", "network@1:14", 3)]),
    ],
)
def test_what_codes_have_lost_is_not_lost_with_a_rank(wire, hits, tmp_path, hooks):
    """Σ of what arrived is Σ of what the learners did, as without a code."""
    for hit in {hit.name: hit for hit in hits}.values():
        LINES.setdefault(hit.name, CODED[hit.name])
    more = ("--ranks-per-node", "2", "--wire", wire)
    done, statuses = launched(4, hits, tmp_path, more=more)
    assert (done.returncode, statuses) == (0, [0] * len(hits)), done.stderr[-4000:]
    for i, hit in enumerate(hits):
        found, out = load(tmp_path / f"{i}.h5"), tmp_path / f"{i} whole.h5"
        assert command_lines(MPI.COMM_WORLD, [words(CODED[hit.name], out)]) == [0]
        whole = load(out)
        way = abs(whole.weights - whole.initial_weights).max()
        off = abs(found.weights - whole.weights).max() / way
        assert found.events.ranks_after.iloc[-1] == hit.left
        assert off < (1e-3 if "digits" in CODED[hit.name] else 1e-5), (hit, off)


@pytest.mark.long
def test_what_a_dead_node_had_is_on_the_next_one(whole, tmp_path, hooks):
    """One node after the other dies, of nodes of one rank each."""
    hits = [
        Hit("cocod", "gradient@1:31", 3),
        Hit("gossip", "gradient@3:50", 2),
        Hit("kavg", "gradient@2:60", 1),
    ]
    done, statuses = launched(4, hits, tmp_path, more=("--ranks-per-node", "1"))
    assert (done.returncode, statuses) == (0, [0] * len(hits)), done.stderr[-4000:]
    for i, hit in enumerate(hits):
        found = load(tmp_path / f"{i}.h5")
        check(found, whole(hit.name), hit.name, rounded=True)
        assert found.events.ranks_after.iloc[-1] == hit.left


def test_an_average_that_is_held_back_for_a_copy_is_in_the_checkpoint(whole, tmp_path, hooks):
    """Saved after update 20, where one has been merged and the next one is due."""
    for how in (SURVIVING, ()):
        copy = tmp_path / f"{len(how)}.h5"
        held = mock.patch.multiple(survive, check=lambda: None, survivors=[], agreed=all_done)
        with held, mock.patch.object(Keeper, "visit", stop_at_20):
            assert command_lines(MPI.COMM_WORLD, [words(LINES["cocod"], copy, *SURVIVING)]) == [75]
        with held:
            again = words(LINES["cocod"], copy, "--resume", *how)
            assert command_lines(MPI.COMM_WORLD, [again]) == [0]
        check(load(copy), whole("cocod"), "cocod")


def all_done(world, done):
    return done


@pytest.mark.long
def test_nodes_go_on_to_the_same_weights(whole, tmp_path, hooks):
    """Of two nodes a rank dies, while lanes are on their way, and then all ranks of the second."""
    hits = [Hit("mavg", "lanes@1:3", 3), Hit("hieravg", "gradient@2:20,gradient@3:20", 1)]
    done, statuses = launched(4, hits, tmp_path, more=("--ranks-per-node", "2"))
    assert (done.returncode, statuses) == (0, [0, 0]), done.stderr[-4000:]
    for i, hit in enumerate(hits):
        found = load(tmp_path / f"{i}.h5")
        check(found, whole(hit.name), hit.name, rounded=True)
        assert found.events.ranks_after.iloc[-1] == hit.left


UNHEARD = """
import sys, time
from mpi4py import MPI
from localavg.parallel import survive

survive.HEARD_S = 1
survive.survivors[:] = [MPI.COMM_WORLD]
if MPI.COMM_WORLD.rank == 0:
    survive.agreed(MPI.COMM_WORLD, False)
time.sleep(300)
"""


def test_whoever_knows_of_a_loss_does_not_wait_for_ever_for_a_rank_that_never_hears(tmp_path):
    (tmp_path / "unheard.py").write_text(UNHEARD)
    done = run(2, tmp_path / "unheard.py", ft=True, timeout=150)
    assert done.returncode == 75, done.stderr
    assert "could not go on without the lost ranks within 1 s" in done.stderr


ALONE = """
import os, signal, time
from mpi4py import MPI
from localavg.parallel import survive

world = MPI.COMM_WORLD
survive.survivors[:] = [world]
world.Barrier()
if world.rank:
    os.kill(os.getpid(), signal.SIGKILL)
while not survive.is_loss(world, RuntimeError()) or world.Get_failed().size < world.size - 1:
    time.sleep(0.1)
survive.give_up(world, "no way")
"""


def test_the_last_rank_that_lives_gives_up_with_the_status_of_a_run_to_resume(tmp_path):
    """mpirun's status is 0 where the last rank of a job aborts (Open MPI 5.0.11)."""
    (tmp_path / "alone.py").write_text(ALONE)
    done = run(3, tmp_path / "alone.py", ft=True, timeout=150)
    assert done.returncode == 75 and "no way; the same command with --resume" in done.stderr
