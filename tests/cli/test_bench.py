"""`bench train`, `checkpoint` and `memory`: their rows, what is measured of them however small, and
what they refuse.
"""

import itertools
import json
import math
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from mpi import call, run
from mpi4py import MPI

from localavg.cli import bench
from localavg.cli.bench import checkpoint, hiding, memory, period
from localavg.parallel import transport
from localavg.parallel.fleet import Fleet

RATES = ["ours_samples_per_s", "best_samples_per_s", "floor_samples_per_s"]
COLUMNS = {
    "logistic": [
        "problem",
        "model",
        "device",
        "learners",
        "engine",
        "best",
        *RATES,
        "ours_over_floor",
        "ours_over_best",
        "overhead",
        "recording",
        "overhead_s",
        "add_s",
        "overhead_over_add",
    ],
    "network": [
        "problem",
        "model",
        "side",
        "batch_size",
        "precision",
        "deterministic",
        "device",
        "threads",
        "learners",
        "engine",
        "best",
        *RATES,
        "ours_over_best",
        "ours_over_floor",
    ],
    "checkpoint": ["learners", "ranks", "bytes", "ours_s", "disk_s", "restore_s", "ours_over_disk"],
    "memory": ["data", "ranks", "data_bytes", "peak_bytes", "ratio"],
}
DATA = "--data epsilon-like:200x9"
FLOATS, LEARNERS = 70, 5  # of a checkpoint
LINES = {
    "memory": f"memory {DATA} --steps 3",  # first: what is loaded already makes it short
    "logistic": f"train --problem logistic {DATA} --batch-size 8 --steps 12 --repeats 1",
    "network": "train --model mlp --batch-size 4 --steps 2 --repeats 1",
    "several": "train --model mlp --side 9 --learners 2 --batch-size 4 --steps 2 --repeats 1",
    "batch": "train --model resnet8 --learners 2 --batch-size 4 --steps 2 --repeats 1 "
    "--engine batch",
    "logistics": f"train --problem logistic {DATA} --learners 3 --batch-size 8 --steps 4 --repeats 1",
    "stacked": f"train --problem logistic {DATA} --engine batch --batch-size 8 --steps 4 --repeats 1",
    "checkpoint": f"checkpoint --folder FOLDER/disk --floats {FLOATS} --learners {LEARNERS} "
    "--repeats 3",
    "delay": "delay --sizes 1000 --algorithms kavg diloco --K 2 --rounds 1 --repeats 1",
    "period": "period --Ks 1 8 --steps 24 --eval-every 4 --seeds 1 --loss 2",
}
ON_TWO = ["memory", "checkpoint", "delay", "period"]
MISTAKES = {
    "train --problem network": "--problem network needs --model NAME",
    "train --model resnet81": "--model resnet81: must be one of mlp, ",
    "train --problem logistic --model nin": "--model nin: logistic regression has no network",
    "train --model nin --side 99999999": "--side 99999999: 4 batches of 64 such images do not fit",
    "checkpoint --folder "
    "FOLDER/nowhere": "--folder .*nowhere.*No such file.*give a folder that every rank can write",
    f"train {DATA} --steps 2 --repeats 1 --json "
    "FOLDER/nowhere/rows.json": "rows.json: No such file or directory",
    "train --model mlp --engine graph": "--engine graph .* --device cuda",
    "train --model mlp --deterministic no": "--deterministic no is for GPUs: add --device cuda",
    f"train {DATA} --engine graph": "--engine graph means nothing to --problem logistic",
    "delay": "bench delay on 1 rank: nothing travels",
    "period": "bench period on one rank: one learner averages nothing",
    f"memory {DATA} --steps 0": "--steps '0': must be a whole number of at least 1",
}


def told(world, lines):
    """The exit status of each command line, or what is said of it; the same on every rank."""
    from localavg.__main__ import parser
    from localavg.cli import in_flags
    from localavg.errors import UserError

    answers = []
    for line in lines:
        try:
            args = parser().parse_args(["bench", *line.split()])
            answers.append(args.call(args))
        except UserError as e:
            answers.append(in_flags(str(e)))
    return answers


