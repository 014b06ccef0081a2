"""The rows of ``localavg plan``: what a machine would take for every setting that is asked for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from localavg.errors import UserError

if TYPE_CHECKING:
    from localavg.simulate.plan import Machine


def predicted(
    args: argparse.Namespace, machine: Machine, floats: int, T: int
) -> list[dict[str, object]]:
    """Predict every setting on one machine. Return a row for each."""
    from localavg.simulate.plan import predict

    timing, rows = machine.timing, []
    for K, F, wire in product(args.K, args.fragments, args.wire):
        if F > 1 and wire.startswith("lowrank"):
            raise UserError(
                f"--wire {wire} with --fragments {F}: a matrix may lie in two pieces; use int8 or "
                "bf16, or leave --fragments out"
            )
        nbytes = coded_bytes(wire, -(-floats // F), args.tensors)
        for asked in dict.fromkeys(args.delay):
            tau = _longest(K, F) if asked == "K" else asked
            if not _possible(K, F, tau) or (asked == "K" and not tau):
                continue
            found = predict(machine, nbytes, K, T, tau, args.seed, F)
            rows.append(
                {
                    "nodes": machine.nodes,
                    "learners": found.learners,
                    "bandwidth_bytes_per_s": timing.bandwidth_bytes_per_s,
                    "latency_s": timing.latency_s,
                    "step_s": timing.step_s,
                    "step_cv": timing.step_cv,
                    "floats": floats,
                    "steps": T,
                    "K": K,
                    "fragments": F,
                    "wire": wire,
                    "delay": tau,
                    "merged": _merged(asked, F),
                    "average_s": found.average_s,
                    "wall_s": found.wall_s,
                    "communicate": found.communicate,
                    "wait": found.wait,
                    "link_bytes": found.link_bytes,
                }
            )
    if not rows:
        raise UserError(
            f"no --K is long enough: {left_out(args)}; a delay is at most K, and with F fragments "
            "K is at least F and a delay below K/F"
        )
    return rows


def _longest(K: int, F: int) -> int:
    """Return the longest delay of averages of F pieces every K updates."""
    return K if F == 1 else (K - 1) // F


def _possible(K: int, F: int, tau: int) -> bool:
    return F <= K and tau <= _longest(K, F)


def _merged(asked: int | str, F: int) -> str:
    """Return when an average is merged, in words."""
    if asked == "K" and F > 1:
        return "before the next"
    return f"after {asked}" if asked else "at once"


def left_out(args: argparse.Namespace) -> str:
    """Return which settings are not in the rows, and of which K."""
    found = []
    for F, tau in product(dict.fromkeys(args.fragments), sorted({*args.delay} - {"K"})):
        if Ks := [str(K) for K in dict.fromkeys(args.K) if not _possible(K, F, tau)]:
            pieces = f"{F} fragments, " if F > 1 else ""
            found.append(f"{pieces}delay {tau} with K = {', '.join(Ks)}")
    return "; ".join(found)


def coded_bytes(name: str, floats: int, tensors: Sequence[tuple[int, ...]] | None) -> int:
    """Return the bytes of a row of so many floats in the code `name` of --wire.

    tensors: the shapes of the model's weights, if they are known.
    """
    from localavg.algorithms import wire as wires
    from localavg.parallel.wires import factors

    if (wire := wires.of(name)) is None:
        return 4 * floats
    if wire.code is not None:
        return wire.code.nbytes(floats)
    if tensors is None:
        raise UserError(
            f"--wire {name}: its bytes depend on the shapes of the model's weights; add --tensors "
            "with all of them, such as --tensors 64x3x3x3 64 10x64 10"
        )
    known = [(slice(0), each) for each in tensors]
    factors.check_rank(known, wire.r)
    return factors.nbytes(known, wire.r) + 4 * (floats - sum(map(math.prod, tensors)))
