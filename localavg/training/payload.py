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

    @property
    def nbytes(self) -> int:
        """The bytes of what an exchange averages, of one learner: coded, if it travels coded."""
        flat, exchange = self.flat, self.algorithm.exchange
        if exchange.code:
            return exchange.code.nbytes(flat.d_trained)
        if exchange.scope:
            return 4 * flat.d_trained
        d = flat.d if self.statistics else flat.d_trained
        return 4 * (d + self.state.averaged * flat.d_trained)

    def handed_over(self, scope: Scope) -> tuple[int, int]:
        """Return the bytes of an exchange over `scope` on this rank: (in its node, to others)."""
        code = self.algorithm.exchange.code
        if code:
            return self.transport.coded_bytes(self.flat.d_trained, code)
        return self.transport.payload_bytes(self.nbytes, scope)
