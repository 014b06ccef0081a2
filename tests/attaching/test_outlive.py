"""Ranks of `attach` die and the others go on: from the last average of everyone, with fewer learners.

On one rank in this process a call of MPI fails once, as MPI does when a rank has died, and this rank
goes on with itself: then nothing may be lost but the updates since the average. With several ranks
the oracle is a loop over the learners that live.
"""

import gc
import json
import re
import sys
from contextlib import contextmanager
from copy import deepcopy
from unittest import mock

import numpy as np
import pytest
from mpi import ROOT, SUPPORT, run
from mpi4py import MPI

import localavg
from localavg.attaching.copies import Copies
from localavg.attaching.log import Log
from localavg.files.record import load
from localavg.parallel import survive
from localavg.parallel.agreement import Agreement
from localavg.parallel.transport.shared import SharedMemory
from localavg.training.averaging import Averaging

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from outlived import oracle  # noqa: E402
from outliving import LOOPS, batch, gamma, net  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

T = 23
SGD = {"lr": 0.05, "momentum": 0.9}
ALGORITHMS = {  # a function that makes it, and what else attach gets
    "kavg": (lambda: localavg.kavg(K=4), {}),
    "mavg": (lambda: localavg.mavg(K=4, mu=0.6), {"state": "average"}),
    "yogi": (lambda: localavg.kavg(K=5, outer="yogi"), {"statistics": "keep"}),
    "sync": (localavg.sync, {"recovery_state": "policy"}),
    "qsgd": (localavg.qsgd, {}),
    "switch": (lambda: localavg.kavg(K=4, switch=6), {}),
    "adpsgd": (lambda: localavg.adpsgd(p_init=3, Ks=6), {}),
    "adacomm": (lambda: localavg.adacomm(tau0=4, block=8), {}),
    "bfloat16": (lambda: localavg.mavg(K=4, mu=0.5), {"master": True}),
    "delay": (lambda: localavg.kavg(K=4, delay=4), {}),
    "anchor": (lambda: localavg.kavg(K=4, delay=4, merge="lerp", anchor_mu=0.5, switch=5), {}),
    "pieces": (lambda: localavg.kavg(K=6, fragments=3, delay=1, outer="yogi"), {}),
    "gossip": (lambda: localavg.gossip(K=2), {"state": "average"}),
}


@contextmanager
def failing(owner, function, N):
    """The Nth call of a function fails, once; see `test_survive.failing`."""
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
            check=lambda launch: None,
            is_loss=lambda world, error, *more: isinstance(error, MPI.Exception),
            agreed=lambda world, done: done,
            shrunk=lambda world: MPI.COMM_SELF,
            revoke=lambda communicators: None,
            give_up=mock.Mock(side_effect=AssertionError),
            survivors=[],
        ),
    ):
        yield calls


