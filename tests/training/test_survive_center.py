"""Ranks of Downpour and EAMSGD die: their learners go on from the center on other ranks, and without
a server the job ends and resumes.

The oracle follows the run file, in float64. The staleness of an exchange says after how many
exchanges its learner pulled the center: a learner that was moved pulled it when it was. Where the
reply to the last exchange before a loss was lost, its learner pulls the center after this exchange,
as it would have done anyway: the file does not show it.
"""

import json
import re
from itertools import product
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from mpi import SUPPORT, run
from samples import N
from test_asynchronous import gradient, line

from localavg.algorithms.eamsgd import EAMSGD
from localavg.files import checkpoint
from localavg.files.record import load
from localavg.parallel.aligned import host_zeros
from localavg.parallel.device import Cpu
from localavg.training.asynchronous.client import Client, Pending
from localavg.training.asynchronous.messages import APPLY
from localavg.training.asynchronous.server import Server

SURVIVING = ("--on-failure", "continue")


def oracle(data, found, unanswered=()):
    """The center after the exchanges of a run, and the learners that started from it again.

    unanswered: numbers of exchanges after which ranks were lost, with the reply to the last one.
    """
    c = found.config
    P, lr, alpha, delta = c["learners"], c["lr"], c.get("alpha"), c["momentum"]
    centers, again = [np.zeros(data.X.shape[1])], []
    x, v = ([centers[0].copy() for _ in range(P)] for _ in "xv")
    t, after = [0] * P, [0] * P
    for n, row in enumerate(found.staleness.itertuples()):
        j, pulled = row.learner, n - row.staleness
        if pulled != after[j]:
            again.append(j)
            x[j], v[j] = centers[pulled].copy(), np.zeros_like(x[j])
        rows = slice(N * j // P, N * (j + 1) // P)
        change = np.zeros_like(x[j])
        for _ in range(row.t - t[j]):
            if alpha is None:
                step = -lr * gradient(x[j], data.X[rows], data.y[rows])
                x[j], change = x[j] + step, change + step
            else:
                v[j] = delta * v[j] - lr * gradient(x[j] + delta * v[j], data.X[rows], data.y[rows])
                x[j] = x[j] + v[j]
        if alpha is None:
            centers.append(centers[-1] + change)
            x[j] = centers[-1].copy()
        else:
            e = alpha * (x[j] - centers[-1])
            x[j] = x[j] - e
            centers.append(centers[-1] + e)
        t[j], after[j] = row.t, n + 1
        if n + 1 in unanswered:
            x[j], v[j] = centers[-1].copy(), np.zeros_like(x[j])
    return centers[-1], again


def perhaps_unanswered(found):
    """Whether a reply was lost at the losses of a run, and after which exchange: all that may be."""
    steps, P = found.config["K"], found.config["learners"]
    each = [
        [None, *(n for n in range(len(found.staleness) + 1) if n * steps // P == t)]
        for t in found.events.t
    ]
    return [[n for n in one if n is not None] for one in product(*each)]


def check(data, found, moved):
    """That a run whose `moved` learners started again is the oracle's, and whole."""
    c = found.config
    P, T, K = c["learners"], c["steps"], c["K"]
    (center, again), *others = [oracle(data, found, lost) for lost in perhaps_unanswered(found)]
    assert found.status == "finished" and len(found.staleness) == P * T // K
    assert found.train.samples.iloc[-1] == P * T * (N // P)
    assert found.eval.t.tolist() == sorted(set(found.eval.t)) and found.eval.t.iloc[-1] == T
    for j in range(P):
        mine = found.staleness.t[found.staleness.learner == j].tolist()
        assert mine == [*range(K, T + 1, K)]
    if any(np.allclose(found.weights, other, rtol=2e-4, atol=2e-5) for other, _ in others):
        return
    if moved <= set(again) or c["algorithm"] == "downpour":  # else the run file does not show when
        np.testing.assert_allclose(found.weights, center, rtol=2e-4, atol=2e-5)


def launched(ranks, runs, folder, timeout=120):
    """How a launch ended, and the exit statuses of its runs: (kills, command line) each."""
    request, reply = folder / "request.json", folder / "reply.json"
    words = [
        [kills, ["train", *words.split(), *SURVIVING, "--out", str(folder / f"{i}.h5")]]
        for i, (kills, words) in enumerate(runs)
    ]
    request.write_text(json.dumps(words))
    done = run(ranks, SUPPORT / "killing.py", request, reply, ft=True, timeout=timeout)
    return done, json.loads(reply.read_text()) if reply.exists() else []


def moved_in(said):
    """By loss, the learners that went to other ranks."""
    found = re.findall(r"its learners \(([\d, ]*|none)\) go on from the center", said)
    return [{int(j) for j in re.findall(r"\d+", each)} for each in found]


def test_learners_of_dead_ranks_go_on_from_the_center(shards, tmp_path):
    """Of five ranks two are servers, each with a part of the center; then one is."""
    runs = [
        ("push@1:6", line(shards, "downpour", 6, 40, 4, 0.1, "--servers 2")),
        ("-push@0:7", line(shards, "eamsgd", 6, 48, 4, 0.1, "--momentum 0.8")),
    ]
    done, statuses = launched(5, runs, tmp_path)
    assert (done.returncode, statuses) == (0, [0, 0]), done.stderr[-4000:]
    lost = moved_in(done.stderr)
    assert lost[0] == {2, 3} and lost[1] <= {0, 1}
    for i, moved in enumerate(lost):
        found = load(tmp_path / f"{i}.h5")
        check(shards, found, moved)
        (event,) = found.events.to_dict("records")
        assert (event["ranks_before"], event["ranks_after"]) == (5 - i, 4 - i)
        assert event["repeated"] == 4 * len(moved) and "rank" in event["lost"]
    assert "ranks were lost 1 time, at most 8 updates were made again" in done.stderr


def test_a_lost_server_ends_the_job_and_the_run_resumes_on_other_ranks(shards, tmp_path):
    words = line(shards, "downpour", 6, 200, 4, 0.05, "--servers 2 --checkpoint-every 20")
    done, _ = launched(4, [("serve@3:150", words)], tmp_path)
    out = tmp_path / "0.h5"
    assert done.returncode == 75, done.stderr[-4000:]
    assert done.stderr.count("died, a server, and its part of the center is lost") == 1
    saved = checkpoint.found(checkpoint.folder_of(out))
    assert saved and 60 <= saved[0] < 100 and load(out).status in ("running", "died")
    words = words.replace("--servers 2", "--servers 1")
    done = run(3, "-m", "localavg", "train", *words.split(), "--resume", "--out", out)
    assert done.returncode == 0 and f"resumes after step {saved[0]}" in done.stderr, done.stderr
    check(shards, load(out), set())
    assert not checkpoint.folder_of(out).exists()


# ------------------------------------------------------------------------------ in this process


def roles_of(rank, learners=()):
    """Of two ranks with learners and two servers, as this one sees them."""
    world = SimpleNamespace(rank=rank, size=4)
    parts = lambda d: [slice(0, d // 2), slice(d // 2, d)]  # noqa: E731
    return SimpleNamespace(world=world, clients=2, P=4, parts=parts, learners=learners, held=[])


def test_servers_have_the_same_exchanges_after_a_loss():
    """The second one gets what it lacks from the messages that it has."""
    rule, d = EAMSGD(4, 4, 0.3, 0.9), 11
    rule.lay_out(d)
    random = np.random.default_rng(2)
    start, messages = random.normal(size=d), random.normal(size=(4, d))
    whole, order = start.astype(np.float32), [1, 0, 3]
    for j in order:
        rule.answer_(whole, messages[j].astype(np.float32), np.empty_like(whole), d)
    servers = []
    for rank in (2, 3):
        server = Server(rule, start.astype(np.float32), roles_of(rank))
        for j, message in enumerate(messages.astype(np.float32)):
            server._messages[j] = message[server.part].copy()
        servers.append(server)
    for server, served in zip(servers, (3, 1), strict=True):
        for j in order[:served]:
            server.serve(j, APPLY)
    for server in servers:
        server.catch_up(servers[0].served, [2, *order])  # 2 is of an earlier round
        assert server.served == 3 and np.array_equal(server.x, whole[server.part])


def test_a_learner_that_waits_pushes_again_unless_it_was_served():
    rule, d = EAMSGD(4, 6, 0.3, 0.9), 5
    rule.lay_out(d)
    made = [rule.learner(j, host_zeros((d,)), host_zeros) for j in range(3)]
    local = SimpleNamespace(learners=made, T=40, rule=rule, device=Cpu())
    client = Client(local, roles_of(0, [0, 1, 2]), None)
    for learner, t in zip(made, (8, 8, 6), strict=True):
        learner.t = t
        learner.v[:] = learner.message[:] = 1 + learner.j
    client.ready.clear()
    client.ready.append(made[2])
    client.away[:] = made[:2]
    center, pushed = np.full(d, 7, np.float32), []
    with mock.patch.object(Pending, "send", lambda self: pushed.append(self.learner)):
        client.rejoin(roles_of(0, [0, 1, 2, 5]), [4, 8, 4, 0, 0, 12], center)
    assert pushed == [made[0]] == client.away and pushed[0].t == 8
    after = {learner.j: learner for learner in client.ready}
    assert after[2] is made[2] and after[2].t == 6 and (after[2].v == 3).all()
    for j, t in ((1, 8), (5, 12)):
        assert after[j].t == t and (after[j].v == 0).all() and (after[j].message == 7).all()
    assert sorted(client.report().items()) == [
        (0, (8, True)), (1, (8, False)), (2, (6, False)), (5, (12, False))
    ]  # fmt: skip


# --------------------------------------------------------------------------------- at other points


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "left"),
    [
        ("push@1:6,plan@0:1", 3),  # another one while the others recover
        ("evaluation@2:5", 4),
        ("-serve@3:40,gradient@0:30", 0),  # a server, and a learner's rank
        ("pull@0:20,-rejoin@2:1", 3),
        ("gradient@0:9,gradient@1:9,gradient@2:9", 0),
    ],
)
def test_no_point_hangs_a_run_around_a_center(kills, left, shards, tmp_path):
    words = line(shards, "downpour", 6, 40, 4, 0.1, "--servers 2")
    done, statuses = launched(5, [(kills, words)], tmp_path)
    if not left:
        assert done.returncode == 75 and "the same command with --resume" in done.stderr
        return
    assert (done.returncode, statuses) == (0, [0]), done.stderr[-4000:]
    found = load(tmp_path / "0.h5")
    check(shards, found, set().union(*moved_in(done.stderr)))
    assert found.events.ranks_after.iloc[-1] == left


@pytest.mark.long
def test_a_run_around_a_center_stops_at_its_limit_and_resumes(shards, tmp_path):
    words = line(shards, "eamsgd", 4, 20000, 4, 0.01, "--momentum 0.8")
    words = re.sub(r"--(log|eval)-every \d+", r"--\1-every 5000", words).split()
    out = tmp_path / "run.h5"
    stopped = run(3, "-m", "localavg", "train", *words, "--time-limit", "3s", "--out", out)
    assert stopped.returncode == 75 and "stopped by the time limit, saved in" in stopped.stderr
    assert load(out).status == "interrupted"
    done = run(3, "-m", "localavg", "train", *words, "--resume", "--out", out)
    assert done.returncode == 0, done.stderr
    check(shards, load(out), {0, 1, 2, 3})
