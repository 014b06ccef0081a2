"""The figure of all methods: what it makes of the modelled clock of a run."""

import methods
import numpy as np
import pytest
import quantities
from figures import planned, write

from localavg.files.record import CLUSTER, WORLD, Record, load
from localavg.scope import Scope
from localavg.simulate.clock import Modelled, Synchronous, averages
from localavg.simulate.timing import Timing

P, S, T, NBYTES = 8, 4, 60, 4e5


def run_at(path, gbit, latency_s=0.0):
    """A run of Hier-AVG by the modelled clock with links of this rate; its loss falls with t."""
    link = 1.25e8 * gbit
    timing = Timing(step_s=1e-3, latency_s=latency_s, bandwidth_bytes_per_s=link)
    settings = {"simulate": True, "bandwidth_bytes_per_s": link, "latency_s": latency_s}
    file = Record.create(path, {"algorithm": "hieravg", "seed": 3, "learners": P, **settings}, {})
    clock = Synchronous(timing, P, 3, averages(timing, P, NBYTES, S))
    modelled = Modelled(file, clock)
    modelled.append("eval", t=0, epoch=0, train_loss=1.0)
    for t in range(1, T + 1):
        if t % 5 == 0:
            scope = Scope.WORLD if t % 20 == 0 else Scope.CLUSTER
            handed = {"bytes_node": 8, "bytes_cross": 0}  # of ranks, not of learners
            modelled.append("averages", t=t, scope=scope, period=5, **handed)
        if t % 6 == 0:
            modelled.append("eval", t=t, epoch=t, train_loss=1.0 - t / 100)
    file.finish("finished")
    return load(path)


def test_one_run_has_the_seconds_of_runs_on_other_links(tmp_path):
    rows = quantities.on_links(run_at(tmp_path / "10.h5", 10))
    for gbit in quantities.GBITS:
        there = run_at(tmp_path / f"other-{gbit}.h5", gbit)
        found = rows[quantities.seconds_at(gbit)]
        np.testing.assert_allclose(found, there.eval.wall_s, rtol=1e-12)
        assert found.iloc[-1] > 0.06
    assert rows[quantities.seconds_at(1)].iloc[-1] > 1.5 * rows[quantities.seconds_at(100)].iloc[-1]


def test_bytes_are_those_of_clusters_too_and_rounds_are_not(tmp_path):
    run = run_at(tmp_path / "a.h5", 10)
    rows = quantities.on_links(run).set_index("t")
    assert (run.averages.scope == CLUSTER).sum() == 9 and (run.averages.scope == WORLD).sum() == 3
    assert rows.rounds.to_dict() == {t: t // 20 for t in range(0, T + 1, 6)}
    cluster, world = 2 * 3 / 4 * NBYTES, 2 * 7 / 8 * NBYTES  # of an Allreduce in both directions
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


def test_seconds_to_a_level_are_of_every_run_or_of_none(tmp_path):
    runs = [run_at(tmp_path / f"{gbit}.h5", gbit) for gbit in (10, 100)]
    ten = quantities.seconds_at(10)
    words = methods.seconds_to(0.7, runs, ten)
    at_30 = []  # the loss is 0.7 there, and 24 and 42 are the first evaluations after rounds
    for run in runs:
        clock = quantities.on_links(run).set_index("t")[ten]
        at_30.append(clock[24] + (clock[42] - clock[24]) / 3)
    assert words == f"{np.mean(at_30):.3f} ± {np.std(at_30, ddof=1):.3f}"
    assert methods.seconds_to(0.39, runs, ten) == "-"
    runs[1].eval.loc[:, "train_loss"] += 0.5
    assert methods.seconds_to(0.7, runs, ten) == "-"


def test_every_curve_is_drawn_against_every_cost(tmp_path, draw):
    for name, config in planned("methods", seeds=3).items():
        write(tmp_path / f"{name}.h5", config)
    _, _, _, (losses, accuracies) = draw("methods", tmp_path)
    for figure in (losses, accuracies):
        assert [axes.get_xlabel() for axes in figure.axes] == [*methods.COSTS.values()]
        assert all(len(axes.lines) == len(methods.NAMES) for axes in figure.axes)
    runs = [load(tmp_path / f"kavg-s{seed}.h5") for seed in range(3)]
    for figure, column, unit in ((losses, "train_loss", 1), (accuracies, "test_accuracy", 100)):
        median = np.median([unit * run.eval[column] for run in runs], axis=0)
        (kavg,) = [line for line in figure.axes[0].lines if line.get_label() == "K-AVG"]
        np.testing.assert_allclose(kavg.get_ydata(), median)
