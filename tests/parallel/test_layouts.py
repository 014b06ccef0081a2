"""How learners lie over ranks and nodes: the communicators, the means over them, and runs that do
not depend on it.
"""

import shlex
import uuid

import numpy as np
import pytest
from mpi import call, marked, run, train_all
from mpi4py import MPI
from samples import D

import localavg.parallel.transport.mpi
from localavg.errors import UserError
from localavg.files.record import CLUSTER, WORLD
from localavg.parallel.fleet import Fleet
from localavg.parallel.layout import Layout
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.shared import SharedMemory
from localavg.parallel.wires.int8 import Int8
from localavg.scope import Scope, sizes
from localavg.streams import Stream, uniform

TOLERANCE = 1e-6  # of weights, relative, in the 2-norm
n = 203  # entries in a row of the closed forms


# --------------------------------------------------------------------------------------- means in c

MEANS = [*(("openmpi", ranks) for ranks in (1, 2, 3, 4)), ("mpich", 3)]
TRANSPORTS = {"mpi": HostMPI, "shared": SharedMemory, "chunks": HostMPI}
# transport, P, clusters of each level, ranks a node: clusters that lie inside, span and straddle
# ranks and nodes
SETTINGS = [
    *((name, 12, (S,), None) for name in ("mpi", "shared") for S in (1, 3, 12)),
    *((name, 12, (2, 4), None) for name in ("mpi", "shared")),
    *(
        (name, 12, clusters, ranks)
        for name in ("mpi", "shared")
        for clusters in ((3, 6), (4,))
        for ranks in (1, 2, 3)
    ),
    *((name, 24, (2, 4, 12), ranks) for name in ("mpi", "shared") for ranks in (None, 2)),
    *((name, None, (), ranks) for name in ("mpi", "shared") for ranks in (None, 2)),
    *(
        ("chunks", P, clusters, ranks)
        for P, clusters, ranks in ((12, (4,), None), (12, (3, 6), 2), (None, (), None))
    ),
    # and where ranks hold different numbers of learners
    *(
        (name, P, (S,), ranks)
        for name in ("mpi", "shared")
        for P, S in ((5, 5), (7, 1), (10, 5), (9, 3))
        for ranks in (None, 2)
    ),
    ("chunks", 7, (7,), 2),
]


def closed(P):
    """Row j of [P, n] is (j + 1) · (1 … n): sums and means of consecutive rows are exact in
    float32.
    """
    return np.outer(np.arange(1, P + 1), np.arange(1, n + 1)).astype(np.float32)


class Wire:
    """A communicator that counts the bytes which it is given for other ranks."""

    def __init__(self, comm):
        self.comm, self.nbytes = comm, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Alltoallv(self, sent, received):
        self.nbytes += sum(sent[1]) - sent[1][self.comm.rank]
        self.comm.Alltoallv(sent, received)

    def Allgatherv(self, mine, everyone):
        self.nbytes += mine.nbytes
        self.comm.Allgatherv(mine, everyone)


CODE = Int8(7, 8)  # buckets of 8 of n columns


def coded(how, fleet, mine):
    """The rows of this rank after a coded mean; the bytes that are said, and that were sent."""

    def draws(l, start, stop):
        return uniform(3, fleet.learners[l], 1, Stream.ROUNDING, start, stop)

    def again(start, stop):
        return uniform(3, 0, 1, Stream.MEAN_ROUNDING, start, stop)

    w, world = mine.copy(), how.world
    how.world = Wire(world)
    how.coded_mean_(w, CODE, draws, again)
    how.world, sent = world, how.world.nbytes
    return w, how.coded_bytes(w.shape[1], CODE), sent


def stepped(how, w, mine):
    """The rows of this rank after a mean with a step, S, and the state that the step adds to."""
    state = how.common((2, n))

    def step(mean, columns):
        seen, means = state[:, columns]
        seen += 1
        means += mean
        mean *= 3
        return means - mean  # the mean so far − 3 times the mean now

    found = []
    for variance in (False, True, False):
        w[...] = mine
        S = how.mean_(w, Scope.WORLD, variance, step)
        found.append((w.copy(), S))
    how.world.Barrier()
    return found, np.array(state)


