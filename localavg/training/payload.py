"""The number of bytes that one exchange hands over. Only this file counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from localavg.algorithms.base import Algorithm
from localavg.interfaces import Array, Transport
from localavg.learner.flat import Flat
from localavg.scope import Scope
from localavg.training.averaging import State
from localavg.training.wiring import wired


class Kind(Enum):
    """What travels in an exchange."""

    GRADIENTS = 0
    WEIGHTS = 1
    IN_CODE = 2
    """weights that cross nodes in code"""


@dataclass(frozen=True)
class Payload:
    """What an exchange hands over: gradients, or weights and the state averaged with them.

    transport: of averages, that in the background where they are delayed. statistics: whether an
    average includes the columns of flat.w that are not trained. gradients: the length of a row of
    gradients, by default that of the parameters.
    """

    algorithm: Algorithm
    transport: Transport
    flat: Flat
    state: State
    statistics: bool = True
    gradients: int | None = None

    def kind(self, t: float) -> Kind:
        """Return what travels in an exchange that begins after update t; the last may be plain."""
        if self.algorithm.exchange.at(t):
            return Kind.GRADIENTS
        coded = wired(self.transport)
        return Kind.WEIGHTS if coded is None or coded.plain_at == t else Kind.IN_CODE

    def nbytes(self, t: float, scope: Scope = Scope.WORLD) -> int:
        """Return the bytes of one learner in an exchange at update t: coded, if it travels so."""
        exchange, kind, pieces = self.algorithm.exchange, self.kind(t), self.pieces(t)
        if kind is Kind.GRADIENTS:
            n = self._gradients
            return exchange.code.nbytes(n) if exchange.code else 4 * n
        trained, beside = self._columns(pieces)
        coded = wired(self.transport)
        if kind is Kind.IN_CODE and coded is not None:
            return sum(coded.learner_bytes(scope, piece) for piece in pieces) + 4 * beside
        return 4 * (trained + beside)

    def pieces(self, t: float) -> tuple[int, ...]:
        """Return the numbers of the pieces of a row that averaged after update t, 0 for all."""
        return self.algorithm.average.averaged(t)

    def _columns(self, pieces: Sequence[int]) -> tuple[int, int]:
        """Return the floats of a learner's parameters in these pieces, and of what is beside."""
        flat, trained, others = self.flat, 0, self.state.averaged * self.flat.d_trained
        for piece in pieces:
            a, b, _ = self.algorithm.average.pieces[piece].indices(
                flat.d if self.statistics else flat.d_trained
            )
            own = max(0, min(b, flat.d_trained) - a)
            trained, others = trained + own, others + b - a - own
        return trained, others

    def handed_over(self, t: float, scope: Scope) -> tuple[int, int]:
        """Return the bytes of an exchange over `scope` at update t on this rank.

        The first number is within the node, the second to others.
        """
        if scope is Scope.NEIGHBOURS:
            within, across = self._mixed(t)[self.transport.rank].tolist()
            return within, across
        return self.of_kind(self.kind(t), scope, self.pieces(t))

    def of_kind(self, kind: Kind, scope: Scope, pieces: Sequence[int] = (0,)) -> tuple[int, int]:
        """Return the same for an exchange of this kind, of these pieces."""
        code, coded = self.algorithm.exchange.code, wired(self.transport)
        if kind is Kind.GRADIENTS:
            if code:
                return self.transport.coded_bytes(self._gradients, code)
            return self.transport.payload_bytes(4 * self._gradients, scope)
        trained, others = self._columns(pieces)
        if kind is Kind.WEIGHTS or coded is None:
            return self.transport.payload_bytes(4 * (trained + others), scope)
        sent = [self.transport.payload_bytes(4 * others, scope)]
        sent += [coded.sum_bytes(scope, piece) for piece in pieces]
        within, across = zip(*sent, strict=True)
        return sum(within), sum(across)

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
