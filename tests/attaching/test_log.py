"""`attach(…, log=…)` writes the run file of `localavg train`."""

import math

import numpy as np
import pytest
from mpi import call

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
            ("piecewise", localavg.piecewise({0: 4, 8: 5}), 1),
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
    found, d = files["kavg"].averages, files["kavg"].config["d"]
    assert found.t.tolist() == [4, 8, 12, 16, 20, 22] and found.period.tolist() == [4] * 5 + [2]
    assert (found.scope == WORLD).all() and (found.bytes_node == 2 * 4 * d).all()
    assert (found.seconds > 0).all() and (found.wait_s >= 0).all()
    exchanges = files["sync"].averages  # by two optimisers: a row an update, with all bytes
    assert exchanges.t.tolist() == list(range(1, T + 1)) and (exchanges.period == 1).all()
    assert (exchanges.bytes_node == 2 * 4 * (d - 6)).all()  # without BatchNorm's statistics


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
    assert files["piecewise"].config["pieces"] == "0:4,8:5"
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
