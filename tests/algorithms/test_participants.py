"""Who works in a round, and how much each learner counts.

The draws are from fixed seeds, so a test of their distribution passes or fails for good.
"""

import numpy as np
import pytest
from scipy.stats import chi2

from localavg import algorithms
from localavg.algorithms.fedavg import fedavg
from localavg.algorithms.kavg import kavg
from localavg.algorithms.participants import Participants
from localavg.errors import UserError

P = 6


def started(m=None, by=None, C=1.0, learners=range(P), P=P, seed=0, examples=None):
    participants = Participants(m, by, C)
    participants.start(learners, P, seed, examples)
    return participants


def drawn(participants, rounds):
    """The learners of each of some rounds."""
    found = []
    for _ in range(rounds):
        found.append([j for j, n in enumerate(participants.weights) if n])
        participants.next_()
    return found


def test_everyone_works_and_counts_alike_unless_told():
    participants = started()
    assert participants.weights is None and participants.at_work is None
    assert participants.working == P and participants.state_dict() == {}
    participants.next_()
    assert participants.weights is None and participants.at_work is None


def test_a_round_has_m_learners_drawn_without_replacement_with_equal_chances():
    """χ² over the 15 pairs of 6 learners, and over the pairs of two rounds for a learner."""
    rounds = drawn(started(2), 3000)
    assert all(len(set(one)) == 2 for one in rounds)
    pairs = np.zeros((P, P))
    for a, b in rounds:
        pairs[a, b] += 1
    counts = pairs[np.triu_indices(P, 1)]
    assert ((counts - 200) ** 2 / 200).sum() < chi2.isf(1e-4, 14)
    again = sum(0 in a and 0 in b for a, b in zip(rounds, rounds[1:], strict=False))
    assert again == pytest.approx(3000 / 9, rel=0.2)


def test_a_draw_depends_on_the_seed_and_the_round_alone():
    rounds = drawn(started(2), 40)
    assert rounds == drawn(started(2, learners=range(3, 5)), 40)
    assert rounds != drawn(started(2, seed=1), 40)
    resumed = started(2)
    resumed.load_state_dict({"round": 17})
    assert drawn(resumed, 23) == rounds[17:] and resumed.state_dict() == {"round": 40}


@pytest.mark.parametrize("learners", [range(0, 2), range(2, 6), range(5, 6)])
def test_the_rows_at_work_are_those_of_the_drawn_learners(learners):
    participants, some = started(3, learners=learners), set()
    for _ in range(30):
        rows = participants.at_work
        assert [learners[l] for l in rows] == [j for j in learners if participants.weights[j]]
        some.add(tuple(rows))
        participants.next_()
    assert len(some) > 1


def test_rows_are_the_weights_in_lowest_terms():
    assert started(by="rows", examples=[4, 8, 12, 4, 4, 8]).weights == [1, 2, 3, 1, 1, 2]
    assert started(by="rows", examples=[50] * P).weights is None  # the mean of kavg, to the bit
    assert set(started(3, "rows", examples=[50] * P).weights) == {0, 1}
    weights = started(4, "rows", examples=[4, 8, 12, 4, 4, 8]).weights
    assert [n for n in weights if n] == [
        n for n, kept in zip([1, 2, 3, 1, 1, 2], weights, strict=True) if kept
    ]


@pytest.mark.parametrize(
    ("P", "m"), [(1, 1), (4, 1), (10, 1), (19, 1), (20, 2), (30, 3), (128, 12)]
)
def test_a_tenth_of_the_learners_works_by_default(P, m):
    made = fedavg().participants
    made.start(range(P), P, 0)
    assert made.working == m and made.by == "equal"
    assert sum(n > 0 for n in made.weights or [1]) == m


def test_fedavg_weighs_by_rows_where_learners_have_their_own():
    made = fedavg(participants=2).participants
    made.start(range(3), 3, 0, [2, 3, 5])
    assert made.by == "rows" and {n for n in made.weights if n} < {2, 3, 5}
    plain = kavg(participants=2).participants
    plain.start(range(3), 3, 0, [2, 3, 5])
    assert plain.by == "equal" and set(plain.weights) == {0, 1}


WRONG = {
    "none": (lambda: kavg(participants=0), "`participants = 0`: must be at least 1"),
    "more": (lambda: started(7), "`participants = 7` with 6 learners: at most all"),
    "weights": (lambda: kavg(weights="size"), "`weights = size`: must be one of equal, rows"),
    "no rows": (lambda: started(by="rows"), "`weights = rows`: no learner has training rows"),
    "clusters": (
        lambda: algorithms.BOTH["hieravg"](participants=2),
        "`participants` means nothing to an algorithm with clusters",
    ),
    "clusters, rows": (lambda: algorithms.BOTH["hieravg"](weights="rows"), "`weights` means"),
    "switch": (lambda: kavg(participants=2, switch=5), "`switch` with `participants`"),
    "switch of fedavg": (lambda: fedavg(switch=5), "`switch` with `participants`"),
    "switch, rows": (lambda: kavg(weights="rows", switch=5), "`switch` with `weights`"),
    "kind": (lambda: kavg(participants=2.5), "`participants = 2.5`: must be a whole number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_one_line(what):
    make, words = WRONG[what]
    with pytest.raises(UserError) as e:
        make()
    assert str(e.value).startswith(words) and "\n" not in str(e.value)


@pytest.mark.parametrize("row", ["mavg", "diloco", "slowmo", "adpsgd", "adalupa", "piecewise"])
def test_every_row_whose_averages_are_of_everyone_takes_participants(row):
    made = algorithms.make(row, {"participants": 2, "weights": "equal"}, T=1000, epoch=10)
    made.participants.start(range(P), P, 0)
    assert made.participants.working == 2


def test_a_row_asks_for_participants_by_its_options_alone():
    """`asked` is what was given, also after the numbers that take effect are known."""
    for how, asked in (
        ({}, ""),
        ({"by": "equal"}, ""),
        ({"m": 3}, "participants"),
        ({"C": 0.5}, "participants"),
        ({"by": "rows", "examples": [5] * P}, "weights"),
    ):
        assert started(**how).asked == asked
