"""Averages that cross nodes in code, with error feedback: what a code loses is sent later.

w̃ is the last average of everyone, e a row that a node keeps, r a row that all nodes keep together,
both 0 at the start. An average of w_j over P learners becomes:

    on every node:    u ← Σ_{j on the node} (w_j − w̃) + e
                      C = code(u);  e ← u − decode(C)          C crosses nodes
    once:             v ← (1/P) Σ_nodes decode(C) + r
                      C' = code(v);  r ← v − decode(C')        C' crosses nodes
    on every node:    w_j ← w̃ + decode(C')

Σ e + Σ decode(C) is Σ u, and r + decode(C') is v: nothing is lost, it is late. Where learners count
n_j, u ← Σ (n_j / Σ n) (w_j − w̃) + e, and v is not divided by P: the next Σ n may be another, so e
is kept in the units of the mean. The columns of a row are cut into slices. One rank of a node codes
a slice of u, one rank of all codes a slice of v, and sums are made in float32 in the order of the
nodes. Within a node nothing is coded. An outer optimiser steps with the mean that arrives, and its
step gives the next w̃. Averages of clusters that span nodes are coded in the same way, from the
same w̃, each level with e and r of its own. The last average, at T, carries u and r in float32, so
e and r of everyone end at 0. It does not carry e and r of clusters: what the codes of the last
averages of clusters lost never arrives. Statistics, and a state of the local optimiser, travel in
float32.

    wire        code(x)                                                                  source
    bf16        bfloat16, rounded to nearest even                                        [1]
    int8        buckets of 512: x_i / s to the nearest whole number, s = max |x| / 127   [2]
    lowrank:r   a matrix M [m, k] as A Bᵀ, A [m, r], B [k, r]; vectors in float32        [3]

lowrank, for each tensor of two dimensions or more as shape[0] × rest, with Q drawn from N(0, 1) at
the start: A ← orthonormalised Σ_nodes u Q;  B = uᵀA;  e ← u − A Bᵀ;  Q ← Σ_nodes B;
w_j ← w̃ + (1/P) A Qᵀ. Sums of A and B travel in float32, and there is no r. One rank
orthonormalises A for all nodes, and every node sums A Qᵀ in the same order without BLAS, so that
all get the same bits on processors of any kind. A tensor for which A and B are no smaller than
itself is not coded.

[1] Diskin et al.: Distributed Deep Learning in Open Collaborations. NeurIPS 2021, arXiv 2106.10207;
its library hivemind sends 16 bits.
[2] Jaghouar et al.: INTELLECT-1 Technical Report. 2024, arXiv 2412.01152, sums int8 in float32. Its
code spreads 256 values over ±3σ and clips the rest; that of scaled buckets has half its error on
normal numbers, far less on long tails, and a fifth of its time. The two error rows are those of 0/1
Adam (Lu et al. 2022, arXiv 2202.06009).
[3] Vogels, Karimireddy, Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization. NeurIPS 2019, arXiv 1905.13727, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from localavg.errors import UserError
from localavg.interfaces import Rounding
from localavg.parallel.wires.bf16 import Bf16
from localavg.parallel.wires.scaled import Scaled8

CODES: dict[str, type[Rounding]] = {"bf16": Bf16, "int8": Scaled8}
PLAIN, LOW_RANK = "float32", "lowrank"


@dataclass(frozen=True)
class Wire:
    """How averages cross nodes. code: None for lowrank, whose rank is r."""

    name: str
    code: Rounding | None = None
    r: int = 0


def of(text: str | None) -> Wire | None:
    """Return the wire of the option `wire`; None for float32. Raises UserError for another."""
    if text is None or text == PLAIN:
        return None
    if text in CODES:
        return Wire(text, CODES[text]())
    name, colon, r = text.partition(":")
    if name != LOW_RANK:
        raise UserError(
            f"`wire = {text}`: must be one of {PLAIN}, {', '.join(CODES)}, {LOW_RANK}:r"
        )
    if not (colon and r.isdecimal() and r.isascii() and int(r)):
        raise UserError(
            f"`wire = {text}`: lowrank needs a rank, a whole number of at least 1; write it as "
            "lowrank:4"
        )
    return Wire(text, None, int(r))