def bench_all(folder, ranks, names, mistakes=()):
    """In one launch: the rows that the command lines of these names leave, and what is said of
    `mistakes`.
    """
    (folder / "disk").mkdir()
    lines = [f"{LINES[name]} --json FOLDER/{name}.json" for name in names] + [*mistakes]
    answers, *others = call(ranks, told, [line.replace("FOLDER", str(folder)) for line in lines])
    assert answers[: len(names)] == [0] * len(names) and all(other == answers for other in others)
    rows = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    return SimpleNamespace(
        rows=rows,
        told=dict(zip(mistakes, answers[len(names) :], strict=True)),
        folder=folder,
        ranks=ranks,
    )


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    names = [name for name in LINES if name not in ("delay", "period")]
    return bench_all(tmp_path_factory.mktemp("one"), 1, names, MISTAKES)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    alone = [LINES[name] for name in ("logistic", "network", "several")]
    return bench_all(tmp_path_factory.mktemp("two"), 2, ON_TWO, alone)


@pytest.fixture(params=["one_rank", "two_ranks"])
def either(request):
    return request.getfixturevalue(request.param)


# --------------------------------------------------------------------------------------------------


def check_numbers(row, columns):
    """A row with these columns in this order, whose numbers are positive but for a difference,
    which is a number.
    """
    assert list(row) == columns
    for name, value in row.items():
        if not isinstance(value, str | bool):
            assert math.isfinite(value) and (value > 0 or name == "overhead"), (name, value)


@pytest.mark.parametrize("name", ["logistic", "logistics", "network", "several", "batch"])
def test_training_is_compared_with_the_best_loop_and_the_floor(name, one_rank):
    (row,) = one_rank.rows[name]
    problem = "logistic" if name.startswith("logistic") else "network"
    columns = COLUMNS[problem]
    check_numbers(row, columns[:-5] if name == "logistics" else columns)  # of one learner
    assert row["best"] in ("loop", "vmap") and (row["learners"] > 1 or row["best"] == "loop")
    assert (row["problem"], row["device"]) == (problem, "cpu")
    for other in ("best", "floor"):
        assert row[f"ours_over_{other}"] == pytest.approx(
            row["ours_samples_per_s"] / row[f"{other}_samples_per_s"]
        )


def test_a_row_of_training_says_what_was_trained(one_rank):
    (logistic,), *networks = (one_rank.rows[name] for name in ("logistic", "network", "several"))
    assert logistic["model"] == "d = 9, B = 8, block" and logistic["overhead"] > -1
    assert logistic["overhead_over_add"] == pytest.approx(
        logistic["overhead_s"] / logistic["add_s"]
    )
    names = "model", "side", "batch_size", "precision", "learners", "engine"
    said = [[row[name] for name in names] for (row,) in networks]
    assert said == [["mlp", 8, 4, "float32", 1, "loop"], ["mlp", 9, 4, "float32", 2, "loop"]]
    (batch,), (logistics,) = one_rank.rows["batch"], one_rank.rows["logistics"]
    assert one_rank.rows["stacked"][0]["engine"] == "batch"
    assert (batch["engine"], batch["learners"]) == ("batch", 2)
    assert (logistics["engine"], logistics["learners"]) == ("loop", 3)


def test_a_checkpoint_is_compared_with_plain_writing(either):
    (row,) = either.rows["checkpoint"]
    check_numbers(row, COLUMNS["checkpoint"])
    assert (row["ranks"], row["learners"]) == (either.ranks, LEARNERS)
    assert row["bytes"] == LEARNERS * FLOATS * 4 * 2  # weights and momentum
    assert row["ours_over_disk"] == pytest.approx(row["disk_s"] / row["ours_s"])
    assert list((either.folder / "disk").iterdir()) == []


