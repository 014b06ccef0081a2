"""Which rows each learner holds, where learners are to see different classes.

y [n] are the labels of the training rows, C the number of classes, P that of learners:

    dirichlet        learner j draws q_j ~ Dir(a p), p the frequencies of the classes, and takes
                     ⌊n/P⌋ rows: each time a class by q_j, and of it a row that nobody has yet. A
                     class without rows left leaves, and q_j is normalised again.             [1]
    dirichlet-class  every class is cut by shares ~ Dir(a, …, a) of the P learners            [2]
    shards           the rows, sorted by label, are cut into sP equal blocks; every learner
                     gets s of them at random                                                 [3]
    labels           learner j holds c classes: j mod C and others at random; every class is
                     split evenly among its holders, and lost if it has none                  [2]

[1] Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification. 2019, arXiv 1909.06335. With 10 even classes the parameters are a/10 each; other
codes use a itself, so that their a is a tenth of this one.
[2] Li, Diao, Chen, He: Federated Learning on Non-IID Data Silos: An Experimental Study. 2022, arXiv
2102.02079 (NIID-Bench). The cut of classes is of Yurochkin et al. 2019, arXiv 1905.12022. The code
of NIID-Bench in addition gives nothing more to a learner that has n/P rows; here it does not.
[3] McMahan et al.: Communication-Efficient Learning of Deep Networks from Decentralized Data. 2017,
arXiv 1602.05629, with s = 2: at most two classes for most learners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from localavg.errors import UserError, bad
from localavg.streams import Stream, generator

TRIES = 100
"""draws until every learner has enough rows, before it is an error"""
LEAST = 10
"""rows that every learner has at least with dirichlet-class, as in NIID-Bench"""

Held = list[np.ndarray]
"""row numbers [n_j] of each of the P learners, ascending"""


class Partition(NamedTuple):
    """Rows of learners, and how often they were drawn anew since a learner had too few."""

    rows: Held
    redraws: int


def dirichlet(y: np.ndarray, P: int, a: float, random: np.random.Generator) -> Held:
    """Give every learner ⌊n/P⌋ rows of classes that it draws (Hsu et al. 2019)."""
    classes = _by_class(y, random)
    n_k = np.array([len(rows) for rows in classes])  # [C]
    left, held = n_k.copy(), []
    for _ in range(P):
        q = random.dirichlet(a * n_k / len(y))  # [C]
        takes = np.zeros_like(left)
        while need := len(y) // P - int(takes.sum()):
            there = np.flatnonzero(left > takes)
            if not q[there].sum():  # in floating point; a part of a Dirichlet draw is one, too
                q[there] = random.dirichlet(a * n_k[there] / len(y))
            drawn = random.multinomial(need, q[there] / q[there].sum())
            takes[there] += np.minimum(drawn, (left - takes)[there])
        first = n_k - left
        parts = [rows[f : f + m] for rows, f, m in zip(classes, first, takes, strict=True)]
        held.append(np.sort(np.concatenate(parts)))
        left -= takes
    return held


def dirichlet_class(y: np.ndarray, P: int, a: float, random: np.random.Generator) -> Held:
    """Cut every class by random shares of the learners (Yurochkin et al. 2019)."""
    cut = []
    for rows in _by_class(y, random):
        shares = random.dirichlet(np.full(P, a))  # [P]
        cut.append(np.split(rows, (np.cumsum(shares)[:-1] * len(rows)).astype(int)))
    return [np.sort(np.concatenate(parts)) for parts in zip(*cut, strict=True)]


def shards(y: np.ndarray, P: int, s: float, random: np.random.Generator) -> Held:
    """Give every learner s of sP blocks of the rows in the order of their labels (McMahan)."""
    n, blocks = len(y), int(s) * P
    order, ends = np.argsort(y, kind="stable"), n * np.arange(blocks + 1) // blocks
    dealt = random.permutation(blocks).reshape(P, int(s))
    return [np.sort(np.concatenate([order[ends[b] : ends[b + 1]] for b in mine])) for mine in dealt]


def labels(y: np.ndarray, P: int, c: float, random: np.random.Generator) -> Held:
    """Give every learner rows of exactly c classes (NIID-Bench)."""
    classes = _by_class(y, random)
    C = len(classes)
    parts: list[list[np.ndarray]] = [[] for _ in range(P)]
    holds = np.zeros((P, C), bool)
    for j in range(P):
        others = np.delete(np.arange(C), j % C)
        holds[j, [j % C, *random.choice(others, int(c) - 1, replace=False)]] = True
    for k, rows in enumerate(classes):
        holders = np.flatnonzero(holds[:, k])
        for holder, part in zip(holders, np.array_split(rows, max(1, len(holders))), strict=False):
            parts[holder].append(part)
    return [np.sort(np.concatenate(mine)) for mine in parts]


WAYS: dict[str, Callable[[np.ndarray, int, float, np.random.Generator], Held]] = {
    "dirichlet": dirichlet,
    "dirichlet-class": dirichlet_class,
    "shards": shards,
    "labels": labels,
}


def partition(name: str, value: float, y: np.ndarray, P: int, B: int, seed: int) -> Partition:
    """Draw the rows of P learners, again until every one has a mini-batch of B.

    name, value: those of the sampling, such as dirichlet and 0.3. Raises UserError where no draw
    can give every learner enough rows, or none of 100 did.
    """
    n, C, text = len(y), len(np.unique(y)), f"{name}:{value:g}"
    if name == "shards" and value * P > n:
        raise bad("sampling", text, f"{P} learners need {value * P:g} blocks, more than {n} rows")
    if name == "labels" and value > C:
        raise bad("sampling", text, f"the training data has {C} classes; use labels:{C} or less")
    least, most = max(B, LEAST) if name == "dirichlet-class" else B, 0
    for k in range(TRIES if least <= n // P else 0):
        rows = WAYS[name](y, P, value, generator(seed, 0, k, Stream.PARTITION))
        smallest = min(map(len, rows))
        if smallest >= least:
            return Partition(rows, k)
        most = max(most, smallest)
    if least <= n // P:
        why = f"the best of {TRIES} draws leaves one with {most}"
    else:
        why = f"{n} rows are too few"
    milder = {"dirichlet-class": "a larger A, ", "labels": "a larger C, "}.get(name, "")
    raise UserError(
        f"`sampling = {text}`: each of {P} learners needs {least} rows (`batch_size = {B}`), and "
        f"{why}; use a lower `batch_size`, {milder}or fewer learners"
    )


def _by_class(y: np.ndarray, random: np.random.Generator) -> Held:
    """Return the rows of each class, in random order."""
    order, ends = np.argsort(y, kind="stable"), np.cumsum(np.unique(y, return_counts=True)[1])
    return [random.permutation(rows) for rows in np.split(order, ends[:-1])]
