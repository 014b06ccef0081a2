"""The figure of time to a loss against bandwidth: which runs it takes, and what it reads of them."""

import bandwidth
import numpy as np
import pytest
from figures import planned, write

from localavg.files.record import load


def test_every_run_of_the_sweep_has_its_line(tmp_path):
    found = {}
    for name, config in planned("bandwidth").items():
        write(tmp_path / f"{name}.h5", config)
        run = load(tmp_path / f"{name}.h5")
        found.setdefault(bandwidth.line(run), set()).add(bandwidth.gbit(run))
    assert found.keys() == bandwidth.NAMES.keys()
    assert all(rates == {0.1, 1.0, 10.0} for rates in found.values())


def test_the_best_of_a_bandwidth_is_marked_and_what_is_not_reached_is_left_out(
    tmp_path, monkeypatch
):
    config = next(iter(planned("bandwidth", seeds=1).values()))
    runs = {}
    for key in ("plain", "delay", "wire"):
        write(tmp_path / f"{key}.h5", {**config, "delay": 8 if key == "delay" else None})
        runs[key] = [load(tmp_path / f"{key}.h5")]
    seconds = {id(runs["plain"][0]): 3.0, id(runs["delay"][0]): 2.0, id(runs["wire"][0]): np.nan}
    monkeypatch.setattr(bandwidth.quantities, "reach", lambda run, *_: seconds[id(run)])
    (_, *rates), *rows = bandwidth.table(runs, 0.4)
    assert len(rates) == 1 and [row[1] for row in rows] == ["3.000", "2.000 *", "-"]


def test_bytes_are_those_between_nodes_until_the_level(tmp_path, monkeypatch):
    config = next(iter(planned("bandwidth", seeds=1).values()))
    write(tmp_path / "run.h5", config)
    run = load(tmp_path / "run.h5")
    t = float(run.averages.t.iloc[1])
    monkeypatch.setattr(bandwidth.quantities, "reach", lambda *_: t)
    run.averages["bytes_cross"] = 10**6 * np.arange(1, len(run.averages) + 1)
    assert bandwidth.MB_to(run, 0.4) == pytest.approx(3.0)


def test_it_is_drawn(tmp_path, draw):
    for name, config in planned("bandwidth", seeds=2).items():
        write(tmp_path / f"{name}.h5", config)
    status, _, err, figures = draw("bandwidth", tmp_path)
    assert (status, err, len(figures)) == (0, "", 1)
    assert all(len(axes.lines) == len(bandwidth.NAMES) for axes in figures[0].axes)
