"""Whole runs of four learners in this process, without a launch, against the oracles."""

import numpy as np
import oracles as oracle
import pytest
from drive import command_lines
from mpi4py import MPI
from samples import N

from localavg.files.record import CLUSTER, NEIGHBOURS, WORLD, load
from localavg.simulate.timing import Timing
from localavg.streams import Stream, generator

P, T, L2, M = 4, 52, 0.01, 0.8


def kavg(K):
    return lambda s, T, gamma: oracle.kavg(s, T, gamma, K)


def push(P, k):
    to = 1 + np.arange(P) + generator(0, 0, k, Stream.GOSSIP).integers(P - 1, size=P)
    return oracle.halves(P, to % P)


def gossip(K, W_of, first=False):
    return lambda s, T, gamma: oracle.gossip(s, T, gamma, K, lambda k: W_of(s.P, k), first)


ALGORITHMS = {  # T ends a partial period of each
    "sync": oracle.sync,
    "kavg --K 7": lambda s, T, gamma: oracle.kavg(s, T, gamma, 7),
    "mavg --K 6 --mu 0.5": lambda s, T, gamma: oracle.mavg(s, T, gamma, 6, 0.5, False),
    "slowmo --K 6": lambda s, T, gamma: oracle.outer(s, T, gamma, "slowmo", 1, 0.5, kavg(6)),
    "kavg --K 6 --outer yogi": lambda s, T, gamma: oracle.outer(s, T, gamma, "yogi", 0.01, 0.9, kavg(6)),
    "hieravg --K1 3 --K2 8 --S 2": lambda s, T, gamma: oracle.hieravg(s, T, gamma, 3, 8, 2),
    "hieravg --levels 3:2,8:P": lambda s, T, gamma: oracle.levels(s, T, gamma, [(3, 2), (8, P)]),
    "adpsgd --p-init 3 --Ks 20 --warmup 4":
        lambda s, T, gamma: oracle.adpsgd(s, T, gamma, 3, 20, 4, k_from="warmup"),
    "kavg --K 7 --participants 2": lambda s, T, gamma: oracle.fedavg(s, T, gamma, 7, drawn),
    "kavg --K 7 --weights rows": lambda s, T, gamma: oracle.kavg(s, T, gamma, 7),
    "gossip --K 3": gossip(3, lambda P, k: oracle.ring(P)),
    "gossip --K 2 --graph one-peer-exp": gossip(2, oracle.one_peer),
    "gossip --graph push --mix first": gossip(1, push, first=True),
    "gossip --graph push --K 2": gossip(2, push),
}  # fmt: skip


def drawn(r):
    """The clients of round r with seed 0."""
    return sorted(generator(0, 0, r, Stream.PARTICIPANTS).choice(P, 2, replace=False).tolist())


def gamma(t):
    return 1.2 * 0.4 ** ((t > 21) + (t > 45))


@pytest.mark.parametrize("optimiser", ["sgd", "momentum"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_is_the_oracles(algorithm, optimiser, shards, tmp_path, hooks):
    out = tmp_path / "run.h5"
    how = f"--optimizer {optimiser}" + f" --momentum {M}" * (optimiser == "momentum")
    line = (
        f"train {algorithm} --learners {P} --sampling shard --batch-size {N // P} --steps {T} "
        f"{how} --l2 {L2} --lr 1.2 --schedule steps --milestones 21 45 --factor 0.4 "
        f"--save-weights --eval-every {T}"
    )
    words = [*line.split(), "--data", shards.path, "--out", str(out)]
    assert command_lines(MPI.COMM_WORLD, [words]) == [0]
    setup = oracle.Setup(shards.X, shards.y, P, L2, optimiser, M)
    w, averages = ALGORITHMS[algorithm](setup, T, gamma)[:2]
    found, scopes = load(out), {"global": WORLD, "local": CLUSTER, "neighbours": NEIGHBOURS}
    assert np.linalg.norm(found.weights - w) < 1e-6 * np.linalg.norm(w)
    assert found.averages.t.tolist() == [t for t, _ in averages]
    assert found.averages.scope.tolist() == [scopes[scope] for _, scope in averages]
    assert averages[-1] == (T, "global")


def test_an_average_of_a_level_takes_the_modelled_time_of_its_learners(tmp_path, hooks):
    out = tmp_path / "run.h5"
    line = (
        "train hieravg --levels 2:2,5:4,11:P --learners 8 --data epsilon-like:80x50 --steps 23 "
        f"--batch-size 5 --lr 0.1 --simulate --out {out}"
    )
    assert command_lines(MPI.COMM_WORLD, [line.split()]) == [0]
    found = load(out).averages
    assert found.level.tolist() == [1, 1, 2, 1, 1, 2, 3] * 2 + [3]
    assert found.t.tolist() == [2, 4, 5, 7, 9, 10, 11, 13, 15, 16, 18, 20, 21, 22, 23]
    expected = [Timing().mean_s((2, 4, 8)[level - 1], 4 * 50) for level in found.level]
    np.testing.assert_allclose(found.seconds, expected, rtol=1e-12)
    assert (found.wait_s > 0).all()


@pytest.mark.parametrize("algorithm", ["qsgd", "adpsgd --p-init 2 --Ks 20 --warmup 0"])
def test_what_is_not_sent_is_no_communication(algorithm, tmp_path):
    """QSGD's coding and ADPSGD's S are computing (adpsgd §IV-B)."""
    out = tmp_path / "run.h5"
    line = f"train {algorithm} --learners 4 --data epsilon-like:200x20000 --steps 40 --out {out}"
    assert command_lines(MPI.COMM_WORLD, [line.split()]) == [0]
    last = load(out).train.iloc[-1]
    assert last.communicate_s + last.wait_s < 0.15 * last.wall_s


def trained(line, data, out):
    words = (
        f"train {line} --learners {P} --sampling shard --batch-size {N // P} --steps {T} --lr 0.5 "
        f"--optimizer momentum --save-weights --log-every 1 --data {data.path} --out {out}"
    )
    assert command_lines(MPI.COMM_WORLD, [words.split()]) == [0]
    return load(out)


def test_a_run_counts_the_work_and_the_losses_of_those_who_work(shards, tmp_path, hooks):
    found = trained("fedavg --K 7 --participants 3", shards, tmp_path / "run.h5")
    assert found.train.samples.tolist() == [3 * t * (N // P) for t in range(1, T + 1)]
    assert found.train.loss[0] == pytest.approx(np.log(2), rel=1e-6)  # at zero weights
    assert (found.config["participants"], found.config["weights"]) == (3, "rows")
    assert found.config["state"] == "reset"


def test_everyone_and_equal_numbers_of_rows_are_kavg_to_the_bit(shards, tmp_path, hooks):
    lines = (
        "kavg --K 7",
        "kavg --K 7 --weights rows",
        "fedavg --K 7 --participants 4 --state keep",
        "kavg --K 7 --participants 4 --weights equal",
    )
    runs = [trained(line, shards, tmp_path / f"{i}.h5") for i, line in enumerate(lines)]
    for run in runs[1:]:
        assert np.array_equal(run.weights, runs[0].weights)
        assert np.array_equal(run.train.loss, runs[0].train.loss)
    fewer = trained("kavg --K 7 --participants 3", shards, tmp_path / "fewer.h5")
    assert not np.allclose(fewer.weights, runs[0].weights, 1e-3)
