"""Which engine a run has: what was asked for, that of the run it resumes, or the fastest one, whose
trial changes nothing.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from mpi import call
from mpi4py import MPI
from samples import random_images

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.interfaces import unbooked
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.problems.engines import choose
from localavg.problems.engines.loop import Loop
from localavg.problems.network import Network
from localavg.training.resume import earlier

TRAINED, D = 3, 5


class Card(Cpu):
    """A device that is not the CPU by name, so that engines are tried."""

    name = "cuda"


class Pretended:
    """An engine that takes `seconds`, and leaves traces wherever an engine can leave them."""

    def __init__(self, name, seconds, fault=None):
        self.name, self.seconds, self.fault, self.book = name, seconds, fault, unbooked

    def __call__(self, feed, learners):
        self.feed, self.learners = feed, learners
        return self

    def gradients_(self, w, t, out):
        for j in self.learners:
            self.feed(j, t)
        w[:, TRAINED:] += 1
        torch.rand(7)
        if self.fault is not None:
            raise self.fault
        time.sleep(self.seconds)
        return [0.0] * len(w)


class Toy:
    """A problem whose loop takes 20 ms, with these engines; counts its feeds that are open."""

    def __init__(self, *engines):
        self.made, self.open = engines, 0
        self.asked = []

    def engines(self):
        return {e.name: e for e in self.made}

    def feed(self, T):
        self.open += 1
        return lambda j, t: self.asked.append((j, t))

    def close(self):
        self.open -= 1

    def gradient_(self, w, batch, out):
        time.sleep(0.01)
        return 0.0


def choice(toy, device=None, world=MPI.COMM_SELF):
    w = np.arange(2.0 * D, dtype=np.float32).reshape(2, D)
    before, state = w.copy(), torch.get_rng_state()
    fleet = Fleet(world, 2 * world.size)
    name, why = choose.fastest(toy, toy.feed, w, TRAINED, device or Card(), fleet)
    assert np.array_equal(w, before) and torch.equal(torch.get_rng_state(), state)
    assert toy.open == 0
    return name, why


def test_loop_computes_the_rows_that_work_alone():
    toy, w = Toy(), np.zeros((3, D), np.float32)
    toy.gradient_ = lambda w, batch, out: out.fill(1) or 2.5
    loop, out = Loop(toy, toy.feed(1), range(4, 7)), np.zeros_like(w)
    assert loop.gradients_(w, 1, out, [0, 2]) == [2.5, 0.0, 2.5]
    assert toy.asked == [(4, 1), (6, 1)] and out[:, 0].tolist() == [1, 0, 1]
    assert loop.gradients_(w, 2, out, []) == [0.0] * 3 and len(toy.asked) == 2
    assert loop.gradients_(w, 3, out) == [2.5] * 3


def test_the_fastest_engine_is_taken_and_its_trial_changes_nothing():
    toy = Toy(Pretended("slow", 0.1), Pretended("quick", 0.001))
    name, why = choice(toy)
    assert name == "quick"
    assert all(f"{n} " in why for n in ("loop", "slow", "quick")) and " ms" in why
    # Every trial asks for the first updates again, of all learners.
    assert toy.asked.count((1, 1)) == toy.asked.count((0, choose.TRIAL)) == 3


@pytest.mark.parametrize("fault", [UserError("it cannot be captured"), MemoryError("4 GB")])
def test_an_engine_that_cannot_work_is_passed_over_and_named(fault):
    name, why = choice(Toy(Pretended("broken", 0, fault)))
    assert name == "loop" and f"broken: {fault}" in why


def test_on_the_cpu_it_is_loop_without_a_trial():
    toy = Toy(Pretended("quick", 0))
    assert choice(toy, Cpu())[0] == "loop" and toy.asked == []


def of_unequal_ranks(world):
    """The choice where an engine is quick on rank 0 and slow on the other, and one broken there."""
    first = world.rank == 0
    uneven = Pretended("uneven", 0.001 if first else 0.2)
    broken = Pretended("broken", 0, None if first else UserError("no"))
    return choice(Toy(uneven, broken, Pretended("even", 0.005)), world=world)


def test_ranks_choose_together_by_the_slowest():
    answers = call(2, of_unequal_ranks)
    assert answers[0] == answers[1] and answers[0][0] == "even" and "broken: no" in answers[0][1]


def test_no_engine_that_works_is_an_error_with_every_reason(monkeypatch):
    toy = Toy(Pretended("broken", 0, UserError("it cannot")))
    monkeypatch.setattr(Loop, "gradients_", raising(UserError("too large")))
    with pytest.raises(UserError, match=r"loop: too large; broken: it cannot"):
        choice(toy)


def raising(error):
    def gradients_(self, w, t, out):
        raise error

    return gradients_


def test_an_engine_that_a_problem_does_not_have_is_one_clear_line():
    network = Network(random_images((8, 8, 1), 4), "mlp", 0.0, seed=0)
    with pytest.raises(UserError, match=r"^`engine = nothing`: network on this device has loop"):
        choose.make("nothing", network, lambda j, t: None, range(1))


def settings(tmp_path, **more):
    return TrainConfig(
        algorithm="kavg", options={"K": 2}, data="epsilon-like:60x5", learners=2, steps=6,
        batch_size=4, out=str(tmp_path / "run.h5"), **more,
    )  # fmt: skip


def test_the_run_file_names_the_engine_and_a_resumed_run_keeps_it(tmp_path, monkeypatch):
    from localavg.training import build
    from localavg.training.run import run

    run(settings(tmp_path), MPI.COMM_SELF)
    there = record.load(tmp_path / "run.h5").provenance
    assert there["engine"] == "loop" and there["engine_why"].startswith("auto")

    def never(*args):
        raise AssertionError("tried again")

    monkeypatch.setattr(build.engines, "fastest", never)
    e = build.build(
        settings(tmp_path), Fleet(MPI.COMM_SELF, 2), earlier=build.Chosen(engine="loop")
    )
    assert e.engine.name == "loop" and "resumed" in e.engine_why
    e = build.build(settings(tmp_path, engine="loop"), Fleet(MPI.COMM_SELF, 2))
    assert e.engine_why == "asked for"


def test_a_run_of_an_earlier_version_which_names_no_engine_keeps_its_loop(tmp_path):
    c = settings(tmp_path)
    file = record.Record.create(c.path, {"algorithm": "kavg"}, {"ranks": 1})
    file.finish("interrupted")
    before = earlier(replace(c, resume=True), Fleet(MPI.COMM_SELF, 2), True)
    assert before.there and before.chosen.engine == "loop"