def counts(P):
    """How much each of P learners counts: 1, 0, 3, 2, and again."""
    return [(3 * j + 1) % 4 for j in range(P)]


def weighted(how, fleet, w, mine):
    """The rows of this rank after means by weight, what they return, and the rows after one of a
    cluster of one; learners that count nothing are not finite.
    """
    given, how.weights = mine.copy(), counts(fleet.P)
    given[[not how.weights[j] for j in fleet.learners]] = np.nan
    found = []
    for variance, step in ((False, None), (True, None), (False, lambda mean, columns: -mean)):
        w[...] = given
        S = how.mean_(w, Scope.WORLD, variance, step)
        found.append((w.copy(), S))
    own = given.copy()
    how.mean_(own, Scope.WORLD)
    w[...] = given
    looks = how.mean(w).copy(), how.variance(w)
    same = np.array_equal(w, given, equal_nan=True)
    how.weights = None
    return found, own, looks, same


def averaged(world, settings):
    """On every rank: its rows after each kind of average and what else the transport gives, for
    every setting.
    """
    mpi = localavg.parallel.transport.mpi
    found, chunk, most = [], mpi.CHUNK, mpi.MOST_BYTES
    for name, P, clusters, ranks_per_node in settings:
        # four calls a row
        mpi.CHUNK, mpi.MOST_BYTES = (64, 2 * 64 * (P or 4)) if name == "chunks" else (chunk, most)
        fleet = Fleet(world, P, ranks_per_node)
        how = TRANSPORTS[name](fleet, clusters)
        mine = closed(fleet.P)[fleet.learners.start : fleet.learners.stop]  # [L, n]
        w = how.zeros(mine.shape)
        got = {"zeros": w.copy()}
        for scope in sizes(clusters, fleet.P):
            for variance in (False, True):
                w[...] = mine
                got[scope, variance] = how.mean_(w, scope, variance), w.copy()
        w[...] = mine
        got["mean"], got["variance"] = how.mean(w).copy(), how.variance(w)
        got["coded"], got["coded bytes"], got["sent"] = coded(how, fleet, mine)
        got["short"] = coded(how, fleet, mine[:, :5])[0]  # less than a bucket
        got["untouched"] = np.array_equal(w, mine)
        part = w[:, 3:50]
        got["part"] = how.mean_(part, Scope.WORLD), w.copy()
        own = mine.copy()  # rows that the transport did not make
        got["own"] = how.mean_(own, Scope.WORLD), own
        got["stepped"] = stepped(how, w, mine)
        got["weighted"] = weighted(how, fleet, w, mine)
        rough = np.random.default_rng(fleet.rank).normal(size=w.shape)
        w[...] = rough
        how.mean_(w, Scope.WORLD)
        got["rough"] = w.copy()
        found.append(got)
    return found


@pytest.fixture
def means(request, once):
    """(name of the setting, P, clusters, what every rank found) for every setting, from one launch."""
    mpi, ranks = request.param
    answers = once(request.param, call, ranks, averaged, SETTINGS, mpi=mpi)
    return [
        (f"{setting}", setting[1] or ranks, setting[2], [answer[i] for answer in answers])
        for i, setting in enumerate(SETTINGS)
    ]


everywhere = pytest.mark.parametrize(
    "means", MEANS, ids=[f"{mpi}-{ranks}" for mpi, ranks in MEANS], indirect=True
)


def stack(got, key):
    """The rows of all learners [P, n] from those of every rank."""
    return np.concatenate([g[key][1] if isinstance(g[key], tuple) else g[key] for g in got])


