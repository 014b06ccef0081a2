"""The figure scripts, run as users run them, on run files made here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import curves
import matplotlib
import matplotlib.image
import numpy as np
import quantities
import style
from mpi import ROOT

from localavg.files.record import CLUSTER, WORLD, Record, load_many

T = 500
PERIODS = {"sync": 1, "kavg": None, "oneshot": T}


def write_run(
    path: Path, algorithm: str, K: int | None = None, seed: int = 0, start=0, until=T, **config
) -> None:
    """A run of T updates: evaluations every 50 from `start`, averages by the period, and three of
    clusters between.
    """
    period = K or PERIODS[algorithm]
    file = Record.create(
        path, {"algorithm": algorithm, "seed": seed, **({"K": K} if K else {}), **config}, {}
    )
    times = [t for t in range(1, until + 1) if t % period == 0 or t == T]
    for row in [
        *(average(t, period, WORLD) for t in times),
        *(average(t, 1, CLUSTER) for t in (1, 2, 3)),
    ]:
        file.append("averages", **row)
    for t in range(start, until + 1, 50):
        loss = 0.3 + 0.393 * np.exp(-t / 120) + 0.01 * seed * (t > 0)
        file.append(
            "eval",
            t=t,
            epoch=t / 100,
            wall_s=t * 1e-3 * (1 + 4 / period + 0.1 * seed),
            train_loss=loss,
        )
    if until == T:
        file.finish("finished")
    else:
        file.flush(force=True)


def average(t: int, period: int, scope: int) -> dict:
    return {
        "t": t,
        "begun": t,
        "scope": scope,
        "level": scope,
        "period": period,
        "bytes_node": 8,
        "bytes_cross": 0,
        "seconds": 1e-4,
    }


def write_sweep(folder: Path, seeds=(0,)) -> None:
    for seed in seeds:
        for algorithm, K in (("sync", None), ("kavg", 5), ("kavg", 91), ("oneshot", None)):
            write_run(folder / f"{algorithm}-{K}-{seed}.h5", algorithm, K, seed)


def launch(line: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a launch line of the checkout's top level in another folder."""
    if not (folder / "analysis").exists():
        (folder / "analysis").symlink_to(ROOT / "analysis")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *line.split()[1:]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def table(out: str) -> dict[str, tuple[int, int, float, float]]:
    """Runs, rounds, final loss and seconds by algorithm."""
    rows = re.findall(r"^(\S.*?) {2,}(\d+) +(\d+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    return {
        label: (int(runs), int(rounds), float(loss), float(s))
        for label, runs, rounds, loss, s in rows
    }


def check_figures(out: str, folder: Path) -> None:
    """The last lines name both files; the picture spans two columns and has a white rim: nothing is
    clipped.
    """
    pdf, png = (folder / line for line in out.splitlines()[-2:])
    assert pdf.name == "lupa_fig2.pdf" and pdf.read_bytes().startswith(b"%PDF")
    image = matplotlib.image.imread(png)[..., :3]  # [height, width, 3]
    assert png.name == "lupa_fig2.png" and image.shape[1] == 1400
    assert image.mean() < 0.99
    assert all(edge.min() == 1 for edge in (image[0], image[-1], image[:, 0], image[:, -1]))


