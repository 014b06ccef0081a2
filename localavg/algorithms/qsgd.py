"""QSGD: synchronous SGD on gradients quantised without bias.

Dan Alistarh, Demjan Grubic, Jerry Li, Ryota Tomioka, Milan Vojnovic: QSGD: Communication-Efficient
SGD via Gradient Quantization and Encoding. NIPS 2017, §3.1. A baseline of Jiang and Agrawal (adpsgd
§IV).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from localavg.algorithms.about import about
from localavg.algorithms.base import Algorithm, Exchange, Mean, Never
from localavg.algorithms.parameters import algorithm
from localavg.errors import UserError
from localavg.interfaces import Array, Transport
from localavg.parallel.wires.int8 import Int8
from localavg.scope import Scope
from localavg.streams import Stream, uniform


@about(
    take_if="bytes are expensive and rounds are cheap: gradients travel in 8 bits",
    rounds="T",
    source="adpsgd §IV",
    sent="d + 4⌈d/512⌉",
)
@algorithm
def qsgd(
    bits: Annotated[int, "number of bits of a quantised entry, 2 to 8: a sign and the level"] = 8,
    bucket: Annotated[int, "number of gradient entries that share one norm"] = 512,
) -> Algorithm:
    """QSGD (Alistarh et al. 2017; adpsgd §IV): sync with gradients quantised without bias."""
    return Algorithm(Never(), Mean(), QuantisedGradient(bits, bucket))


@dataclass
class QuantisedGradient(Exchange):
    """g_j ← Q((1/P) Σ Q(g_j)), where Q is the unbiased quantiser of §3.1.

    Every bucket of entries travels as its 2-norm in float32 and one int8 per entry: a sign and one
    of s = 2^(bits−1) − 1 levels. Fewer bits make the levels coarser; an entry is always one int8.
    Every rank adds up a slice of the gradients and codes its mean again, so a rank sends about a
    quarter of what a mean in float32 takes, for any number of ranks. Both roundings are unbiased
    and independent, and so is the result.
    """

    bits: int = 8
    bucket: int = 512
    scope = Scope.WORLD

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(
                f"`bits = {self.bits}`: must lie in 2 … 8, for a sign and at least one level"
            )
        if self.bucket < 1:
            raise UserError(f"`bucket = {self.bucket}`: must be at least 1 entry")
        self.code = self.int8 = Int8(2 ** (self.bits - 1) - 1, self.bucket)

    def start(self, learners: Sequence[int], seed: int) -> None:
        self.learners, self.seed = learners, seed

    def exchange_(self, g: Array, t: int, transport: Transport) -> None:
        def draws(l: int, start: int, stop: int) -> Array:
            return uniform(self.seed, self.learners[l], t, Stream.ROUNDING, start, stop)

        def again(start: int, stop: int) -> Array:
            return uniform(self.seed, 0, t, Stream.MEAN_ROUNDING, start, stop)

        transport.coded_mean_(g, self.int8, draws, again)
