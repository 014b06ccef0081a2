"""Which examples learners draw: what every sampling promises; a batch depends on (seed, learner,
step) alone.

The statistical tests draw from fixed seeds, so they pass or fail for good; where one is said to err
with probability p, that is the share of seeds for which a correct sampler would fail it.
"""

import random
import re

import numpy as np
import pytest
from scipy.stats import chi2

from localavg.errors import UserError
from localavg.learner.sampling import SAMPLERS, make
from localavg.streams import Stream, generator

BY_CLASS = ["dirichlet-class:0.5", "dirichlet:0.3", "labels:2", "shards:2"]
ALL = [*sorted(SAMPLERS), *BY_CLASS]


def made(kind, n, P, B, seed):
    """The sampler of this text, for data of 7 classes in random order."""
    return make(kind, n, P, B, seed, np.random.default_rng(n).integers(0, 7, n))


def rows(batch):
    """Row numbers [B] of a batch."""
    return np.arange(batch.start, batch.stop) if isinstance(batch, slice) else batch


def draws(sampler, learners, steps):
    return {(j, t): rows(sampler.batch(j, t)).tolist() for j in learners for t in steps}


def uniform(counts, error_rate=1e-6):
    """Whether counts of equally likely outcomes pass the χ² test at this error rate."""
    expected = counts.sum() / counts.size
    assert expected > 20  # or the approximation is none
    return ((counts - expected) ** 2 / expected).sum() < chi2.isf(error_rate, counts.size - 1)


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_is_the_same_whatever_was_asked_before(kind):
    n, P, B, steps = (
        331,
        3,
        4,
        range(1, 700),
    )  # several windows of 256 steps, epochs of 27, a remainder
    in_order = draws(made(kind, n, P, B, seed=5), range(P), steps)
    sampler, asked = made(kind, n, P, B, seed=5), list(in_order)
    for j, t in [*asked[::-7], *random.Random(0).choices(asked, k=300)]:
        assert rows(sampler.batch(j, t)).tolist() == in_order[j, t]
    for j, t in [
        (2, 1),
        (0, 256),
        (1, 257),
        (2, 699),
    ]:  # by a sampler that was never asked anything else
        assert rows(made(kind, n, P, B, seed=5).batch(j, t)).tolist() == in_order[j, t]


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_is_b_rows_of_the_data(kind):
    sampler = made(kind, 331, 3, 4, seed=5)
    for batch in draws(sampler, range(3), range(1, 300)).values():
        assert len(batch) == 4
        assert 0 <= min(batch) <= max(batch) < 331


@pytest.mark.parametrize("kind", ALL)
def test_seeds_learners_and_steps_draw_differently(kind):
    n, P, B = (
        10**5,
        4,
        8,
    )  # two of different (seed, j, t) are the same with probability 1e-5 at most
    batches = [
        str(rows(made(kind, n, P, B, seed).batch(j, t)))
        for seed in (0, 1, 2**62)
        for j in range(P)
        for t in (1, 2, 256, 257, 512, 513)
    ]
    assert len(set(batches)) == len(batches)


def test_streams_of_random_numbers_are_apart():
    keys = [(seed, who, when) for seed in (0, 1) for who in (0, 1) for when in (0, 1)]
    first = {generator(*key, stream).random() for key in keys for stream in Stream}
    assert len(first) == len(keys) * len(Stream)
    again = generator(3, 4, 5, Stream.SAMPLING).random()
    assert generator(3, 4, 5, Stream.SAMPLING).random() == again


def test_streams_keep_their_numbers_or_old_runs_could_not_be_repeated():
    assert [stream.name for stream in sorted(Stream)] == [
        "SAMPLING",
        "ROUNDING",
        "IMAGES",
        "NETWORK",
        "TIMES",
        "MEAN_ROUNDING",
        "PARTITION",
        "PARTICIPANTS",
        "GOSSIP",
        "LOW_RANK",
    ]
    assert list(map(int, sorted(Stream))) == list(range(10))


@pytest.mark.parametrize("kind", ["iid", "block"])
def test_an_epoch_is_n_examples_of_all_learners(kind):
    assert SAMPLERS[kind](1000, 4, 25, 0).epoch == 10
    assert SAMPLERS[kind](100, 4, 10, 0).epoch == 2.5