def test_memory_is_compared_with_the_data(either):
    (row,) = either.rows["memory"]
    check_numbers(row, COLUMNS["memory"])
    assert (row["data"], row["ranks"]) == ("epsilon-like:200x9", either.ranks)
    assert (
        row["data_bytes"] == (200 + 50) * (9 + 1) * 4
    )  # rows to train and to test, a label beside 9 features
    assert row["ratio"] == pytest.approx(row["peak_bytes"] / row["data_bytes"])
    assert row["peak_bytes"] > 2e6 * either.ranks  # a Python that has loaded NumPy


def test_the_rows_are_printed_as_well(tmp_path):
    where = "--json", tmp_path / "rows.json"
    done = run(1, "-m", "localavg", "bench", *LINES["logistic"].split(), *where, check=True)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert "local updates, samples a second" in done.stdout
    assert [words[0] for words in lines if words and words[0] in row] == list(row)
    assert all(str(row[name]) in done.stdout for name in row)


# --------------------------------------------------------------------------------------------------


def checkpoints_in_order(world, orders, folder):
    """The row of a checkpoint's benchmark for each order of its ways, the same in every turn."""
    rows = []
    for order in orders:
        bench.Random = lambda turn, order=order: SimpleNamespace(sample=lambda ways, n: order)
        rows += checkpoint.bench_checkpoint(Fleet(world, LEARNERS), folder, FLOATS, 2)
    return rows


def test_a_checkpoint_is_read_back_in_whatever_order_the_ways_come(tmp_path):
    orders = [*itertools.permutations(["ours_s", "disk_s", "restore_s"])]
    zero, one = call(2, checkpoints_in_order, orders, str(tmp_path))
    assert zero == one and len(zero) == 6  # times of the slowest rank, so the ranks agree
    for row in zero:
        check_numbers(row, COLUMNS["checkpoint"])


def test_medians_are_over_turns_in_which_every_way_comes_once_after_the_warm_ones():
    come, times = (
        [],
        {"a": iter([90, 1, 5, 3, 4, 2]), "b": iter([0, 7, 7, 8, 9, 9]), "c": iter([1.0] * 6)},
    )
    ways = {name: lambda name=name: come.append(name) or next(times[name]) for name in times}
    assert bench.medians(ways, 5) == {"a": 3, "b": 8, "c": 1}
    turns = [come[i : i + 3] for i in range(0, len(come), 3)]
    assert len(turns) == 6 and all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({*map(tuple, turns)}) > 1


def test_the_order_of_the_ways_is_the_same_on_every_rank():
    come = [], []
    for mine in come:
        bench.medians(
            {name: lambda name=name, mine=mine: mine.append(name) or 0.0 for name in "abc"}, 20
        )
    assert come[0] == come[1]


@pytest.fixture
def nothing_trained(monkeypatch):
    """`bench memory` of 10 + 5 rows of 3 features, whose training run is over at once."""
    monkeypatch.setattr(memory, "run", lambda *_: 0)
    monkeypatch.setattr(
        memory, "load", lambda _: SimpleNamespace(config={"rows": 10, "test_rows": 5, "d": 3})
    )


def test_memory_is_the_most_that_was_seen_of_all_ranks_together(nothing_trained, monkeypatch):
    seen, enough = iter([500, 900, 700]), threading.Event()
    monkeypatch.setattr(memory, "_pss_bytes", lambda: next(seen, None) or enough.set() or 700)
    monkeypatch.setattr(memory, "run", lambda *_: enough.wait(60))
    world = SimpleNamespace(
        rank=0, size=3, bcast=lambda x: x, Barrier=lambda: None, allreduce=lambda x: 2 * 1000 + x
    )
    (row,) = memory.bench_memory(world, "any", 1)
    assert (row["ranks"], row["data_bytes"], row["peak_bytes"]) == (3, 4 * 15 * 4, 2 * 1000 + 900)


