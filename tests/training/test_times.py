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


def split(world, folder):
    """Train every case with every rank the slow one in turn; {(case, slow rank): run} on rank 0."""
    from localavg.training.run import run

    plain, found = Logistic.gradient_, {}
    for name, (algorithm, options, settings) in CASES.items():
        for slow in range(world.size):
            learners = settings.get("learners", world.size)
            pause = (SLOW_S if world.rank == slow else FAST_S) * world.size / learners

            def gradient_(self, w, batch, out, pause=pause):
                time.sleep(pause)
                return plain(self, w, batch, out)

            Logistic.gradient_ = gradient_
            path = f"{folder}/{len(found)}.h5"
            how = {"learners": learners, "steps": T, "log_every": T, "eval_every": T, **settings}
            try:
                run(
                    TrainConfig(algorithm=algorithm, options=options, data="epsilon-like:400x20",
                                batch_size=4, out=path, **how),
                    world,
                )  # fmt: skip
            finally:
                Logistic.gradient_ = plain
            found[name, slow] = path
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("times"))
    return call(2, split, folder)[0]


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_whoever_is_early_waits_and_the_columns_sum_to_the_wall_clock(runs, case, slow):
    run = record.load(runs[case, slow])
    last = run.train.iloc[-1]
    wall_s, wait_s = T * SLOW_S, T * (SLOW_S - FAST_S) / 2  # a mean over the two ranks
    assert last.wait_s == pytest.approx(wait_s, rel=0.15)
    assert last.compute_s == pytest.approx(wall_s - wait_s, rel=0.15)
    assert last.communicate_s < 0.1 * wall_s
    columns = run.train[["compute_s", "data_s", "communicate_s", "wait_s"]].sum(axis=1)
    assert columns.tolist() == pytest.approx(run.train.wall_s.tolist(), rel=0.01)
    assert run.averages.wait_s.sum() <= last.wait_s * 1.001
