"""`attach(…, log=…)` writes the run file of `localavg train`."""

import math
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from mpi import call
from mpi import run as launch
from mpi4py import MPI

import localavg
from localavg.errors import SharedError
from localavg.files.record import WORLD, load

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from torch import nn  # noqa: E402

D, T = 6, 22
B, ROWS = 8, 40  # examples in a mini-batch, in the training set


def loop(fleet, algorithm, path, parts=1, losses=True, finish=True):
    """A user's loop with a log, and an evaluation in its middle."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    modules = [model] if parts == 1 else [model[:2], model[2]]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in modules]
    averager = localavg.attach(
        model, fleet, algorithm, optimizers, log=path, seed=5,
        config={"data": "mine", "batch_size": B, "rows": ROWS},
    )  # fmt: skip
    own = []
    for t in range(1, T + 1):
        torch.manual_seed(100 * t + fleet.rank)
        x = torch.randn(B, D)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 0.1 / t
        loss.backward()
        own.append(float(loss))
        for optimizer in optimizers:
            optimizer.step()
        averager.step(loss if losses else None)
        if t == 11:
            with averager.averaged():
                averager.evaluated(train_loss=0.5, test_accuracy=0.75)
    if finish:
        averager.finish()
    return own


def logs(world, folder):
    """Runs of several algorithms, and what is said where a file is there already."""
    fleet = localavg.Fleet(world)
    losses = {
        name: loop(fleet, algorithm, f"{folder}/{name}.h5", parts, name != "silent")
        for name, algorithm, parts in (
            ("kavg", localavg.kavg(K=4), 1),
            ("sync", localavg.sync(), 2),
            ("silent", localavg.mavg(K=11), 1),
            ("piecewise", localavg.piecewise({0: 4, 8: 5}, outer="yogi"), 1),
        )
    }
    try:
        loop(fleet, localavg.kavg(K=4), f"{folder}/kavg.h5")
        said = None
    except SharedError as e:
        said = str(e)
    return losses, said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return call(2, logs, str(folder)), {path.stem: load(path) for path in folder.glob("*.h5")}


def test_the_rows_of_train(runs):
    answers, files = runs
    run = files["kavg"]
    losses = np.mean([answer[0]["kavg"] for answer in answers], axis=0)  # [T]
    assert run.train.t.tolist() == [4, 8, 12, 16, 20, 22]
    for previous, t, loss in zip([0, *run.train.t], run.train.t, run.train.loss, strict=False):
        assert loss == pytest.approx(losses[previous:t].mean(), rel=1e-5)
    np.testing.assert_allclose(run.train.step_size, 0.1 / run.train.t)
    assert run.train.samples.tolist() == [t * 2 * B for t in run.train.t]
    np.testing.assert_allclose(run.train.epoch, run.train.t * 2 * B / ROWS)
    parts = run.train[["compute_s", "communicate_s", "wait_s", "data_s"]].sum(axis=1)
    np.testing.assert_allclose(parts, run.train.wall_s, rtol=1e-6)
    assert (run.train.wall_s.diff().dropna() > 0).all()
    assert files["silent"].train.loss.isna().all() and files["silent"].train.t.tolist() == [11, 22]


def test_the_rows_of_averages(runs):
    _, files = runs
    found, d = files["kavg"].averages, 8 * 64  # each of 8 tensors in a multiple of 64 floats
    assert files["kavg"].config["d"] == 21 + 4 * 3 + 4  # and what they hold
    assert found.t.tolist() == [4, 8, 12, 16, 20, 22] and found.period.tolist() == [4] * 5 + [2]
    assert (found.scope == WORLD).all() and (found.bytes_node == 2 * 4 * d).all()
    assert (found.seconds > 0).all() and (found.wait_s >= 0).all()
    exchanges = files["sync"].averages  # by two optimisers: a row an update, with all bytes
    assert exchanges.t.tolist() == list(range(1, T + 1)) and (exchanges.period == 1).all()
    assert (exchanges.bytes_node == 2 * 4 * (d - 2 * 64)).all()  # without BatchNorm's statistics


def test_the_head_and_the_evaluations(runs):
    _, files = runs
    for name, run in files.items():
        assert run.status == "finished" and run.provenance["ranks"] == 2
        assert {"command", "torch", "transport", "hosts", "end"} <= run.provenance.keys()
        assert run.config["algorithm"] == ("mavg" if name == "silent" else name)
        assert (run.config["learners"], run.config["data"], run.config["seed"]) == (2, "mine", 5)
        assert run.eval.t.tolist() == [11] and run.eval.test_accuracy.tolist() == [0.75]
        assert math.isnan(run.eval.test_loss[0]) and math.isfinite(run.eval.wall_s[0])
    assert files["kavg"].config["K"] == 4 and files["silent"].config["mu"] == 0.7
    piecewise = files["piecewise"].config
    assert (piecewise["pieces"], piecewise["outer"]) == ("0:4,8:5", "yogi")
    assert (piecewise["outer_lr"], piecewise["mu"]) == (0.01, 0.9)
    assert files["kavg"].config["lr"] == 0.1 and files["kavg"].config["optimizer"] == "sgd"


def test_a_file_that_is_there_is_never_overwritten(runs):
    answers, files = runs
    assert all("kavg.h5 exists; run files are never overwritten" in said for _, said in answers)
    assert files["kavg"].status == "finished" and len(files["kavg"].train) == 6


def unfinished(world, folder):
    """A loop that ends early on all ranks, and one whose ranks differ."""
    fleet = localavg.Fleet(world)
    loop(fleet, localavg.kavg(K=4), f"{folder}/early.h5", finish=False)
    try:
        loop(fleet, localavg.kavg(K=4 + world.rank), f"{folder}/differ.h5")
    except SharedError as e:
        return str(e)


def test_a_run_that_does_not_finish_says_so_in_its_file(tmp_path):
    said = call(2, unfinished, str(tmp_path))[0]
    early, differ = load(tmp_path / "early.h5"), load(tmp_path / "differ.h5")
    assert early.status == "interrupted" and "without averager.finish" in early.attrs["failure"]
    assert early.train.t.tolist() == [4, 8, 12, 16, 20]
    assert differ.status == "failed" and differ.attrs["failure"] == said


def resumed(world, folder):
    """A loop that stops after update 10, and one that goes on from there in a new file."""
    fleet = localavg.Fleet(world)
    for name, make in (("kavg", lambda: localavg.kavg(K=4)), ("sync", localavg.sync)):
        states = []
        for part, (start, end) in enumerate(((0, 10), (10, 17))):
            torch.manual_seed(0)
            model = nn.Linear(D, 1)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            path = f"{folder}/{name}-{part}.h5"
            averager = localavg.attach(model, fleet, make(), optimizer, log=path)
            for x, state in zip((model, averager), states, strict=False):
                x.load_state_dict(state)
            for t in range(start + 1, end + 1):
                optimizer.zero_grad()
                model(torch.ones(B, D)).square().mean().backward()
                optimizer.step()
                averager.step(float(t))
            states = [x.state_dict() for x in (model, averager)]
        averager.finish()


def test_the_file_of_a_resumed_program_counts_from_where_it_resumes(tmp_path):
    """Its losses are those of its own updates, and the first period began before it."""
    call(2, resumed, str(tmp_path))
    second = load(tmp_path / "kavg-1.h5")
    assert second.train.t.tolist() == [12, 16, 17]
    assert second.train.loss.tolist() == [11.5, 14.5, 17]
    assert second.averages.t.tolist() == [12, 16, 17]
    assert second.averages.period.tolist() == [4, 4, 1]
    sync = load(tmp_path / "sync-1.h5")
    assert sync.averages.t.tolist() == [*range(11, 18)] and (sync.averages.period == 1).all()


ENDS = """\
import sys, threading
import torch, localavg
from mpi4py import MPI
fleet = localavg.Fleet(MPI.COMM_WORLD)
model = torch.nn.Linear(2, 1)
averager = localavg.attach(model, fleet, localavg.kavg(K=1), log=sys.argv[1])
torch.nn.init.constant_(model.weight, fleet.rank)
averager.step()
def fail():
    raise {error}
{end}
"""
ERROR = "RuntimeError('made to fail')"
ENDINGS = {  # ranks, the error, the last lines, the status
    "raises": (2, ERROR, "if fleet.rank == 0: fail()\naverager.finish()", "failed"),
    "raises alone": (1, ERROR, "fail()", "failed"),
    "in a thread": (2, ERROR, "thread = threading.Thread(target=fail)\nthread.start(); thread.join()", "failed"),
    "Ctrl-C": (1, "KeyboardInterrupt", "fail()", "interrupted"),
    "ends alone": (1, ERROR, "", "interrupted"),
    "raises after finish": (1, ERROR, "averager.finish()\nfail()", "finished"),
    "attached again": (1, ERROR, "localavg.attach(model, fleet, localavg.kavg())", "interrupted"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_however_a_program_ends_its_file_says_it(name, tmp_path):
    ranks, error, end, status = ENDINGS[name]
    script, path = tmp_path / "loop.py", tmp_path / "run.h5"
    script.write_text(ENDS.format(error=error, end=end))
    launch(ranks, script, path, program=("python",), timeout=120)
    found = load(path)
    assert found.status == status
    assert ("made to fail" in found.attrs.get("failure", "")) == (status == "failed")


def one_rank(path, monkeypatch, bad, algorithm):
    """A loop on one rank whose model is not finite after update 3 if `bad`; its run file."""
    for place in (sys, threading):
        monkeypatch.setattr(place, "excepthook", place.excepthook)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 2), nn.BatchNorm1d(2))
    net.register_buffer("mask", torch.full((3,), -math.inf))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    averager = localavg.attach(net, localavg.Fleet(MPI.COMM_SELF), algorithm, optimizer, log=path)
    for t in range(1, 5):
        optimizer.zero_grad()
        x = torch.randn(B, D)
        loss = net(x * math.inf if bad and t == 3 else x).square().mean()
        loss.backward()
        optimizer.step()
        averager.step(loss)
    averager.finish()
    return load(path)


@pytest.mark.parametrize("make", [lambda: localavg.kavg(K=2), localavg.sync, localavg.qsgd])
def test_a_model_that_is_not_finite_fails_and_says_so_once(make, tmp_path, monkeypatch, capfd):
    with warnings.catch_warnings(action="error"):
        bad = one_rank(tmp_path / "bad.h5", monkeypatch, True, make())
        said = capfd.readouterr().err
        good = one_rank(tmp_path / "good.h5", monkeypatch, False, make())
    why = "the model is not finite after update 4; lower the step size"
    assert said == f"localavg: {why}\n"
    assert (bad.status, bad.attrs["failure"], len(bad.train) > 0) == ("failed", why, True)
    assert good.status == "finished" and "not finite" not in capfd.readouterr().err


def late(world, folder):
    """Rank 1 is late at every call in which the ranks meet, but for the averages."""
    fleet, model = localavg.Fleet(world), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def wait():
        time.sleep(PAUSE_S * world.rank)

    def objective():
        wait()
        return 1.0

    for name, algorithm in MEETINGS.items():
        averager = localavg.attach(
            model, fleet, algorithm(), optimizer, objective=objective, log=f"{folder}/{name}.h5"
        )
        model(torch.ones(1, 2)).sum().backward()
        if name == "step":
            optimizer.step()
            wait()
        averager.step()
        if name == "calls":
            wait()
            assert averager.payload_bytes() == (0, 0)  # nothing travelled at this step
            wait()
            with averager.averaged():
                pass
        if name == "finish":
            wait()
        averager.finish()


PAUSE_S = 0.6
MEETINGS = {
    "step": localavg.sync,
    "calls": lambda: localavg.kavg(K=2),
    "finish": lambda: localavg.kavg(K=2),
    "objective": lambda: localavg.adalupa(rule="loss", tau0=1),
}


def test_whoever_is_early_at_a_call_waits(tmp_path):
    call(2, late, str(tmp_path))
    for name, pauses in {"step": 1, "calls": 2, "finish": 1, "objective": 2}.items():
        last = load(tmp_path / f"{name}.h5").train.iloc[-1]
        assert last.wait_s == pytest.approx(pauses * PAUSE_S / 2, rel=0.3), name
