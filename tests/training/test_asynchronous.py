"""Downpour and EAMSGD: over MPI and in simulated time, against loops written here from the
pseudo-code; the machine model.

The oracle follows the order of arrival that a run file tells, in float64, on whole-shard batches,
so every run of the logistic problem can be checked to rounding, whatever the race was.
"""

import contextlib
import io
import math
import shutil
import threading
import time
from collections import Counter
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
from drive import parser
from mpi import call, marked, need, run, train_all
from samples import N

from localavg.algorithms.downpour import Downpour
from localavg.algorithms.eamsgd import EAMSGD
from localavg.algorithms.hieravg import Hierarchical
from localavg.algorithms.kavg import Every
from localavg.files import record
from localavg.parallel.aligned import host_zeros
from localavg.scope import Scope
from localavg.simulate import plan, timing
from localavg.simulate.arrivals import exchanges
from localavg.simulate.clock import Synchronous, averages
from localavg.simulate.timing import Timing

L2 = 1e-2
NIN = "--data digits --model nin --batch-size 8 --save-weights"

# ------------------------------------------------------------------------------------------- the ps


def gradient(w, X, y):
    """Of mean log(1 + exp(-y x.w)) + (L2 / 2) |w|^2."""
    return X.T @ (-y / (1 + np.exp(y * (X @ w)))) / len(y) + L2 * w


def objective(w, X, y):
    return np.mean(np.logaddexp(0, -y * (X @ w))) + 0.5 * L2 * w @ w