# --------------------------------------------------------------------------------------------------


def test_iid_is_uniform_over_all_data_for_every_learner():
    """χ² over rows for each of 4 learners, and over the joint rows of two draws: errs with
    probability 1e-5 in all.
    """
    n, P, B, steps = 7, 4, 6, 2000
    sampler = SAMPLERS["iid"](n, P, B, seed=11)
    x = np.array(
        [[sampler.batch(j, t) for t in range(1, steps + 1)] for j in range(P)]
    )  # [P, steps, B]
    assert all(uniform(np.bincount(x[j].ravel(), minlength=n)) for j in range(P))

    def pairs(a, b):
        return np.bincount((a * n + b).ravel(), minlength=n * n)

    assert uniform(pairs(x[0], x[1]))  # two learners at one step
    assert uniform(pairs(x[:, :-1], x[:, 1:]))  # one learner at two steps
    assert uniform(pairs(x[..., :-1], x[..., 1:]))  # two examples of one batch: with replacement
    assert uniform(pairs(x[:, :-256], x[:, 256:]))  # two windows


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "P", "B", "epoch"), [(24, 3, 4, 2), (23, 2, 5, 2), (7, 7, 1, 1), (100, 1, 10, 10)]
)
def test_learners_of_an_epoch_have_disjoint_parts(n, P, B, epoch):
    sampler = SAMPLERS["shuffle"](n, P, B, seed=3)
    assert sampler.epoch == epoch
    passes = []
    for e in range(4):
        steps = range(e * epoch + 1, (e + 1) * epoch + 1)
        dealt = [row for batch in draws(sampler, range(P), steps).values() for row in batch]
        assert len(set(dealt)) == len(dealt) == epoch * P * B
        passes.append(dealt)
    assert len({tuple(dealt) for dealt in passes}) == 4  # reshuffled


def test_the_shuffle_is_global_and_every_row_has_its_chances():
    """Over 3000 epochs of 11 rows, 8 of them dealt: where each row goes is uniform. Errs with
    probability 1e-6.
    """
    n, P, B, epochs = 11, 2, 2, 3000
    sampler = SAMPLERS["shuffle"](n, P, B, seed=0)
    batches = draws(sampler, range(P), range(1, 2 * epochs + 1))
    places = np.zeros((4, n), int)  # [learner and step of the epoch, row]
    for (j, t), batch in batches.items():
        places[2 * j + (t - 1) % 2, batch] += 1
    assert (places.sum(axis=1) == 2 * epochs).all()
    assert uniform(places)


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [[0, 6, 12, 18, 24], [0, 5, 11, 17, 23], [0, 6, 12, 18, 25]])
def test_shards_have_these_bounds(bounds):
    """Learner j of P owns rows ⌊nj/P⌋ … ⌊n(j+1)/P⌋ − 1, all of them, and draws nothing else."""
    sampler = SAMPLERS["shard"](bounds[-1], 4, 1, seed=1)
    for j in range(4):
        drawn = {int(rows(sampler.batch(j, t))[0]) for t in range(1, 400)}
        assert drawn == set(range(bounds[j], bounds[j + 1]))


def test_a_pass_over_a_shard_repeats_no_row_and_the_next_one_is_reshuffled():
    sampler = SAMPLERS["shard"](60, 3, 4, seed=2)
    assert sampler.epoch == 5  # of 20 rows in batches of 4
    passes = [
        tuple(np.concatenate([sampler.batch(1, 5 * e + s) for s in range(1, 6)])) for e in range(4)
    ]
    assert all(sorted(p) == list(range(20, 40)) for p in passes)
    assert len(set(passes)) == 4


def test_all_learners_have_the_same_number_of_steps_in_a_pass():
    sampler = SAMPLERS["shard"](23, 4, 3, seed=2)  # shards of 5, 6, 6 and 6 rows
    assert sampler.epoch == 1
    sampler = SAMPLERS["shard"](23, 4, 2, seed=2)
    assert sampler.epoch == 2


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_a_batch_of_the_whole_shard_is_the_shard_as_it_lies(seed):
    sampler = SAMPLERS["shard"](24, 4, 6, seed)
    assert [sampler.batch(j, t) for j in range(4) for t in (1, 2, 700)] == [
        slice(a, a + 6) for a in (0, 6, 12, 18) for _ in range(3)
    ]


