"""The examples that learner j draws for local update t.

Every draw comes from a counter-based generator keyed by (seed, learner), with the epoch or the
window of steps as its counter. A batch is thus a function of (seed, j, t) alone, however learners
lie over ranks and wherever a run is resumed.
"""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
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


class Shard(Sampler):
    """Fixed disjoint contiguous shards, each reshuffled at every pass over it.

    Learner j's shard is the rows ⌊nj/P⌋ … ⌊n(j+1)/P⌋ − 1. A batch as large as the shard is the
    shard in its stored order, whatever the seed: deterministic gradient descent.
    """

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        super().__init__(n, P, B, seed)
        self.epoch = self.length = n // P // B  # of the smallest shard
        if not self.epoch:
            raise UserError(
                f"`batch_size = {B}`: the smallest of {P} shards of {n} rows has {n // P}; "
                f"{_remedy(n // P)}"
            )

    def draw(self, j: int, window: int) -> list[Batch]:
        lo, hi = self._shard(j)
        return [slice(lo, hi)] if self.B == hi - lo else super().draw(j, window)

    def table(self, j: int, window: int) -> np.ndarray:
        lo, hi = self._shard(j)
        if self.B == hi - lo:
            return np.arange(lo, hi)[None]
        order = lo + generator(self.seed, j, window, Stream.SAMPLING).permutation(hi - lo)
        return order[: self.length * self.B].reshape(self.length, self.B)

    def _shard(self, j: int) -> tuple[int, int]:
        return self.n * j // self.P, self.n * (j + 1) // self.P


def _remedy(most: int) -> str:
    """Return what to do about a batch larger than `most` rows."""
    return f"lower `batch_size` to at most {most}" if most else "use fewer learners than rows"


SAMPLERS: dict[str, type[Sampler]] = {
    "iid": IID,
    "shuffle": Shuffle,
    "shard": Shard,
    "block": Block,
}
