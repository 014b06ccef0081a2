"""Which rows learners hold by class, and what they draw of them.

The statistical tests draw from fixed seeds, so they pass or fail for good.
"""

import re

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from localavg.config.samplings import parsed
from localavg.errors import UserError
from localavg.learner import partition as module
from localavg.learner.partition import dirichlet, dirichlet_class, labels, partition, shards
from localavg.learner.sampling import ByClass, make

P = 6
TEXTS = ["dirichlet:0.3", "dirichlet-class:0.5", "shards:2", "labels:3"]


def classes(n=1200, C=10, uneven=False):
    """Labels [n] in random order: as many of each class, or twice as many of the last ones."""
    y = np.arange(n) % C
    y[uneven * (y < C // 2) * (np.arange(n) % 2 == 0)] = C - 1
    return np.random.default_rng(0).permutation(y)


def random(seed=0):
    return np.random.default_rng(seed)


def split(text, y, P=P, B=8, seed=0):
    return partition(*parsed(text), y, P, B, seed)


@pytest.mark.parametrize("text", TEXTS)
def test_no_row_has_two_owners_and_they_lie_in_order(text):
    y = classes(1201)
    held = split(text, y).rows
    together = np.concatenate(held)
    assert len(held) == P and all((np.diff(rows) > 0).all() for rows in held)
    assert len(set(together)) == len(together) and set(together) <= set(range(1201))
    lost = 1201 - len(together)
    assert lost == 1 if text == "dirichlet:0.3" else lost == 0 or text == "labels:3"  # ⌊n/P⌋ each


@pytest.mark.parametrize("text", TEXTS)
def test_rows_depend_on_the_seed_alone(text):
    y = classes()
    one, same, other = (split(text, y, seed=seed).rows for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(one, other, strict=True))


def shares_of(held, y, C):
    """The part of each class in each learner's rows, [P, C]."""
    return np.array([np.bincount(y[rows], minlength=C) / len(rows) for rows in held])


def test_dirichlet_follows_the_class_frequencies_with_parameters_a_p():
    """The share of a class among a learner's rows has mean p and variance p(1 − p)/(a + 1), as long
    as no class is used up: one learner of 50 here, in each of 400 draws.
    """
    y, a = classes(50_000, 10, uneven=True), 3.0
    p = np.bincount(y) / len(y)
    assert max(p) > 3 * min(p)
    first = np.array([shares_of(dirichlet(y, 50, a, random(s))[:1], y, 10)[0] for s in range(400)])
    assert first.mean(0) == pytest.approx(p, abs=0.03)
    assert first.var(0) == pytest.approx(p * (1 - p) / (a + 1), rel=0.35)


def test_dirichlet_gives_everyone_as_many_rows_of_classes_that_run_out():
    y = classes(1207)
    for a in (1e-300, 1e-3, 0.1, 1e3, 1e300):
        held = dirichlet(y, P, a, random())
        assert [len(rows) for rows in held] == [201] * P
    # of all rows the last learner gets what the others left
    assert set(np.concatenate(dirichlet(classes(1200), P, 0.1, random()))) == set(range(1200))


def test_dirichlet_is_the_draw_of_one_row_after_the_other():
    """Hsu et al. draw row by row; the counts of classes of the second learner, when the first has
    used up some, are distributed alike.
    """

    def row_by_row(y, random):
        left, counts = np.bincount(y).astype(float), []
        n_k = left.copy()
        for _ in range(2):
            q, mine = random.dirichlet(0.8 * n_k / len(y)), np.zeros(3)
            for _ in range(len(y) // 2):
                there = q * (left > 0)
                k = random.choice(3, p=there / there.sum())
                mine[k] += 1
                left[k] -= 1
            counts.append(mine)
        return counts

    y, draws = np.repeat([0, 1, 2], [20, 10, 10]), 600
    ours, theirs = np.zeros(41), np.zeros(41)
    for s in range(draws):
        ours[(y[dirichlet(y, 2, 0.8, random(s))[0]] == 0).sum()] += 1
        theirs[int(row_by_row(y, random(10**6 + s))[0][0])] += 1
    bins = [0, 1, 5, 10, 15, 19, 20, 41]
    a, b = (np.add.reduceat(counts, bins[:-1]) for counts in (ours, theirs))
    assert ((a - b) ** 2 / (a + b)).sum() < chi2.isf(1e-4, len(a) - 1)


def test_dirichlet_class_cuts_every_class_by_a_symmetric_draw():
    """A learner's share of a class is Beta(a, (P − 1)a), as the marginal of Dir(a, …, a) says."""
    y, a = classes(10_000), 0.5
    held = [dirichlet_class(y, P, a, random(seed)) for seed in range(60)]
    for j in (0, 3, 5):
        shares = [(y[rows[j]] == 4).sum() / 1000 for rows in held]
        assert kstest(shares, "beta", (a, (P - 1) * a)).pvalue > 1e-3
    sizes = [len(rows) for rows in held[0]]
    assert sum(sizes) == 10_000 and max(sizes) > 1.3 * min(sizes)


def test_shards_are_equal_blocks_of_the_rows_sorted_by_label():
    y = classes(1201)
    held, order = shards(y, P, 2, random()), np.argsort(y, kind="stable")
    ends = [1201 * b // 12 for b in range(13)]
    blocks = [set(order[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    owner = {b: j for j, rows in enumerate(held) for b in range(12) if blocks[b] <= set(rows)}
    assert len(owner) == 12 and [list(owner.values()).count(j) for j in range(P)] == [2] * P
    assert [owner[b] for b in range(12)] != sorted(owner.values())  # dealt at random
    assert {len(rows) for rows in held} <= {200, 201}


def test_labels_are_exactly_c_of_which_the_first_goes_round():
    y, c = classes(1200), 3
    held = labels(y, 14, c, random())
    seen = [set(y[rows]) for rows in held]
    assert all(len(mine) == c and j % 10 in mine for j, mine in enumerate(seen))
    for k in range(10):
        parts = [(y[rows] == k).sum() for rows, mine in zip(held, seen, strict=True) if k in mine]
        assert max(parts) - min(parts) <= 1 and sum(parts) == 120
    assert len({frozenset(mine) for mine in seen}) > 8  # the others are drawn
    few = labels(y, 3, 1, random())
    assert [set(y[rows]) for rows in few] == [{0}, {1}, {2}]  # the other classes have no holder


def test_a_draw_with_a_learner_of_too_few_rows_is_repeated_and_counted():
    y, P = classes(400), 20
    found = split("dirichlet-class:0.5", y, P, B=4)
    assert min(map(len, found.rows)) >= 10  # or B, if that is more
    draws = [
        dirichlet_class(y, P, 0.5, module.generator(0, 0, k, module.Stream.PARTITION))
        for k in range(found.redraws + 1)
    ]
    assert found.redraws > 1 and all(min(map(len, draw)) < 10 for draw in draws[:-1])
    assert all((a == b).all() for a, b in zip(draws[-1], found.rows, strict=True))
    assert split("shards:2", y).redraws == 0


REFUSED = {  # text: (learners, classes of the data, words)
    "shards:201": (6, 10, ["6 learners", "1206 blocks", "1200 rows"]),
    "labels:11": (6, 10, ["10 classes", "labels:10"]),
    "dirichlet-class:0.001": (6, 5, ["6 learners", "10 rows", "100 draws", "with 0", "a larger A"]),
    "labels:1": (60, 2, ["60 learners", "2 rows", "100 draws", "with 0", "a larger C"]),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_dealt_is_one_line(text):
    P, C, words = REFUSED[text]
    y = classes(1200, C)
    if text == "labels:1":
        y[np.flatnonzero(y)[1:]] = 0  # one row for 30 learners
    with pytest.raises(UserError) as e:
        split(text, y, P, B=2)
    message = str(e.value)
    assert message.startswith(f"`sampling = {text}`") and "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize("text", TEXTS)
def test_a_batch_above_the_mean_holding_is_refused_without_a_draw(text, monkeypatch):
    monkeypatch.setattr(module, "WAYS", {})
    with pytest.raises(UserError, match=r"needs 201 rows.*1200 rows are too few"):
        split(text, classes(), B=201)


# ---------------------------------------------------------------------------------------- batches


def drawn(sampler, j, updates):
    return [sampler.batch(j, t) for t in range(1, updates + 1)]


@pytest.mark.parametrize("B", [4, 7])
def test_a_learner_passes_over_its_own_rows_again_and_again(B):
    """Learners of unequal holdings have passes of unequal length, across windows of 256."""
    y = classes(3000)
    sampler = make("dirichlet-class:0.5", 3000, P, B, 5, y)
    assert isinstance(sampler, ByClass) and len(set(sampler.rows)) > 1
    assert sampler.epoch == 3000 / (P * B)
    for j in (0, P - 1):
        each = len(sampler.own[j]) // B
        batches = drawn(sampler, j, max(3 * each, 600))
        passes = [np.concatenate(batches[i : i + each]) for i in (0, each, 2 * each)]
        for rows in passes:
            assert len(set(rows)) == each * B and set(rows) <= set(sampler.own[j])
        assert len({tuple(rows) for rows in passes}) == 3  # reshuffled


def test_a_long_pass_is_one_permutation_over_many_windows():
    y = classes(6000, 2)
    sampler = make("labels:2", 6000, 2, 1, 5, y)
    rows = np.concatenate(drawn(sampler, 1, 6000))
    assert sorted(rows[:3000]) == sorted(rows[3000:]) == sampler.own[1].tolist()
    assert (rows[:3000] != rows[3000:]).mean() > 0.9
    again = make("labels:2", 6000, 2, 1, 5, y)
    assert [int(again.batch(1, t)[0]) for t in (2999, 300, 1)] == rows[[2998, 299, 0]].tolist()


def test_a_batch_of_all_rows_is_these_rows_as_they_lie():
    sampler = make("shards:1", 24, 4, 6, 0, classes(24, 4))
    for t in (1, 2, 700):
        assert (sampler.batch(2, t) == sampler.own[2]).all()
        assert (sampler.table(2, t // 256)[0] == sampler.own[2]).all()


def test_counts_say_who_holds_which_class():
    y = np.where(classes(120, 4) < 2, -1.0, 1.0).astype(np.float32)
    sampler = make("dirichlet:1", 120, 3, 5, 0, y)
    counts = {(j, label): rows for j, label, rows in sampler.counts()}
    for j in range(3):
        for label in (-1, 1):
            assert counts.get((j, label), 0) == (y[sampler.own[j]] == label).sum()


WRONG = ["some", "dirichlet", "dirichlet:0", "dirichlet:-1", "dirichlet:x", "dirichlet:nan",
         "dirichlet:inf", "shards:0", "shards:2.5", "labels:", "labels:0", "iid:2"]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_text_that_is_no_sampling_is_refused(text):
    with pytest.raises(UserError) as e:
        parsed(text)
    assert re.match(r"`sampling = .*`: must be ", str(e.value)) and text in str(e.value)
