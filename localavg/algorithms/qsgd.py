"""QSGD: synchronous SGD on gradients quantised without bias.

Dan Alistarh, Demjan Grubic, Jerry Li, Ryota Tomioka, Milan Vojnovic: QSGD: Communication-Efficient
SGD via Gradient Quantization and Encoding. NIPS 2017, §3.1. A baseline of Jiang and Agrawal (adpsgd
§IV).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from localavg.algorithms.base import Algorithm, Exchange, Mean, Never
from localavg.errors import UserError
from localavg.interfaces import Array, Transport
from localavg.parallel.device import on_host, put_
from localavg.scope import Scope
from localavg.streams import Stream, generator


def qsgd(
    bits: Annotated[int, "number of bits of a quantised entry, 2 to 8: a sign and the level"] = 8,
    bucket: Annotated[int, "number of gradient entries that share one norm"] = 512,
) -> Algorithm:
    """QSGD (Alistarh et al. 2017; adpsgd §IV): sync with gradients quantised without bias."""
    return Algorithm(Never(), Mean(), QuantisedGradient(bits, bucket))


@dataclass
class QuantisedGradient(Exchange):
    """g_j ← (1/P) Σ Q(g_j), where Q is the unbiased quantiser of §3.1.

    Every bucket of entries travels as its 2-norm in float32 and one int8 per entry: a sign and one
    of s = 2^(bits−1) − 1 levels. Fewer bits make the levels coarser; an entry is always one int8.
    """

    bits: int = 8
    bucket: int = 512
    scope = Scope.WORLD
    gathers = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(
                f"`bits = {self.bits}`: must lie in 2 … 8, for a sign and at least one level"
            )
        if self.bucket < 1:
            raise UserError(f"`bucket = {self.bucket}`: must be at least 1 entry")
        self.s = 2 ** (self.bits - 1) - 1

    def start(self, learners: Sequence[int], seed: int) -> None:
        self.learners, self.seed = learners, seed

    def payload_bytes(self, d: int, L: int) -> int:
        return L * (d + 4 * -(-d // self.bucket))

    def exchange_(self, g: Array, t: int, transport: Transport) -> None:
        d, device = g.shape[1], g
        g = on_host(device)  # quantised on the host
        sent = [
            quantise(row, self.s, self.bucket, self._uniform(j, t, d))
            for j, row in zip(self.learners, g, strict=True)
        ]
        codes = transport.gather(np.stack([c for c, _ in sent]))  # [P, d] int8
        norms = transport.gather(np.stack([n for _, n in sent]))  # [P, buckets] float32
        g[0] = 0
        for c, n in zip(codes, norms, strict=True):
            g[0] += decode(c, n, self.s, self.bucket)
        g[0] /= len(codes)
        g[1:] = g[0]
        if g is not device:
            put_(device, g)

    def _uniform(self, j: int, t: int, d: int) -> Array:
        return generator(self.seed, j, t, Stream.ROUNDING).random(d, np.float32)


def quantise(g: Array, s: int, bucket: int, u: Array) -> tuple[Array, Array]:
    """Round g [d] to s levels with uniform draws u [d] in [0, 1).

    Return the codes int8 [d] and the norms [buckets]. The level is ⌊s |g_i| / ‖g‖ + u_i⌋, so the
    mean over u of the decoded value is g_i.
    """
    starts = np.arange(0, len(g), bucket)
    norms = np.sqrt(np.add.reduceat(np.square(g, dtype=np.float64), starts)).astype(np.float32)
    scale = np.divide(s, norms, out=np.zeros_like(norms), where=norms > 1e-36)
    levels = np.floor(np.abs(g) * _spread(scale, bucket, len(g)) + u)
    return (np.sign(g) * np.minimum(levels, s)).astype(np.int8), norms


def decode(codes: Array, norms: Array, s: int, bucket: int) -> Array:
    """Return the float32 values [d] of the codes [d] and the norms [buckets]."""
    return codes * _spread(norms / np.float32(s), bucket, len(codes))


def _spread(per_bucket: Array, bucket: int, d: int) -> Array:
    return np.repeat(per_bucket, bucket)[:d]
