"""Time an average that crosses nodes in code."""

from __future__ import annotations

import math

import numpy as np

from localavg.algorithms import wire as wires
from localavg.interfaces import Transport
from localavg.parallel.device import put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import in_code
from localavg.parallel.transport.in_code import Coding
from localavg.scope import Scope


class Wired:
    """Averages of rows of n floats by a wire; for products of low rank a row is one square matrix.

    coded_bytes, plain_bytes: what all ranks together send between nodes in an average by the wire,
    and in one in float32.
    """

    def __init__(self, fleet: Fleet, ours: Transport, n: int, name: str) -> None:
        wire = wires.of(name)
        assert wire is not None, "float32 is the average itself"
        m = math.isqrt(n)
        tensors = [(slice(0, m * m), (m, m)), (slice(m * m, n), (n - m * m,))]
        self.transport = in_code(ours, fleet)
        coding = Coding(n, tensors, wire.code, wire.r)
        fleet.together(lambda: self.transport.use(coding))
        self.w = self.transport.zeros((fleet.L, n))
        self.transport.watch(self.w)
        self.transport.begin(self.w)
        random = np.random.default_rng(fleet.rank)
        for row in self.w:
            put_(row, random.standard_normal(n, np.float32))
        mine = [
            self.transport.sum_bytes(Scope.WORLD)[1],
            self.transport.payload_bytes(4 * n, Scope.WORLD)[1],
        ]
        self.coded_bytes, self.plain_bytes = fleet.world.allreduce(np.array(mine)).tolist()

    def __call__(self) -> None:
        self.transport.mean_(self.w, Scope.WORLD)
