"""Every figure script on runs made here with the settings of its own sweep: whole, in part, one,
none.
"""

import re
from pathlib import Path

import curves
import matplotlib.image
import numpy as np
import pytest
import quantities
import style
from claimed import made
from figures import (
    FIGURES,
    SCRIPTS,
    STRANGER,
    SWEEPS,
    TABLES,
    check_labels,
    planned,
    rows_of,
    write,
)
from mpi import ROOT

from localavg.files.record import Record

# every script draws a whole sweep; of the other tests of all scripts a few are enough in between
FEW = ("adpsgd_fig4_5", "adpsgd_table1", "hieravg_fig5", "kavg_fig3_4", "lupa_fig2", "mavg_fig9_12")
MANY = [pytest.param(s, marks=() if s in FEW else pytest.mark.long) for s in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_whole_sweep_is_drawn(script, draw, tmp_path):
    for name, config in planned(script, seeds=2).items():
        write(tmp_path / "runs" / f"{name}.h5", config)
    status, out, err, figures = draw(script, tmp_path / "runs", save="png")
    assert (status, err) == (0, "")
    assert not re.search("unfinished|left out|note: ", out)
    missing = re.findall("missing: (.*)", out)
    assert missing == (
        ["CPSGD p = 8", "CPSGD p = 4"] if script == "adpsgd_fig3" else []
    )  # its sweep has none
    assert bool(figures) == (script not in TABLES)
    for figure in figures:
        check_labels(figure)
    written = [
        Path(line) for line in out.splitlines() if line.startswith(str(tmp_path / "figures"))
    ]
    assert written and all(path.stat().st_size > 0 for path in written)
    for path in written:
        assert path.name.startswith((script, "mavg_table1"))
        if path.suffix == ".png":
            image = matplotlib.image.imread(path)[..., :3]  # [height, width, 3]
            assert image.shape[1] in (680, 1400) and image.mean() < 0.99
            assert all(
                edge.min() == 1 for edge in (image[0], image[-1], image[:, 0], image[:, -1])
            )  # nothing is clipped
        if path.suffix == ".txt":
            assert " 2 seeds a setting." in path.read_text()
    if script in TABLES:
        assert {path.suffix for path in written} == {".txt", ".md", ".tex"}
        assert "tabular" in (tmp_path / "figures" / f"{script}.tex").read_text()
    else:
        assert {path.suffix for path in written} >= {".txt", ".png"}


@pytest.mark.parametrize("script", MANY)
def test_a_partial_sweep_is_drawn_and_what_is_missing_is_said(script, draw, tmp_path):
    names = planned(script, seeds=1)
    held = list(names)[: max(1, 2 * len(names) // 3)]
    for name in held:
        write(tmp_path / f"{name}.h5", names[name])
    write(tmp_path / "other.h5", {**names[held[0]], "algorithm": STRANGER[script]})
    write(tmp_path / "half.h5", {**names[held[0]], "seed": 7}, status="interrupted")
    (tmp_path / "sweep.json").write_text(f'{{"runs": {[*names]}}}'.replace("'", '"'))
    status, out, err, _ = draw(script, tmp_path)
    assert (status, err) == (0, "")
    assert f"other.h5 is {STRANGER[script]}" in out and "half.h5 is interrupted" in out
    if len(held) < len(names):
        assert (
            f"missing: {len(names) - len(held)} of {len(names)} runs of the sweep: "
            f"{list(names)[len(held)]}" in out
        )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_single_run_is_drawn(script, draw, tmp_path):
    names = planned(script, "laptop", seeds=1)
    name, config = list(names.items())[0 if script != "kavg_fig7" else -1]
    write(tmp_path / f"{name}.h5", config)
    status, _, err, figures = draw(script, tmp_path / f"{name}.h5")
    assert (status, err) == (0, "") and bool(figures) == (script not in TABLES)


@pytest.mark.parametrize("script", MANY)
def test_runs_of_the_papers_settings_are_drawn(script, draw, tmp_path):
    names = planned(script, "paper", seeds=1)
    for name in list(names)[:: max(1, len(names) // 8)]:
        write(tmp_path / f"{name}.h5", names[name])
    status, _, err, figures = draw(script, tmp_path)
    assert (status, err) == (0, "") and bool(figures) == (script not in TABLES)


@pytest.mark.parametrize("script", [*SCRIPTS, "theory", "claims"])
def test_an_empty_folder_is_one_line_and_exit_2(script, draw, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err, figures = draw(script, tmp_path / "empty")
    assert status == 2 and not figures
    assert err.startswith(f"{script}: {tmp_path / 'empty'}") and err.count("\n") == 1
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_runs_of_another_figure_are_one_line_and_exit_2(script, draw, tmp_path):
    write(
        tmp_path / "other.h5",
        {**next(iter(planned(script).values())), "algorithm": STRANGER[script]},
    )
    status, _, err, _ = draw(script, tmp_path)
    assert status == 2 and "no run here belongs to this figure" in err and err.count("\n") == 1


def test_theory_with_and_without_runs(draw, tmp_path):
    status, _, err, (figure,) = draw("theory")
    assert (status, err) == (0, "") and len(figure.axes) == 8
    check_labels(figure)
    for K in (1, 4):
        for seed in (0, 1):
            config = next(iter(planned("kavg_fig5_6").values()))
            write(tmp_path / f"K{K}-{seed}.h5", {**config, "K": K, "seed": seed})
    status, _, err, (figure,) = draw("theory", tmp_path)
    assert (status, err) == (0, "")
    (stars,) = [line for axes in figure.axes for line in axes.lines if line.get_label() == "runs"]
    assert stars.get_xydata().tolist() == [[8, 1]]
    status, _, err, _ = draw("theory", "--L", "-1")
    assert status == 2 and "L = -1" in err


def test_a_diverged_run_counts_as_guessing(draw, tmp_path):
    config = next(iter(planned("kavg_fig1_2").values()))
    write(tmp_path / "well.h5", config)
    file = Record.create(tmp_path / "diverged.h5", {**config, "learners": 64}, {})
    for row in rows_of(config)["eval"][:3]:
        file.append("eval", **row)
    file.finish("failed", failure="the loss at step 7 of learner 3 is not finite; lower --lr")
    status, out, _, (figure,) = draw("kavg_fig1_2", tmp_path)
    assert status == 0 and "diverged.h5 diverged" in out
    assert figure.axes[0].lines[0].get_xydata().tolist()[-1] == [64, 10]


def test_every_sweep_has_its_script_and_every_script_its_sweep():
    assert {*FIGURES} - {"theory"} == {
        path.stem for path in (ROOT / "jobs" / "sweeps").glob("*.toml")
    }
    assert SWEEPS.keys() == {*SCRIPTS, "theory"}


def test_the_time_to_a_level_is_interpolated():
    run = made("kavg", 0, loss=0.0, seconds=3.0)
    assert quantities.reach(run, 0.35) == pytest.approx(3.0) and quantities.reach(run, 0.8) == 0.0
    assert np.isnan(quantities.reach(run, -1))


def test_periods_are_steps_that_end_at_their_average(tmp_path):
    """Two runs whose periods end at other updates: at each, the median of what holds there."""
    runs = [
        made("adpsgd", 0, periods=[50, 50]),  # ends at 50 and 100
        made("adpsgd", 1, periods=[25, 25, 25, 25]),
    ]
    _, (axes,) = style.panels(1)
    curves.curve(axes, runs, "t", "period", "x", rows=lambda run: run.averages, steps=True)
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-pre"
    assert line.get_xydata().tolist() == [[50, 37.5], [75, 37.5], [100, 37.5]]


def test_one_disturbed_run_moves_neither_line_nor_band(tmp_path):
    values = np.array([[1.0], [1.1], [0.9], [1.0], [50.0]])
    low, high = curves.band(values)
    assert (low[0], high[0]) == (1.0, 1.1)
    assert [float(x[0]) for x in curves.band(values[:3])] == [0.9, 1.1]


def test_panels_are_lettered_and_an_axis_of_accuracies_has_many_images():
    figure, panels = style.panels(2)
    for axes in panels:
        axes.plot([0, 1, 2, 3], [90, 98.89, 99.17, 98.89])  # an image of 360 apart
        axes.set_title("x")
        curves._focus(axes)
    style.letter(figure)
    assert [axes.get_title() for axes in panels] == ["(a) x", "(b) x"]
    low, high = panels[0].get_ylim()
    assert high - low >= 15 * 0.28


def test_equal_lines_are_drawn_once(draw, tmp_path):
    for name, config in planned("kavg_fig3_4", seeds=1).items():
        write(tmp_path / f"{name}.h5", config)
    _, _, _, (figure,) = draw("kavg_fig3_4", tmp_path)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert "over Downpour and over EAMSGD" in labels and "over EAMSGD" not in labels