def test_the_memory_of_a_run_that_is_over_at_once_is_not_nothing(nothing_trained):
    (row,) = memory.bench_memory(MPI.COMM_SELF, "any", 1)
    assert row["peak_bytes"] > 2e6


# --------------------------------------------------------------------------------------------------


def test_rounds_are_timed_with_averages_at_once_delayed_and_never(two_ranks):
    rows = two_ranks.rows["delay"]
    assert [(row["algorithm"], row["updates"]) for row in rows] == [
        (name, way) for name in ("kavg", "diloco") for way in ("sleeping", "computing")
    ]
    for row in rows:
        assert row["elements"] == 1000 and row["ranks"] == 2
        assert min(row[f"{name}_s"] for name in ("average", "never", "at_once", "delayed")) > 0
        assert row["hidden"] == pytest.approx(
            min(1, 1 - (row["delayed_s"] - row["never_s"]) / row["average_s"])
        )


def test_periods_are_compared_by_the_seconds_to_a_loss(two_ranks):
    rows = {row["K"]: row for row in two_ranks.rows["period"]}
    assert list(rows) == [1, 8, "auto"]
    best = min(rows[1]["seconds"], rows[8]["seconds"])
    for row in rows.values():
        assert 0 < row["least_s"] <= row["seconds"] <= row["most_s"] < math.inf
        assert row["seconds / best"] == pytest.approx(row["seconds"] / best)


def test_a_loss_is_reached_on_the_line_between_two_looks():
    wall_s, losses = np.array([0.0, 1.0, 3.0, 4.0]), np.array([2.0, 1.0, 0.5, 0.7])
    assert period.reached_s(wall_s, losses, 0.75) == 2.0
    assert period.reached_s(wall_s, losses, 2.5) == 0.0
    assert period.reached_s(wall_s, losses, 0.4) == math.inf


def test_a_round_ends_with_an_average_that_is_made_at_once_or_merged_a_round_later():
    def marked(background):
        fleet = Fleet(MPI.COMM_SELF, 2)
        ours, other = (transport.choose("auto", fleet, (), 100) for _ in range(2))
        rounds = hiding.Rounds(fleet, ours, 3, "kavg", 4, other if background else None)
        made, average_ = [], rounds.averaging.average_
        rounds.averaging.average_ = lambda t, gamma: made.append((t, bool(average_(t, gamma))))
        assert rounds.seconds(2, lambda: None) > 0
        return [t for t, averaged in made if averaged], len(made)

    assert marked(background=False) == ([4, 8, 12], 12)
    assert marked(background=True) == ([8, 12], 12)


def test_no_average_is_on_its_way_when_rounds_have_been_timed():
    """The next rounds that are timed would share the cores with it."""
    fleet = Fleet(MPI.COMM_SELF, 2)
    ours, other = (transport.choose("auto", fleet, (), 100) for _ in range(2))
    rounds = hiding.Rounds(fleet, ours, 3, "kavg", 4, other)
    flights = rounds.averaging.flights
    travel = flights._travel
    flights._travel = lambda *about: (time.sleep(0.1), travel(*about))[1]
    rounds.seconds(1, lambda: None)
    assert flights.now.t == 8 and flights.now.result.done()


@pytest.mark.parametrize(
    ("hosts", "cores", "used"),
    [("a", [4], 1), ("aaa", [2, 2, 2], 2), ("aab", [2, 2, 2], 3), ("abab", [1, 8, 1, 8], 3)],
)
def test_the_cores_of_all_hosts_count(hosts, cores, used):
    world = SimpleNamespace(allgather=lambda mine: cores)
    assert hiding._cores(SimpleNamespace(hosts=list(hosts), world=world)) == used


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_names_the_option(line, one_rank):
    assert re.search(MISTAKES[line], str(one_rank.told[line]))


@pytest.mark.parametrize("name", ["logistic", "network", "several"])
def test_updates_are_measured_on_one_rank_only(name, two_ranks):
    assert re.search(
        "bench train on 2 ranks: .*run it without mpirun", str(two_ranks.told[LINES[name]])
    )
