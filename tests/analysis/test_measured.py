"""Times on emulated hosts, beside modelled ones."""

import measured
import numpy as np
import pytest
from claimed import made


def at(tmp_path, rate, name, K=None, seconds=1.0, d=1000, ranks=2, sent=4000, **more):
    """A run of 10 averages on two hosts, half of whose time is computation.

    sent: bytes of a host in an average.
    """
    run = made(name, 0, seconds=seconds, K=K, d=d, data_name="digits", **more)
    object.__setattr__(run, "path", tmp_path / f"x-root/{rate}/{name}.h5")
    end = {"compute_s": [0.0, seconds], "data_s": 0.0, "communicate_s": [0.0, seconds]}
    object.__setattr__(run, "train", run.train.assign(wait_s=0.0, **end))
    object.__setattr__(run, "averages", run.averages.assign(bytes_cross=sent * ranks))
    object.__setattr__(run, "provenance", {"ranks": ranks})
    return run


def test_the_model_has_the_measured_computation_and_the_bytes_over_the_link(tmp_path):
    """By hand: 10 averages of 32000 bits a host at 100 Mbit/s, and 2 messages each."""
    run = at(tmp_path, "100mbit", "sync")
    assert measured.modelled_s(run) == pytest.approx(1.0 + 10 * (1e-4 + 32_000 / 1e8))
    assert measured.modelled_s(at(tmp_path, "1gbit", "sync")) < measured.modelled_s(run)
    coded = at(tmp_path, "100mbit", "qsgd", sent=1000)
    assert measured.modelled_s(coded) == pytest.approx(1.0 + 10 * (1e-4 + 8_000 / 1e8))
    assert measured.modelled_s(at(tmp_path, "100mbit", "sgd", ranks=1)) == 1.0


def test_a_panel_names_problem_hosts_and_link_and_other_folders_are_left_out(tmp_path):
    runs = [at(tmp_path, rate, name, seconds=s) for rate in ("1gbit", "100mbit")
            for name, s in (("adpsgd", 0.5), ("sync", 1.0))]  # fmt: skip
    runs.append(at(tmp_path, "elsewhere", "sync"))
    groups = measured.gathered(runs)
    assert list(groups) == [
        f"logistic regression, digits, 8 learners on 2 hosts, measured at {g} Gbit/s"
        for g in (0.1, 1)
    ]
    (lines, _) = groups.values()
    assert [*lines] == [("sync", None), ("adpsgd", None)]
    assert measured.row("here", ("adpsgd", None), lines)[-2:] == ("2.00", "-")


def test_without_runs_it_is_one_line_and_exit_2(draw, tmp_path):
    (tmp_path / "runs").mkdir()
    status, _, err, _ = draw("measured", tmp_path / "runs")
    assert status == 2 and err.count("\n") == 1 and np.isnan(measured.rate(made("sync", 0)))