def oracle(data, order, P, T, K, lr, alpha=None, delta=None):
    """(center, learners' weights) after the exchanges of `order`, one learner id each; Downpour
    where alpha is None.
    """
    center = np.zeros(data.X.shape[1])
    x, v, t = [center.copy() for _ in range(P)], [center.copy() for _ in range(P)], [0] * P
    for j in order:
        rows = slice(N * j // P, N * (j + 1) // P)
        X, y = data.X[rows], data.y[rows]
        change = np.zeros_like(center)
        for _ in range(min(K, T - t[j])):
            t[j] += 1
            if alpha is None:
                step = -lr * gradient(x[j], X, y)
                x[j], change = x[j] + step, change + step
            else:
                v[j] = delta * v[j] - lr * gradient(x[j] + delta * v[j], X, y)
                x[j] = x[j] + v[j]
        if alpha is None:
            center = center + change  # push
            x[j] = center.copy()  # pull
        else:
            e = alpha * (x[j] - center)
            x[j], center = x[j] - e, center + e
    assert t == [T] * P
    return center, x


def stalenesses(order, P):
    """The server updates between a learner's last pull and its push."""
    seen, out = [0] * P, []
    for n, j in enumerate(order):
        out.append(n - seen[j])
        seen[j] = n + 1
    return out


def line(data, algorithm, P, T, K, lr, *more):
    """A command line with whole-shard batches. K None: an algorithm without."""
    period = f"--K {K} " if K else ""
    return (
        f"{algorithm} {period}--data {data.path} --l2 {L2} --sampling shard --batch-size {N // P} "
        f"--learners {P} "
        f"--steps {T} --lr {lr} --save-weights --log-every 2 --eval-every 4 {' '.join(more)}"
    )


def check(found, data):
    """A finished run of `line` against the oracle in its own order, and its tables against each
    other.
    """
    c, order = found.config, found.staleness.learner.tolist()
    P, T, K = c["learners"], c["steps"], c["K"]
    own = (c["alpha"], c["momentum"]) if c["algorithm"] == "eamsgd" else ()
    center, _ = oracle(data, order, P, T, K, c["lr"], *own)
    np.testing.assert_allclose(found.weights, center, rtol=2e-4, atol=2e-5)
    assert np.abs(center).max() > 1e-2  # something was learnt
    assert found.staleness.staleness.tolist() == stalenesses(order, P)
    assert (found.staleness.wall_s.diff().dropna() >= 0).all()
    for j in range(P):
        mine = found.staleness.t[found.staleness.learner == j].tolist()
        assert mine == [*range(K, T, K), T]
    assert len(found.averages) == 0
    assert found.eval.t.iloc[0] == 0 and found.eval.t.iloc[-1] == found.train.t.iloc[-1] == T
    assert found.train.samples.iloc[-1] == P * T * (N // P)
    assert found.eval.train_loss.iloc[-1] == pytest.approx(
        objective(center, data.X, data.y), rel=1e-4
    )
    assert found.eval.train_loss.iloc[0] == pytest.approx(math.log(2), rel=1e-6)


# -------------------------------------------------------------------------------------------------


def test_downpour_with_one_client_is_sgd(shards, simulated):
    """Bit for bit where every update is pushed; to rounding where changes are summed up first."""
    assert (simulated["one K=1"].weights == simulated["sgd"].weights).all()
    np.testing.assert_allclose(
        simulated["one K=4"].weights, simulated["sgd"].weights, rtol=1e-5, atol=1e-6
    )
    assert (simulated["one K=4"].staleness.staleness == 0).all()


def test_an_elastic_exchange_conserves_the_sum():
    rng, P, d = np.random.default_rng(3), 5, 40
    rule = EAMSGD(4, P, alpha=0.3, delta=0.9)
    rule.lay_out(d)
    center = rng.normal(size=d).astype(np.float32)
    learners = [rule.learner(j, center, host_zeros) for j in range(P)]
    reply = host_zeros((d,))
    for learner in learners:
        learner.message[:] = rng.normal(size=d)  # x_j

    def total():
        return center.astype(float) + sum(learner.message.astype(float) for learner in learners)

    before, spread = total(), np.ptp([learner.message for learner in learners], axis=0).max()
    for j in rng.integers(0, P, 200):
        rule.answer_(center, learners[j].message, reply, d)
        rule.pull_(learners[j], reply)
    np.testing.assert_allclose(total(), before, atol=1e-5)
    assert (
        np.ptp([learner.message for learner in learners], axis=0).max() < 0.01 * spread
    )  # and pulls together


@pytest.mark.parametrize(
    "rule", [Downpour(4, 3), EAMSGD(4, 3, 0.3, 0.9)], ids=["downpour", "eamsgd"]
)
def test_a_center_in_parts_is_served_as_a_whole_one_bit_for_bit(rule):
    rng, d, n = np.random.default_rng(5), 37, 30  # 7 statistics
    rule.lay_out(n)
    center, message = rng.normal(size=(2, d)).astype(np.float32)
    whole, parts = (center.copy(), np.empty_like(center)), (center.copy(), np.empty_like(center))
    rule.answer_(whole[0], message, whole[1], n)
    for part in (slice(0, 11), slice(11, 33), slice(33, 37)):
        rule.answer_(
            parts[0][part],
            message[part],
            parts[1][part],
            min(max(n - part.start, 0), part.stop - part.start),
        )
    assert (whole[0] == parts[0]).all() and (whole[1][:n] == parts[1][:n]).all()
    np.testing.assert_allclose(whole[0][n:], center[n:] + (message[n:] - center[n:]) / 3, rtol=1e-6)


# ---------------------------------------------------------------------------------------------- sim


@pytest.fixture(scope="module")
def simulated(shards, tmp_path_factory):
    """Runs on one process by name."""
    slow_server = "--service-s 0.05 --latency-s 0 --bandwidth-bytes-per-s 1e12"
    lines = {
        "sgd": line(shards, "sgd", 1, 12, None, 0.5),
        "one K=1": line(shards, "downpour", 1, 12, 1, 0.5, "--simulate"),
        "one K=4": line(shards, "downpour", 1, 12, 4, 0.5, "--simulate"),
        "downpour": line(shards, "downpour", 4, 10, 3, 0.3, "--simulate --seed 1 --step-cv 0.5"),
        "again": line(shards, "downpour", 4, 10, 3, 0.3, "--simulate --seed 1 --step-cv 0.5"),
        "eamsgd": line(
            shards, "eamsgd", 6, 11, 2, 0.3, "--simulate --alpha 0.2 --momentum 0.8 --step-cv 0.5"
        ),
        "five": line(shards, "downpour", 5, 11, 2, 0.3, "--simulate --step-cv 0.5"),
        "seven": line(shards, "eamsgd", 7, 9, 2, 0.3, "--simulate --momentum 0.8 --step-cv 0.5"),
        "one eamsgd": line(shards, "eamsgd", 1, 12, 4, 0.3, "--simulate --momentum 0.9"),
        "default alpha": line(shards, "eamsgd", 6, 8, 2, 0.1, "--simulate"),
        "steady": line(
            shards,
            "downpour",
            1,
            10,
            4,
            0.3,
            "--simulate --step-cv 0 --step-s 0.5 --latency-s 0.25 --service-s 1 "
            "--bandwidth-bytes-per-s 80",
        ),
        "queue": line(shards, "downpour", 8, 6, 2, 0.1, f"--simulate --step-s 0.001 {slow_server}"),
        "two servers": line(
            shards,
            "downpour",
            1,
            4,
            4,
            0.3,
            "--servers 2 --simulate --step-cv 0 --step-s 1 --latency-s 0 "
            "--service-s 0 --bandwidth-bytes-per-s 80",
        ),
        "kavg": line(shards, "kavg", 4, 10, 4, 0.3, "--simulate --seed 3"),
        "hieravg": line(shards, "hieravg --K1 2 --K2 6 --S 2", 4, 12, None, 0.3, "--simulate"),
        "sync": line(shards, "sync", 4, 10, None, 0.3, "--simulate"),
        "nin": f"downpour --simulate --learners 8 --lr 0.01 --steps 60 --K 4 {NIN}",
        "nin eamsgd": f"eamsgd --simulate --learners 2 --lr 0.01 --steps 6 --K 2 {NIN}",
    }
    return train_all(tmp_path_factory.mktemp("simulated"), 1, lines)


@pytest.mark.parametrize(
    "name", ["one K=1", "one K=4", "downpour", "eamsgd", "one eamsgd", "default alpha", "queue"]
)
def test_a_simulated_run_follows_the_pseudo_code_in_its_order(name, simulated, shards):
    check(simulated[name], shards)


def test_the_moving_rate_is_nine_tenths_over_P_unless_told(simulated):
    assert simulated["default alpha"].config["alpha"] == pytest.approx(0.9 / 6)
    assert simulated["eamsgd"].config["alpha"] == 0.2


def test_a_simulated_run_repeats_itself(simulated):
    a, b = simulated["downpour"], simulated["again"]
    assert (a.weights == b.weights).all()
    for table in ("train", "eval", "staleness"):
        pd.testing.assert_frame_equal(getattr(a, table), getattr(b, table))
    assert a.staleness.learner.tolist() != sorted(a.staleness.learner.tolist(), key=lambda j: j % 4)
    assert len(set(a.staleness.staleness)) > 1


def test_the_simulated_clock_of_one_client_is_what_one_adds_up(simulated):
    """d = 20 floats, 80 bytes: 1 s in, 1 s of service, 1 s out; four updates of 0.5 s; 0.25 s each
    way.
    """
    assert simulated["steady"].staleness.wall_s.tolist() == pytest.approx(
        [5.25, 5.25 + 0.25 + 2 + 0.25 + 3, 5.25 + 5.5 + 4.5]
    )
    assert simulated["two servers"].staleness.wall_s.tolist() == pytest.approx(
        [4 + 1]
    )  # each half the bytes, side by side


def test_a_server_that_cannot_keep_up_makes_a_queue(simulated):
    """8 learners, 24 exchanges of 50 ms and nothing else that takes long: everybody else comes in
    between.
    """
    found = simulated["queue"]
    assert found.staleness.wall_s.iloc[-1] == pytest.approx(24 * 0.05, rel=0.01)
    assert (found.staleness.staleness.iloc[8:] == 7).all()
    assert found.train.wait_s.iloc[-1] > 10 * found.train.compute_s.iloc[-1]


def test_time_needs_no_training(simulated):
    made = [*exchanges(Timing(step_cv=0.5), 4, 3, 10, 1, 80)]
    assert [e.j for e in made] == simulated["downpour"].staleness.learner.tolist()
    assert [e.t for e in made] == simulated["downpour"].staleness.t.tolist()
    assert [e.done_s for e in made] == simulated["downpour"].staleness.wall_s.tolist()


def test_networks_with_statistics_train_around_a_center(simulated):
    """Eight learners' changes added to running statistics would overshoot and make variances
    negative.
    """
    found = simulated["nin"]
    assert np.isfinite(found.eval.test_loss).all() and found.eval.test_accuracy.iloc[-1] > 0.5


# --------------------------------------------------------------------------------------------- the


STEADY = Timing(step_s=0.5, step_cv=0, latency_s=0.125, bandwidth_bytes_per_s=100)


def test_a_steady_machine_takes_what_one_adds_up():
    mean = 2 * 2 * 0.125 + 2 * 3 / 4 * 400 / 100  # log2(4) = 2
    assert STEADY.mean_s(4, 400) == pytest.approx(mean)
    assert plan.modelled_s(STEADY, 4, Every(4), 10, 0, 400) == pytest.approx(
        10 * 0.5 + 3 * mean
    )  # at 4, 8 and 10
    pair = 2 * 0.125 + 400 / 100
    taken = plan.modelled_s(STEADY, 4, Hierarchical((2, 6)), 12, 0, 400, (2,))
    assert taken == pytest.approx(
        12 * 0.5 + 4 * pair + 2 * mean
    )  # clusters at 2, 4, 8, 10; everyone at 6, 12


def test_waiting_for_the_slowest_costs_more_with_more_learners_and_shorter_periods():
    rough = Timing(step_s=0.01, step_cv=0.5, latency_s=0, bandwidth_bytes_per_s=1e15)
    taken = {
        (P, K): plan.modelled_s(rough, P, Every(K), 256, 0, 4) for P in (1, 8, 64) for K in (1, 16)
    }
    assert taken[1, 1] == pytest.approx(taken[1, 16])
    assert taken[1, 1] < taken[8, 16] < taken[64, 16] < taken[64, 1]
    assert taken[8, 1] == pytest.approx(
        2.56 * (1 + 0.5 * 1.6), rel=0.15
    )  # the largest of 8 is 1.4 to 1.7 deviations up
    assert plan.modelled_s(rough, 8, Every(4), 64, 1, 4) != plan.modelled_s(
        rough, 8, Every(4), 64, 2, 4
    )


def test_times_of_updates_have_the_mean_and_deviation_asked_for():
    times = timing.StepTimes(Timing(step_s=0.02, step_cv=0.4), seed=0)
    draws = np.array([times.sum(j, t, t + 1) for j in range(20) for t in range(500)])
    assert draws.mean() == pytest.approx(0.02, rel=0.02) and draws.std() == pytest.approx(
        0.008, rel=0.05
    )
    assert times.sum(3, 100, 900) == pytest.approx(
        sum(times.sum(3, t, t + 1) for t in range(100, 900))
    )


def test_a_simulated_synchronous_run_records_the_modelled_times(simulated):
    default, nbytes = Timing(), 4 * 20
    kavg, hieravg, sync = (simulated[name] for name in ("kavg", "hieravg", "sync"))
    assert kavg.train.wall_s.iloc[-1] == pytest.approx(
        plan.modelled_s(default, 4, Every(4), 10, 3, nbytes)
    )
    assert kavg.eval.wall_s.iloc[-1] == kavg.train.wall_s.iloc[-1]
    assert kavg.averages.seconds.tolist() == pytest.approx([default.mean_s(4, nbytes)] * 3)
    modelled = plan.modelled_s(default, 4, Hierarchical((2, 6)), 12, 0, nbytes, (2,))
    assert hieravg.train.wall_s.iloc[-1] == pytest.approx(modelled)
    assert sync.train.wall_s.iloc[-1] == pytest.approx(
        plan.modelled_s(default, 4, Every(1), 10, 0, nbytes)
    )
    for found in (kavg, hieravg, sync):
        assert found.config["simulate"] and found.config["step_s"] == 0.01
        assert found.train.compute_s.iloc[-1] == pytest.approx(
            found.config["steps"] * 0.01, rel=0.2
        )


def test_a_machine_is_fitted_from_what_a_run_recorded():
    truth = Timing(step_s=0.02, step_cv=0.3, latency_s=1e-4, bandwidth_bytes_per_s=1e8)

    def made(d):
        clock = Synchronous(truth, 2, 7, averages(truth, 2, 4 * d))
        rows, events = [], []
        for t in range(8, 4001, 8):
            clock.advance(t)
            events.append((t, *clock.average(Scope.WORLD)))
            rows.append({"t": t, "compute_s": clock.compute_s, "data_s": 0.0})
        return SimpleNamespace(
            path="made.h5",
            train=pd.DataFrame(rows),
            averages=pd.DataFrame(events, columns=["t", "seconds", "wait_s"]),
            config={"d": d, "simulate": False},
            provenance={"ranks": 2, "learners_per_rank": 1},
        )

    got = timing.fit([made(1_000), made(1_000_000)])
    assert got.step_s == pytest.approx(0.02, rel=0.03) and got.step_cv == pytest.approx(
        0.3, rel=0.15
    )
    assert got.latency_s == pytest.approx(
        1e-4, rel=0.1
    ) and got.bandwidth_bytes_per_s == pytest.approx(1e8, rel=0.05)
    one = timing.fit([made(1_000_000)])
    assert one.mean_s(2, 4_000_000) == pytest.approx(truth.mean_s(2, 4_000_000), rel=0.02)


# --------------------------------------------------------------------------------------------------


def random_lines(data, ranks, count, seed):
    """Settings of all kinds for `ranks` ranks."""
    rng, lines = np.random.default_rng([ranks, seed]), {}
    for k in range(count):
        servers = int(rng.integers(1, min(2, ranks - 1) + 1))
        clients = ranks - servers
        P = int(rng.choice([P for P in (1, 2, 3, 4, 6, 7, 8) if P >= clients]))  # divisors of N
        K, T = int(rng.integers(1, 6)), int(rng.integers(5, 40))
        algorithm = ("downpour", "eamsgd")[k % 2]
        more = "--momentum 0.8" if algorithm == "eamsgd" else ""
        lines[f"{algorithm} {k}"] = line(
            data, algorithm, P, T, K, 0.5 / P, f"--servers {servers} --seed {k}", more
        )
    return lines


@pytest.fixture(scope="module")
def raced(shards, simulated, tmp_path_factory):
    """raced(ranks, mpi): the runs of one launch by name; replays of simulated runs are among
    them.
    """
    made = {}

    def get(ranks, mpi="openmpi"):
        if (ranks, mpi) not in made:
            lines = random_lines(shards, ranks, 6 if mpi == "openmpi" else 2, seed=11)
            if (ranks, mpi) == (4, "openmpi"):
                replay = f"--servers 2 --replay {simulated.folder}"
                lines |= {
                    "replay downpour": line(
                        shards, "downpour", 4, 10, 3, 0.3, f"--seed 1 {replay}/downpour.h5"
                    ),
                    "replay eamsgd": line(
                        shards,
                        "eamsgd",
                        6,
                        11,
                        2,
                        0.3,
                        f"--alpha 0.2 --momentum 0.8 {replay}/eamsgd.h5",
                    ),
                    "replay five": line(shards, "downpour", 5, 11, 2, 0.3, f"{replay}/five.h5"),
                    "replay seven": line(
                        shards,
                        "eamsgd",
                        7,
                        9,
                        2,
                        0.3,
                        f"--momentum 0.8 --replay {simulated.folder}/seven.h5",
                    ),  # three clients
                    "hand-made": line(
                        shards,
                        "downpour",
                        2,
                        6,
                        2,
                        0.3,
                        f"--servers 2 --replay {hand_made(shards, simulated)}",
                    ),
                }
            if (ranks, mpi) == (2, "openmpi"):
                path = simulated.folder / "nin eamsgd.h5"
                lines["replay nin"] = (
                    f"eamsgd --learners 2 --lr 0.01 --steps 6 --K 2 {NIN} --replay '{path}'"
                )
            if (ranks, mpi) == (3, "openmpi"):
                for name, original in random_lines(shards, 4, 6, seed=11).items():
                    P = int(original.partition("--learners ")[2].split()[0])
                    if P >= 2:
                        path = raced.folder / f"{name}.h5"
                        lines[f"replay {name}"] = (
                            original.replace("--servers 2", "--servers 1") + f" --replay '{path}'"
                        )
            made[ranks, mpi] = train_all(
                tmp_path_factory.mktemp(f"{mpi}{ranks}"), ranks, lines, mpi=mpi
            )
            if (ranks, mpi) == (4, "openmpi"):
                raced.folder = made[ranks, mpi].folder
        return made[ranks, mpi]

    raced = SimpleNamespace(folder=None)
    get(4)
    return get


ORDER = [0, 0, 1, 0, 1, 1]


def hand_made(shards, simulated):
    """A run file of two learners with three exchanges each, as if they had come in ORDER."""
    path = simulated.folder / "hand made"
    path.mkdir()
    lines = {"run": line(shards, "downpour", 2, 6, 2, 0.3, "--simulate")}
    source = train_all(path, 1, lines).folder / "run.h5"
    with h5py.File(source, "r+") as file:
        assert sorted(file["staleness/learner"][:].tolist()) == sorted(ORDER)
        file["staleness/learner"][:] = ORDER
    return shutil.copy(source, simulated.folder / "hand-made.h5")


LAUNCHES = [(4, "openmpi"), (3, "openmpi"), (2, "openmpi"), (3, "mpich")]


@pytest.mark.parametrize(("ranks", "mpi"), LAUNCHES)
def test_any_race_ends_and_follows_the_pseudo_code_in_its_order(ranks, mpi, raced, shards):
    """20 runs in all."""
    for name in random_lines(shards, ranks, 6 if mpi == "openmpi" else 2, seed=11):
        check(raced(ranks, mpi)[name], shards)


@pytest.mark.parametrize("name", ["downpour", "eamsgd", "five", "seven"])
def test_messages_and_the_simulated_queue_give_the_same_bits_in_the_same_order(
    name, raced, simulated
):
    over_mpi, modelled = raced(4)[f"replay {name}"], simulated[name]
    assert over_mpi.staleness.learner.tolist() == modelled.staleness.learner.tolist()
    assert over_mpi.staleness.staleness.tolist() == modelled.staleness.staleness.tolist()
    assert (over_mpi.weights == modelled.weights).all()
    assert over_mpi.eval.train_loss.tolist() == modelled.eval.train_loss.tolist()


def test_networks_too(raced, simulated):
    over_mpi, modelled = raced(2)["replay nin"], simulated["nin eamsgd"]
    assert (over_mpi.weights == modelled.weights).all()
    assert not (modelled.weights[-30:] == modelled.weights[-1]).all()  # statistics have moved


def test_a_replay_on_other_ranks_and_servers_gives_the_same_bits(raced):
    again = raced(3)
    names = [path.stem for path in again.folder.glob("replay *.h5")]
    assert len(names) >= 4
    for name in names:
        first = record.load(raced(4).folder / f"{name.removeprefix('replay ')}.h5")
        assert (again[name].weights == first.weights).all()
        assert again[name].staleness.learner.tolist() == first.staleness.learner.tolist()


def test_staleness_counts_what_the_server_did_since_the_last_pull(raced, shards):
    found = raced(4)["hand-made"]
    assert found.staleness.learner.tolist() == ORDER
    assert found.staleness.staleness.tolist() == [0, 0, 2, 1, 1, 0]
    check(found, shards)


# ---------------------------------------------------------------------------------------------- end


ENDLESS = (
    "--data",
    "epsilon-like:400x50",
    "--batch-size",
    "8",
    "--steps",
    "100000000",
    "--log-every",
    "1000",
    "--eval-every",
    "100000000",
    "--servers",
    "2",
    "--K",
    "4",
)


@pytest.mark.parametrize(
    ("victim", "mpi"),
    [(0, "openmpi"), (2, "openmpi"), (3, "mpich")],
    ids=["client", "server", "second"],
)
def test_a_killed_rank_ends_the_job_within_seconds(victim, mpi, tmp_path):
    need(mpi)  # before the thread, which would keep pytest for a minute
    mark, killed = f"{tmp_path.name}-{victim}", []
    rank = "OMPI_COMM_WORLD_RANK" if mpi == "openmpi" else "PMI_RANK"

    def kill():
        until = time.monotonic() + 60
        while not (tmp_path / "run.h5").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)
        for process in marked(mark, "LOCALAVG_TEST_KILL"):
            with contextlib.suppress(psutil.Error):
                if process.environ().get(rank) == str(victim):
                    process.kill()
        killed.append(time.monotonic())

    thread = threading.Thread(target=kill)
    thread.start()
    done = run(
        4,
        "-m",
        "localavg",
        "train",
        "downpour",
        *ENDLESS,
        "--out",
        tmp_path / "run.h5",
        mpi=mpi,
        env={"LOCALAVG_TEST_KILL": mark},
    )
    thread.join()
    assert done.returncode != 0 and time.monotonic() - killed[0] < 20
    found = record.load(tmp_path / "run.h5")
    assert found.status == "died" and found.config["algorithm"] == "downpour"


DIVERGING = (
    "--data",
    "epsilon-like:200x5",
    "--batch-size",
    "4",
    "--lr",
    "1e38",
    "--steps",
    "40",
    "--learners",
    "4",
    "--K",
    "2",
)


@pytest.mark.parametrize("algorithm", ["downpour", "eamsgd"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_run_that_diverges_has_failed_and_says_so(ranks, algorithm, tmp_path):
    how = ["--simulate"] if ranks == 1 else ["--servers", "2"]
    done = run(
        ranks, "-m", "localavg", "train", algorithm, *DIVERGING, *how, "--out", tmp_path / "run.h5"
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "not finite (step size now 1e+38); lower --lr" in done.stderr
    found = record.load(tmp_path / "run.h5")
    assert found.status == "failed" and "not finite" in found.attrs["failure"]
    assert len(found.eval) >= 1 and len(found.staleness) >= 1


@pytest.mark.parametrize(
    "words",
    [
        "downpour --servers 2 --learners 4 --K 4",
        "downpour --simulate --learners 4 --K 4",
        "kavg --simulate --learners 4 --K 4",
    ],
)
def test_resume_leaves_a_finished_run_alone_and_begins_an_unfinished_one_again(words, tmp_path):
    out = tmp_path / "run.h5"
    line = [
        "-m",
        "localavg",
        "train",
        *words.split(),
        "--data",
        "epsilon-like:200x5",
        "--steps",
        "8",
        "--resume",
        "--out",
        out,
    ]
    ranks = 1 if "--simulate" in words else 3
    assert run(ranks, *line).returncode == 0
    first = out.read_bytes()
    again = run(ranks, *line)
    assert (
        again.returncode == 0
        and f"{out} is finished already" in again.stderr
        and out.read_bytes() == first
    )
    with h5py.File(out, "r+") as file:
        file.attrs["status"] = "running"  # as after a kill
    again = run(ranks, *line)
    assert again.returncode == 0, again.stderr
    assert f"no checkpoint: kept as {out}.unfinished1, starting from the beginning" in again.stderr
    assert (
        record.load(out).status == "finished" and record.load(f"{out}.unfinished1").status == "died"
    )


def told(world, lines, folder):
    """(status, line on stderr) of command lines in this process."""
    from localavg.cli import in_flags
    from localavg.errors import UserError

    answers = []
    for k, words in enumerate(lines):
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                args = parser().parse_args(["train", *words.split(), "--out", f"{folder}/{k}.h5"])
                answers.append((args.call(args), err.getvalue()))
            except UserError as e:
                answers.append((2, in_flags(str(e))))
    return answers


MISTAKES = {  # ranks: {command line: how the one line begins}
    1: {
        "downpour": "--servers 1: of 1 rank none is left for the learners of downpour; use mpirun "
        "-n 2 or more",
        "downpour --servers 0": "--servers 0: must be at least 1",
        "eamsgd --servers "
        "3": "--servers 3: of 1 rank none is left for the learners of eamsgd; use mpirun -n 4 or "
        "more",
        "downpour --K 0 --simulate": "--K 0: must be at least 1",
        **{
            f"eamsgd --alpha {x} --simulate": f"--alpha {float(x)}: must lie in (0, 1)"
            for x in ("0", "1", "-0.5", "nan")
        },
        "eamsgd --momentum 1 --simulate": "--momentum 1.0: must lie in [0, 1)",
        "downpour --momentum 0.9 "
        "--simulate": "--momentum 0.9 means nothing to downpour; leave it out",
        "downpour --optimizer adam --simulate": "--optimizer adam means nothing to downpour",
        "eamsgd --optimizer momentum --simulate": "--optimizer momentum means nothing to eamsgd",
        "downpour --statistics keep --simulate": "--statistics keep means nothing to downpour",
        "downpour --transport mpi --simulate": "--transport mpi means nothing to downpour",
        "downpour --mu 0.5 "
        "--simulate": "--mu means nothing to downpour, which takes --K, --servers",
        "kavg --servers 2": "--servers means nothing to kavg",
        "downpour --simulate --time-limit "
        "1h": "--time-limit 1h means nothing to a run with --simulate, which makes no checkpoints",
        "downpour --on-failure continue --simulate": "--on-failure continue means nothing to a run",
        "downpour --on-failure continue --recovery-state "
        "all": "--recovery-state all means nothing to downpour, whose learners go on from the center",
        "downpour --checkpoint-every 5 --replay "
        "x.h5": "--checkpoint-every 5 with --replay: a run that goes on from the center does not",
        "kavg --checkpoint-every 5 "
        "--simulate": "--checkpoint-every 5 means nothing to a run with --simulate, which makes",
        "downpour --step-s "
        "1": "--step-s 1.0 means nothing to a run without --simulate, whose time is measured; add "
        "--simulate, or leave it out",
        "kavg --simulate --service-s "
        "1": "--service-s 1.0 means nothing to kavg, which has no servers",
        "kavg --replay x.h5": "--replay x.h5 means nothing to kavg",
        "adacomm --simulate --replay x.h5": "--replay x.h5 means nothing to a run with --simulate",
        "downpour --simulate --replay x.h5": "--replay x.h5 means nothing to a run with --simulate",
        "downpour --simulate --step-s 0": "--step-s 0.0: must be a finite number above 0",
        "kavg --simulate --step-cv -1": "--step-cv -1.0: must be a finite number of at least 0",
        "kavg --simulate --timing-from nowhere.h5": "nowhere.h5: cannot read this run file",
    },
    3: {
        "downpour "
        "--simulate": "--simulate on 3 ranks: downpour in simulated time is one process; use one "
        "rank",
        "downpour --servers 3": "--servers 3: of 3 ranks none is left",
        "downpour --learners "
        "1": "1 learner on 2 ranks, servers not counted: every rank must hold one at least; use 2 "
        "learners or more, or mpirun -n 2",
        "downpour --learners 2 --replay nowhere.h5": "nowhere.h5: cannot read this run file",
    },
}


@pytest.mark.parametrize("ranks", MISTAKES)
def test_a_mistake_is_one_line_before_any_work(ranks, tmp_path):
    lines = [f"{words} --data epsilon-like:200x5 --batch-size 4" for words in MISTAKES[ranks]]
    for answers in call(ranks, told, lines, str(tmp_path)):
        for (status, text), words, begins in zip(
            answers, lines, MISTAKES[ranks].values(), strict=True
        ):
            assert status == 2 and text.startswith(begins) and "\n" not in text, (words, text)
    assert not list(tmp_path.iterdir())


def test_a_replay_of_another_run_is_refused(simulated, shards, tmp_path):
    path = simulated.folder / "downpour.h5"
    lines = [
        line(shards, "downpour", 4, 10, 3, 0.2, f"--seed 1 --replay {path}"),
        line(shards, "downpour", 2, 10, 3, 0.3, f"--seed 1 --replay {path}"),
    ]
    (_, rate), (_, learners) = call(3, told, lines, str(tmp_path))[0]
    assert rate == f"--replay {path}: made with lr = 0.3, not 0.2; give the same settings"
    assert (
        "made with batch_size = 42, not 84" in learners
        or "made with learners = 4, not 2" in learners
    )


def greedy(world):
    """Who is served of three, two of whom push again at once, by an MPI that always shows the
    lowest first.
    """
    from localavg.training.asynchronous.first_server import FirstServer
    from localavg.training.asynchronous.messages import Nap

    here = {0, 1, 2}

    class Notes:
        def Iprobe(self, source, tag, status):
            if here:
                status.Set_tag(min(here))
            return bool(here)

        def Recv(self, buffer, source, tag):
            here.remove(tag)

    class Served(FirstServer):
        def __init__(self):
            self.roles = SimpleNamespace(notes=Notes(), servers=range(1, 2))
            self.replay, self.nap = None, Nap()
            self._notes, self._parts, self._coming = {}, Counter(), {}

        def arrived(self):
            return sorted(here)  # with their notes

    order = []
    for j, _ in Served()._in_order():
        order.append(j)
        here |= {j}
        if len(order) == 30:
            return order


def test_nobody_starves():
    order = call(1, greedy)[0]
    assert [order.count(j) for j in range(3)] == [10, 10, 10]


def idle(world):
    """(seconds of the wall, of this process's CPU) while the others let this rank wait."""
    from localavg.training.asynchronous.messages import Roles

    roles = Roles(world, None, 1, "downpour")
    wall, cpu = time.perf_counter(), time.process_time()
    if world.rank == 0:
        time.sleep(2)
    roles.meet()
    return time.perf_counter() - wall, time.process_time() - cpu


def test_whoever_waits_sleeps():
    for wall_s, cpu_s in call(3, idle):
        assert wall_s > 1.5 and cpu_s < 0.35 * wall_s
