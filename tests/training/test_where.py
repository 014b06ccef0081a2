"""Where `device = auto` computes: on a GPU where every rank sees one and the problem gains by it,
against stand-ins; and that a run keeps its device. No GPU is claimed.
"""

import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi import call
from mpi4py import MPI

from localavg import cli
from localavg.cli import train
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.learner import stepsizes
from localavg.parallel import device, probe
from localavg.parallel.fleet import Fleet
from localavg.training import where
from localavg.training.build import build
from localavg.training.run import run

CARD = ((("NVIDIA X", "GPU-1"),), "")
NONE = ((), "none: no NVIDIA driver (libcuda.so.1) on this host")
FREE = 1 << 34  # bytes that the stand-in's memGetInfo says are free


def settings(**more):
    given = {"algorithm": "kavg", "options": {"K": 2}, "learners": 2, "steps": 4, "batch_size": 4}
    return TrainConfig(**{**given, "data": "epsilon-like:60x5", **more})


def data(d, n=4, kind="features"):
    """A dataset of n rows of d numbers, which takes no memory."""
    x = np.broadcast_to(np.zeros((), np.float32), (n, d))
    return SimpleNamespace(kind=kind, train=SimpleNamespace(x=x))


@pytest.fixture
def here(monkeypatch):
    """A machine with a GPU, the stand-in."""
    monkeypatch.setattr(where, "find_gpus", lambda: CARD)
    monkeypatch.setattr(where, "choose_device", on_stand_in)
    monkeypatch.setattr(where, "_try_torch", lambda *_: None)


def on_stand_in(name, fleet):
    return device.choose_device(name, fleet, lambda _: stand_in, lambda: None)


def never(*_):
    raise AssertionError("not needed")


def chosen(c, load=never, earlier=None, world=MPI.COMM_SELF):
    found = where.choose(c, Fleet(world, c.learners), earlier, load)
    return found.name, found.why


def test_without_a_gpu_nothing_is_said_loaded_or_tried(monkeypatch, capsys):
    monkeypatch.setattr(where, "find_gpus", lambda: NONE)
    monkeypatch.setattr(where, "choose_device", never)
    for c in (settings(), settings(data="digits", model="nin")):
        assert chosen(c) == ("cpu", f"auto: GPUs: {NONE[1]}")
    assert capsys.readouterr().err == ""


def test_a_network_takes_the_gpu_and_says_so(here, capsys):
    for c in (settings(data="digits", model="nin"), settings(problem="network", model="mlp")):
        assert chosen(c) == ("cuda", "auto: a network gains by a GPU")
        assert capsys.readouterr().err.startswith("localavg: device cuda, auto: a network")


def test_torch_that_sees_no_gpu_leaves_the_network_on_the_cpu(here, capsys, monkeypatch):
    def blind(*_):
        raise UserError("`device = cuda`: torch 9, built for CUDA None, sees no GPU")

    monkeypatch.setattr(where, "_try_torch", blind)
    name, why = chosen(settings(data="digits", model="nin"))
    assert name == "cpu" and why.startswith("auto: torch 9, built for CUDA None, sees no GPU")
    assert capsys.readouterr().err == f"localavg: device cpu, {why}\n"


@pytest.mark.parametrize(
    ("P", "B", "d", "name"),
    [(4, 64, 200, "cpu"), (8, 128, 2000, "cuda"), (1, 1 << 10, 1 << 10, "cuda"), (1, 1023, 1024, "cpu")],
)  # fmt: skip
def test_logistic_regression_takes_the_gpu_by_what_an_update_reads(P, B, d, name, here, capsys):
    found, why = chosen(settings(learners=P, batch_size=B), lambda: data(d))
    assert found == name and f"an update reads {P * B * d} numbers" in why
    assert capsys.readouterr().err == f"localavg: device {found}, {why}\n"


def test_data_that_fill_the_gpu_stay_on_the_host(here):
    n, d = FREE // 4 // 2 // 2048, 2048
    assert chosen(settings(learners=8, batch_size=128), lambda: data(d, n))[0] == "cuda"
    name, why = chosen(settings(learners=8, batch_size=128), lambda: data(d, n + 1))
    assert name == "cpu" and "more than half of the 17 GB free" in why


def test_what_is_asked_for_and_what_a_resumed_run_had_is_taken(here, capsys):
    network = settings(data="digits", model="nin")
    assert chosen(replace(network, device="cpu")) == ("cpu", "asked for")
    assert chosen(replace(settings(), device="cuda"), earlier="cpu") == ("cuda", "asked for")
    assert chosen(network, earlier="cpu") == ("cpu", "that of the run that is resumed")
    assert chosen(settings(), earlier="cuda") == ("cuda", "that of the run that is resumed")
    assert capsys.readouterr().err == ""


def test_the_rank_with_the_most_learners_decides(here):
    fleet = SimpleNamespace(
        rank=1,
        ranks=2,
        L=1,
        hosts=["a", "a"],
        place=0,
        layout=SimpleNamespace(counts=(2, 1)),
        world=SimpleNamespace(allgather=lambda x: [x, x]),
        together=lambda work: work(),
    )
    c = settings(learners=3, batch_size=128)
    assert where.choose(c, fleet, None, lambda: data(1 << 12)).name == "cuda"


