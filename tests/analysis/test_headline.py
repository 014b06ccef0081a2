"""The headline: its modelled clock, its conclusions, and that the digits have its order."""

import claims
import headline
import numpy as np
import pytest
import quantities
from claimed import by_period
from drive import command_lines, parser
from mpi import ROOT
from mpi4py import MPI

from localavg.cli.sweep import plan
from localavg.datasets.two_classes import prepare_features
from localavg.files.record import load, load_many


def lines_of(runs):
    """The lines of the figure."""
    return {key: [run for run in runs if quantities.kind(run) == key] for key in headline.NAMES}


def test_the_modelled_clock_is_that_of_a_simulated_run(tmp_path):
    line = (
        "train kavg --K 5 --learners 4 --data epsilon-like:400x50 --batch-size 4 --steps 60 "
        "--eval-every 6 --simulate --step-cv 0 --step-s 3e-6 --latency-s 5e-5 "
        f"--bandwidth-bytes-per-s 1.25e8 --out {tmp_path}/run.h5"
    )
    assert command_lines(MPI.COMM_WORLD, [line.split()]) == [0]
    run = load(tmp_path / "run.h5")
    rows = quantities.on_link(run, 3e-6, **headline.LINK)
    np.testing.assert_allclose(rows.link_s, run.eval.wall_s, rtol=1e-9)


@pytest.mark.parametrize(
    "losses, verdicts",
    [
        ({}, ["pass", "pass", "pass"]),
        ({"once": 0.12}, ["fail", "pass", "fail"]),
        ({"five": 0.2}, ["pass", "fail", "pass"]),
    ],
)
def test_conclusions_have_their_verdicts_and_numbers(losses, verdicts):
    runs = [run for seed in range(3) for run in by_period(seed, **losses)]
    said = [*headline.conclusions(lines_of(runs))]
    assert [words.rpartition("(")[2] for words in said] == [f"{v})." for v in verdicts]
    assert f"{losses.get('once', 0.3):.3f}, and 0.110 with" in said[0]


@pytest.mark.long
def test_the_digits_have_the_order(tmp_path):
    """The runs of `make run` where nothing was fetched, on one rank."""
    prepare_features("digits", tmp_path / "even.h5", list("02468"), sort=True)
    train = next(a for a in parser()._actions if hasattr(a, "choices") and a.choices)
    sweep = plan.read(
        ROOT / "jobs" / "sweeps" / "headline.toml",
        "laptop",
        train.choices["train"],
        changes={"data": str(tmp_path / "even.h5")},
    )
    folder = tmp_path / "headline-laptop"
    words = [[*r.words, "--seed", str(r.asked["seed"])] for r in sweep.runs]
    outs = [["--out", str(folder / f"{r.name}.h5")] for r in sweep.runs]
    done = command_lines(MPI.COMM_WORLD, [a + b for a, b in zip(words, outs, strict=True)])
    assert done == [0] * 12
    found = [f for text, f in claims.findings(load_many(folder)) if text.startswith("Different")]
    assert [f.verdict for f in found] == ["pass"] * 3, found
