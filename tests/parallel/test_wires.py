"""Averages that cross nodes in code: codes, means with feedback, bytes, and whole runs."""

import math
import platform
import shlex

import numpy as np
import oracles as oracle
import pytest
from mpi import call, train_all
from mpi4py import MPI
from samples import D

from localavg import algorithms
from localavg.algorithms import wire as wires
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.learner.flat import Places
from localavg.parallel.fleet import Fleet
from localavg.parallel.layout import Layout
from localavg.parallel.transport import choose, in_code
from localavg.parallel.transport.in_code import Coding, InCode
from localavg.parallel.wires.bf16 import Bf16
from localavg.parallel.wires.factors import check_rank
from localavg.parallel.wires.float32 import Float32
from localavg.parallel.wires.scaled import Scaled8
from localavg.scope import Scope
from localavg.streams import Stream, generator
from localavg.training.owed import Owed

TOLERANCE = 1e-6  # of weights, relative, in the 2-norm
BUCKET = 16  # lanes, pieces and slices begin at multiples of it, so buckets are of all columns
SHAPES = {"a": (9, 14), "b": (7,), "c": (6, 3, 2, 2), "d": (1, 40), "mean": (5,)}
PLACES = Places(SHAPES, 4, 16)
n = PLACES.d_trained
ROUNDS = 5
SHRUNK = 0.5  # what a step leaves of a mean


# ------------------------------------------------------------------------------------------ codes


@pytest.mark.parametrize(
    ("code", "oracle_of"), [(Bf16(), oracle.bf16), (Scaled8(8), oracle.int8(8)), (Float32(), None)]
)
@pytest.mark.parametrize("size", [1, 8, 21, 70_001])
def test_a_code_is_that_of_its_definition(code, oracle_of, size):
    x = np.random.default_rng(size).standard_normal(size, np.float32) ** 3
    x[::7] = 0
    out, found = np.empty(code.nbytes(size), np.uint8), np.empty(size, np.float32)
    code.encode_(x, out)
    code.decode_(out, found)
    expected = x if oracle_of is None else oracle_of(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


def test_bf16_rounds_ties_to_even():
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38], np.float32)
    out, found = np.empty(8, np.uint8), np.empty(4, np.float32)
    Bf16().encode_(x, out)
    Bf16().decode_(out, found)
    assert found.tolist() == [1, 1 + 2**-6, -1, math.inf]


