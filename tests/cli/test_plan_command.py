"""`localavg plan`: a table and JSON from numbers, from a run file, and against a modelled run."""

import json
import re

import pytest
from mpi import alone
from run_files import run_file

from localavg.__main__ import parser
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.files import record

NUMBERS = "--step-s 0.5 --step-cv 0 --latency-s 0.125 --floats 100 --steps 10"


def planned(line, path=None):
    """The rows that `plan LINE` writes."""
    args = parser().parse_args(["plan", *line.split(), *(["--json", str(path)] if path else [])])
    assert args.call(args) == 0
    return json.loads(path.read_text()) if path else []


def test_the_rows_range_over_nodes_links_periods_and_delays(tmp_path, capsys):
    rows = planned(
        f"{NUMBERS} --nodes 2 4 --bandwidth 6.4kbit 1e3 --K 2 4 --delay 0 3 K", tmp_path / "p.json"
    )
    settings = [(row["nodes"], row["K"], row["delay"]) for row in rows]
    each = [(2, 0), (2, 2), (4, 0), (4, 3), (4, 4)]  # no delay is longer than K
    assert settings == [(N, K, tau) for N in (2, 2, 4, 4) for K, tau in each]
    merged = [row["merged"] for row in rows[:5]]
    assert merged == ["at once", "after K", "at once", "after 3", "after K"]
    assert [row["bandwidth_bytes_per_s"] for row in rows[::5]] == [800, 1000] * 2
    two = rows[2]  # at 4, 8 and 10: 0.25 s of latency, 400 bytes at 800 a second
    assert two["average_s"] == pytest.approx(0.75)
    assert two["wall_s"] == pytest.approx(10 * 0.5 + 3 * 0.75)
    assert two["link_bytes"] == pytest.approx(1200)
    out = capsys.readouterr().out
    assert out.count("4 nodes of 1 learner") == 2 and "The model leaves out" in out
    assert re.findall(r"delay (\d+) with K = ([\d, ]+)", out) == [("3", "2")]


def test_delays_that_are_left_out_are_named_once(capsys):
    planned(f"{NUMBERS} --nodes 2 4 --bandwidth 800 --K 2 4 8 --delay 8 3 8 K")
    out = capsys.readouterr().out
    assert re.findall(r"delay (\d+) with K = ([\d, ]+)", out) == [("3", "2"), ("8", "2, 4")]
    planned(f"{NUMBERS} --nodes 2 --bandwidth 800 --K 3 4 --delay 0 3 K")
    assert "with K =" not in capsys.readouterr().out


def test_a_code_sends_fewer_bytes_between_nodes(tmp_path):
    plain, coded = planned(
        f"{NUMBERS} --nodes 2 --bandwidth 800 --K 4 --delay 0 --wire float32 int8", tmp_path / "p"
    )
    assert (plain["wire"], coded["wire"]) == ("float32", "int8")
    assert plain["link_bytes"] == 3 * 400 and 3 * 100 < coded["link_bytes"] < 3 * 120
    latency_s = 0.25
    assert coded["average_s"] - latency_s == pytest.approx(coded["link_bytes"] / 3 / 800)


def test_factors_of_a_rank_send_what_the_shapes_say(tmp_path):
    """Of 8 × 2·3 and of a vector; 5 numbers more are statistics."""
    (row,) = planned(
        "--step-s 0.5 --steps 10 --tensors 8x2x3 7 --floats 60 --nodes 2 --bandwidth 800 --K 4 "
        "--delay 0 --wire lowrank:2",
        tmp_path / "p.json",
    )
    assert row["floats"] == 60 and row["link_bytes"] == 3 * 4 * (2 * (8 + 6) + 7 + 5)
    (row,) = planned(
        "--step-s 0.5 --tensors 8x2x3 7 --nodes 2 --bandwidth 800 --K 4 --delay 0", tmp_path / "q"
    )
    assert row["floats"] == 55


def test_pieces_send_less_at_a_time_and_as_much_in_all(tmp_path, capsys):
    line, path = f"{NUMBERS} --nodes 2 --bandwidth 800 --K 4", tmp_path / "p.json"
    one, two = planned(f"{line} --delay 0 --fragments 1 2", path)
    (late,) = planned(f"{line} --delay K --fragments 2", path)
    assert [row["fragments"] for row in (one, two, late)] == [1, 2, 2]
    assert two["average_s"] == pytest.approx(0.25 + 200 / 800)
    # pieces at 2, 4, 6, 8, and both at 10
    assert two["wall_s"] == pytest.approx(10 * 0.5 + 4 * 0.5 + 2 * 0.5)
    assert one["link_bytes"] == two["link_bytes"] == 3 * 400
    assert (late["delay"], late["merged"]) == (1, "before the next")
    assert late["wall_s"] == pytest.approx(10 * 0.5 + 2 * 0.5)  # all but the last are hidden
    planned(f"{NUMBERS} --nodes 2 --bandwidth 800 --K 2 4 --delay 0 1 --fragments 2")
    out = capsys.readouterr().out
    assert re.findall(r"2 fragments, delay (\d+) with K = ([\d, ]+)", out) == [("1", "2")]


