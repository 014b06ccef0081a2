"""The examples that learner j draws for local update t.

Every draw comes from a counter-based generator keyed by (seed, learner), with the epoch or the
window of steps as its counter. A batch is thus a function of (seed, j, t) alone, however learners
lie over ranks and wherever a run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from localavg.config.samplings import PARTITIONS, parsed
from localavg.errors import UserError
from localavg.interfaces import Array
from localavg.learner.partition import partition
from localavg.parallel.device import on_host
from localavg.streams import Stream, generator

Batch = slice | np.ndarray
"""consecutive rows, or row numbers [B]"""

WINDOW = 256
"""steps drawn at a time: to make a generator costs more than to draw the numbers of one step"""


class Sampler:
    """Mini-batches of B of n examples for P learners.

    epoch: the number of local updates in which all learners together have seen n examples.
    """

    length = WINDOW
    """steps in a window"""
    rows: list[int] | None = None
    """[P] how many rows each learner has of its own; None: learners draw from all rows"""

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        self.n, self.P, self.B, self.seed = n, P, B, seed
        self.epoch: float = n / (P * B)
        # learner → (t of the window's first batch, batches of the window)
        self._drawn: dict[int, tuple[int, list[Batch]]] = {}
        if B > n:
            raise UserError(
                f"`batch_size = {B}`: the training data has {n} rows; a mini-batch cannot be larger"
            )

    def batch(self, j: int, t: int) -> Batch:
        """Return learner j's examples for update t = 1, 2, …."""
        first, batches = self._drawn.get(j, (0, []))
        if not 0 <= t - first < len(batches):
            window = (t - 1) // self.length
            first, batches = self._drawn[j] = window * self.length + 1, self.draw(j, window)
        return batches[t - first]

    def draw(self, j: int, window: int) -> list[Batch]:
        """Draw learner j's batches of one window of steps."""
        return list(self.table(j, window))

    def table(self, j: int, window: int) -> np.ndarray:
        """Draw the row numbers [length, B] of these batches, without an object for each."""
        raise TypeError("a sampler must define table")


class IID(Sampler):
    """Uniform and independent draws from all examples, with replacement.

    The theory of kavg, lupa, mavg and hieravg assumes these.
    """

    def table(self, j: int, window: int) -> np.ndarray:
        random = generator(self.seed, j, window, Stream.SAMPLING)
        return random.integers(0, self.n, (self.length, self.B))


class Block(Sampler):
    """B consecutive rows at a random place; needs data that was shuffled when it was prepared.

    A mini-batch is then a view of the data and nothing is gathered. A block that begins in the last
    B − 1 rows continues at the first row, so every row is equally likely.
    """

    def draw(self, j: int, window: int) -> list[Batch]:
        return [self._block(start) for start in self._starts(j, window).tolist()]

    def table(self, j: int, window: int) -> np.ndarray:
        starts = self._starts(j, window)
        if self.B == self.n:
            starts[:] = 0
        return (starts[:, None] + np.arange(self.B)) % self.n

    def _starts(self, j: int, window: int) -> np.ndarray:
        random = generator(self.seed, j, window, Stream.SAMPLING)
        return random.integers(0, self.n, self.length)

    def _block(self, start: int) -> Batch:
        if self.B == self.n:
            return slice(0, self.n)
        if start + self.B <= self.n:
            return slice(start, start + self.B)
        return np.arange(start, start + self.B) % self.n


class Shuffle(Sampler):
    """One global reshuffle an epoch, split into disjoint parts (adpsgd §IV).

    The rows that do not fill P mini-batches are left out of the epoch.
    """

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        super().__init__(n, P, B, seed)
        self.epoch = self.length = n // (P * B)
        self._order: tuple[int, np.ndarray] | None = None  # (epoch, permutation [n])
        if not self.epoch:
            raise UserError(
                f"`batch_size = {B}` with {P} learners: an epoch of {n} rows has no {P} disjoint "
                f"mini-batches; {_remedy(n // P)} or use `sampling = iid`"
            )

    def table(self, j: int, window: int) -> np.ndarray:
        if self._order is None or self._order[0] != window:
            self._order = (
                window,
                generator(self.seed, self.P, window, Stream.SAMPLING).permutation(self.n),
            )
        parts = self._order[1][: self.length * self.P * self.B].reshape(self.length, self.P, self.B)
        return parts[:, j]