def loop(name, log=None, catch=True, **more):
    """Train one learner; returns its state at the end, and where it went back to."""
    make, how = ALGORITHMS[name]
    model, back = net(), []
    if name == "bfloat16":
        model.bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    averager = localavg.attach(
        model,
        localavg.Fleet(MPI.COMM_SELF),
        make(),
        optimizer,
        log=log,
        config={"rows": 100, "batch_size": 8},
        on_failure="continue",
        **{"recovery_state": "all", **how, **more},
    )
    while averager.t < T:
        try:
            t = averager.t + 1
            optimizer.param_groups[0]["lr"] = gamma(t)
            optimizer.zero_grad()
            x, y = batch(0, t)
            loss = cross_entropy(model(x.to(model[0].weight.dtype)).float(), y)
            loss.backward()
            optimizer.step()
            averager.step(loss)
            if t == T:
                averager.finish()
        except localavg.Recovered as lost:
            if not catch:
                raise
            back.append((lost.t, lost.lost, lost.fleet is averager.fleet))
            assert averager.t == lost.t
    averager._agreement.abandon()  # as at the end of the program
    state = {**model.state_dict(), **optimizer.state_dict()["state"][0]}
    return {name: x.float().numpy() for name, x in state.items()}, back, averager


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_is_lost_but_the_updates_since_the_average(name):
    with failing(Agreement, "meet", 0) as calls:
        whole, none, _ = loop(name)
    assert none == []
    with failing(Agreement, "meet", calls[0] * 2 // 3):
        again, back, averager = loop(name)
    ((t, lost, fleet),) = back
    assert 0 < t < T and lost == [] and fleet
    assert same(again, whole)
    assert averager.t == T and averager.participates


@pytest.mark.parametrize(
    ("owner", "function", "N", "t"),
    [
        (SharedMemory, "mean_", 4, 12),  # in the average at 16
        (Averaging, "_steer", 5, 12),  # the first one is at the start
        (Copies, "_keeps", 4, 8),  # in the copy after 12, of which this is the fourth
        (Log, "row", 4, 12),
        (Agreement, "meet", 1, 0),
        (Agreement, "leave", 6, 20),  # of finish()
    ],
)
def test_a_loop_goes_on_from_any_point(owner, function, N, t, tmp_path):
    with failing(Agreement, "meet", 0):
        whole, _, _ = loop("kavg", tmp_path / "whole.h5")
    with failing(owner, function, N):
        again, back, _ = loop("kavg", tmp_path / "again.h5")
    assert [at for at, _, _ in back] == [t]
    if t == 0:  # the first forward pass has changed BatchNorm's statistics before the copy
        again, whole = ({k: x for k, x in s.items() if ".n" not in k} for s in (again, whole))
        again, whole = ({k: x for k, x in s.items() if "1.r" not in k} for s in (again, whole))
    assert same(again, whole)
    whole, again = load(tmp_path / "whole.h5"), load(tmp_path / "again.h5")
    assert again.status == "finished" and again.events.t.tolist() == [t]
    assert again.averages[["t", "scope", "period"]].equals(whole.averages[["t", "scope", "period"]])
    columns = ["t", "epoch", "samples", "loss"]
    np.testing.assert_allclose(again.train[columns], whole.train[columns], rtol=1e-12)
    assert (again.train.wall_s.diff().dropna() >= 0).all()


def test_a_state_that_is_loaded_is_gone_back_to():
    """And not an average of before, which had more updates."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)

    def until(end, averager):
        while averager.t < end:
            optimizer.zero_grad()
            x, y = batch(0, averager.t + 1)
            cross_entropy(model(x), y).backward()
            optimizer.step()
            averager.step()

    with failing(Agreement, "meet", 4):
        fleet = localavg.Fleet(MPI.COMM_SELF)
        averager = localavg.attach(model, fleet, localavg.kavg(K=4), on_failure="continue")
        until(4, averager)
        parts = averager, model, optimizer
        saved = [deepcopy(part.state_dict()) for part in parts]
        until(12, averager)
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
        with pytest.raises(localavg.Recovered) as raised:
            until(8, averager)
    averager._agreement.abandon()
    assert raised.value.t == averager.t == 4
    assert all(torch.equal(x, saved[1][name]) for name, x in model.named_parameters())


REFUSED = {  # by the words of the error, the algorithm and what else attach gets
    "`on_failure = go`: must be one of end, continue": (localavg.kavg, {"on_failure": "go"}),
    "`recovery_state = no`: must be one of policy, all": (localavg.kavg, {"recovery_state": "no"}),
    "`recovery_state = all` means nothing without": (
        localavg.kavg,
        {"on_failure": "end", "recovery_state": "all"},
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_go_on_is_refused_at_the_start(words):
    make, how = REFUSED[words]
    how = {"on_failure": "continue", **how}
    with failing(Agreement, "meet", 0), pytest.raises(localavg.UserError, match=re.escape(words)):
        localavg.attach(net(), localavg.Fleet(MPI.COMM_SELF), make(), **how)


def test_a_second_model_is_refused_while_the_first_one_works():
    fleet = localavg.Fleet(MPI.COMM_SELF)
    with failing(Agreement, "meet", 0):
        first = localavg.attach(net(), fleet, localavg.kavg(K=2), on_failure="continue")
        with pytest.raises(localavg.UserError, match="takes one model, and another one is"):
            localavg.attach(net(), fleet, localavg.kavg(K=2))
        first.finish()
        second = localavg.attach(net(), fleet, localavg.kavg(K=2))
        second.finish()


def test_a_model_that_nobody_holds_is_not_another_one():
    """It lies in a circle of references, which Python leaves until it looks for circles."""
    fleet = localavg.Fleet(MPI.COMM_SELF)
    with failing(Agreement, "meet", 0), collecting_nothing():
        gone = net()
        gone.circle = [gone]
        localavg.attach(gone, fleet, localavg.kavg(K=2), on_failure="continue")
        del gone
        localavg.attach(net(), fleet, localavg.kavg(K=2)).finish()


@contextmanager
def collecting_nothing():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_launcher_that_ends_the_job_is_named():
    with pytest.raises(localavg.UserError, match="mpirun --with-ft ulfm -n N python PRO"):
        localavg.attach(
            net(), localavg.Fleet(MPI.COMM_SELF), localavg.kavg(), on_failure="continue"
        )


# ---------------------------------------------------------------------------------- several ranks


def went_back(name, P, folder):
    """How a launch on P ranks ended, and the weights and where it went back to of each loop."""
    reply = folder / "reply.json"
    done = run(P, SUPPORT / "outliving.py", reply, name, ft=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done, json.loads(reply.read_text())


def outlived(name, P, folder):
    """How a launch ended whose loops end as the oracle's, and where they went back to."""
    done, answers = went_back(name, P, folder)
    for loop, (weights, back) in zip(LOOPS[name], answers, strict=True):
        np.testing.assert_allclose(weights, oracle(loop, P, back), rtol=1e-4, atol=1e-5)
        P = back[-1][2]
    return done, [back for _, back in answers]


def test_fewer_learners_go_on_from_the_last_average(tmp_path):
    """In its midst, between averages with a log when rank 0 dies, and down to one rank."""
    done, back = outlived("equal", 4, tmp_path)
    assert back == [[[8, [3], 3]], [[12, [0], 2]], [[8, [1], 1]]]
    log = load(tmp_path / "1.h5")
    assert log.status == "finished" and log.averages.t.tolist() == [*range(4, 41, 4)]
    (event,) = log.events.to_dict("records")
    assert (event["t"], event["ranks_before"], event["ranks_after"]) == (12, 3, 2)
    assert "rank 0 on" in event["lost"] and 0 < event["seconds"] < 60
    assert done.stderr.count("died") == 3


def test_learners_that_are_apart_go_on_each_from_its_own_weights(tmp_path):
    """Gossip in its midst, and a mean that is on its way is made again by those that are left."""
    _, back = outlived("apart", 4, tmp_path)
    assert back == [[[10, [3], 3]], [[12, [0], 2]]]
    log = load(tmp_path / "1.h5")
    assert log.status == "finished" and log.events.t.tolist() == [12]
    merges = log.averages[log.averages.begun < log.averages.t]
    assert merges.t.tolist() == [*range(8, 41, 4)] and (merges.t - merges.begun == 4).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "P", "points"),
    [
        ("gossip", 3, [[[14, [0], 2]], [[6, [1], 1]]]),
        ("delay", 3, [[[8, [1], 2]], [[13, [0], 1]]]),
        ("fragments", 3, [[[12, [2], 2]], [[8, [1], 1]]]),
        ("wire", 3, [[[10, [1], 2]]]),
        ("wire of four", 4, [[[10, [1], 3]], [[10, [0], 2]]]),
    ],
)
def test_loops_go_on_from_the_point_that_the_page_names(name, P, points, tmp_path):
    """docs/failures.md; with a wire all arrives that codes had lost on the node of the dead."""
    _, back = outlived(name, P, tmp_path)
    assert back == points


