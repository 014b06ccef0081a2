"""Ranks are killed at every point of a run, and no run hangs, loses its file or ends otherwise.

Over a hundred runs on 3 and 4 ranks, up to two in a launch. Each ends as the run on one rank: with
status 0, or with 75 and then resumed. A rank that dies leaves a record of where it died. A test
counts these. Then learners and servers are killed at random times of Downpour and EAMSGD.
"""

import json
import os
import random
from collections import Counter
from typing import NamedTuple

import pytest
from mpi import run
from test_asynchronous import line
from test_survive import LINES, NETWORK, Hit, check, launched, whole, words
from test_survive_center import check as check_center
from test_survive_center import launched as launched_center
from test_survive_center import moved_in

from localavg.files import checkpoint
from localavg.files.record import load

__all__ = ["whole"]  # a fixture

SEED, EACH = 1, 5  # of the draws; how often ranks must die at every point
WIDE = tuple(name for name in LINES if NETWORK not in LINES[name])
DELAYED = tuple(name for name in WIDE if "--delay" in LINES[name])
AT_ONCE = tuple(name for name in WIDE if name not in DELAYED)
MIXED = ("gossip", "push", "matching")
BUSY = tuple(name for name in WIDE if name != "fedavg")  # all learners make all updates
STEPPED = ("mavg", "slowmo", "hieravg", "fedavg")  # these average in lanes
PLAIN = ("kavg", "adalupa", "V", "iid", "moments")  # and these in slots
EVERY = ("sync", "qsgd", "switch")  # learners are equal after update 1
TWO_NODES = ("--ranks-per-node", "2")
FIRST = "gradient"  # where a rank dies before another one dies in the recovery


class Point(NamedTuple):
    """Where ranks die. most: how often each rank comes there at least, or milliseconds."""

    most: int
    names: tuple[str, ...]
    cards: int = EACH
    after: bool = True  # also when it has done its work
    writer: bool = False  # only the rank that writes the run file comes there
    recovery: bool = False
    more: tuple[str, ...] = ()  # options
    least: int = 1


POINTS = {
    "gradient": Point(38, BUSY),
    "network": Point(11, ("network", "kept")),
    "slots": Point(4, PLAIN),
    "ready": Point(6, STEPPED),  # the barrier before lanes are written
    "lanes": Point(6, STEPPED),
    "written": Point(6, STEPPED),  # the barrier after it
    "sent": Point(5, ("mavg", "iid", "V"), more=TWO_NODES),
    "mpi": Point(9, ("mpi",)),
    "coded": Point(38, ("qsgd",)),
    "average": Point(38, AT_ONCE),
    "travel": Point(5, DELAYED),  # in the thread of a mean in the background
    "merge": Point(5, DELAYED),
    "mix": Point(18, MIXED),
    "evaluation": Point(4, WIDE),
    "compare": Point(5, WIDE),
    "copy": Point(5, PLAIN + STEPPED + DELAYED),
    "table": Point(5, WIDE, writer=True),
    "rename": Point(6, WIDE, least=2, writer=True),  # the first one is before training
    "checkpoint": Point(4, WIDE),
    "finish": Point(1, WIDE),
    "agree": Point(1, WIDE),
    "build": Point(1, WIDE, recovery=True),
    "restore": Point(1, EVERY, recovery=True),
    "take-over": Point(1, WIDE, writer=True, recovery=True),
    "recovery": Point(30, WIDE, cards=8, after=False, recovery=True),
    "time": Point(80, WIDE, cards=10, after=False),
}
LAST = ("-agree", "time")  # perhaps after the run, and the next one starts with all ranks alive
PAIRS = ("gradient", "average", "slots", "lanes", "compare")  # two die at about the same time
TOGETHER = ("slots", "evaluation", "copy", "checkpoint", "compare", "finish")  # and at once


class Card(NamedTuple):
    """A run, and who dies in it."""

    point: str
    name: str
    N: int
    two: bool

    @property
    def deaths(self):
        return 2 if self.two or POINTS[self.point.lstrip("-")].recovery else 1


def card(point, rng, two=False):
    how = POINTS[point]
    sign = "-" * (how.after and rng.random() < 0.3)
    return Card(sign + point, rng.choice(how.names), rng.randint(how.least, how.most), two)


