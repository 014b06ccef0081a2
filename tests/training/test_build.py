"""The pieces of a run: built twice in one process, without a file, they give the same run."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files.checkpoint import Saved
from localavg.parallel.fleet import Fleet
from localavg.training import resume
from localavg.training.build import build
from localavg.training.loop import train
from localavg.training.run import watched

T = 24


@pytest.fixture
def config(shards):
    return TrainConfig(
        algorithm="mavg",
        options={"K": 5, "mu": 0.5},
        data=shards.path,
        learners=3,
        steps=T,
        batch_size=6,
        optimizer="momentum",
        lr=0.3,
    )


@pytest.mark.parametrize(
    "given", [{"calibrate": 4}, {"no_augment": True}, {"statistics": "keep"}, {"precision": "bf16"}]
)
def test_a_networks_setting_is_refused_where_the_data_call_for_logistic_regression(given, config):
    with pytest.raises(UserError, match=f"`{next(iter(given))}.* means nothing to"):
        trained(replace(config, **given))


def trained(config, saved=None):
    """Build and train; the pieces, the monitor and the keeper."""
    e = build(config, Fleet(MPI.COMM_SELF, config.learners))
    monitor, keeper = watched(e, None)
    train(e, monitor, keeper, saved)
    return e, keeper


def test_a_run_can_be_built_and_trained_again_in_one_process(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (trained(config)[0].flat.w for _ in range(2))
    assert np.array_equal(first, second) and first.any()
    assert list(tmp_path.iterdir()) == []


def test_new_pieces_go_on_from_the_state_of_others(config, monkeypatch):
    """As they will when ranks are lost: what was saved after an update, in pieces built anew."""
    whole, keeper = trained(config)
    kept = {}

    def keep_half(monitor, t, gamma, w):
        if not kept and t >= T // 2:
            state = {name: dict(part.state_dict()) for name, part in keeper.parts.items()}
            state["weights"] = {"w": w}
            copies = {p: {n: np.array(x) for n, x in s.items()} for p, s in state.items()}
            kept["saved"] = Saved(t, copies, 1)

    e = build(config, Fleet(MPI.COMM_SELF, config.learners))
    monitor, keeper = watched(e, None)
    report = monitor.report
    monitor.report = lambda t, gamma, w: (report(t, gamma, w), keep_half(monitor, t, gamma, w))
    train(e, monitor, keeper)
    resumed, _ = trained(config, kept["saved"])
    assert np.array_equal(resumed.flat.w, whole.flat.w)


@pytest.mark.parametrize(("engine", "same"), [("auto", True), ("loop", True), ("graph", False)])
def test_a_run_file_of_before_there_were_engines_is_of_the_loop(engine, same):
    with nullcontext() if same else pytest.raises(UserError, match="made with engine = loop, not"):
        resume._check_settings(
            "run.h5", SimpleNamespace(config={"lr": 0.5}), {"lr": 0.5, "engine": engine}
        )


@pytest.mark.parametrize(("value", "same"), [("yes", True), ("no", False)])
def test_a_run_file_of_before_one_could_choose_repeats_its_bits(value, same):
    with nullcontext() if same else pytest.raises(UserError, match="deterministic = yes, not no"):
        resume._check_settings(
            "run.h5", SimpleNamespace(config={"lr": 0.5}), {"lr": 0.5, "deterministic": value}
        )


class OutOfMemoryError(RuntimeError):
    """As torch names the error of a GPU."""


@pytest.mark.parametrize("shortage", [OutOfMemoryError, MemoryError])
def test_memory_that_is_used_up_in_a_run_is_one_clear_line(config, shortage, tmp_path, monkeypatch):
    from localavg.files import record
    from localavg.problems.logistic import Logistic
    from localavg.training.run import run

    def full(self, w, batch, out):
        raise shortage("Tried to allocate 2.00 GiB.\nMore of it")

    monkeypatch.setattr(Logistic, "gradient_", full)
    path = str(tmp_path / "run.h5")
    done = run(replace(config, out=path), MPI.COMM_SELF)
    assert done.status == 1
    assert done.text.startswith("localavg: memory is used up (Tried to allocate 2.00 GiB.); use a")
    assert record.load(path).status == "failed"
