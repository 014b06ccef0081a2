"""The figure of ADPSGD's period, drawn as users draw it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np

from localavg.__main__ import parser
from localavg.files.record import CLUSTER, WORLD, Record, load

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "analysis" / "adpsgd_fig3.py"
T, EPOCHS = 600, 30


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
        row = {"scope": WORLD, "period": t - before, "bytes_node": 8, "bytes_cross": 0}
        file.append("averages", t=t, variance=1e-3, **row)
    file.append("averages", t=3, scope=CLUSTER, period=99, bytes_node=8, bytes_cross=0)
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


def launch(line, folder):
    """Run a launch line of the checkout's top level in another folder."""
    if not (folder / "analysis").exists():
        (folder / "analysis").symlink_to(ROOT / "analysis")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *line.split()[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def launch_line():
    return re.search(r"^ +(python analysis/adpsgd_fig3\.py .*)$", SCRIPT.read_text(), re.MULTILINE)[
        1
    ]


def table(out):
    """Runs, averages, last period and final loss by problem and algorithm."""
    rows = re.findall(r"^(\S.*?) {2,}(\d+) +(\d+) +(\d+) +(\S.*)$", out, re.MULTILINE)
    return {
        label: (int(runs), int(count), int(last), loss) for label, runs, count, last, loss in rows
    }


def check_figures(out, folder, width):
    """The last lines name both files; the picture has a white rim: nothing is clipped."""
    pdf, png = (folder / line for line in out.splitlines()[-2:])
    assert pdf.name == "adpsgd_fig3.pdf" and pdf.read_bytes().startswith(b"%PDF")
    image = matplotlib.image.imread(png)[..., :3]  # [height, width, 3]
    assert image.shape[1] == width and image.mean() < 0.99
    assert all(edge.min() == 1 for edge in (image[0], image[-1], image[:, 0], image[:, -1]))


def test_the_figure_by_its_own_launch_line(tmp_path):
    for problem in ("logistic", "network"):
        for seed in (0, 1):
            for algorithm, K in (("adpsgd", None), ("kavg", 8), ("kavg", 4)):
                path = (
                    tmp_path / "runs" / "adpsgd-fig3" / f"{problem}-{algorithm}{K or ''}-s{seed}.h5"
                )
                write_run(path, problem, algorithm, K, seed)
    done = launch(launch_line(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = table(done.stdout)
    names = ["ADPSGD", "CPSGD p = 8", "CPSGD p = 4"]
    assert list(rows) == [
        f"{problem}, {name}" for problem in ("logistic regression", "network") for name in names
    ]
    n = averages("adpsgd")
    assert rows["network, ADPSGD"] == (2, n, n - 31 + 4, "0.1067 ± 0.0071")
    assert rows["network, CPSGD p = 8"][:3] == (2, 75, 8)
    assert rows["logistic regression, CPSGD p = 4"] == (2, 150, 4, "0.1107 ± 0.0071")
    assert not re.search("missing|unfinished|left out|note", done.stdout)
    check_figures(done.stdout, tmp_path, 1400)


def test_a_part_is_drawn_and_what_is_missing_is_said(tmp_path):
    write_run(tmp_path / "runs" / "a.h5", "logistic", "adpsgd", seed=0)
    write_run(tmp_path / "runs" / "b.h5", "logistic", "adpsgd", seed=1, lr=0.5)
    write_run(tmp_path / "runs" / "c.h5", "logistic", "kavg", 20, until=300)
    write_run(tmp_path / "runs" / "d.h5", "logistic", "hieravg")
    write_run(
        tmp_path / "runs" / "e.h5", "logistic", "kavg", T
    )  # its only average may have been cut short
    write_run(tmp_path / "runs" / "f.h5", "network", "kavg", 4)
    Record.create(
        tmp_path / "runs" / "g.h5", {"algorithm": "adpsgd", "problem": "network", "steps": T}, {}
    )
    done = launch("python analysis/adpsgd_fig3.py runs --out .", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = table(done.stdout)
    assert list(rows) == [
        "logistic regression, ADPSGD",
        "logistic regression, CPSGD p = 20",
        "network, CPSGD p = 4",
    ]
    assert rows["logistic regression, CPSGD p = 20"] == (1, 14, 20, "0.1233")
    for said in (
        "missing: CPSGD p = 8\n",
        "missing: ADPSGD (network)\n",
        "missing: CPSGD p = 4 (logistic regression)\n",
        "unfinished: runs/c.h5 is running\n",
        "left out: runs/d.h5 is hieravg",
        "left out: runs/e.h5 is kavg",
        "left out: runs/g.h5 ",
        "2 runs of logistic regression, ADPSGD differ in lr",
    ):
        assert said in done.stdout, said
    assert "Bands: " in (tmp_path / "adpsgd_fig3.txt").read_text()
    check_figures(done.stdout, tmp_path, 1400)


def test_a_single_run_is_drawn(tmp_path):
    write_run(tmp_path / "a.h5", "network", "adpsgd")
    done = launch("python analysis/adpsgd_fig3.py a.h5 --out .", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(table(done.stdout)) == ["network, ADPSGD"]
    assert "missing: CPSGD p = 8\n" in done.stdout and "missing: CPSGD p = 4\n" in done.stdout
    check_figures(done.stdout, tmp_path, 680)


def test_a_folder_without_runs_is_one_line_and_exit_2(tmp_path):
    write_run(tmp_path / "other" / "d.h5", "logistic", "hieravg")
    done = launch("python analysis/adpsgd_fig3.py other", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(
        "adpsgd_fig3: other: no run here belongs to this figure"
    )
    assert done.stderr.count("\n") == 1 and not (tmp_path / "figures").exists()


def test_the_step_size_drops_where_the_run_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    import adpsgd_fig3
    import style

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
        "GoogLeNet (CIFAR-10), 16 learners",
        "network (digits), 4 learners",
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
    lines = re.findall(r"^ +jobs/local/mpirun -n \d python -m mpi4py (.*)$", text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        program, *words = shlex.split(line.removeprefix("-m "))
        if program == "localavg":
            assert parser().parse_args(words).epochs == 160
        else:
            assert (ROOT / program).exists()