def hit(card, living, rng):
    """The run of a card on the ranks that live, and those of them that are left."""
    how, left = POINTS[card.point.lstrip("-")], list(living)
    kills = []
    if how.recovery:  # at least one update has been made
        kills.append(f"{FIRST}@{taken(left, rng)}:{rng.randint(8, 38)}")
    for _ in range(1 + card.two):
        victim = left.pop(0) if how.writer else taken(left, rng)
        kills.append(f"{card.point}@{victim}:{card.N}")
    return Hit(card.name, ",".join(kills), len(left), how.more), left


def taken(left, rng):
    return left.pop(rng.randrange(len(left)))


def dealt(seed):
    """All launches: the number of ranks, and its runs, each on 3 ranks at least."""
    rng = random.Random(seed)
    cards = [card(point, rng) for point, how in POINTS.items() for _ in range(how.cards)]
    cards += [card(point, rng, two=True) for point in PAIRS]
    rng.shuffle(cards)
    launches = []
    while cards:
        ranks = 4 if cards[0].deaths == 1 else rng.choice((3, 4))
        living, hits = [*range(ranks)], []
        while cards and len(living) >= 3:
            one, living = hit(cards[0], living, rng)
            hits.append(one)
            if cards.pop(0).point in LAST:
                break
        launches.append((ranks, hits))
    pairs = [hit(card(point, rng, two=True), range(4), rng)[0] for point in TOGETHER]
    return launches + [(4, [pair]) for pair in pairs]


LAUNCHES = dealt(SEED)
SAMPLE = [  # of `make test`
    (4, [Hit("mavg", "lanes@0:2", 3), Hit("cocod", "merge@1:3", 2)]),
    (4, [Hit("adalupa", "-slots@1:3", 3), Hit("levels", "compare@0:2,compare@2:2", 1)]),
    (4, [Hit("iid", "sent@3:4", 3, TWO_NODES), Hit("qsgd", "gradient@0:20,take-over@1:1", 1)]),
]
DIED = {}  # by launch, the points where ranks died, and the ranks lost together, of each run


def limit_s(runs):
    """How long a launch may take: a minute a run, more where other work shares the cores."""
    return 60 * runs * max(1, os.getloadavg()[0] / os.cpu_count())


@pytest.mark.parametrize("launch", range(len(SAMPLE)))
def test_a_few_runs_go_on(launch, whole, tmp_path, hooks):
    points, _ = died_in(SAMPLE[launch], whole, tmp_path)
    assert len(points) == sum(hit.kills.count("@") for hit in SAMPLE[launch][1])


@pytest.mark.long
@pytest.mark.parametrize("launch", range(len(LAUNCHES)))
def test_no_run_hangs_or_ends_otherwise(launch, whole, tmp_path, hooks):
    print(f"seed {SEED}, launch {launch}: {LAUNCHES[launch]}")
    DIED[launch] = died_in(LAUNCHES[launch], whole, tmp_path)


def died_in(launch, whole, tmp_path):
    """The points where ranks died in a launch, with the ranks, and the ranks that each run lost.

    Fails where a run did not end as it should.
    """
    ranks, hits = launch
    done, statuses = launched(ranks, hits, tmp_path, timeout=limit_s(len(hits)))
    assert done.returncode in (0, 75), done.stderr[-4000:]
    begun = hits[: len(statuses) + (done.returncode == 75)]  # with 75 in place of a reply it ended
    lost = [[*load(tmp_path / f"{i}.h5").events.lost] for i in range(len(begun))]
    for i, one in enumerate(begun):
        out = tmp_path / f"{i}.h5"
        if i == len(statuses) or statuses[i] == 75:
            again = run(2, "-m", "localavg", *words(LINES[one.name], out, "--resume"))
            assert again.returncode == 0, again.stderr
        check(load(out), whole(one.name), one.name, rounded=bool(one.more))
    record = tmp_path / "reply.json.hits"
    died = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    print(done.returncode, statuses, died, *lost)
    return [(point, rank) for _, point, rank in died], lost