def clusters_mean(P, S):
    """[P, n]: the mean over learners c·S … c·S + S − 1 of `closed` is (c·S + (S + 1)/2) · (1 …
    n).
    """
    return np.outer(np.arange(P) // S * S + (S + 1) / 2, np.arange(1, n + 1))


@everywhere
def test_everyones_mean_is_exact(means):
    for name, P, _, got in means:
        for variance in (False, True):
            assert np.array_equal(stack(got, (Scope.WORLD, variance)), clusters_mean(P, P)), name
        assert all(np.array_equal(g["mean"], clusters_mean(P, P)[0]) for g in got), name
        assert np.array_equal(stack(got, "own"), clusters_mean(P, P)), name


@everywhere
def test_a_step_is_made_once_for_each_column_of_a_state_and_all_rows_get_it(means):
    """And S is about the mean before it."""
    for name, P, _, got in means:
        mean = clusters_mean(P, P)
        for k in range(3):
            rows = np.concatenate([g["stepped"][0][k][0] for g in got])
            assert np.array_equal(rows, (k + 1) * mean - 3 * mean), name
        for found, state in (g["stepped"] for g in got):
            assert (state[0] == 3).all() and np.array_equal(state[1], 3 * mean[0]), name
            told = [S for _, S in found]
            assert told[1] == pytest.approx(got[0][Scope.WORLD, True][0], rel=1e-6), name
            assert np.isnan(told[0]) and np.isnan(told[2]), name


@everywhere
def test_a_mean_by_weight_counts_nothing_of_those_of_weight_0(means):
    """Σ n_j w_j / Σ n_j, and S over those that count, in every layout and by every way."""
    for name, P, _, got in means:
        a, rows = np.array(counts(P)), closed(P).astype(float)
        mean = a @ rows / a.sum()  # [n]
        S = np.mean([np.sum((mean - row) ** 2) for row in rows[a > 0]])
        for k, sign in enumerate((1, 1, -1)):
            found = np.concatenate([g["weighted"][0][k][0] for g in got])
            np.testing.assert_allclose(found, np.tile(sign * mean, (P, 1)), 3e-7, err_msg=name)
        for (_, (_, told), _), own, looks, same in (g["weighted"] for g in got):
            assert told == pytest.approx(S, rel=1e-5) and same, name
            np.testing.assert_allclose(own, np.tile(mean, (len(own), 1)), 3e-7, err_msg=name)
            np.testing.assert_allclose(looks[0], mean, 3e-7, err_msg=name)
            assert looks[1] == pytest.approx(S, rel=1e-5), name


@everywhere
def test_a_clusters_mean_is_exact(means):
    for name, P, clusters, got in means:
        for level, S in enumerate(clusters, 1):
            for variance in (False, True):
                averaged = stack(got, (Scope(level), variance))
                assert np.array_equal(averaged, clusters_mean(P, S)), (name, level)


@everywhere
def test_the_variance_is_that_about_the_mean_of_those_who_average(means):
    """(S² − 1)/12 · Σ k² for S consecutive learners, on all ranks alike; NaN where it was not asked
    for.
    """
    squares = np.sum(np.arange(1.0, n + 1) ** 2)
    for name, P, clusters, got in means:
        wanted = {
            (Scope.WORLD, True): (P**2 - 1) / 12 * squares,
            "variance": (P**2 - 1) / 12 * squares,
        }
        for level, S in enumerate(clusters, 1):
            wanted[Scope(level), True] = (S**2 - 1) / 12 * squares
            assert all(np.isnan(g[Scope(level), False][0]) for g in got), name
        assert all(np.isnan(g[Scope.WORLD, False][0]) for g in got), name
        for key, value in wanted.items():
            told = [g[key][0] if isinstance(g[key], tuple) else g[key] for g in got]
            assert told == [pytest.approx(value, rel=1e-6)] * len(got) and len(set(told)) == 1, name


@everywhere
def test_a_coded_mean_has_the_same_bits_in_every_layout(means):
    for name, P, _, got in means:
        alone = Fleet(MPI.COMM_SELF, P)
        for key, rows in (("coded", closed(P)), ("short", closed(P)[:, :5])):
            wanted = coded(HostMPI(alone), alone, rows)[0]
            assert np.array_equal(stack(got, key), wanted), name


@everywhere
def test_a_coded_mean_is_near_the_mean(means):
    for name, P, _, got in means:
        rows, (mean, *_) = stack(got, "coded"), clusters_mean(P, P)
        norms = np.array([np.linalg.norm(closed(P)[:, i : i + 8], axis=1) for i in range(0, n, 8)])
        step = np.repeat(norms.max(axis=1) / 7, 8)[:n]  # of the coarsest row's levels
        assert (np.abs(rows - mean) <= 2.1 * step).all(), name


@everywhere
def test_bytes_of_a_coded_mean_are_those_sent_and_a_quarter_of_floats(means):
    for name, P, _, got in means:
        assert [sum(g["coded bytes"]) for g in got] == [g["sent"] for g in got], name
        if P == len(got) > 1:
            assert sum(g["sent"] for g in got) == P * CODE.nbytes(n), name


@everywhere
def test_asking_for_mean_variance_or_rows_changes_none(means):
    for name, _, _, got in means:
        assert all(g["untouched"] and (g["zeros"] == 0).all() for g in got), name


@everywhere
def test_a_mean_of_some_columns_leaves_the_others(means):
    for name, P, _, got in means:
        wanted = closed(P)
        wanted[:, 3:50] = clusters_mean(P, P)[:, 3:50]
        assert np.array_equal(stack(got, "part"), wanted), name


@everywhere
def test_after_an_average_all_learners_hold_the_same_bits(means):
    """Rows that do not sum exactly, so that another order of summation would show."""
    for name, _, _, got in means:
        rows = stack(got, "rough")
        assert len(np.unique(rows, axis=0)) == 1, name
        drawn = np.concatenate(
            [np.random.default_rng(r).normal(size=g["rough"].shape) for r, g in enumerate(got)]
        )
        np.testing.assert_allclose(rows[0], drawn.mean(axis=0), atol=1e-6, err_msg=name)


# --------------------------------------------------------------------------------------------------


def fleets(world, settings):
    """What every rank sees of a fleet."""
    found = []
    for P, S, ranks_per_node in settings:
        fleet = Fleet(world, P, ranks_per_node)
        groups = [
            (g.rows, g.learners, g.nodes, 1 if g.comm is None else g.comm.size)
            for g in fleet.groups(S)
        ]
        x = fleet.node_array((5, 3), np.int64)
        if fleet.node.rank == fleet.node.size - 1:
            x[...] = 100 * fleet.rank + np.arange(15).reshape(5, 3)
        fleet.node.Barrier()
        seen = x.copy()
        fleet.node.Barrier()
        x[fleet.node.rank] = -fleet.rank  # and every rank's own row
        fleet.node.Barrier()
        found.append(
            {
                "world": (fleet.rank, fleet.ranks, fleet.P, fleet.L, fleet.learners),
                "node": (fleet.node.rank, fleet.node.size),
                "nodes": (fleet.nodes, fleet.node_of),
                "hosts": len(fleet.hosts),
                "groups": groups,
                "seen": seen,
                "rows": x.copy(),
            }
        )
        fleet.node.Barrier()
    return found


def refused(world, cases):
    """The message of the UserError of every case (P, S), on every rank."""
    messages = []
    for P, S in cases:
        try:
            Fleet(world, P).groups(S)
        except UserError as e:
            messages.append(str(e))
        else:
            messages.append(None)
    return messages


@pytest.fixture(scope="module")
def three_ranks(once):
    """Six learners on three ranks, two of them on the first node; at last eight."""
    settings = [(6, 3, 2), (6, 2, None), (None, 3, 1), (8, 4, 2)]
    return lambda mpi: once(("fleets", mpi), call, 3, fleets, settings, mpi=mpi)


both = pytest.mark.parametrize("mpi", ["openmpi", "mpich"])


@both
def test_communicators_of_unequal_nodes(three_ranks, mpi):
    a, b, c = (found[0] for found in three_ranks(mpi))
    assert [x["world"] for x in (a, b, c)] == [
        (r, 3, 6, 2, range(2 * r, 2 * r + 2)) for r in range(3)
    ]
    assert [x["node"] for x in (a, b, c)] == [(0, 2), (1, 2), (0, 1)]
    assert all(x["nodes"] == (2, (0, 0, 1)) and x["hosts"] == 3 for x in (a, b, c))


@both
def test_clusters_know_their_rows_ranks_and_nodes(three_ranks, mpi):
    """Learners 0–2 lie on ranks 0 and 1, one node; learners 3–5 on ranks 1 and 2, two nodes."""
    a, b, c = (found[0]["groups"] for found in three_ranks(mpi))
    assert a == [(slice(0, 2), 3, 1, 2)]
    assert b == [(slice(0, 1), 3, 1, 2), (slice(1, 2), 3, 2, 2)]
    assert c == [(slice(0, 2), 3, 2, 2)]
    assert [found[1]["groups"] for found in three_ranks(mpi)] == [[(slice(0, 2), 2, 1, 1)]] * 3


@both
def test_clusters_know_parts_of_ranks_that_hold_different_numbers_of_learners(three_ranks, mpi):
    """Learners 0 1 | 2 3 4 | 5 6 7; the second cluster begins with the last learner of rank 1."""
    a, b, c = (found[3] for found in three_ranks(mpi))
    held = [range(0, 2), range(2, 5), range(5, 8)]
    assert [x["world"] for x in (a, b, c)] == [(r, 3, 8, len(held[r]), held[r]) for r in range(3)]
    assert a["groups"] == [(slice(0, 2), 4, 1, 2)]
    assert b["groups"] == [(slice(0, 2), 4, 1, 2), (slice(2, 3), 4, 2, 2)]
    assert c["groups"] == [(slice(0, 3), 4, 2, 2)]


@both
def test_without_artificial_nodes_a_machine_is_one_node(three_ranks, mpi):
    for r, found in enumerate(three_ranks(mpi)):
        assert found[1]["node"] == (r, 3) and found[1]["nodes"] == (1, (0, 0, 0))
        assert found[2]["node"] == (0, 1) and found[2]["nodes"] == (3, (0, 1, 2))
        assert found[2]["world"] == (r, 3, 3, 1, range(r, r + 1))


@both
def test_a_node_array_is_one_copy_a_node(three_ranks, mpi):
    """The node's last rank writes it all and everyone there reads it; then each writes a row of the
    same memory.
    """
    for i, nodes in enumerate([[[0, 1], [2]], [[0, 1, 2]], [[0], [1], [2]], [[0, 1], [2]]]):
        for node in nodes:
            wanted = 100 * node[-1] + np.arange(15).reshape(5, 3)
            for r in node:
                assert np.array_equal(three_ranks(mpi)[r][i]["seen"], wanted)
            wanted[: len(node)] = -np.array(node)[:, None]
            for r in node:
                assert np.array_equal(three_ranks(mpi)[r][i]["rows"], wanted)


def test_learners_and_clusters_that_do_not_fit_are_refused_on_every_rank_alike():
    told = call(3, refused, [(1, 1), (2, 2), (7, 4), (6, 0), (6, 3), (7, 7)])
    assert told[0] == told[1] == told[2]
    one, fewer, clusters, none, *fits = told[0]
    assert "1 learner on 3 ranks" in one and "2 learners on 3 ranks" in fewer
    assert "`S = 4` with 7 learners" in clusters and "`S = 0`" in none and fits == [None, None]


# --------------------------------------------------------------------------------------------------

RUNS = {  # name: (algorithm, optimiser, sampling)
    "kavg": ("kavg --K 5", "momentum", "shard"),
    "sync": ("sync", "momentum", "iid"),
    "hieravg": ("hieravg --K1 3 --K2 8 --S {S}", "adam", "iid"),
    "levels": ("hieravg --levels {levels}", "momentum", "iid"),
    "adpsgd": ("adpsgd --p-init 3 --Ks 15 --warmup 1", "sgd", "shuffle"),
    "mavg": ("mavg --K 6 --mu 0.5", "nesterov", "block"),
    "diloco": ("diloco --K 6", "momentum", "iid"),
    "yogi": ("hieravg --K1 3 --K2 8 --S {S} --outer yogi", "sgd", "iid"),
    "qsgd": ("qsgd --bucket 8", "sgd", "iid"),
    "fedavg": ("fedavg --K 6 --participants 2", "momentum", "shard"),
}
LAYOUTS = {
    5: [("openmpi", 1), ("openmpi", 3)],
    7: [("openmpi", 1), ("openmpi", 3), ("openmpi", 4), ("mpich", 3)],
    10: [("openmpi", 1), ("openmpi", 3)],  # 3, 3 and 4 learners: a cluster of 5 ends within a rank
    12: [("openmpi", 1), ("openmpi", 2), ("openmpi", 3)],
}
LATER = {  # left to the long tests
    4: [("openmpi", 1), ("openmpi", 2), ("openmpi", 4)],
    5: [("openmpi", 1), ("openmpi", 2), ("openmpi", 4)],
    7: [("openmpi", 1), ("openmpi", 2)],
    12: [("openmpi", 1), ("mpich", 3)],
}
CLUSTERS = {4: 4, 5: 5, 7: 1, 10: 5, 12: 4}  # P: S
LEVELS = {4: "3:2,7:P", 5: "4:5", 7: "4:P", 10: "3:5,7:10", 12: "2:2,4:6,12:12"}
UNEQUAL = ("openmpi", 3)  # where every run is made on nodes of 2 and 1 ranks too


@pytest.fixture
def layout(once, shards, tmp_path_factory):
    """layout(mpi, ranks)[f"{name} {P}"]: P learners on so many ranks; of "unequal {name} {P}": on
    nodes of 2 and 1. layout(mpi, ranks, LATER): of those of the long tests.
    """

    def launch(mpi, ranks, layouts):
        lines = {}
        for P, worlds in layouts.items():
            for name, (algorithm, optimiser, sampling) in RUNS.items():
                if (mpi, ranks) in worlds:
                    averages = optimiser != "sgd" and not algorithm.startswith("sync")
                    line = (
                        f"{algorithm.format(S=CLUSTERS[P], levels=LEVELS[P])} --learners {P} "
                        f"--data {shlex.quote(shards.path)} --sampling {sampling} "
                        f"--batch-size 5 --steps 40 --lr 0.3 --optimizer {optimiser} "
                        f"--state {'average' if averages else 'keep'} --seed 3 "
                        f"--eval-every 20 --save-weights --transport shared"
                    )
                    lines[f"{name} {P}"] = line
                    if (mpi, ranks) == UNEQUAL:
                        lines[f"unequal {name} {P}"] = f"{line} --ranks-per-node 2"
        return train_all(tmp_path_factory.getbasetemp(), ranks, lines, mpi=mpi)

    def get(mpi, ranks, layouts=LAYOUTS):
        return once(("layout", mpi, ranks, layouts is LATER), launch, mpi, ranks, layouts)

    return get


def several(nodes=False):
    """Parameters P, mpi, ranks, layouts, and with `nodes` those; all but layouts on one rank."""
    return [
        pytest.param(
            *(P, mpi, ranks, layouts, *([name] if nodes else [])),
            id="-".join(map(str, (P, mpi, ranks, *([name] if nodes else [])))),
            marks=[pytest.mark.long] * (layouts is LATER),
        )
        for layouts in (LAYOUTS, LATER)
        for P, worlds in layouts.items()
        for mpi, ranks in worlds[1:]
        for name in (["", "unequal "] if nodes and (mpi, ranks) == UNEQUAL else [""])
    ]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("P", "mpi", "ranks", "layouts", "nodes"), several(nodes=True))
