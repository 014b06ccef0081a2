"""What the parts of the house know of each other: arrays, devices, transports and problems.

These are protocols: whoever has the methods is one. A device is where learners compute, a transport
is how rows are averaged over ranks, a problem is what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from localavg.scope import Scope

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray"  # NumPy's, or a GPU's by CuPy, which has the same methods
Settings: TypeAlias = Mapping[str, Any]  # by name: numbers, text, bool, None and lists
Rows: TypeAlias = Any  # rows [l, n]: one array, or a list of them
Batch: TypeAlias = Any  # a mini-batch: what a problem's feed gives and its gradient_ takes
Feed: TypeAlias = Callable[[int, int], Batch]  # (j, t) → the mini-batch of learner j for update t
# (w̄ [m], its columns) → the new numbers [m] of all rows in these columns; w̄ may be overwritten
Step: TypeAlias = Callable[[Array, slice], Array]
Book: TypeAlias = Callable[[str, float], None]  # (purpose, seconds): counts a part of a lap's time


class Device(Protocol):
    """The memory and the stream that learners compute in.

    name: cpu or cuda; index: the GPU's number on this host, None on a CPU; xp: the array module;
    why: the reason for the choice.
    """

    name: str
    index: int | None
    xp: ModuleType
    why: str

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Make an array of zeros, float32."""

    def settle(self) -> None:
        """Wait until all queued work is done."""


class Laps(Protocol):
    """The clock of work in which computing and meetings of the ranks take turns."""

    def computed(self) -> None:
        """Count the time since the last call as computing."""

    def met(self) -> None:
        """Count the time since the last call as a meeting of the ranks."""


class Untimed:
    """Laps that nobody counts."""

    def computed(self) -> None:
        """Do nothing."""

    def met(self) -> None:
        """Do nothing."""


UNTIMED = Untimed()


def unbooked(purpose: str, seconds: float) -> None:
    """Count no time."""


class Code(Protocol):
    """A code in which rows travel, made of buckets of entries that are coded together."""

    @property
    def bucket(self) -> int:
        """The number of entries of a bucket."""

    def nbytes(self, n: int) -> int:
        """Return the bytes of n coded entries, which begin with a bucket."""

    def encode_(self, x: Array, u: Array, out: Array) -> None:
        """Code x [n] with the uniform draws u [n] in [0, 1) into the bytes `out`, uint8."""

    def decode(self, coded: Array, n: int) -> Array:
        """Return the n entries, float32, that these bytes code."""


class Rounding(Protocol):
    """A code of changes of weights, which needs no draws: what it loses is sent later."""

    @property
    def bucket(self) -> int:
        """The number of entries that are coded together."""

    def nbytes(self, n: int) -> int:
        """Return the bytes of n coded entries, which begin with a bucket."""

    def encode_(self, x: Array, out: Array) -> None:
        """Code x [n], float32, into the bytes `out`, uint8."""

    def decode_(self, coded: Array, out: Array) -> None:
        """Write the entries that the bytes `coded` stand for into out [n], float32."""