@pytest.mark.long
def test_ranks_died_at_every_point():
    """By their own record; two at once and rank 0 among them."""
    if len(DIED) < len(LAUNCHES):
        pytest.skip("only a part of the launches ran to their end")
    points = Counter(point for points, _ in DIED.values() for point, _ in points)
    lost = [names for _, runs in DIED.values() for run in runs for names in run]
    pairs = [runs for launch, (_, runs) in DIED.items() if launch >= len(LAUNCHES) - len(TOGETHER)]
    points["two at once"] = sum("," in names for runs in pairs for run in runs for names in run)
    points["rank 0"] = sum(names.startswith("rank 0 ") for names in lost)
    print(dict(points))
    assert sum(len(hits) for _, hits in LAUNCHES) >= 100
    asked = [*POINTS, "two at once", "rank 0"]
    assert {point: points[point] for point in asked if points[point] < EACH} == {}


# ---------------------------------------------------------------------------------- around a center


class Fall(NamedTuple):
    """A run around a center, and who dies in it when: by rank, in ms. The last ranks serve."""

    algorithm: str
    ranks: int
    servers: int
    kills: tuple[tuple[str, int, int], ...]

    @property
    def words(self):
        return ",".join(f"{point}@{rank}:{ms}" for point, rank, ms in self.kills)


LEARNERS, UPDATES, LATEST = 6, 200, 150  # ms: about as long as a run takes
CENTER = {"downpour": "", "eamsgd": "--momentum 0.8"}


def falls(seed, each=10):
    """Runs of each algorithm. In every third one a server dies, in the others a learner's rank.

    In some of them another rank dies too, whoever it is, or one in the recovery.
    """
    rng = random.Random(seed)
    for i in range(each * len(CENTER)):
        ranks, servers = rng.choice((4, 5)), rng.choice((1, 2))
        serving = range(ranks - servers, ranks)
        first = rng.choice(serving) if i % 3 == 0 else rng.randrange(ranks - servers)
        kills = [("playing", first, rng.randint(1, LATEST))]
        if rng.random() < 0.5:
            other = rng.choice([r for r in range(ranks) if r != first])
            late = rng.random() < 0.5
            kills.append(("rejoining", other, rng.randint(1, 20)) if late else
                         ("playing", other, rng.randint(1, LATEST)))  # fmt: skip
        yield Fall([*CENTER][i % 2], ranks, servers, tuple(kills))


# Open MPI 5.0.11 ends ranks that make a communicator while another one dies, and mpirun with 0
CRASHED = "ompi_comm_activate"
FALLS = [*falls(SEED)]
FELL = {}  # by run, whether a server died, of each death


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(FALLS)))
def test_no_run_around_a_center_hangs_or_ends_otherwise(number, shards, tmp_path):
    """Without a server it ends with its checkpoint and resumes; learners go on without a rank."""
    fall, out = FALLS[number], tmp_path / "0.h5"
    print(f"seed {SEED}, run {number}: {fall}")
    more = f"{CENTER[fall.algorithm]} --checkpoint-every 20 --servers"
    words = line(shards, fall.algorithm, LEARNERS, UPDATES, 4, 0.05, more)
    run_of = [(fall.words, f"{words} {fall.servers}")]
    done, statuses = launched_center(fall.ranks, run_of, tmp_path, timeout=limit_s(1))
    record = tmp_path / "reply.json.hits"
    died = [json.loads(each) for each in record.read_text().splitlines()] if record.exists() else []
    FELL[number] = [rank >= fall.ranks - fall.servers for _, _, rank in died]
    print(done.returncode, statuses, died)
    assert done.returncode in (0, 75), done.stderr[-4000:]
    moved = set().union(*moved_in(done.stderr))
    if (crashed := CRASHED in done.stderr) or done.returncode == 75:
        assert any(FELL[number]) or len(died) > 1, done.stderr[-4000:]
        assert crashed or "the same command with --resume resumes the run" in done.stderr
        assert load(out).status in ("running", "died")
        saved = checkpoint.found(checkpoint.folder_of(out))
        again = f"train {words} 1 --resume --out {out}".split()
        done = run(3, "-m", "localavg", *again, timeout=limit_s(1))
        assert done.returncode == 0, done.stderr[-4000:]
        assert not saved or f"resumes after step {saved[0]}" in done.stderr
        moved = {*range(LEARNERS)}
    else:
        assert statuses == [0], done.stderr[-4000:]
    check_center(shards, load(out), moved)


@pytest.mark.long
def test_learners_and_servers_fell():
    """By their own record."""
    if len(FELL) < len(FALLS):
        pytest.skip("only a part of the runs ran to their end")
    fell = Counter(server for servers in FELL.values() for server in servers)
    print(dict(fell))
    assert fell[False] >= EACH and fell[True] >= EACH