def test_lupa_fig2_by_its_own_launch_line(tmp_path):
    write_sweep(tmp_path / "runs" / "lupa-fig2")
    source = (ROOT / "analysis" / "lupa_fig2.py").read_text()
    done = launch(
        re.search(r"^ +(python analysis/lupa_fig2\.py .*)$", source, re.MULTILINE)[1], tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = table(done.stdout)
    assert list(rows) == ["SyncSGD", "LUPA-SGD τ = 5", "LUPA-SGD τ = 91", "one-shot"]
    assert [rounds for _, rounds, _, _ in rows.values()] == [500, 100, 6, 1]
    assert rows["SyncSGD"] == (1, 500, round(0.3 + 0.393 * np.exp(-T / 120), 4), 2.5)
    assert not re.search("missing|unfinished|left out|note", done.stdout)
    assert done.stdout.splitlines()[-3:] == [
        f"figures/lupa_fig2.{kind}" for kind in ("txt", "pdf", "png")
    ]
    assert " 1 seed a setting." in (tmp_path / "figures" / "lupa_fig2.txt").read_text()
    check_figures(done.stdout, tmp_path)


def test_a_partial_sweep_is_drawn_and_what_is_missing_is_said(tmp_path):
    write_run(tmp_path / "runs" / "a.h5", "kavg", 91, seed=0)
    write_run(tmp_path / "runs" / "b.h5", "kavg", 91, seed=1, lr=0.5)
    write_run(tmp_path / "runs" / "c.h5", "kavg", 20, until=250)
    write_run(tmp_path / "runs" / "d.h5", "hieravg", 20)
    Record.create(tmp_path / "runs" / "e.h5", {"algorithm": "sync"}, {})
    done = launch("python analysis/lupa_fig2.py runs --out pictures", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = table(done.stdout)
    assert list(rows) == ["LUPA-SGD τ = 91", "LUPA-SGD τ = 20"]
    assert rows["LUPA-SGD τ = 20"][:2] == (1, 12) and rows["LUPA-SGD τ = 91"][:2] == (2, 6)
    for said in (
        "missing: SyncSGD\n",
        "missing: LUPA-SGD τ = 5\n",
        "missing: one-shot\n",
        "unfinished: runs/c.h5 is running\n",
        "left out: runs/d.h5 is hieravg",
        "left out: runs/e.h5 has no train_loss yet\n",
        "2 runs of logistic regression, None, LUPA-SGD τ = 91 differ in lr",
    ):
        assert said in done.stdout, said
    assert "missing: LUPA-SGD τ = 91" not in done.stdout
    check_figures(done.stdout, tmp_path)


def test_every_problem_has_its_panels(tmp_path):
    for data, K in (("a.h5", 5), ("a.h5", 91), ("b.h5", 5)):
        write_run(tmp_path / "runs" / f"{data}-{K}.h5", "kavg", K, data=data)
    done = launch("python analysis/lupa_fig2.py runs --out pictures", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {label: runs for label, (runs, *_) in table(done.stdout).items()} == {
        f"logistic regression, {line}": 1
        for line in ("a, LUPA-SGD τ = 5", "a, LUPA-SGD τ = 91", "b, LUPA-SGD τ = 5")
    }
    assert "missing: LUPA-SGD τ = 91 (logistic regression, b)\n" in done.stdout
    check_figures(done.stdout, tmp_path)


def test_repeats_become_their_mean_and_a_band(tmp_path):
    for seed, wall in enumerate(([0.0, 1.0, 2.0, 3.0], [0.0, 1.5, 3.0, 4.5])):
        file = Record.create(tmp_path / f"{seed}.h5", {"seed": seed}, {})
        for t, s in enumerate(wall):
            file.append("eval", t=t, wall_s=s, train_loss=10.0 - 2 * s + seed)
        file.append("eval", t=9, wall_s=9.0)  # no loss here
        file.finish("finished")
    with matplotlib.rc_context():
        _, (axes,) = style.panels(1, width_in=style.SINGLE_IN)
        curves.curve(axes, load_many(tmp_path), "wall_s", "train_loss", "both")
    x, mean = axes.lines[0].get_xydata().T
    assert x.tolist() == [0.0, 1.0, 1.5, 2.0, 3.0]  # up to where both were measured
    np.testing.assert_allclose(mean, 10.5 - 2 * x)
    band = axes.collections[0].get_paths()[0].vertices  # [points, 2]
    for s in x:
        np.testing.assert_allclose(np.unique(band[band[:, 0] == s, 1]), [10 - 2 * s, 11 - 2 * s])


def test_one_shot_has_the_start_and_one_round(tmp_path):
    write_run(tmp_path / "a.h5", "oneshot")
    write_run(tmp_path / "b.h5", "kavg", 125)
    write_run(tmp_path / "c.h5", "oneshot", start=50)
    one, four, late = load_many(tmp_path)
    for run, points in (
        (one, {0: 0, 1: 500}),
        (late, {1: 500}),
        (four, {0: 0, 1: 150, 2: 250, 3: 400, 4: 500}),
    ):
        rows = quantities.by_rounds(run)
        assert dict(zip(rows.rounds, rows.t, strict=True)) == points