def test_a_run_file_gives_the_numbers_and_options_replace_them(tmp_path):
    path = run_file(tmp_path / "run.h5", config={"steps": 32}, provenance={"nodes": 1})
    (row,) = planned(f"{path} --K 8 --delay 0", tmp_path / "a.json")
    assert (row["nodes"], row["learners"], row["floats"], row["steps"]) == (1, 2, 1000, 32)
    assert row["average_s"] == pytest.approx(1.0) and row["step_s"] == pytest.approx(0.5)
    given = "--nodes 2 --bandwidth 4000 --latency-s 0 --floats 500 --step-cv 0 --steps 8"
    (row,) = planned(f"{path} --K 8 --delay 0 {given}", tmp_path / "b.json")
    assert row["learners"] == 4 and row["average_s"] == pytest.approx(0.5 + 0.5)
    assert row["wall_s"] == pytest.approx(8 * 0.5 + 1.0)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--step-s 0.1", "plan needs --bandwidth, --floats; give them, or a run file"),
        ("RUN --nodes 2", "was on one node, and says nothing of a link .* give --bandwidth"),
        (
            f"{NUMBERS} --bandwidth 800 --K 2 --delay 4",
            "no --K is long enough: delay 4 with K = 2; a delay is at",
        ),
        (f"{NUMBERS} --bandwidth 800 --node-s -1", "--node-s -1.0: must lie between 0 and"),
        (f"{NUMBERS} --bandwidth 800 --wire lowrank:4", "--wire lowrank:4: its bytes .* --tensors"),
        (f"{NUMBERS} --bandwidth 800 --wire int4", "--wire int4: must be one of float32"),
        (f"{NUMBERS} --bandwidth 800 --tensors 11x10", "have 110 numbers, more than --floats 100"),
        (f"{NUMBERS} --bandwidth 800 --tensors 9x 1", "--tensors '9x': must be the sizes"),
        (
            f"{NUMBERS} --bandwidth 800 --tensors 10x10 --wire lowrank:5",
            "--wire lowrank:5: no matrix is larger than .* at most lowrank:4",
        ),
        (
            f"{NUMBERS} --bandwidth 800 --tensors 10x10 --wire lowrank:1 --fragments 2",
            "--wire lowrank:1 with --fragments 2: a matrix may lie in two pieces",
        ),
        (f"{NUMBERS} --bandwidth 800 --K 2 --fragments 4", "long enough: 4 fragments, delay 0"),
        (f"{NUMBERS} --bandwidth 1gbyte", "--bandwidth '1gbyte': must be bits per second such as"),
        (f"{NUMBERS} --delay k", "--delay 'k': must be a whole number of at least 0, or K"),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, words, error):
    path = run_file(tmp_path / "run.h5", config={"steps": 32}, provenance={"nodes": 1})
    with pytest.raises(UserError) as e:
        planned(words.replace("RUN", str(path)))
    assert re.search(error, in_flags(str(e.value)))


def test_a_plan_has_the_wall_clock_of_a_run_in_modelled_time(tmp_path):
    """With a delay and learners of different speeds."""
    rough = "--step-s 0.01 --step-cv 0.4 --latency-s 0.001"
    done = alone(
        *f"train kavg --K 4 --delay 3 --learners 4 --seed 2 --data epsilon-like:400x50 {rough} "
        f"--batch-size 8 --lr 0.1 --steps 30 --simulate --bandwidth-bytes-per-s 1e4 "
        f"--out {tmp_path / 'run.h5'}".split()
    )
    assert done.returncode == 0, done.stderr
    run = record.load(tmp_path / "run.h5")
    (row,) = planned(
        f"{rough} --bandwidth 1e4 --floats 50 --nodes 4 --K 4 --delay 3 --steps 30 --seed 2",
        tmp_path / "p.json",
    )
    last = run.train.iloc[-1]
    assert row["wall_s"] == pytest.approx(last.wall_s)
    assert row["communicate"] == pytest.approx(last.communicate_s / last.wall_s)
    assert row["wait"] == pytest.approx(last.wait_s / last.wall_s)
    assert row["average_s"] == pytest.approx(run.averages.seconds.iloc[0])
