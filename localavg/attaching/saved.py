"""What an averager saves, and whether a saved state fits it."""

from __future__ import annotations

from collections.abc import Mapping

from localavg.algorithms.base import Algorithm
from localavg.errors import UserError
from localavg.interfaces import Settings


def saved(algorithm: Algorithm, d: int) -> dict[str, object]:
    """Return the state of an algorithm's parts, and what it belongs to."""
    import torch

    return {
        "algorithm": _parts(algorithm),
        "d": d,
        "schedule": algorithm.schedule.state_dict(),
        "combine": {name: torch.tensor(x) for name, x in algorithm.average.state_dict().items()},
    }


def check_state(state: Settings, algorithm: Algorithm, d: int) -> None:
    """Raise UserError if a state is of another algorithm or of a model of another size."""
    remedy = "load what the state_dict of this algorithm's averager returned"
    names = {"t", "start", "scope", "variance", "schedule", "combine"}
    if not isinstance(state, Mapping) or not names <= state.keys():
        raise UserError(f"attach: this is no averager's state; {remedy}")
    made, mine = state.get("algorithm", _parts(algorithm)), _parts(algorithm)
    if made != mine:
        raise UserError(f"attach: the state is of {made}, not of {mine}; {remedy}")
    if (n := state.get("d", d)) != d:
        raise UserError(
            f"attach: the state is of a model with {n} numbers, not {d}; build the same model"
        )
    average, schedule = algorithm.average.state_dict(), algorithm.schedule.state_dict()
    shapes = {name: tuple(x.shape) for name, x in state["combine"].items()}
    fits = shapes == {name: tuple(x.shape) for name, x in average.items()}
    if not fits or state["schedule"].keys() != schedule.keys():
        raise UserError(f"attach: the state has {shapes or 'no'} tensors, not {mine}'s; {remedy}")


def _parts(algorithm: Algorithm) -> str:
    """Return the kinds of an algorithm's parts."""
    kinds = (algorithm.schedule, algorithm.average, algorithm.exchange)
    return " + ".join(type(part).__name__ for part in kinds)
