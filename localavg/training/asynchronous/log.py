"""The order of arrival at the center variable, and the rows of the run file that depend on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from localavg.files.record import Record
from localavg.interfaces import Array
from localavg.training.ending import Diverged
from localavg.training.length import Length
from localavg.training.progress import Progress


class Log:
    """The exchanges in their order; writes /train, /eval and /staleness.

    file: the run file if this process writes it, else None. n: exchanges so far. pulled[j]: n at
    learner j's last pull. U: updates of all P learners that have reached the center; `t` = ⌊U/P⌋.
    """

    def __init__(
        self, length: Length, step_size: Callable[[int], float], file: Record | None = None
    ) -> None:
        self.length, self.step_size, self.file = length, step_size, file
        self.n, self.U, self.pulled = 0, 0, [0] * length.P
        self.most, self.total = 0, 0  # staleness: largest, sum
        self.wall_s = 0.0
        self._losses, self._counted = 0.0, 0  # since the last row of /train
        self._log_due, self._eval_due = length.log_every * length.P, length.eval_every * length.P
        self.progress = Progress(length.T) if file is not None else None

    @property
    def t(self) -> int:
        """The number of updates that have reached the center, per learner."""
        return self.U // self.length.P

    def exchanged(
        self,
        j: int,
        t: int,
        steps: int,
        losses: float,
        center: Array,
        wall_s: float,
        split: Mapping[str, float],
    ) -> bool:
        """Record that learner j exchanged after its update t. Return whether to evaluate now.

        steps: the number of updates that it pushed. losses: the sum of their losses. center: x̃, or
        the part of x̃ on this rank, after the exchange. split: compute_s, communicate_s, wait_s and
        data_s so far, means over the learners' ranks. Raises Diverged if a loss or the center is
        not finite.
        """
        staleness = self.n - self.pulled[j]
        self.n += 1
        self.pulled[j] = self.n
        self.most, self.total = max(self.most, staleness), self.total + staleness
        self.U, self.wall_s = self.U + steps, wall_s
        self._losses, self._counted = self._losses + losses, self._counted + steps
        if self.file is not None:
            self.file.append("staleness", t=t, learner=j, staleness=staleness, wall_s=wall_s)
        if not math.isfinite(losses) or not math.isfinite(center.sum()):
            what = "its loss is" if not math.isfinite(losses) else "the center variable is"
            raise Diverged(
                f"step {t} of learner {j}: {what} not finite (step size now {self.step_size(t):g})"
            )
        last = self.U == self.length.P * self.length.T
        if last or self.U >= self._log_due:
            self._log_due = _following(self.U, self.length.log_every * self.length.P)
            self._train(split)
        if last or self.U >= self._eval_due:
            self._eval_due = _following(self.U, self.length.eval_every * self.length.P)
            return True
        return False

    def _train(self, split: Mapping[str, float]) -> None:
        loss, self._losses = self._losses / self._counted, 0.0
        self._counted = 0
        if self.file is not None:
            samples = self.U * self.length.B
            self.file.append(
                "train",
                t=self.t,
                epoch=self.U / self.length.P / self.length.epoch,
                samples=samples,
                step_size=self.step_size(max(1, self.t)),
                loss=loss,
                wall_s=self.wall_s,
                **split,
            )
            self.file.flush()
        if self.progress is not None:
            rate = self.U * self.length.B / max(self.wall_s, 1e-9)
            self.progress.step(self.t, loss, rate)

    def evaluated(self, U: int, wall_s: float, row: Mapping[str, float]) -> None:
        """Write the row of /eval of the center after U updates.

        Raises Diverged if the loss after the last update is not finite.
        """
        t = U // self.length.P
        if t == self.length.T and not math.isfinite(row["train_loss"]):
            raise Diverged(f"the center's loss after step {t}, the last, is not finite")
        if self.file is not None:
            self.file.append(
                "eval", t=t, epoch=U / self.length.P / self.length.epoch, wall_s=wall_s, **row
            )
            self.file.flush()
        if self.progress is not None:
            self.progress.evaluated(t, row["train_loss"], row["test_accuracy"])

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run needs."""
        numbers = [self.n, self.U, self.most, self.total, self._counted]
        return {
            "numbers": np.array([*numbers, self._log_due, self._eval_due], np.int64),
            "pulled": np.array(self.pulled, np.int64),
            "seconds": np.array([self.wall_s, self._losses]),
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Resume from `state`. Every learner pulls the center now."""
        numbers = state["numbers"].tolist()
        self.n, self.U, self.most, self.total, self._counted, *due = numbers
        self._log_due, self._eval_due = due
        self.pulled = [self.n] * len(self.pulled)
        self.wall_s, self._losses = state["seconds"].tolist()

    def summary(self) -> str:
        """Return one line about times and staleness."""
        samples = self.U * self.length.B
        return (
            f"{self.wall_s:.1f} s, {samples / max(self.wall_s, 1e-9):,.0f} samples/s, "
            f"{self.n} exchanges; staleness {self.total / max(1, self.n):.1f} on average, "
            f"{self.most} at most"
        )

    def close(self) -> None:
        """End the progress bar."""
        if self.progress is not None:
            self.progress.close()


def _following(U: int, n: int) -> int:
    return U - U % n + n
