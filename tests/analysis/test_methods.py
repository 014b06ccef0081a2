"""The figure of all methods: what it makes of the modelled clock of a run."""

from dataclasses import replace

import methods
import numpy as np
import pytest
import quantities
from drive import command_lines
from figures import planned, write
from mpi4py import MPI

from localavg.files.record import CLUSTER, WORLD, load

P, S, T, D = 8, 4, 60, 50


@pytest.fixture
def run_at(tmp_path):
    """run_at(gbit): a run of Hier-AVG on a modelled clock with links of this rate.

    An average at 1 Gbit/s takes about as long as an update.
    """

    def go(gbit):
        out = tmp_path / f"{gbit}.h5"
        line = (
            f"train hieravg --K1 5 --K2 20 --S {S} --learners {P} --data epsilon-like:400x{D} "
            f"--batch-size 4 --steps {T} --eval-every 6 --simulate --latency-s 0 --step-s 3e-6 "
            f"--bandwidth-bytes-per-s {1.25e8 * gbit} --out {out}"
        )
        assert command_lines(MPI.COMM_WORLD, [line.split()]) == [0]
        return load(out)

    return go


def test_one_run_has_the_seconds_of_runs_on_other_links(run_at):
    rows = quantities.on_links(run_at(20))
    for gbit in quantities.GBITS:
        found = rows[quantities.seconds_at(gbit)]
        np.testing.assert_allclose(found, run_at(gbit).eval.wall_s, rtol=1e-9)
    assert rows[quantities.seconds_at(1)].iloc[-1] > 1.1 * rows[quantities.seconds_at(100)].iloc[-1]


@pytest.mark.parametrize("words", ["sync", "kavg --K 4", "qsgd", "sgd"])
def test_a_run_has_the_clock_of_the_same_run_at_another_rate_also_with_latency(words, tmp_path):
    learners = 1 if words == "sgd" else P
    lines = [
        f"train {words} --learners {learners} --data epsilon-like:400x{D} --batch-size 4 --steps {T}"
        f" --eval-every 7 --simulate --latency-s 2e-6 --step-s 3e-6 --step-cv 0.3"
        f" --bandwidth-bytes-per-s {1.25e8 * gbit} --out {tmp_path}/{gbit}.h5"
        for gbit in (1, 50)
    ]
    assert command_lines(MPI.COMM_WORLD, [line.split() for line in lines]) == [0, 0]
    slow, fast = (load(tmp_path / f"{gbit}.h5") for gbit in (1, 50))
    found = quantities.at_rate(fast, 1)
    assert found.config == {**slow.config, "out": found.config.get("out")}
    for table, column in (
        ("train", "wall_s"),
        ("train", "communicate_s"),
        ("train", "wait_s"),
        ("eval", "wall_s"),
        ("averages", "seconds"),
    ):
        theirs = getattr(slow, table)[column]
        np.testing.assert_allclose(getattr(found, table)[column], theirs, rtol=1e-9, atol=1e-15)
    assert words == "sgd" or slow.eval.wall_s.iloc[-1] > 1.02 * fast.eval.wall_s.iloc[-1]


def test_bytes_are_those_of_clusters_too_and_rounds_are_not(run_at):
    run = run_at(10)
    rows = quantities.on_links(run).set_index("t")
    assert (run.averages.scope == CLUSTER).sum() == 9 and (run.averages.scope == WORLD).sum() == 3
    assert rows.rounds.to_dict() == {t: t // 20 for t in range(0, T + 1, 6)}
    cluster, world = 2 * 3 / 4 * 4 * D, 2 * 7 / 8 * 4 * D  # of an Allreduce in both directions
    assert rows.MB[0] == 0 and rows.MB[18] == pytest.approx(1e-6 * 3 * cluster)
    assert rows.MB[T] == pytest.approx(1e-6 * (9 * cluster + 3 * world))


def test_runs_whose_clock_has_latency_or_is_measured_are_left_out(tmp_path, draw):
    config = next(iter(planned("methods").values()))
    write(tmp_path / "good.h5", config)
    write(tmp_path / "late.h5", {**config, "latency_s": 5e-6})
    write(tmp_path / "measured.h5", {**config, "simulate": False})
    status, out, err, figures = draw("methods", tmp_path)
    assert (status, err, len(figures)) == (0, "", 2)
    assert all(f"left out: {tmp_path / name}.h5 is sync" in out for name in ("late", "measured"))
    assert "good.h5 is" not in out


def test_seconds_to_a_level_are_of_every_run_or_of_none(run_at):
    runs = [run_at(gbit) for gbit in (10, 100)]
    for run in runs:
        run.eval.loc[:, "train_loss"] = 1.0 - run.eval.t / 100
    for run, times in zip(runs, (1e4, 2e4), strict=True):  # so that 3 digits tell them apart
        run.eval.loc[:, "wall_s"] *= times
        run.averages.loc[:, "seconds"] *= times
    ten = quantities.seconds_at(10)
    words = methods.seconds_to(0.7, runs, ten)
    at_30 = []  # the loss is 0.7 there, and 24 and 42 are the first evaluations after rounds
    for run in runs:
        clock = quantities.on_links(run).set_index("t")[ten]
        at_30.append(clock[24] + (clock[42] - clock[24]) / 3)
    assert min(at_30) > 0.5 and at_30[1] > 1.5 * at_30[0]
    assert words == f"{np.mean(at_30):.3f} ± {np.std(at_30, ddof=1):.3f}"
    assert methods.seconds_to(0.39, runs, ten) == "-"
    later = runs[1].eval.assign(train_loss=runs[1].eval.train_loss + 0.5)
    assert methods.seconds_to(0.7, [runs[0], replace(runs[1], eval=later)], ten) == "-"


def test_every_curve_is_drawn_against_every_cost(tmp_path, draw):
    for name, config in planned("methods", seeds=3).items():
        write(tmp_path / f"{name}.h5", config)
    _, _, _, (losses, accuracies) = draw("methods", tmp_path)
    for figure in (losses, accuracies):
        costs = [cost for cost in methods.COSTS.values() for _ in methods.FAMILIES]
        assert [axes.get_xlabel() for axes in figure.axes] == costs
        assert all(len(axes.lines) == len(methods.NAMES) for axes in figure.axes)
        named = [[*axes.get_legend_handles_labels()[1]] for axes in figure.axes]
        for names, family in zip(named, [*methods.FAMILIES.values()] * len(costs), strict=False):
            plain = {name.removesuffix(" (off the scale)") for name in names}
            assert plain == {*family.values(), methods.NAMES["sync"]}
    runs = [load(tmp_path / f"kavg-s{seed}.h5") for seed in range(3)]
    for figure, column, unit in ((losses, "train_loss", 1), (accuracies, "test_accuracy", 100)):
        median = np.median([unit * run.eval[column] for run in runs], axis=0)
        (kavg,) = [line for line in figure.axes[1].lines if line.get_label() == "K-AVG"]
        np.testing.assert_allclose(kavg.get_ydata(), median)