def test_only_shards_of_exactly_b_rows_are_taken_whole():
    sampler = SAMPLERS["shard"](23, 4, 5, seed=0)  # shards of 5, 6, 6 and 6 rows
    assert sampler.batch(0, 1) == slice(0, 5)
    left_out = set()
    for t in range(1, 200):
        batch = set(rows(sampler.batch(3, t)).tolist())
        assert len(batch) == 5
        left_out |= set(range(17, 23)) - batch
    assert left_out == set(range(17, 23))  # every row has its turn to be left out


# --------------------------------------------------------------------------------------------------


def test_a_block_is_consecutive_rows_anywhere_with_equal_chances():
    """χ² over the 12 places of a block of 4 in 12 rows, and over the joint places of two steps.
    Errs with 1e-6 each.
    """
    sampler = SAMPLERS["block"](12, 2, 4, seed=0)
    batches = [[rows(sampler.batch(j, t)) for t in range(1, 3001)] for j in range(2)]
    starts = np.array([[b[0] for b in row] for row in batches])  # [P, steps]
    assert (np.array(batches) == (starts[..., None] + np.arange(4)) % 12).all()
    assert uniform(np.bincount(starts[0], minlength=12))
    assert uniform(np.bincount(starts[0] * 12 + starts[1], minlength=144))
    assert uniform(np.bincount(starts[0, :-1] * 12 + starts[0, 1:], minlength=144))


def test_every_row_is_as_likely_as_any_other_in_a_block():
    sampler = SAMPLERS["block"](40, 1, 30, seed=0)
    drawn = np.concatenate([rows(sampler.batch(0, t)) for t in range(1, 3001)])
    counts = np.bincount(drawn, minlength=40)
    assert counts == pytest.approx(np.full(40, counts.mean()), rel=0.05)


def test_a_block_inside_the_data_is_a_view():
    sampler = SAMPLERS["block"](1000, 1, 4, seed=0)
    assert sum(type(sampler.batch(0, t)) is slice for t in range(1, 101)) > 90


def test_a_block_of_all_rows_is_all_rows():
    assert [SAMPLERS["block"](12, 2, 12, 0).batch(j, t) for j in (0, 1) for t in (1, 2)] == [
        slice(0, 12)
    ] * 4


# -------------------------------------------------------------------------------------------------

TOO_LARGE = [
    ("iid", 29, 1, 30),
    ("block", 29, 3, 30),
    ("shuffle", 29, 1, 30),
    ("shard", 29, 1, 30),  # more than all data
    ("shuffle", 29, 3, 10),
    ("shard", 29, 3, 10),  # more than a learner's part
    ("shuffle", 29, 40, 1),
    ("shard", 29, 40, 1),  # more learners than rows
]


@pytest.mark.parametrize(("kind", "n", "P", "B"), TOO_LARGE)
def test_a_batch_that_is_too_large_is_refused_with_a_remedy_that_works(kind, n, P, B):
    with pytest.raises(UserError) as e:
        SAMPLERS[kind](n, P, B, 0)
    message = str(e.value)
    assert message.startswith(f"`batch_size = {B}`") and str(n) in message and "\n" not in message
    if n < P:
        assert "at most 0" not in message  # no batch size helps
        assert "learners" in message
    elif most := re.search(r"lower `batch_size` to at most (\d+)", message):
        SAMPLERS[kind](n, P, int(most[1]), 0)
        with pytest.raises(UserError):
            SAMPLERS[kind](n, P, int(most[1]) + 1, 0)
    else:
        assert f"has {n} rows" in message
        SAMPLERS[kind](n, P, n, 0)


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_the_largest_batch_is_taken(kind):
    n, P = 30, 3
    B = n if kind in ("iid", "block") else n // P
    assert len(rows(SAMPLERS[kind](n, P, B, 0).batch(2, 1))) == B
