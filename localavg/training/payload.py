"""The number of bytes that one exchange hands over. Only this file counts them."""

from __future__ import annotations

from dataclasses import dataclass

from localavg.algorithms.base import Algorithm
from localavg.interfaces import Array, Transport
from localavg.learner.flat import Flat
from localavg.scope import Scope
from localavg.training.averaging import State


@dataclass(frozen=True)
class Payload:
    """What an exchange hands over: gradients, or weights and the state averaged with them.

    statistics: whether an average includes the columns of flat.w that are not trained. gradients:
    the length of a row of gradients, by default that of the parameters.
    """

    algorithm: Algorithm
    transport: Transport
    flat: Flat
    state: State
    statistics: bool = True
    gradients: int | None = None

    def nbytes(self, t: float) -> int:
        """Return the bytes of one learner in an exchange at update t: coded, if it travels so."""
        flat, exchange = self.flat, self.algorithm.exchange
        if exchange.at(t):
            n = self._gradients
            return exchange.code.nbytes(n) if exchange.code else 4 * n
        d = flat.d if self.statistics else flat.d_trained
        return 4 * (d + self.state.averaged * flat.d_trained)

    def handed_over(self, t: float, scope: Scope) -> tuple[int, int]:
        """Return the bytes of an exchange over `scope` at update t on this rank.

        The first number is within the node, the second to others.
        """
        exchange = self.algorithm.exchange
        if exchange.at(t) and exchange.code:
            return self.transport.coded_bytes(self._gradients, exchange.code)
        if scope is Scope.NEIGHBOURS:
            within, across = self._mixed(t)[self.transport.rank].tolist()
            return within, across
        return self.transport.payload_bytes(self.nbytes(t), scope)

    def mixed(self, t: float) -> list[int]:
        """Return the bytes of all ranks when neighbours average after update t, as `handed_over`.

        They follow from the graph: no message is needed.
        """
        return self._mixed(t).sum(axis=0).tolist()

    def _mixed(self, t: float) -> Array:
        W = self.algorithm.average.matrix(int(t))
        return self.transport.mix_bytes(self.nbytes(t), W)  # [R, 2]

    @property
    def _gradients(self) -> int:
        return self.flat.d_trained if self.gradients is None else self.gradients