class Transport(Protocol):
    """Means over the rows of all learners, which lie on the ranks as the layout says.

    Every mean sums in the order of the learners and divides once, by their number P (or S in a
    cluster). weights: [P] how much each learner counts in a mean of everyone and in its S, 0 for
    one that is left out; None, the default, for all alike. Then a mean is Σ n_j w_j / Σ n_j, and S
    is a mean over the learners that count. Coded means are of all alike. Every method but
    `ordinary`, `settle` and `aside` is collective over the ranks of its scope. name and why: which
    transport this is, and why it was chosen. rank: the number of this rank. laps: the clock of
    `equal` and of a coded mean, in which computing and communication take turns.
    """

    name: str
    why: str
    rank: int
    laps: Laps
    weights: Sequence[float] | None

    @property
    def sizes(self) -> Mapping[Scope, int]:
        """How many learners average together over each scope."""

    def zeros(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [L, n] that will be averaged, in the memory that suits the transport."""

    def ordinary(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [L, n] in ordinary memory, for state that is never averaged."""

    def common(self, shape: tuple[int, int]) -> Array:
        """Make zero rows [k, n] of state that all learners have in common. Collective.

        Ranks that share a node's memory share the rows, and a step writes a column on one of them.
        """

    def mean_(
        self, w: Array, scope: Scope, variance: bool = False, step: Step | None = None
    ) -> float:
        """Set every row of w [L, n] to the mean of its group, in place.

        step: what is done with the mean of some columns before the rows get it, once for each
        column of a copy of `common`. Return S = (1/P) Σ_j ‖w̄ − w_j‖² (adpsgd Alg. 2, line 11) if
        `variance`, else NaN; it is about the mean before the step.
        """

    def mix_(self, w: Array, W: Array) -> None:
        """Set row j of all rows w [L, n] to Σ_i W_ji w_i, in place; W [P, P], on the host.

        Each sum has the order of the learners i with W_ji ≠ 0, and only their rows travel, in
        float32. Collective over all ranks.
        """

    def mix_bytes(self, nbytes: int, W: Array) -> Array:
        """Return what each rank hands over in one mix by W, in bytes [R, 2], without a message.

        nbytes: of a row. The first column is within nodes, the second between nodes.
        """

    def take_spread_s(self) -> float:
        """Return the seconds that this rank computed S since the last call."""

    def coded_mean_(
        self,
        w: Array,
        code: Code,
        draws: Callable[[int, int, int], Array],
        again: Callable[[int, int], Array],
    ) -> None:
        """Set every row of w [L, n] to the mean of all rows, which travels in `code`.

        The columns are cut into a slice for each rank. All learners' rows of a slice, coded, go to
        its rank. This rank decodes them, adds them up in the order of the learners, divides by P,
        codes the mean again and sends it to all. Both codings are made on one rank too. draws(l,
        a, b): the uniform draws [b − a] for row l, columns a … b − 1; again(a, b): those for the
        mean.
        """

    def mean(self, w: Array) -> Array:
        """Return w̄ [n] over all rows of w [L, n], which stay as they are, until the next call."""

    def variance(self, w: Array) -> float:
        """Return Var[W] = (1/P) Σ_j ‖w̄ − w_j‖² of the rows w [L, n], which stay (adpsgd eq. 7)."""

    def equal(self, w: Array) -> bool:
        """Return whether all learners' rows of w [L, n] are the same; one digest a rank travels."""

    def payload_bytes(self, nbytes: int, scope: Scope) -> tuple[int, int]:
        """Return the bytes that this rank hands over (within nodes, between nodes) in one mean."""

    def coded_bytes(self, n: int, code: Code) -> tuple[int, int]:
        """Return the same for one coded mean of rows of n entries."""

    def settle(self) -> None:
        """Wait until all queued work on the rows is done."""

    def aside(self) -> AbstractContextManager[None]:
        """Return a context for another thread, which averages in it and settles before its end.

        Its work comes after all that is queued here now, on the GPU in a stream of its own.
        """


class Engine(Protocol):
    """How the gradients of all learners of a rank are computed.

    name: what the command line calls it. book: called with ("data", seconds), the time in which an
    update's mini-batches were made; whoever counts the time sets it. size: the learners of a chunk,
    which are computed together; 0 where it is not chosen yet, or means nothing.
    """

    name: str
    book: Book
    size: int = 0

    def gradients_(
        self, w: Array, t: int, out: Array, rows: Sequence[int] | None = None
    ) -> Sequence[float | Array]:
        """Compute each learner's gradient of update t at its row of w [L, d], into its row of out.

        rows: those of the learners that work, in order; None: all. Only `loop` takes some. The
        others' losses are 0.
        Return the L mini-batch losses in the learners' order: scalars of the host or of the device,
        or one vector [L] of the device in a list. `out` is complete for all work that is queued
        after this call.
        """

    def state_dict(self) -> Settings:
        """Return what a resumed run needs to get the same bits: the size of a chunk.

        It was chosen by the memory that was free, and products of other sizes round differently.
        """
        return {"size": self.size}

    def load_state_dict(self, state: Settings) -> None:
        """Take over what a checkpoint holds, before the first gradient."""
        self.size = int(state.get("size", 0)) or self.size


class Problem(Protocol):
    """A loss and its gradient with respect to one row of the flat weight matrix.

    F = mean loss over data.train + regulariser. data: a `datasets.Dataset`; n: its training
    examples; d: the length of a row; shapes: the tensors of a row in their order, parameters first;
    parameters: how many of these tensors are trained (None: all), the others are statistics;
    align: each tensor begins at a multiple of so many floats in a row, with zeros before it;
    l2: λ.
    """

    data: Any
    n: int
    d: int
    shapes: Mapping[str, tuple[int, ...]]
    parameters: int | None = None
    align: int = 1
    l2: float

    def initial_(self, w: Array) -> None:
        """Write the starting point into w [d]."""

    def feed(self, sampler: Any, learners: range, T: int, in_step: bool = True) -> Feed:
        """Return (j, t) → the mini-batch of learner j for update t.

        The loop asks for t = 1 … T, and for the learners in order in each. If they are not
        `in_step`, each learner asks for t = 1 … T by itself.
        """

    def gradient_(self, w: Array, batch: Batch, out: Array) -> Any:
        """Write the gradient of the mini-batch objective at w [d] into `out` [d].

        Return the loss, a scalar of the host or of the device.
        """

    def engines(self) -> Mapping[str, Callable[[Feed, range], Engine]]:
        """Return what else than `engines.loop.Loop` computes the gradients, by name.

        Each value makes an engine of (a feed of this problem, the rank's learners). It raises
        UserError if it cannot work for this problem.
        """
        return {}

    def sums(
        self, w: Array, split: Any, lo: int, hi: int, gradient: bool = False
    ) -> tuple[float, int, Array | None]:
        """Sum over rows lo … hi − 1 of a split.

        Return the sum of the losses, the number classified right, the sum of the gradients.
        """

    def regulariser(self, w: Array) -> float:
        """Return what F adds to the mean loss at w [d]."""
        return 0.0

    def calibrate_(self, w: Array) -> None:
        """Make the averaged model w [d] ready to be evaluated; most problems do nothing."""
        return None

    def close(self) -> None:
        """Release threads and files; called however training ended."""
        return None