def on_two(world, folder):
    """The devices of two ranks: where one sees no GPU, where both do, and what a run then records."""
    answers = []
    network = settings(data="digits", model="nin", learners=3)
    big = settings(learners=3, batch_size=128)
    torch = mock.patch.object(where, "_try_torch", lambda *_: None)
    with torch, mock.patch.object(where, "choose_device", on_stand_in):
        for sees in (CARD if world.rank == 0 else NONE, CARD):
            with mock.patch.object(where, "find_gpus", lambda sees=sees: sees):
                answers.append(chosen(network, world=world))
        with mock.patch.object(where, "find_gpus", lambda: CARD):
            # rank 0 has two learners, rank 1 one; each sees its own size of the data
            answers.append(chosen(big, lambda: data(1 << 12), world=world))
        full = mock.patch.object(stand_in.cuda.runtime, "memGetInfo", lambda: (world.rank, 1))
        with mock.patch.object(where, "find_gpus", lambda: CARD), full:
            answers.append(chosen(big, lambda: data(1 << 12), world=world))
    return answers


def test_all_ranks_take_the_same(tmp_path):
    first, second = call(2, on_two, str(tmp_path))
    assert first == second
    (one, why), both, reads, full = first
    assert one == "cpu" and "rank 1 sees no GPU (none: no NVIDIA driver" in why
    assert both[0] == "cuda" and reads[0] == "cuda" and "reads 1048576 numbers" in reads[1]
    assert full[0] == "cpu" and "more than half" in full[1]


def test_the_run_file_has_the_device_and_a_resumed_run_keeps_it(here, tmp_path, monkeypatch):
    monkeypatch.setattr(where, "READ", 1)
    c = settings(out=str(tmp_path / "run.h5"))
    assert run(c, MPI.COMM_SELF).status == 0
    found = record.load(c.path)
    assert found.config["device"] == "cuda" and found.provenance["device_why"].startswith("auto: ")
    monkeypatch.setattr(where, "choose_device", never)
    assert run(replace(c, resume=True), MPI.COMM_SELF).status == 0  # finished, with auto or cuda
    with pytest.raises(UserError, match="`device` is cuda there and cpu here"):
        run(replace(c, resume=True, device="cpu"), MPI.COMM_SELF)


def stopping(c, epoch):
    """A step size that fails in the third update."""

    def step_size(t):
        if t == 3:
            raise RuntimeError("stop")
        return c.lr

    return step_size


@pytest.mark.parametrize("before", ["cpu", "cuda"])
def test_a_run_that_stopped_resumes_on_its_device(before, here, tmp_path, monkeypatch):
    """On this machine auto would take the GPU for READ = 1, and the CPU for more."""
    monkeypatch.setattr(where, "READ", 1 if before == "cuda" else 1 << 20)
    c = settings(out=str(tmp_path / "run.h5"), checkpoint_every="2")
    with mock.patch.object(stepsizes, "make", stopping), pytest.raises(RuntimeError, match="stop"):
        run(c, MPI.COMM_SELF)
    monkeypatch.setattr(where, "READ", 1 << 20 if before == "cuda" else 1)
    assert run(replace(c, resume=True), MPI.COMM_SELF).status == 0
    found = record.load(c.path)
    assert found.config["device"] == before and found.provenance["resumes"] == 1
    assert found.provenance["device_why"] == "that of the run that is resumed"


def test_the_cpu_is_what_settings_for_a_gpu_are_checked_against(monkeypatch):
    monkeypatch.setattr(where, "find_gpus", lambda: NONE)
    c = settings(problem="network", model="mlp", data="no such file", precision="tf32")
    with pytest.raises(
        UserError, match="tf32` means nothing to `device = cpu`; use `device = cuda"
    ):
        build(c, Fleet(MPI.COMM_SELF, 2))  # before the data are read


@pytest.mark.parametrize(
    ("words", "ranks", "asked"),
    [
        ("--device cuda", 2, True),
        ("--device cuda --transport cuda_aware", 2, True),
        ("--data digits --model nin", 2, True),
        ("--transport cuda_aware", 2, True),
        ("--device cuda", 1, False),
        ("--device cuda --transport staged", 2, False),
        ("--device cpu --data digits --model nin", 2, False),
        ("", 2, False),
    ],
)
def test_mpi_is_tried_on_device_memory_only_where_a_choice_needs_it(
    words, ranks, asked, monkeypatch
):
    class Asked(Exception):
        pass

    def ask():
        raise Asked

    monkeypatch.setattr(probe, "probed", ask)
    monkeypatch.setattr(cli, "launched", lambda: ranks > 1)
    monkeypatch.setattr(train, "world", lambda: sys.exit("no"))
    parsed = {"algorithm": "kavg", "K": 2}
    for flag, value in zip(words.split()[::2], words.split()[1::2], strict=True):
        parsed[flag.removeprefix("--")] = value
    with pytest.raises(Asked if asked else SystemExit):
        train._train(SimpleNamespace(**parsed))
