"""The number of bytes that one exchange hands over. Only this file counts them."""

from __future__ import annotations

from dataclasses import dataclass

from localavg.algorithms.base import Algorithm
from localavg.interfaces import Transport
from localavg.learner.flat import Flat
from localavg.scope import Scope
from localavg.training.averaging import State


@dataclass(frozen=True)
class Payload:
    """What an exchange hands over: gradients, or weights and the state averaged with them.

    statistics: whether an average includes the columns of flat.w that are not trained.
    """

    algorithm: Algorithm
    transport: Transport
    flat: Flat
    state: State
    statistics: bool = True

    def nbytes(self, L: int) -> int:
        """Return the bytes that L learners of one rank hand over in an exchange."""
        flat, exchange = self.flat, self.algorithm.exchange
        if exchange.scope:
            return exchange.payload_bytes(flat.d_trained, L)
        d = flat.d if self.statistics else flat.d_trained
        return 4 * (d + self.state.averaged * flat.d_trained)

    def handed_over(self, scope: Scope) -> tuple[int, int]:
        """Return the bytes of an exchange over `scope` on this rank: (in its node, to others)."""
        nbytes = self.nbytes(len(self.flat.w))
        if self.algorithm.exchange.gathers:
            return self.transport.gather_bytes(nbytes)
        return self.transport.payload_bytes(nbytes, scope)
