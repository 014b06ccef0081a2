"""Rounds in which some learners rest, in a user's own loop, against FedAvg written out in torch."""

import copy

import numpy as np
import pytest
from mpi import call

import localavg
from localavg.errors import UserError
from localavg.files.record import load
from localavg.streams import Stream, generator

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)

P, K, T, M, SEED = 3, 3, 11, 2, 5
ROWS = [10, 25, 40]  # of each learner
LR, MOMENTUM = 0.05, 0.9


def made():
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 2)
    return model, torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def train(model, optimizer, j, t):
    """Update t of learner j; return its loss."""
    x = torch.from_numpy(np.random.default_rng([j, t]).normal(size=(6, 4)).astype(np.float32))
    optimizer.zero_grad()
    loss = (model(x * (j + 1)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def flat(model):
    return np.concatenate([p.detach().numpy().ravel().copy() for p in model.parameters()])


def attached(fleet, model, optimizer, log=None):
    algorithm = localavg.fedavg(K=K, participants=M)
    return localavg.attach(
        model, fleet, algorithm, optimizer, state="reset", seed=SEED, log=log,
        rows=ROWS[fleet.rank], config={"batch_size": 6},
    )  # fmt: skip


def rounds(world, folder):
    """What every rank sees: its weights after each update, who works, and what is refused."""
    fleet = localavg.Fleet(world)
    refused = []
    for algorithm in (localavg.kavg(participants=4), localavg.kavg(weights="rows")):
        try:
            localavg.attach(made()[0], fleet, algorithm)
        except UserError as e:
            refused.append(str(e))
    earlier = attached(fleet, *made())
    state = earlier.state_dict()
    try:
        earlier.load_state_dict({**state, "averaging": {}, "round": {"round": 1}})
    except UserError as e:
        refused.append(str(e))
    refused.append(("round" in state, [*state["averaging"]]))
    model, optimizer = made()
    averager = attached(fleet, model, optimizer, f"{folder}/run.h5")
    seen = []
    for t in range(1, T + 1):
        works, loss = averager.participates, 1e9
        if works or fleet.rank == 0:  # rank 0 trains though it rests: that is discarded
            loss = train(model, optimizer, fleet.rank, t)
        averager.step(loss)
        seen.append((works, flat(model)))
        if t == 7:  # within a round: another process goes on
            saved = averager.state_dict(), model.state_dict(), optimizer.state_dict()
            again, second = made()
            resumed = attached(fleet, again, second)
            again.load_state_dict(saved[1])
            second.load_state_dict(copy.deepcopy(saved[2]))
            resumed.load_state_dict(saved[0])
    averager.finish()
    for t in range(8, T + 1):
        if resumed.participates or fleet.rank == 0:
            train(again, second, fleet.rank, t)
        resumed.step()
    resumed.finish()
    return seen, flat(model), flat(again), refused


def expected():
    """McMahan et al., Algorithm 1: who works in each round, and the model after it."""
    w, found = flat(made()[0]), []
    for r, begun in enumerate(range(0, T, K)):
        draw = generator(SEED, 0, r, Stream.PARTICIPANTS).choice(P, M, replace=False)
        total, losses = np.zeros(len(w)), []
        for j in draw:
            model, optimizer = made()
            torch.nn.utils.vector_to_parameters(torch.from_numpy(w.copy()), model.parameters())
            losses += [
                train(model, optimizer, j, t) for t in range(begun + 1, min(begun + K, T) + 1)
            ]
            total += ROWS[j] * flat(model)
        w = (total / sum(ROWS[j] for j in draw)).astype(np.float32)
        found.append((set(draw.tolist()), w, losses))
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    return folder, call(P, rounds, str(folder))


def test_rounds_are_those_of_federated_averaging(answers):
    wanted = expected()
    for t in range(1, T + 1):
        works = {j for j, (seen, *_) in enumerate(answers[1]) if seen[t - 1][0]}
        assert works == wanted[(t - 1) // K][0]
        if t % K == 0:
            for seen, *_ in answers[1]:
                np.testing.assert_allclose(seen[t - 1][1], wanted[t // K - 1][1], 1e-5, 1e-6)
    assert len({frozenset(works) for works, *_ in wanted}) > 1
    assert any(0 not in works for works, *_ in wanted)
    for _, last, *_ in answers[1]:
        np.testing.assert_allclose(last, wanted[-1][1], 1e-5, 1e-6)


def test_a_restart_within_a_round_gives_the_same_bits(answers):
    for _, last, resumed, _ in answers[1]:
        assert np.array_equal(last, resumed)


def test_the_log_counts_the_work_and_the_losses_of_those_who_work(answers):
    run, wanted = load(answers[0] / "run.h5"), expected()
    assert run.train.samples.tolist() == [t * M * 6 for t in run.train.t]
    assert run.train.loss.iloc[0] == pytest.approx(np.mean(wanted[0][2]), rel=1e-5)
    assert run.config["participants"] == M


def test_numbers_of_learners_and_rows_that_cannot_be_are_refused_on_every_rank(answers):
    for *_, refused in answers[1]:
        assert "`participants = 4` with 3 learners" in refused[0]
        assert "`weights = rows`: no learner" in refused[1]


def test_the_round_is_saved_once_and_missed_where_it_is_not(answers):
    for *_, refused in answers[1]:
        assert "the state does not say round: an earlier version made it" in refused[2]
        assert refused[3] == (False, ["round"])