class Owned(Sampler):
    """Every learner draws from rows of its own, which are reshuffled at every pass over them.

    own: the rows of each learner, consecutive ones or row numbers [n_j]. The rows that do not fill
    a mini-batch are left out of a pass. A batch as large as a learner's rows is these rows in their
    stored order, whatever the seed: deterministic gradient descent. An epoch is as many updates as
    let all learners together see as many examples as they own.
    """

    def __init__(self, n: int, P: int, B: int, seed: int, own: Sequence[Batch]) -> None:
        super().__init__(n, P, B, seed)
        self.own = own
        self.held = self.rows = [len(_numbers(rows)) for rows in own]  # [P] n_j
        self.epoch = sum(self.held) / (P * B)
        self._order: dict[int, tuple[int, np.ndarray]] = {}  # learner → (pass, permutation [n_j])

    def updates(self, j: int) -> int:
        """Return the updates of learner j in a pass over its rows."""
        return self.held[j] // self.B

    def draw(self, j: int, window: int) -> list[Batch]:
        if self.B == self.held[j]:
            return [self.own[j]] * self.length
        return super().draw(j, window)

    def table(self, j: int, window: int) -> np.ndarray:
        own, each, first = _numbers(self.own[j]), self.updates(j), window * self.length
        if self.B == self.held[j]:
            return np.tile(own, (self.length, 1))
        passes = range(first // each, -(-(first + self.length) // each))
        order = np.concatenate([self._pass(j, k)[: each * self.B] for k in passes])
        start = (first - passes.start * each) * self.B
        return own[order[start : start + self.length * self.B]].reshape(self.length, self.B)

    def _pass(self, j: int, k: int) -> np.ndarray:
        """Return the order of learner j's rows in pass k, a permutation [n_j]."""
        if (kept := self._order.get(j)) is not None and kept[0] == k:
            return kept[1]
        order = generator(self.seed, j, k, Stream.SAMPLING).permutation(self.held[j])
        if self.updates(j) > self.length:  # the next window is of the same pass
            self._order[j] = k, order
        return order


class Shard(Owned):
    """Fixed disjoint contiguous shards; a pass has as many updates as one of the smallest shard.

    Learner j's shard is the rows ⌊nj/P⌋ … ⌊n(j+1)/P⌋ − 1. A pass is an epoch.
    """

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        ends = [n * j // P for j in range(P + 1)]
        super().__init__(n, P, B, seed, [slice(*both) for both in pairwise(ends)])
        self.epoch = self.length = n // P // B  # of the smallest shard
        if not self.epoch:
            raise UserError(
                f"`batch_size = {B}`: the smallest of {P} shards of {n} rows has {n // P}; "
                f"{_remedy(n // P)}"
            )

    def updates(self, j: int) -> int:
        return self.length


class ByClass(Owned):
    """Rows that `partition` deals to the learners by their labels y [n].

    text: the sampling, such as dirichlet:0.3. redraws: how often the rows were drawn anew, since a
    learner had too few.
    """

    def __init__(self, n: int, P: int, B: int, seed: int, text: str, y: np.ndarray) -> None:
        name, value = parsed(text)
        assert value is not None, text
        own, self.redraws = partition(name, value, y, P, B, seed)
        super().__init__(n, P, B, seed, own)
        self.y = y

    def counts(self) -> list[tuple[int, int, int]]:
        """Return how many rows of each class a learner has: learner, label, rows (not 0)."""
        return [
            (j, int(label), int(rows))
            for j, own in enumerate(self.own)
            for label, rows in zip(*np.unique(self.y[own], return_counts=True), strict=True)
        ]


def _numbers(rows: Batch) -> np.ndarray:
    """Return row numbers, of consecutive rows too."""
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def _remedy(most: int) -> str:
    """Return what to do about a batch larger than `most` rows."""
    return f"lower `batch_size` to at most {most}" if most else "use fewer learners than rows"


SAMPLERS: dict[str, type[Sampler]] = {
    "iid": IID,
    "shuffle": Shuffle,
    "shard": Shard,
    "block": Block,
}


def make(text: str, n: int, P: int, B: int, seed: int, y: Array) -> Sampler:
    """Make the sampler that --sampling calls `text`; y [n]: the labels of the training rows."""
    name, _ = parsed(text)
    if name in PARTITIONS:
        return ByClass(n, P, B, seed, text, on_host(y))
    return SAMPLERS[name](n, P, B, seed)
