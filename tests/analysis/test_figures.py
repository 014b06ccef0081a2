"""Every figure script on runs made here with the settings of its own sweep: whole, in part, one,
none; and the claims.
"""

import re
from pathlib import Path

import claims
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import quantities
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

from localavg.files.record import SCHEMA, WORLD, Record, Run

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


# --------------------------------------------------------------------------------------------------


def made(algorithm, seed, loss=0.1, accuracy=0.9, rounds=10, seconds=1.0, **config):
    """A finished run of these ends; `seconds` is when its loss came down to 0.35, half-way from
    0.7.
    """
    tables = {
        group: pd.DataFrame({name: pd.Series(dtype=float) for name in columns})
        for group, columns in SCHEMA.items()
    }
    wall = np.array([0.0, 2 * seconds])
    tables["eval"] = pd.DataFrame(
        {
            "t": [0, 100],
            "epoch": [0, 1],
            "wall_s": wall,
            "train_loss": [0.7, loss],
            "test_accuracy": [0.1, accuracy],
        }
    )
    if loss == 0.0:
        tables["eval"] = pd.concat([tables["eval"], tables["eval"].tail(1)])
    tables["averages"] = pd.DataFrame({"t": range(rounds), "scope": WORLD, "seconds": 0.0})
    settings = {
        "algorithm": algorithm,
        "seed": seed,
        "learners": 8,
        "lr": 0.1,
        "data": "digits",
        "problem": "x",
        **config,
    }
    return Run(
        Path(f"{algorithm}-{seed}.h5"),
        "finished",
        settings,
        {},
        **tables,
        weights=None,
        initial_weights=None,
        attrs={},
    )


def pairs(make, difference, noise, seeds):
    """Runs of `make(better by difference + noise, seed)`: the noise swings with the seed, so that
    it pairs badly.
    """
    return [
        run
        for seed in range(seeds)
        for run in make(difference + noise * (-1) ** seed * (1 + seed), seed)
    ]


LINKS = {"simulate": True, "latency_s": 0, "bandwidth_bytes_per_s": 1.25e8}
# the claim's sweep and figure: x, seed -> runs in which it holds for x > 0 and does not for x < 0
MAKERS = {
    "best K": lambda x, s: [
        made("kavg", s, accuracy=0.8, K=1),
        made("kavg", s, accuracy=0.8 + 0.1 * x, K=8),
    ],
    "ASGD": lambda x, s: [
        made("downpour", s, accuracy=0.7 - 0.1 * x * (P > 8), learners=P) for P in (8, 64)
    ],
    "FULLSGD": lambda x, s: [
        made("adpsgd", s, loss=0.1 - 0.01 * x + 0.007, rounds=10),
        made("sync", s, loss=0.1, rounds=40),
    ],
    "CPSGD p = 8": lambda x, s: [
        made("adpsgd", s, loss=0.1 - 0.01 * x + 0.007),
        made("kavg", s, loss=0.1, rounds=12, K=8),
    ],
    "ahead of K-AVG": lambda x, s: [
        made("mavg", s, loss=0.1 - 0.01 * x, K=4, mu=0.7),
        made("kavg", s, loss=0.1, K=4),
    ],
    "best μ": lambda x, s: [
        made(
            "mavg",
            s,
            loss=0.1 + (mu - 0.4 - 0.4 * x * (1 if P > 8 else -1)) ** 2,
            learners=P,
            mu=mu,
            K=4,
        )
        for mu in (0.0, 0.2, 0.4, 0.6, 0.8)
        for P in (8, 64)
    ],
    "Hier-AVG(2K)": lambda x, s: [
        made("hieravg", s, accuracy=0.89 + 0.01 * x, K2=8, K1=2, S=4),
        made("kavg", s, K=4),
    ],
    "smaller K₁": lambda x, s: [
        made("hieravg", s, loss=0.1 - 0.01 * x * (K1 < 8), K2=32, K1=K1, S=4) for K1 in (4, 8)
    ],
    "larger S": lambda x, s: [
        made("hieravg", s, loss=0.1 - 0.01 * x * (S > 2), K2=32, K1=4, S=S) for S in (2, 4)
    ],
    "LUPA τ = 91": lambda x, s: [
        made("kavg", s, loss=0.1 - 0.01 * x + 0.007, rounds=1, K=91),
        made("sync", s, rounds=91),
    ],
    "linear": lambda x, s: [
        made("kavg", s, loss=0.0, seconds=sec, K=91, learners=P, problem="logistic")
        for P, sec in ((1, 1.0), (4, 0.3125 - 0.05 * x))
    ],
    "DiLoCo": lambda x, s: [
        made("diloco", s, loss=0.1 - 0.01 * x, K=16),
        made("kavg", s, loss=0.1, K=16),
        made("kavg", s, loss=0.1 - 0.02 * np.sign(x), K=64),
    ],
    "SlowMo": lambda x, s: [
        made("slowmo", s, loss=0.1 - 0.01 * x, K=16),
        made("kavg", s, loss=0.1, K=16),
    ],
    "Post-local": lambda x, s: [
        made("postlocal", s, accuracy=0.89 + 0.01 * x, rounds=10, K=16),
        made("sync", s, rounds=40),
    ],
    "QSR": lambda x, s: [
        made("qsr", s, accuracy=0.89 + 0.01 * x, rounds=10, K=16),
        made("kavg", s, rounds=40, K=16),
    ],
    "among all methods": lambda x, s: [
        made("adpsgd", s, loss=0.1 - 0.01 * x + 0.007, rounds=10),
        made("sync", s, loss=0.1, rounds=40),
    ],
    "1 Gbit/s": lambda x, s: [
        made(name, s, loss=0.0, seconds=sec, K=K, **LINKS)
        for name, K, sec in (("kavg", 16, 0.25 - 0.05 * x), ("sync", None, 1.0))
    ],
}


