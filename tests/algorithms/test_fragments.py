"""Averages of pieces of the weights in turn: whose turn it is, runs against the oracle, refusals."""

import shlex

import numpy as np
import oracles as oracle
import pytest
from mpi import call, train_all
from mpi4py import MPI
from samples import write

import localavg
from localavg import algorithms
from localavg.algorithms.fragments import InTurn
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.files import record
from localavg.learner.flat import Flat
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mpi import HostMPI
from localavg.training.averaging import Averaging

TOLERANCE = 1e-6  # of weights, relative, in the 2-norm
WIDE, P, T = 200, 4, 41  # columns: 4 blocks of 64, the last one short; learners; updates


@pytest.mark.parametrize("K", [1, 5, 12, 16])
def test_every_piece_has_its_turn_once_in_a_period(K):
    for F in range(1, K + 1):
        schedule = InTurn(K, F)
        due = {((i + 1) * K // F) % K: i for i in range(F)}
        for t in range(1, 3 * K + 1):
            assert schedule.piece(t) == due.get(t % K)
            assert bool(schedule.after(t)) == (t % K in due)


class Stateless:
    averaged = 0

    def at_average_(self, average_):
        pass


def test_a_piece_of_statistics_is_averaged_plainly_and_s_is_of_the_parameters():
    """Columns 0 … 99 are trained; pieces are 0 … 63, 64 … 127 and 128 … 199."""
    transport = HostMPI(Fleet(MPI.COMM_SELF, P))
    algorithm = algorithms.kavg.kavg(K=3, fragments=3, outer="momentum", mu=0.5)
    flat = Flat({"w": (100,), "s": (100,)}, P, 1, transport.zeros)
    noted = []
    nothing = dict.fromkeys(("before", "objective"), lambda *a: None)
    algorithm.participants.start(range(P), P, 0)
    made = Averaging(
        algorithm, transport, flat, Stateless(), variance=True, after=lambda *a: noted.append(a),
        **nothing,
    )  # fmt: skip
    made.begin(0, 0.1)
    ends, v = [0, 64, 128, 200], np.zeros(200)
    w_tilde = np.zeros(200)
    for t in range(1, 7):
        rows = np.random.default_rng(t).normal(size=(P, 200)).astype(np.float32)
        flat.w[...] = rows
        made.average_(t, 0.1, last=t == 6)
        expected = rows.astype(np.float64)
        for i in range(3) if t == 6 else [(t - 1) % 3]:
            for j in range(ends[i], ends[i + 1]):
                mean = expected[:, j].mean()
                if j < 100:
                    v[j] = 0.5 * v[j] + mean - w_tilde[j]
                    w_tilde[j] += v[j]
                    mean = w_tilde[j]
                expected[:, j] = mean
        np.testing.assert_allclose(flat.w, expected, rtol=1e-5, atol=1e-6)
        a, b = (0, 100) if t == 6 else (ends[(t - 1) % 3], min(100, ends[(t - 1) % 3 + 1]))
        S = ((rows[:, a:b] - rows[:, a:b].mean(axis=0)) ** 2).sum() / P if b > a else 0
        assert noted[-1][2] == pytest.approx(S, rel=1e-5)


RUNS = {
    "plain": ("kavg --K 7 --fragments 3", {"K": 7}),
    "adam": ("kavg --K 5 --fragments 4 --optimizer momentum --momentum 0.8", {"K": 5}),
    "outer": (
        "diloco --K 6 --outer-lr 0.5 --mu 0.4 --fragments 2",
        {"K": 6, "rule": "nesterov", "lr": 0.5, "mu": 0.4},
    ),
    "mpi": ("mavg --K 6 --mu 0.3 --fragments 4 --transport mpi",
            {"K": 6, "rule": "momentum", "mu": 0.3}),
    "delay": ("kavg --K 9 --fragments 2 --delay 4", {"K": 9, "tau": 4}),
    "delay outer": (
        "diloco --K 8 --outer-lr 0.6 --mu 0.3 --fragments 3 --delay 2 --merge lerp --pull 0.5",
        {"K": 8, "tau": 2, "merge": "lerp", "a": 0.5, "rule": "nesterov", "lr": 0.6, "mu": 0.3},
    ),
    "wire": ("kavg --K 6 --fragments 3 --wire int8 --ranks-per-node 1", {"K": 6}),
    "wire delay": (
        "diloco --K 8 --outer-lr 0.6 --mu 0.3 --fragments 2 --delay 3 --wire bf16 "
        "--ranks-per-node 1",
        {"K": 8, "tau": 3, "rule": "nesterov", "lr": 0.6, "mu": 0.3},
    ),
}  # fmt: skip
ALIKE = {
    "one": "kavg --K 7 --fragments 1",
    "whole": "kavg --K 7",
    "modelled": "kavg --K 6 --fragments 3 --wire int8 --ranks-per-node 1 --simulate",
    "switched": "postlocal --K 6 --switch 5 --fragments 2",
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write(tmp_path_factory.mktemp("wide") / "wide.h5", 0.5, d=WIDE)


@pytest.fixture
def runs(once, wide, tmp_path_factory):
    common = f"--learners {P} --data {shlex.quote(wide.path)} --batch-size {len(wide.y) // P} "
    common += f"--sampling shard --steps {T} --l2 0.01 --lr 0.7 --save-weights --seed 0 "
    common += f"--log-every {T} --eval-every {T}"
    lines = {name: line for name, (line, _) in RUNS.items()} | ALIKE
    lines = {name: f"{line} {common}" for name, line in lines.items()}
    return once("runs", train_all, tmp_path_factory.getbasetemp(), 2, lines)


def cut(F):
    """Where the pieces begin, and the number of columns."""
    return [min(WIDE, 4 * i // F * 64) for i in range(F + 1)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_the_oracle(runs, wide, name):
    line, how = RUNS[name]
    words = line.split()
    optimiser = "momentum" if "--optimizer" in words else "sgd"
    setup = oracle.Setup(wide.X, wide.y, P, 0.01, optimiser, 0.8)
    ends, wires = cut(int(words[words.index("--fragments") + 1])), None
    if "--wire" in words:
        code, nodes = oracle.bf16 if "bf16" in words else oracle.int8(512), [range(2), range(2, 4)]
        wires = [
            oracle.Wire(nodes, np.zeros(b - a), code) for a, b in zip(ends, ends[1:], strict=False)
        ]
    w, averages = oracle.fragmented(setup, T, lambda t: 0.7, ends=ends, wires=wires, **how)
    run = runs[name]
    assert np.linalg.norm(run.weights - w) / np.linalg.norm(w) < TOLERANCE
    assert run.averages.t.tolist() == [t for t, _ in averages]


def test_one_piece_is_the_plain_algorithm_to_the_bit(runs):
    assert np.array_equal(runs["one"].weights, runs["whole"].weights)


def test_an_average_sends_its_piece_alone(runs):
    averages = runs["plain"].averages  # pieces of 64, 64 and 72 columns in turn, at 2, 4, 7, 9, …
    sent = averages.bytes_node.tolist()
    assert sent[:6] == [2 * 4 * n for n in (64, 64, 72)] * 2 and sent[-1] == 2 * 4 * WIDE
    for name in ("wire", "modelled"):
        averages = runs[name].averages
        sent = averages.bytes_cross.tolist()
        assert sent[:3] == [2 * (n + 4) for n in (64, 64, 72)] and sent[-1] == 2 * 4 * WIDE
    beyond_latency = averages.seconds - 4 * 5e-6  # 2 log₂P messages
    assert beyond_latency.iloc[:-1].max() < beyond_latency.iloc[-1] / 10


def test_a_switch_comes_before_the_first_turn(runs):
    assert runs["switched"].averages.t.tolist() == [*range(1, 6), *range(8, 41, 3), 41]


BAD = [
    ("kavg", {"K": 4, "fragments": 5}, "--fragments 5 with a period of 4 updates"),
    ("kavg", {"fragments": 0}, "--fragments 0: must be at least 1"),
    ("kavg", {"K": 8, "fragments": 2, "delay": 4}, "--delay 4 with --fragments 2"),
    ("kavg", {"fragments": 2, "participants": 2}, "--fragments with --participants"),
    ("kavg", {"fragments": 2, "wire": "lowrank:2"}, "--wire lowrank:2 with --fragments"),
    ("adpsgd", {"Ks": 9, "fragments": 2}, "--fragments means nothing to an algorithm whose period"),
    ("piecewise", {"pieces": [(0, 3)], "fragments": 2}, "--fragments means nothing"),
    ("hieravg", {"fragments": 2}, "--fragments means nothing"),
]


@pytest.mark.parametrize(("name", "given", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_fragments_are_refused_by_name(name, given, words):
    with pytest.raises(UserError) as e:
        algorithms.ALGORITHMS[name](**given)
    assert in_flags(str(e.value)).startswith(words) and "\n" not in str(e.value)


def test_more_pieces_than_blocks_are_refused():
    made = algorithms.kavg.kavg(K=8, fragments=4).average
    made.cut(200)
    with pytest.raises(UserError, match="use at most 3"):
        made.cut(192)


def test_a_piece_that_has_averaged_after_the_last_update_of_a_loop_makes_no_second_step():
    """In `attach`, where the end is not known before `finish`; also after a restart there."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(WIDE, 1, bias=False)
    algorithm = algorithms.diloco.diloco(K=4, fragments=2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    averager = localavg.attach(model, localavg.Fleet(MPI.COMM_SELF), algorithm, optimiser)
    random = np.random.default_rng(0)
    for t in range(1, 9):
        x = torch.from_numpy(random.normal(size=(4, WIDE)).astype(np.float32))
        optimiser.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimiser.step()
        averager.step()
        if t == 8:
            averager.load_state_dict(averager.state_dict())
    before = model.weight.detach().numpy().ravel().copy()
    averager.finish()
    moved = np.abs(model.weight.detach().numpy().ravel() - before)
    assert moved[:128].max() > 1e-4 and moved[128:].max() == 0  # the second piece averaged at 8


def ended(world, path):
    """What `payload_bytes` says at the end of a loop, right after the last of three pieces."""
    import torch

    model = torch.nn.Linear(3 * 64, 1, bias=False)
    algorithm = algorithms.kavg.kavg(K=3, fragments=3)
    averager = localavg.attach(model, localavg.Fleet(world), algorithm, log=path)
    for _ in range(6):
        with torch.no_grad():
            model.weight += world.rank
        averager.step()
    averager.finish()
    return averager.payload_bytes()


def test_the_end_of_a_loop_sends_the_pieces_that_have_not_averaged(tmp_path):
    pytest.importorskip("torch")
    path, sent = tmp_path / "run.h5", 2 * 4 * (64 + 64)
    assert call(2, ended, str(path)) == [(sent, 0)] * 2
    averages = record.load(path).averages
    assert averages.bytes_node.tolist() == [2 * 4 * 64] * 6 + [sent]
    assert averages.t.tolist() == [1, 2, 3, 4, 5, 6, 6]