@pytest.mark.long
def test_ranks_that_rest_and_make_no_step_go_back_too(tmp_path):
    _, ((_, back),) = went_back("resting", 4, tmp_path)
    assert back == [[8, [0], 3]]


@pytest.mark.long
def test_a_graph_that_the_living_cannot_form_ends_the_job_with_one_line(tmp_path):
    words = SUPPORT / "outliving.py", tmp_path / "reply.json", "torus"
    done = run(4, *words, ft=True, timeout=240)
    assert done.returncode == 75
    assert done.stderr.count("3 is a prime, so the torus is a ring") == 1, done.stderr


def test_the_example_goes_on_after_a_kill(tmp_path):
    example, out = ROOT / "jobs" / "examples" / "survive.py", tmp_path / "run.h5"
    words = ["step@0:70", example, "--epochs", "5", "--out", out]
    done = run(3, SUPPORT / "dying.py", *words, ft=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found = load(out)
    assert found.status == "finished" and found.events.t.tolist() == [64]
    # 30 updates of 3 learners an epoch; the third one is cut after 4 of them
    left = (1440 - 4 * 48) // 32
    assert found.train.t.iloc[-1] == 64 + left + 2 * 45
    assert "2 learners  test accuracy" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "kills",
    [
        "mean@1:3,back@0:1",  # another one while the others go back
        "meet@1:5,restore@2:1",
        "-mean@0:4",
        "row@2:4",
        "keep@1:3",
        "averaged@2:1",
        "finish@1:1",
        "-finish@1:1",
    ],
)
def test_no_point_hangs_the_example(kills, tmp_path):
    example, out = ROOT / "jobs" / "examples" / "survive.py", tmp_path / "run.h5"
    words = [kills, example, "--epochs", "5", "--out", out]
    done = run(3, SUPPORT / "dying.py", *words, ft=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found = load(out)
    assert found.status == "finished" and f"{3 - len(kills.split(','))} learners" in done.stdout
    assert len(found.events) == 1 and found.train.t.is_monotonic_increasing


def test_a_loop_that_does_not_catch_it_ends_with_one_line(capsys):
    """And with the status that asks to start it again."""
    lines, before = [], sys.excepthook
    with failing(Agreement, "meet", 3):
        try:
            sys.excepthook = sys.__excepthook__  # another test's may end the job
            with mock.patch.object(survive, "give_up", lambda *a, **how: lines.append((a, how))):
                with pytest.raises(localavg.Recovered) as raised:
                    loop("kavg", catch=False)
                sys.excepthook(raised.type, raised.value, None)
        finally:
            sys.excepthook = before
    (_, why), how = lines[0]
    assert why.endswith("died; all models are as after update 8") and how["shared"]
    assert "catch it and go on from its t" in how["remedy"]