def test_a_run_does_not_depend_on_the_layout(layout, name, P, mpi, ranks, layouts, nodes):
    one = layout("openmpi", 1, layouts)[f"{name} {P}"]
    several = layout(mpi, ranks, layouts)[f"{nodes}{name} {P}"]
    assert np.linalg.norm(several.weights - one.weights) <= TOLERANCE * np.linalg.norm(one.weights)
    for table, columns in (
        ("averages", ["t", "scope", "level", "period"]),
        ("train", ["t", "epoch", "samples", "step_size"]),
    ):
        for column in columns:
            assert np.array_equal(getattr(several, table)[column], getattr(one, table)[column]), (
                column
            )
    np.testing.assert_allclose(several.train.loss, one.train.loss, rtol=1e-5)
    np.testing.assert_allclose(several.averages.variance, one.averages.variance, rtol=1e-4)
    for column in ("t", "epoch", "train_accuracy"):
        assert np.array_equal(several.eval[column], one.eval[column]), column
    np.testing.assert_allclose(several.eval.train_loss, one.eval.train_loss, rtol=TOLERANCE)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("P", "mpi", "ranks", "layouts"), several())
def test_ranks_that_share_memory_give_the_same_bits_in_any_layout(
    layout, name, P, mpi, ranks, layouts
):
    """Rows and quantised gradients are summed in the order of the learners: nothing is left to
    MPI.
    """
    one = layout("openmpi", 1, layouts)[f"{name} {P}"]
    several = layout(mpi, ranks, layouts)[f"{name} {P}"]
    assert np.array_equal(several.weights, one.weights)


