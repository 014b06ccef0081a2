"""The figure of ADPSGD's period, drawn as users draw it."""

import re
import shlex
import sys

import adpsgd_fig3
import matplotlib
import numpy as np
import style
from drive import parser
from mpi import ROOT

from localavg.files.record import CLUSTER, WORLD, Record, load

T, EPOCHS = 600, 30
SCRIPT = ROOT / "analysis" / "adpsgd_fig3.py"


def write_run(path, problem, algorithm, K=None, seed=0, until=T, **config):
    """A run whose ADPSGD averages 10 times with period 1, 20 times with 4, then with 5, 6, …; and
    one cluster average.
    """
    file = Record.create(
        path,
        {
            "algorithm": algorithm,
            "problem": problem,
            "seed": seed,
            "steps": T,
            "learners": 4,
            "data": "digits",
            "schedule": "steps",
            "milestones": (15, 22.5),
            "K": K,
            **config,
        },
        {},
    )
    periods = [1] * 10 + [4] * 20 + list(range(5, 200)) if algorithm == "adpsgd" else [K or T] * T
    ends = [int(t) for t in np.cumsum(periods) if t < until] + ([T] if until == T else [])
    for t, before in zip(ends, [0, *ends], strict=False):
        row = {"scope": WORLD, "level": 2, "period": t - before, "bytes_node": 8, "bytes_cross": 0}
        file.append("averages", t=t, begun=t, variance=1e-3, **row)
    file.append(
        "averages", t=3, begun=3, scope=CLUSTER, level=1, period=99, bytes_node=8, bytes_cross=0
    )
    for t in range(0, until + 1, 60):
        loss = 0.1 + 0.001 * (K or 0) + 0.01 * seed + 1 / (1 + t)
        file.append("eval", t=t, epoch=t * EPOCHS / T, train_loss=loss)
    if until == T:
        file.finish("finished")
    else:
        file.flush(force=True)


def averages(algorithm, K=None):
    """How many averages of all learners the run above has."""
    if algorithm == "kavg":
        return -(-T // K)
    t, n, p = 90, 30, 5
    while t + p < T:
        t, n, p = t + p, n + 1, p + 1
    return n + 1


def table(out):
    """Runs, averages, last period and final loss by problem and algorithm."""
    rows = re.findall(r"^(\S.*?) {2,}(\d+) +(\d+) +(\d+) +(\S.*)$", out, re.MULTILINE)
    return {
        label: (int(runs), int(count), int(last), loss) for label, runs, count, last, loss in rows
    }


def test_averages_last_periods_and_losses_are_the_runs(draw, tmp_path):
    for problem in ("logistic", "network"):
        for seed in (0, 1):
            for algorithm, K in (("adpsgd", None), ("kavg", 8), ("kavg", 4)):
                write_run(
                    tmp_path / f"{problem}-{algorithm}{K or ''}-s{seed}.h5",
                    problem,
                    algorithm,
                    K,
                    seed,
                )
    write_run(
        tmp_path / "whole.h5", "logistic", "kavg", T
    )  # its only average may have been cut short
    status, out, err, _ = draw("adpsgd_fig3", tmp_path)
    assert (status, err) == (0, "")
    rows = table(out)
    names = ["ADPSGD", "CPSGD p = 8", "CPSGD p = 4"]
    assert list(rows) == [
        f"{problem}, {name}" for problem in ("logistic regression", "network") for name in names
    ]
    n = averages("adpsgd")
    assert rows["network, ADPSGD"] == (2, n, n - 31 + 4, "0.1067 ± 0.0071")
    assert rows["network, CPSGD p = 8"][:3] == (2, 75, 8)
    assert rows["logistic regression, CPSGD p = 4"] == (2, 150, 4, "0.1107 ± 0.0071")
    assert "whole.h5 is kavg" in out and not re.search("missing|unfinished|note: ", out)


def test_the_step_size_drops_where_the_run_says(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, stem: drawn.append(figure) or [])
    for name, more in (
        ("a", {}),
        ("b", {"model": "googlenet", "data_name": "CIFAR-10", "learners": 16}),
    ):
        write_run(tmp_path / f"{name}.h5", "network", "adpsgd", **more)
    monkeypatch.setattr(sys, "argv", ["adpsgd_fig3.py", str(tmp_path), "--out", str(tmp_path)])
    with matplotlib.rc_context():
        adpsgd_fig3.main()
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [
        "(a) GoogLeNet (CIFAR-10), 16 learners",
        "(b) network (digits), 4 learners",
    ]
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1] == [
            300,
            450,
        ]
    rows = adpsgd_fig3.periods(load(tmp_path / "a.h5"))
    assert rows.t.max() < T and rows.period.max() < 99


def test_the_launch_lines_of_longer_runs_are_commands():
    text = re.sub(r" \\\\\n +", " ", SCRIPT.read_text())
    lines = re.findall(r"^ +jobs/local/mpirun -n \d (.*)$", text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        program, *words = shlex.split(line.removeprefix("python "))
        if program == "localavg":
            assert parser().parse_args(words).epochs == 160
        else:
            assert (ROOT / program).exists()
