"""Which examples learner j draws for local update t.

Every draw comes from a counter-based generator keyed by (seed, learner) with (epoch or window of
steps) as its counter: a batch is a function of (seed, j, t) alone, however learners lie over ranks
and wherever a run starts again.
"""

from __future__ import annotations

import numpy as np

from localavg.errors import UserError
from localavg.streams import Stream, generator

Batch = slice | np.ndarray  # consecutive rows, or row numbers [B]

WINDOW = 256  # steps drawn at a time: making a generator costs more than one step's numbers


class Sampler:
    """Mini-batches of B of n examples for P learners. `epoch` is the number of updates in which all
    have seen n examples.
    """

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        self.n, self.P, self.B, self.seed = n, P, B, seed
        self.epoch: float = n / (P * B)
        self._drawn: dict[
            int, tuple[int, list[Batch]]
        ] = {}  # learner -> (t of the first, batches of a window)
        if B > n:
            raise UserError(
                f"--batch-size {B}: the training data has {n} rows; a mini-batch cannot be larger"
            )

    length = WINDOW  # steps a window

    def batch(self, j: int, t: int) -> Batch:
        """Learner j's examples for update t = 1, 2, …"""
        first, batches = self._drawn.get(j, (0, ()))
        if not 0 <= t - first < len(batches):
            window = (t - 1) // self.length
            first, batches = self._drawn[j] = window * self.length + 1, self.draw(j, window)
        return batches[t - first]

    def draw(self, j: int, window: int) -> list[Batch]:
        """Learner j's batches of one window of steps."""
        raise TypeError("a sampler must say what it draws")


class IID(Sampler):
    """Uniformly and independently from all examples, with replacement (kavg, lupa, mavg, hieravg
    theory).
    """

    def draw(self, j: int, window: int) -> list[Batch]:
        return list(
            generator(self.seed, j, window, Stream.SAMPLING).integers(
                0, self.n, (self.length, self.B)
            )
        )


class Block(Sampler):
    """B consecutive rows at a random place of data shuffled when it was prepared: no gather."""

    def draw(self, j: int, window: int) -> list[Batch]:
        starts = generator(self.seed, j, window, Stream.SAMPLING).integers(
            0, self.n - self.B + 1, self.length
        )
        return [slice(s, s + self.B) for s in starts.tolist()]


class Shuffle(Sampler):
    """One global reshuffle an epoch, dealt out in disjoint parts; what fills no P mini-batches is
    left out (adpsgd §IV).
    """

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        super().__init__(n, P, B, seed)
        self.epoch = self.length = n // (P * B)
        self._order: tuple[int, np.ndarray] | None = None  # (epoch, permutation [n])
        if not self.epoch:
            raise UserError(
                f"--batch-size {B} with {P} learners: an epoch of {n} rows has no {P} disjoint "
                "mini-batches; "
                f"{_remedy(n // P)} or use --sampling iid"
            )

    def draw(self, j: int, window: int) -> list[Batch]:
        if self._order is None or self._order[0] != window:
            self._order = (
                window,
                generator(self.seed, self.P, window, Stream.SAMPLING).permutation(self.n),
            )
        parts = self._order[1][: self.length * self.P * self.B].reshape(self.length, self.P, self.B)
        return list(parts[:, j])


class Shard(Sampler):
    """Fixed disjoint contiguous shards, learner j's rows ⌊nj/P⌋ … ⌊n(j+1)/P⌋ − 1, reshuffled inside
    every pass.

    A batch of the whole shard is the shard as it lies, whatever the seed: deterministic gradient
    descent.
    """

    def __init__(self, n: int, P: int, B: int, seed: int) -> None:
        super().__init__(n, P, B, seed)
        self.epoch = self.length = n // P // B  # of the smallest shard
        if not self.epoch:
            raise UserError(
                f"--batch-size {B}: the smallest of {P} shards of {n} rows has {n // P}; "
                f"{_remedy(n // P)}"
            )

    def draw(self, j: int, window: int) -> list[Batch]:
        lo, hi = self.n * j // self.P, self.n * (j + 1) // self.P
        if self.B == hi - lo:
            return [slice(lo, hi)]
        order = lo + generator(self.seed, j, window, Stream.SAMPLING).permutation(hi - lo)
        return list(order[: self.length * self.B].reshape(self.length, self.B))


def _remedy(most: int) -> str:
    return f"lower --batch-size to at most {most}" if most else "use fewer learners than rows"


SAMPLERS = {"iid": IID, "shuffle": Shuffle, "shard": Shard, "block": Block}