@pytest.mark.parametrize("code", [Bf16(), Scaled8(8)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(code, value):
    x = np.ones(16, np.float32)
    x[3] = value
    if math.isnan(value):
        x.view(np.uint32)[3] = 0x7FFFFFFF  # whose rounding would be −0
    out, found = np.empty(code.nbytes(16), np.uint8), np.empty(16, np.float32)
    code.encode_(x, out)
    code.decode_(out, found)
    assert not np.isfinite(found[3]) and np.isfinite(found[8:]).all()


# ------------------------------------------------------------------------------- means with feedback

# learners, ranks a node of four, clusters, wire, whether an outer optimiser steps, and weights
SETTINGS = {
    **{
        f"{wire}-{ranks}": (7, ranks, (), wire, None, False)
        for wire in ("bf16", "int8", "lowrank:2")
        for ranks in (1, 2, 3)
    },
    "clusters": (8, 1, (2, 4), "int8", None, False),
    "clusters inside and across": (12, 2, (4,), "bf16", None, False),
    "low rank clusters": (8, 1, (4,), "lowrank:1", None, False),
    "step": (7, 2, (), "int8", SHRUNK, False),
    "low rank step": (5, 3, (), "lowrank:2", SHRUNK, False),
    "weights": (7, 2, (), "bf16", None, True),
    "weights of 8 bits": (7, 1, (), "int8", None, True),
    "low rank weights": (7, 2, (), "lowrank:2", None, True),
}


def start_of():
    return drift(99, 0) * 8


def drift(t, j):
    """What learner j adds to its weights in round t; nothing in the gaps."""
    found = np.random.default_rng([t, j]).normal(size=PLACES.d).astype(np.float32)
    found[PLACES.gaps()] = 0
    return found / np.float32(8)


def counts(P, weighted, t):
    """How much learners count in round t: some not at all, and with another sum in every round."""
    return [(t + 1) * ((3 * j + t + 1) % 4) for j in range(P)] if weighted else [1] * P


def scopes(clusters):
    """Who averages in each round: everyone, and between that the clusters; everyone at the end."""
    if not clusters:
        return [Scope.WORLD] * ROUNDS
    levels = [Scope(level) for level, _ in enumerate(clusters, 1)]
    return [*levels, Scope.WORLD, *reversed(levels), *levels, Scope.WORLD]


class Count:
    """A communicator that counts the bytes which it is given for other nodes."""

    def __init__(self, comm):
        self.comm, self.nbytes = comm, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Ialltoallv(self, sent, received):
        self.nbytes += sum(sent[1]) - sent[1][self.comm.rank]
        return self.comm.Ialltoallv(sent, received)

    def Iallgatherv(self, mine, everyone):
        self.nbytes += mine.nbytes
        return self.comm.Iallgatherv(mine, everyone)

    def Ireduce(self, x, into, root):
        self.nbytes += 0 if self.comm.rank == root else x.nbytes
        return self.comm.Ireduce(x, into, root=root)

    def Ibcast(self, x, root):
        self.nbytes += x.nbytes if self.comm.rank == root else 0
        return self.comm.Ibcast(x, root)

    def Allreduce(self, place, x):
        self.nbytes += x.nbytes
        self.comm.Allreduce(place, x)


def count(transport, scope):
    """Let the coded parts of a scope count what they send; return the counters."""
    found = []
    for lanes in (x for each in transport._watched.values() for x in each.lanes.get(scope, ())):
        for holder in (*getattr(lanes, "pieces", ()), *getattr(lanes, "shares", ())):
            holder.comm = Count(getattr(holder.comm, "comm", holder.comm))
            found.append(holder.comm)
    return found


def coding_of(wire):
    name = wires.of(wire)
    code = Scaled8(BUCKET) if wire == "int8" else name.code
    tensors = [(PLACES.segments[x], SHAPES[x]) for x in "abcd"]
    return Coding(n, tensors, code, name.r, seed=3)


def shrunk(mean, columns):
    return mean * np.float32(SHRUNK)


def averaged(world, settings):
    """On every rank, for every setting: its rows after each average, S, bytes said and sent."""
    answers = []
    for P, ranks_per_node, clusters, wire, step, weighted in settings:
        fleet = Fleet(world, P, ranks_per_node)
        transport = in_code(choose("shared", fleet, clusters, 4 * PLACES.d), fleet)
        transport.use(coding_of(wire))
        w = transport.zeros((fleet.L, PLACES.d))
        transport.watch(w)
        w[...] = start_of()
        transport.begin(w)
        found = []
        for t, scope in enumerate(scopes(clusters)):
            w += np.array([drift(t, j) for j in fleet.learners])
            transport.weights = counts(P, True, t) if weighted else None
            transport.plain = t == len(scopes(clusters)) - 1
            told, counters = transport.sum_bytes(scope), count(transport, scope)
            before = w.copy()
            if step is None and t % 2:
                S = transport.mean_(w, scope)  # the statistics too
            else:
                S = transport.mean_(w[:, :n], scope, True, None if step is None else shrunk)
                transport.mean_(w[:, n:], scope)
            sent = sum(each.nbytes for each in counters)
            found.append((before, w.copy(), S, told[1], sent))
        answers.append(found)
    return answers


# every other rank with the kernels of an old processor, so that its BLAS and LAPACK round otherwise
MIXED = """test $((OMPI_COMM_WORLD_RANK % 2)) = 1 && export OPENBLAS_CORETYPE=Prescott
exec python -m mpi4py "$@"
"""


@pytest.fixture(scope="module")
def answers(once):
    mixed = {"program": ("sh", "-c", MIXED, "sh")} if platform.machine() == "x86_64" else {}
    of_ranks = once("means", call, 4, averaged, list(SETTINGS.values()), **mixed)
    return {name: [rank[i] for rank in of_ranks] for i, name in enumerate(SETTINGS)}


def wire_of(name):
    """A function that makes the oracle's wire of some learners."""
    P, ranks_per_node, _, wire, *_ = SETTINGS[name]
    layout = Layout(P, tuple(r // ranks_per_node for r in range(4)))

    def made(learners):
        by_node = {}
        for j in learners:
            by_node.setdefault(layout.node_of[layout.rank_of(j)], []).append(j)
        zero = np.zeros(n, np.float32)
        nodes = list(by_node.values())
        if not wire.startswith("lowrank"):
            return oracle.Wire(nodes, zero, oracle.bf16 if wire == "bf16" else oracle.int8(BUCKET))
        r, tensors = int(wire[-1]), []
        for number, tensor in enumerate("abcd"):
            m, k = SHAPES[tensor][0], math.prod(SHAPES[tensor][1:])
            small = tensor in ("a", "c") and r * (m + k) < m * k
            Q = generator(3, number, 0, Stream.LOW_RANK).standard_normal((k, r), np.float32)
            tensors.append((PLACES.segments[tensor], m, k, Q if small else None))
        return oracle.LowRankWire(nodes, zero, tensors)

    return made


def expected(name):
    """The rows of all learners after each average by the oracle, and S."""
    P, _, clusters, _, step, weighted = SETTINGS[name]
    made = wire_of(name)
    sizes = {**{Scope(i): S for i, S in enumerate(clusters, 1)}, Scope.WORLD: P}
    groups = {s: [range(j, j + S) for j in range(0, P, S)] for s, S in sizes.items()}
    state = {(scope, g): made(group) for scope in groups for g, group in enumerate(groups[scope])}
    W = [start_of() for _ in range(P)]
    w_tilde = W[0].copy()
    for t, scope in enumerate(scopes(clusters)):
        W = [w + drift(t, j) for j, w in enumerate(W)]
        last, squares = t == len(scopes(clusters)) - 1, 0.0
        weights = np.array(counts(P, weighted, t), np.float32)
        for g, group in enumerate(groups[scope]):
            wire, before = state[scope, g], W
            parts = weights / weights.sum() if weighted else None
            alone = len(wire.nodes) == 1  # nothing crosses nodes
            mean = sum(W[j][:n] for j in group) / len(group) if alone else None
            changed = [w[:n] for w in W]
            mean = mean if alone else wire.mean(changed, w_tilde[:n], last, parts)
            rest = sum(weights[j] * W[j][n:] for j in group) / sum(weights[j] for j in group)
            squares += sum(((before[j][:n] - mean) ** 2).sum() for j in group if weights[j])
            new = np.concatenate([mean if step is None else mean * np.float32(step), rest])
            W = [new.copy() if j in group else w for j, w in enumerate(W)]
        if scope is Scope.WORLD:
            w_tilde = W[0].copy()
        yield W, squares / np.count_nonzero(weights)


@pytest.mark.parametrize("name", SETTINGS)
def test_means_are_those_of_the_pseudo_code(answers, name):
    """Rows, on all ranks, and S; all learners end with equal bits."""
    P, clusters = SETTINGS[name][0], SETTINGS[name][2]
    for t, (W, S) in enumerate(expected(name)):
        rows = np.concatenate([rank[t][1] for rank in answers[name]])
        error = np.linalg.norm(rows - np.array(W)) / np.linalg.norm(W)
        assert error < TOLERANCE, (t, error)
        if not math.isnan(found := answers[name][0][t][2]):
            assert found == pytest.approx(S, rel=1e-4)
        if scopes(clusters)[t] is Scope.WORLD:
            assert (rows == rows[0]).all() and len(rows) == P


@pytest.mark.parametrize("name", [name for name in SETTINGS if "-" in name])
def test_nothing_is_lost(answers, name):
    """After the last average, which is not coded, everyone has all that all learners added."""
    P = SETTINGS[name][0]
    added = sum(drift(t, j).astype(np.float64) for t in range(ROUNDS) for j in range(P)) / P
    w = answers[name][0][-1][1][0]
    np.testing.assert_allclose(w, start_of() + added, rtol=0, atol=2e-6)
    coded = answers[name][0][-2][1][0]  # the one before lacks what its codes lost
    lacking = np.abs(coded - start_of() - added)[:n].max()
    assert lacking > 1e-4


@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_are_those_sent(answers, name):
    for rank in answers[name]:
        for t, (*_, said, sent) in enumerate(rank[:-1]):
            scope = scopes(SETTINGS[name][2])[t]
            if sent or scope is Scope.WORLD:
                assert said == sent, (t, scope)


LIVING = ((0, 1, 2, 3), (0, 2, 3), (0, 3))  # of nodes of two ranks; the last are on one node


def gone_on(world, wire, P):
    """The rows of a rank that lives to the end; after every other round others are lost.

    P: the learners; None for one on each rank that lives.
    """
    w = owed = None
    for part, ranks in enumerate(LIVING):
        if world.rank not in ranks:
            return None
        comm = world.Create_group(world.group.Incl(ranks), tag=part)
        fleet = Fleet(comm, P, ranks_per_node=2)
        plain = choose("shared", fleet, (), 4 * PLACES.d)
        transport = in_code(plain, fleet, crossed=True)
        transport.use(coding_of(wire))
        rows = transport.zeros((fleet.L, PLACES.d))
        transport.watch(rows)
        rows[...] = start_of() if owed is None else w[0]
        if owed is None:
            transport.begin(rows)
        else:
            lost = owed.restored(comm, fleet.node, 0, transport.total)
            transport.load_state_dict({"wire_base": rows[0, :n], **lost})
        w = rows
        for t in (2 * part, 2 * part + 1):
            w += np.array([drift(t, j) for j in fleet.learners])
            transport.mean_(w, Scope.WORLD)
        owed = Owed(transport, fleet, fleet.node_array)
        owed.copy(0)
        comm.Barrier()
    return w.copy()


@pytest.mark.parametrize(("wire", "P"), [("int8", 8), ("lowrank:2", 8), ("int8", None)])
def test_what_codes_have_lost_outlives_ranks(wire, P):
    """Of two nodes each loses a rank, and those that are left are one node."""
    first, *_, last = call(4, gone_on, wire, P)
    learners = [P or len(LIVING[t // 2]) for t in range(6)]
    added = sum(
        drift(t, j).astype(np.float64) / P for t, P in enumerate(learners) for j in range(P)
    )
    for w in (*first, *last):
        np.testing.assert_allclose(w, start_of() + added, rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------- runs

RUNS = {
    "int8": ("kavg --K 7 --wire int8", {}),
    "bf16": ("kavg --K 5 --wire bf16 --optimizer momentum --momentum 0.8", {}),
    "outer": (
        "diloco --K 6 --outer-lr 0.5 --mu 0.4 --wire int8",
        {"rule": "nesterov", "lr": 0.5, "mu": 0.4},
    ),
    "delay": ("kavg --K 6 --delay 4 --wire int8", {"tau": 4}),
    "delay lerp": ("kavg --K 5 --delay 3 --merge lerp --pull 0.5 --wire bf16",
                   {"tau": 3, "merge": "lerp", "a": 0.5}),
    "delay outer": (
        "kavg --K 6 --delay 3 --outer momentum --outer-lr 0.8 --mu 0.3 --wire bf16",
        {"tau": 3, "rule": "momentum", "lr": 0.8, "mu": 0.3},
    ),
}  # fmt: skip
ALIKE = {
    "float32": "kavg --K 7 --wire float32",
    "without": "kavg --K 7",
    "modelled": "kavg --K 7 --wire int8 --simulate",
    "reset": "hieravg --K1 3 --K2 8 --S 4 --wire int8 --state reset --optimizer "
    "momentum --variance averages",
}
COMMON = "--learners 8 --ranks-per-node 1 --sampling shard --steps 46 --l2 0.01 --lr 0.7 "
COMMON += "--save-weights --seed 0 --log-every 46 --eval-every 46"


@pytest.fixture
def runs(once, shards, tmp_path_factory):
    words = f"{COMMON} --data {shlex.quote(shards.path)} --batch-size {len(shards.y) // 8}"
    lines = {name: line for name, (line, _) in RUNS.items()} | ALIKE
    lines = {name: f"{line} {words}" for name, line in lines.items()}
    return once("runs", train_all, tmp_path_factory.getbasetemp(), 2, lines)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_the_oracle(runs, shards, name):
    line, how = RUNS[name]
    optimiser = "momentum" if "--optimizer" in line else "sgd"
    setup = oracle.Setup(shards.X, shards.y, 8, 0.01, optimiser, 0.8)
    code = oracle.bf16 if "bf16" in line else oracle.int8(512)
    wire = oracle.Wire([range(4), range(4, 8)], np.zeros(D), code)
    K = int(line.split()[2])
    if "tau" in how:
        how = {"merge": "cocod", **how}

        def schedule(s, T, gamma):
            return oracle.kavg(s, T, gamma, K)

        w, averages = oracle.delayed(setup, 46, lambda t: 0.7, schedule, wire=wire, **how)
    else:
        server = oracle.OuterState(**how, w_tilde=np.zeros(D)) if how else None
        w, averages = oracle.wired(setup, 46, lambda t: 0.7, K, wire, server)
    run = runs[name]
    assert np.linalg.norm(run.weights - w) / np.linalg.norm(w) < TOLERANCE
    assert run.averages.t.tolist() == [t for t, _ in averages]


def test_float32_is_the_plain_algorithm_to_the_bit(runs):
    assert np.array_equal(runs["float32"].weights, runs["without"].weights)


def test_rows_have_the_bytes_of_the_code_and_the_last_those_of_float32(runs):
    """Two nodes, each of one rank: 20 numbers and one scale, once for u and once for the reply."""
    for name in ("int8", "modelled"):
        averages = runs[name].averages
        assert averages.bytes_cross.tolist() == [2 * 24] * (len(averages) - 1) + [2 * 80]
        assert (averages.bytes_node == 0).all()
    seconds = runs["modelled"].averages.seconds
    assert seconds.iloc[0] < seconds.iloc[-1]
    averages = runs["reset"].averages  # clusters of four lie in a node
    assert averages[averages.level == 1].bytes_cross.eq(0).all()


def test_learners_of_modelled_time_get_what_measured_ones_get(runs):
    assert np.array_equal(runs["modelled"].weights, runs["int8"].weights)


# ----------------------------------------------------------------------------------------- attach


ATTACHED = {"K": 3, "wire": "int8"}, {"K": 5, "fragments": 2, "delay": 2, "wire": "bf16"}


def attached(world):
    """Every rank's weights after 11 updates by a made-up gradient, with averages and one at the end;
    then the same, saved after update 7 and loaded by another averager.
    """
    import torch

    import localavg

    found = []
    for stop, how in [(stop, how) for how in ATTACHED for stop in (None, 7)]:
        fleet = localavg.Fleet(world, ranks_per_node=1)

        def new():
            model = torch.nn.Linear(9, 6)
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(1)
            made = localavg.attach(model, fleet, localavg.kavg(**how))  # noqa: B023
            return model, made

        model, averager = new()
        for t in range(1, 12):
            for i, p in enumerate(model.parameters()):
                p.data += torch.tensor(delta(t, world.rank, i, p.shape))
            averager.step()
            if t == stop:
                state = averager.state_dict(), model.state_dict()
                state[1].update({name: x.clone() for name, x in state[1].items()})
                model, averager = new()
                model.load_state_dict(state[1])
                averager.load_state_dict(state[0])
        averager.finish()
        found.append([p.detach().numpy().copy() for p in model.parameters()])
    return [*found, ended_apart(world)]


def ended_apart(world):
    """The weights of a learner that begins with 1, once rows that no average has met are averaged."""
    import torch

    import localavg

    model = torch.nn.Linear(9, 6, bias=False)
    torch.nn.init.ones_(model.weight)
    averager = localavg.attach(
        model, localavg.Fleet(world, ranks_per_node=1), localavg.kavg(K=3, wire="int8")
    )
    averager.flat.w[0, :54] += delta(0, world.rank, 0, (54,))
    averager._averaging.finish_()
    found = averager.flat.w[0, :54].copy()  # the rest is padding
    averager.finish()
    return [found]


def delta(t, rank, i, shape):
    return np.random.default_rng([t, rank, i]).normal(size=tuple(shape)).astype(np.float32)


@pytest.mark.parametrize("case", range(len(ATTACHED)))
def test_attach_averages_and_resumes_with_a_wire(once, case):
    pytest.importorskip("torch")
    ranks = once("attach", call, 2, attached)
    first = ranks[0][2 * case]
    for rank in ranks:
        for a, b, c in zip(*rank[2 * case : 2 * case + 2], first, strict=True):
            assert np.array_equal(a, b) and np.array_equal(a, c)
    for i, x in enumerate(first):  # what codes lost has arrived at the end
        added = sum(delta(t, rank, i, x.shape) for t in range(1, 12) for rank in range(2)) / 2
        np.testing.assert_allclose(x, 1 + added, rtol=0, atol=1e-5)


def test_rows_that_end_apart_get_their_mean_in_float32(once):
    pytest.importorskip("torch")
    (first,), (second,) = (rank[-1] for rank in once("attach", call, 2, attached))
    added = sum(delta(0, rank, 0, first.shape) for rank in range(2)) / 2
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, 1 + added, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------- refusals

BAD = [
    ({"wire": "int4"}, "--wire int4: must be one of float32, bf16, int8, lowrank:r"),
    ({"wire": "lowrank"}, "--wire lowrank: lowrank needs a rank"),
    ({"wire": "lowrank:0"}, "--wire lowrank:0: lowrank needs a rank"),
    ({"wire": "lowrank:x"}, "--wire lowrank:x: lowrank needs a rank"),
]


@pytest.mark.parametrize(("given", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_wire_is_refused_by_name(given, words):
    with pytest.raises(UserError) as e:
        algorithms.kavg.kavg(**given)
    assert in_flags(str(e.value)).startswith(words) and "\n" not in str(e.value)


def test_a_wire_within_one_node_is_refused():
    fleet = Fleet(MPI.COMM_SELF, 4)
    with pytest.raises(UserError, match="nothing crosses nodes"):
        in_code(choose("shared", fleet, (), 4), fleet)


@pytest.mark.parametrize(
    ("shapes", "r", "words"),
    [
        ([(40,)], 1, "no matrix"),
        ([(1, 9), (9, 1)], 1, "no matrix"),
        ([(8, 8), (3,)], 4, "use at most lowrank:3"),
        ([(2, 2)], 1, "use int8 or bf16"),
    ],
)
def test_a_rank_at_which_nothing_is_coded_is_refused(shapes, r, words):
    with pytest.raises(UserError, match=words):
        check_rank([(slice(0, math.prod(shape)), shape) for shape in shapes], r)


def test_feedback_of_another_layout_is_dropped_with_a_line(capsys):
    made = InCode(Fleet(MPI.COMM_SELF, 3), ())
    made.use(coding_of("int8"))
    w = made.zeros((3, PLACES.d))
    made.watch(w)
    w[...] = start_of()
    made.begin(w)
    state = {name: np.array(x) for name, x in made.state_dict().items()}
    made.load_state_dict({**state, "wire_nodes": np.array([3, 0, 1])})
    assert "another layout" in capsys.readouterr().err and np.array_equal(made.base, w[0, :n])
    made.load_state_dict(state)
    assert not capsys.readouterr().err
