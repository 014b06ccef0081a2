"""What the harness of bits covers, and that it tells a difference."""

import json
from itertools import product

import bits
import pytest

from localavg.__main__ import parser
from localavg.algorithms import ALGORITHMS, ASYNCHRONOUS
from localavg.config import OPTIMIZERS, SAMPLING, STATES
from localavg.config.settings import UNAVERAGED


def parsed(ranks):
    """The settings of every run on so many ranks, as the command line reads them."""
    lines = [run.line for n, runs in bits.launches().values() if n == ranks for run in runs]
    command_line = parser()
    return [vars(command_line.parse_args(["train", *line.split()])) for line in lines]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_algorithm_meets_every_sampling_optimiser_and_state_at_every_number_of_ranks(ranks):
    runs = parsed(ranks)
    samplings = {(run["algorithm"], run.get("sampling", "iid")) for run in runs}
    updates = {
        (run["algorithm"], run.get("optimizer", "sgd"), run.get("state", "keep")) for run in runs
    }
    everywhere = ALGORITHMS.keys() - {"sgd"}  # one learner, one rank
    assert samplings >= set(product(everywhere | ASYNCHRONOUS.keys(), SAMPLING))
    refused = {("fedavg", optimiser, "keep") for optimiser in ("adam", "adamw")}
    refused |= set(product(UNAVERAGED, OPTIMIZERS, set(STATES) - {"keep"}))
    assert updates >= set(product(everywhere, set(OPTIMIZERS) - {"sgd"}, STATES)) - refused
    assert updates >= set(product(everywhere, ["sgd"], ["keep"]))
    if ranks == 1:
        assert samplings >= set(product(["sgd"], SAMPLING))
        assert {optimiser for row, optimiser, _ in updates if row == "sgd"} == set(OPTIMIZERS)
    assert {run.get("transport") for run in runs} >= {"shared", "mpi"}
    wires = {str(run.get("wire")).partition(":")[0] for run in runs}
    assert wires == ({"None", "bf16", "int8", "lowrank"} if ranks == 4 else {"None"})
    late = {("fragments" in run, "delay" in run, "wire" in run) for run in runs}
    assert late >= {(True, True, False), (True, False, False), (False, True, False)}
    if ranks == 4:
        assert late >= {(True, True, True), (False, True, True), (True, False, True)}
    on_nodes = {run["transport"] for run in runs if "ranks_per_node" in run}
    assert on_nodes == ({"shared", "mpi"} if ranks == 4 else set())


def test_no_two_runs_share_a_file_or_a_command_line():
    runs = [(ranks, run) for ranks, made in bits.launches().values() for run in made]
    files = [name for _, run in runs for name in (run.out, run.resumed) if name]
    assert len(set(files)) == len(files)
    assert len({(ranks, run.line) for ranks, run in runs}) == len(runs)


def test_a_difference_is_listed_and_is_status_1(tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    same = {"two": {"weights": "2"}}
    a.write_text(json.dumps({"one": {"weights": "0", "eval/t": "1"}, **same, "gone": {}}))
    b.write_text(json.dumps({"one": {"weights": "1", "eval/t": "1"}, **same}))
    assert bits.compare(a, a) == 0
    assert capsys.readouterr().out == "0 of 3 lines differ\n"
    assert bits.compare(a, b) == 1
    listed = capsys.readouterr().out.splitlines()
    assert listed == [f"only in {a}: gone", "weights: one", "2 of 3 lines differ"]