def test_quantised_runs_have_the_same_bits_on_any_nodes(layout):
    """Their decoded gradients are summed by everyone in the order of the learners, wherever they
    come from.
    """
    for P in (7, 12):
        one = layout("openmpi", 1)[f"qsgd {P}"]
        assert np.array_equal(layout(*UNEQUAL)[f"unequal qsgd {P}"].weights, one.weights)


def test_the_run_file_tells_the_layout(layout):
    for ranks, name, nodes, L in (
        (1, "kavg 12", 1, 12),
        (3, "kavg 12", 1, 4),
        (3, "unequal kavg 12", 2, 4),
        (3, "kavg 7", 1, [2, 3]),
        (4, "kavg 7", 1, [1, 2]),
    ):
        where = layout("openmpi", ranks)[name].provenance
        assert (where["ranks"], where["learners_per_rank"], where["nodes"]) == (ranks, L, nodes)


# ------------------------------------------------------------------------------------------------ w

BY_MPI, SHARED, NODES = "--transport mpi", "--transport shared", "--ranks-per-node 2"
VECTOR = 4 * D  # bytes of a float32 vector
ENDS = [min(D, -(-D // 8) * r // 3 * 8) for r in range(4)]  # slices of whole buckets of 8
A, B, C = (b - a + 4 * -(-(b - a) // 8) for a, b in zip(ENDS, ENDS[1:], strict=False))
CODES = A + B + C  # bytes of an int8 an entry and a float32 a bucket, in the slices of three ranks
# six learners, or as many as it says, on three ranks: (options, {scope: (payload bytes within
# nodes, across nodes)})
COUNTS = Layout(7, (0, 0, 0)).counts
SEVEN = CODES + sum((7 - count) * size for count, size in zip(COUNTS, (A, B, C), strict=True))
BYTES = {
    "one node": (f"kavg --K 2 {BY_MPI}", {WORLD: (3 * VECTOR, 0)}),
    "two nodes": (f"kavg --K 2 {BY_MPI} {NODES}", {WORLD: (0, 3 * VECTOR)}),
    "gradients": (f"sync {BY_MPI} {NODES}", {WORLD: (0, 3 * VECTOR)}),
    # clusters of 3 on ranks 0, 1 and on ranks 1, 2: four contributions
    "clusters": (
        f"hieravg --K1 1 --K2 3 --S 3 {BY_MPI}",
        {CLUSTER: (4 * VECTOR, 0), WORLD: (3 * VECTOR, 0)},
    ),
    "clusters across": (
        f"hieravg --K1 1 --K2 3 --S 3 {BY_MPI} {NODES}",
        {CLUSTER: (2 * VECTOR, 2 * VECTOR), WORLD: (0, 3 * VECTOR)},
    ),
    "clusters inside": (
        f"hieravg --K1 1 --K2 3 --S 2 {BY_MPI} {NODES}",
        {CLUSTER: (0, 0), WORLD: (0, 3 * VECTOR)},
    ),
    # two learners' slices to each of two other ranks, and the mean's slice to all
    "quantised": (f"qsgd --bucket 8 {BY_MPI}", {WORLD: (2 * 2 * CODES + CODES, 0)}),
    "quantised across": (
        f"qsgd --bucket 8 {BY_MPI} {NODES}",
        {WORLD: (2 * A + 2 * B, 2 * (A + B) + 4 * C + CODES)},
    ),
    "seven": (f"kavg --K 2 --learners 7 {BY_MPI}", {WORLD: (3 * VECTOR, 0)}),
    "seven quantised": (f"qsgd --bucket 8 --learners 7 {BY_MPI}", {WORLD: (SEVEN, 0)}),
    "shared": (f"kavg --K 2 {SHARED}", {WORLD: (3 * VECTOR, 0)}),
    # ranks 0 and 1 share a node and send half a vector each, rank 2 both halves
    "shared across": (f"kavg --K 2 {SHARED} {NODES}", {WORLD: (2 * VECTOR, 2 * VECTOR)}),
}


LEVELED = {"levels": f"hieravg --levels 1:2,2:6,5:P --learners 12 {BY_MPI} {NODES}"}


@pytest.fixture
def travelled(once, shards, tmp_path_factory):
    lines = {
        name: f"{options.split()[0]} --learners 6 {options.partition(' ')[2]} --data "
        f"{shlex.quote(shards.path)} --steps 6 --batch-size 4"
        for name, options in {
            **{name: options for name, (options, _) in BYTES.items()},
            **LEVELED,
        }.items()
    }
    return once("bytes", train_all, tmp_path_factory.getbasetemp(), 3, lines)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_handed_to_each_kind_of_communicator(travelled, name):
    averages = travelled[name].averages
    assert set(averages.scope) == set(BYTES[name][1])
    for scope, (within, across) in BYTES[name][1].items():
        rows = averages[averages.scope == scope]
        assert set(rows.bytes_node) == {within} and set(rows.bytes_cross) == {across}


def test_bytes_are_those_of_the_level(travelled):
    """Twelve learners on three ranks: pairs lie on a rank, sixes on ranks 0, 1 and on ranks 1, 2."""
    found = {}
    for _, row in travelled["levels"].averages.iterrows():
        found.setdefault(row.level, set()).add((row.bytes_node, row.bytes_cross))
    assert found == {1: {(0, 0)}, 2: {(2 * VECTOR, 2 * VECTOR)}, 3: {(0, 3 * VECTOR)}}


def test_one_rank_hands_nothing_to_mpi(layout):
    for name in RUNS:
        averages = layout("openmpi", 1)[f"{name} 12"].averages
        assert len(averages) and not averages.bytes_node.any() and not averages.bytes_cross.any()


# --------------------------------------------------------------------------------------------------


@both
def test_a_launch_that_hangs_is_ended_with_all_its_ranks(mpi):
    """However far it got in that time."""
    name = "LOCALAVG_TEST_HANGS"
    mark = {name: uuid.uuid4().hex}
    with pytest.raises(pytest.fail.Exception, match="still running after 2 s"):
        run(2, "-c", "import time; time.sleep(600)", mpi=mpi, timeout=2, env=mark)
    assert not marked(mark[name], name)


def test_a_launch_gives_status_and_output():
    done = run(2, "-c", "import sys; print('out'); print('err', file=sys.stderr)")
    assert (done.returncode, done.stdout.split(), done.stderr.count("err")) == (0, ["out"] * 2, 2)
    with pytest.raises(pytest.fail.Exception, match="status 3"):
        run(2, "-c", "import sys; sys.exit(3)", check=True)