def test_every_claim_has_a_maker():
    assert all(sum(key in claim for key in MAKERS) >= 1 for claim in claims.CLAIMS)
    assert len(MAKERS) == len(claims.CLAIMS)
    assert {sweep for _, sweep in claims.CLAIMS.values()} <= {*FIGURES}


@pytest.mark.parametrize("key", MAKERS)
@pytest.mark.parametrize(
    "difference, noise, seeds, verdict",
    [
        (0.5, 0.05, 3, "pass"),
        (0.5, 0.05, 5, "pass"),
        (-0.5, 0.05, 3, "fail"),
        (-0.5, 0.05, 5, "fail"),
        (0.05, 0.4, 3, "inconclusive"),
        (0.5, 0.05, 2, "inconclusive"),
        (-0.5, 0.05, 1, "inconclusive"),
    ],
)
def test_a_claim_is_judged_right(key, difference, noise, seeds, verdict):
    (check,) = [check for claim, (check, _) in claims.CLAIMS.items() if key in claim]
    found = list(check(pairs(MAKERS[key], difference, noise, seeds)))
    assert [finding.verdict for finding in found] == [verdict]
    assert f"({seeds})" in found[0].numbers


def test_more_averages_fail_the_claim_of_fewer_whatever_the_loss():
    found = [
        run
        for seed in range(3)
        for run in (made("adpsgd", seed, loss=0.01, rounds=50), made("sync", seed, rounds=40))
    ]
    assert [f.verdict for f in claims.adpsgd_against("sync", None)(found)] == ["fail"]


@pytest.mark.parametrize("name, other", [("postlocal", "sync"), ("qsr", "kavg")])
def test_more_averages_fail_the_claim_of_no_less_accuracy_with_fewer(name, other):
    found = [
        run
        for seed in range(3)
        for run in (made(name, seed, accuracy=0.95, rounds=50, K=8), made(other, seed, K=8))
    ]
    assert [f.verdict for f in claims.thriftier(name, other)(found)] == ["fail"]


def test_a_clock_with_latency_does_not_count_at_other_rates():
    found = [
        made(name, seed, loss=0.0, K=K, **LINKS | {"latency_s": 5e-6})
        for seed in range(3)
        for name, K in (("kavg", 16), ("sync", None))
    ]
    assert list(claims.sooner(found)) == []


def test_runs_of_other_settings_or_unfinished_are_not_compared():
    found = [
        run
        for seed in range(3)
        for run in (made("mavg", seed, K=4, mu=0.7), made("kavg", seed, K=4, lr=0.2))
    ]
    assert list(claims.mavg_ahead(found)) == []
    found = [made("mavg", 0, K=4, mu=0.7), made("kavg", 0, K=8)]
    assert list(claims.mavg_ahead(found)) == []


@pytest.mark.parametrize(
    "a, b, margin, verdict",
    [
        ([1, 1, 1], [2, 2, 2], 0, "pass"),
        ([2, 2, 2], [1, 1, 1], 0, "fail"),
        ([1, 1, 1], [1, 1, 1], 0, "inconclusive"),
        ([1, 1, 1], [1, 1, 1], 0.1, "pass"),
        ([1, 2, 3], [1.5, 2.4, 3.6], 0, "pass"),
        ([1, 2, 9], [1.5, 2.4, 3.6], 0, "inconclusive"),
        ([1, np.nan, 1], [2, 2, 2], 0, "inconclusive"),
    ],
)
def test_the_rule(a, b, margin, verdict):
    assert claims.below(dict(enumerate(a)), dict(enumerate(b)), margin) == verdict


def test_claims_prints_a_table_and_says_what_is_missing(draw, tmp_path):
    for name, config in planned("hieravg_fig3_4").items():
        write(tmp_path / f"{name}.h5", config)
    status, out, err, _ = draw("claims", tmp_path)
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    assert len(lines) >= 1 + len(claims.CLAIMS)
    assert any("smaller K₁" in line and "| pass" in line for line in lines)
    assert (
        "no runs to compare: localavg sweep jobs/sweeps/lupa-fig2.toml" in out
        and " 15 missing" in out
    )
    assert (tmp_path / "figures" / "claims.md").read_text() in out


def test_the_time_to_a_level_is_interpolated():
    run = made("kavg", 0, loss=0.0, seconds=3.0)
    assert quantities.reach(run, 0.35) == pytest.approx(3.0) and quantities.reach(run, 0.8) == 0.0
    assert np.isnan(quantities.reach(run, -1))
