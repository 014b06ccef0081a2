"""Where the time of a run goes: computing, communicating and waiting, measured against sleeps."""

import time

import pytest
from mpi import call

from localavg.config import TrainConfig
from localavg.files import record
from localavg.problems.logistic import Logistic

FAST_S, SLOW_S, T = 0.05, 0.15, 8
CASES = {  # algorithm and its options, settings of the run
    "K=1": ("kavg", {"K": 1}, {}),
    "K=4": ("kavg", {"K": 4}, {}),
    "K=T, rows between": ("kavg", {"K": T}, {"log_every": 2}),
    "oneshot": ("oneshot", {}, {}),
    "sync": ("sync", {}, {}),
    "qsgd": ("qsgd", {}, {}),
    "hieravg": ("hieravg", {"K1": 2, "K2": 4, "S": 2}, {"learners": 4}),
    "adpsgd": ("adpsgd", {"p_init": 2, "warmup": 0}, {}),
    "V_t": ("kavg", {"K": 4}, {"variance": "steps"}),
    "loss": ("adalupa", {"rule": "loss", "tau0": 2}, {}),
}


CENTERED = {  # on two ranks and a server
    "downpour": ("downpour", {"K": 2}, {}),
    "eamsgd": ("eamsgd", {"K": 2}, {}),
    "two a rank": ("downpour", {"K": 4}, {"learners": 4}),
}
TCP = {"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_pml": "ob1"}


class Slow:
    """Gradients that take `pause` seconds more, while the context lasts."""

    def __init__(self, pause):
        self.pause = pause

    def __enter__(self):
        self.plain = plain = Logistic.gradient_

        def gradient_(problem, w, batch, out):
            time.sleep(self.pause)
            return plain(problem, w, batch, out)

        Logistic.gradient_ = gradient_

    def __exit__(self, *_):
        Logistic.gradient_ = self.plain


def split(world, folder, cases):
    """Train every case with each of two ranks the slow one in turn; {(case, slow rank): run}."""
    from localavg.training import run as synchronous
    from localavg.training.asynchronous import run as asynchronous

    found = {}
    for name, (algorithm, options, settings) in cases.items():
        for slow in range(2):
            way = asynchronous if name in CENTERED else synchronous
            learners = settings.get("learners", 2)
            how = {"learners": learners, "steps": T, "log_every": T, "eval_every": T, **settings}
            path = found[name, slow] = f"{folder}/{name}-{slow}.h5"
            with Slow((SLOW_S if world.rank == slow else FAST_S) * 2 / learners):
                way.run(
                    TrainConfig(algorithm=algorithm, options=options, data="epsilon-like:400x20",
                                batch_size=4, out=path, **how),
                    world,
                )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("times"))
    return call(2, split, folder, CASES)[0] | call(3, split, folder, CENTERED)[0]


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("case", [*CASES, *CENTERED])
def test_whoever_is_early_waits(runs, case, slow, tmp_path):
    """To 15 %; a busy machine gets three tries, because what it does in between is waited for."""
    wall_s, wait_s = T * SLOW_S, T * (SLOW_S - FAST_S) / 2  # a mean over the two ranks
    for left in (2, 1, 0):
        run = record.load(runs[case, slow])
        last = run.train.iloc[-1]
        waits = last.wait_s == pytest.approx(wait_s, rel=0.15)
        if (waits and last.communicate_s < 0.1 * wall_s) or not left:
            break
        table, ranks = (CENTERED, 3) if case in CENTERED else (CASES, 2)
        folder = tmp_path / str(left)
        folder.mkdir()
        runs = call(ranks, split, str(folder), {case: table[case]})[0]
    assert last.wait_s == pytest.approx(wait_s, rel=0.15)
    assert last.compute_s == pytest.approx(wall_s - wait_s, rel=0.15)
    assert last.communicate_s < 0.1 * wall_s
    assert run.averages.wait_s.sum() <= last.wait_s * 1.001


@pytest.mark.parametrize("case", [*CASES, *CENTERED])
def test_the_columns_sum_to_the_wall_clock(runs, case):
    train = record.load(runs[case, 0]).train
    columns = train[["compute_s", "data_s", "communicate_s", "wait_s"]].sum(axis=1)
    assert columns.tolist() == pytest.approx(train.wall_s.tolist(), rel=0.01)


def held_up(world, folder):
    """The seconds of every exchange of a server with learners that compute meanwhile."""
    from localavg.training.asynchronous import run as asynchronous
    from localavg.training.asynchronous.server import Server

    serve, answer, began, seconds = Server.serve, Server.answer, [], []

    def timed_serve(server, j, what):
        began.append(time.perf_counter())
        return serve(server, j, what)

    def timed_answer(server, j, reply):
        answer(server, j, reply)
        seconds.append(time.perf_counter() - began[-1])

    Server.serve, Server.answer = timed_serve, timed_answer
    config = TrainConfig(
        algorithm="downpour", options={"K": 1}, data="epsilon-like:64x200000", batch_size=1,
        learners=4, steps=5, log_every=5, eval_every=5, eval_examples=4, out=f"{folder}/run.h5",
    )  # fmt: skip
    with Slow(SLOW_S):
        asynchronous.run(config, world)
    return seconds


def test_a_server_is_not_held_up_by_a_learner_that_computes(tmp_path):
    """Each rank has two learners, so one computes while the other's message travels, which MPI
    sends only while the rank calls it.
    """
    *_, seconds = call(3, held_up, str(tmp_path), env=TCP)
    assert len(seconds) == 4 * 5 and sum(s > SLOW_S / 2 for s in seconds) <= 2


PAUSE_S = 0.4
COMPARED = {"after the last row": ("kavg", {"K": 2}), "loss": ("adalupa", CASES["loss"][1])}


def compared(world, folder):
    """Runs in which rank 1 is late whenever the ranks compare their rows, and set-up takes long.

    Return how often they compared the rows.
    """
    from localavg.parallel.transport.mpi import HostMPI
    from localavg.training import loop, run

    equal, restore_, counts = HostMPI.equal, loop.restore_, {}

    def late(transport, w):
        counts[name] += 1
        time.sleep(PAUSE_S * world.rank)
        return equal(transport, w)

    def slow(*args):
        time.sleep(4 * PAUSE_S)
        return restore_(*args)

    HostMPI.equal, loop.restore_ = late, slow
    for name, (algorithm, options) in COMPARED.items():
        counts[name] = 0
        run.run(
            TrainConfig(algorithm=algorithm, options=options, data="epsilon-like:400x20",
                        batch_size=4, learners=2, steps=4, out=f"{folder}/{name}.h5"),
            world,
        )  # fmt: skip
    return counts


def test_whoever_compares_its_rows_early_waits(tmp_path):
    counts = call(2, compared, str(tmp_path))[0]
    for name, count in counts.items():
        last = record.load(tmp_path / f"{name}.h5").train.iloc[-1]
        assert count >= 2 and last.wait_s == pytest.approx(count * PAUSE_S / 2, rel=0.2)
        assert last.compute_s == pytest.approx(count * PAUSE_S / 2, rel=0.3)
