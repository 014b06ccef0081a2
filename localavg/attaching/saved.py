"""What an averager saves, and whether a saved state fits it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy

from localavg.algorithms.base import Algorithm
from localavg.algorithms.switch import Switched
from localavg.attaching.row import Row
from localavg.errors import SharedError, UserError
from localavg.interfaces import Settings
from localavg.parallel.device import on_host
from localavg.parallel.fleet import Fleet
from localavg.parallel.places import shown
from localavg.training.averaging import Averaging


def saved(
    algorithm: Algorithm, flat: Row, transport: str, averaging: Averaging
) -> dict[str, object]:
    """Return the state of an algorithm's parts, what it belongs to, and the row's masters.

    All tensors are copies in the host's memory.
    """
    import torch

    def copied(state: Settings) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(on_host(x)) for name, x in state.items()}

    on_its_way = averaging.state_dict()  # waits for a delayed mean, with which the average steps
    return {
        "algorithm": _parts(algorithm),
        "d": flat.size,
        "transport": transport,
        "schedule": deepcopy(algorithm.schedule.state_dict()),
        "combine": copied(algorithm.average.state_dict()),
        "averaging": copied(on_its_way),
        "master": {name: x.to("cpu", copy=True) for name, x in flat.masters().items()},
    }


def load_(state: Settings, algorithm: Algorithm, flat: Row, averaging: Averaging) -> None:
    """Set the algorithm's parts and the row's masters to a state that `check_state` has passed."""
    algorithm.schedule.load_state_dict(state["schedule"])
    algorithm.average.load_state_dict({name: x.cpu() for name, x in state["combine"].items()})
    averaging.load_state_dict({name: x.numpy() for name, x in state.get("averaging", {}).items()})
    for name, x in flat.masters().items():
        x.copy_(state["master"][name])


def tell_other_sums(state: Settings, transport: str) -> None:
    """Print where a state was made with another transport than this one."""
    if (was := state.get("transport", transport)) != transport:
        print(
            f"localavg: attach: the state was made with transport {was}, and this run has "
            f"{transport}: sums over ranks may round differently than in an uninterrupted run",
            file=sys.stderr,
        )


def check_state(state: Settings, algorithm: Algorithm, flat: Row, fleet: Fleet) -> None:
    """Raise UserError if a state is of another algorithm, or of a model of another size or type.

    So is the state of another rank, or of another number of ranks; earlier versions saved neither.
    """
    remedy = "load what the state_dict of this algorithm's averager returned"
    names = {"t", "start", "scope", "variance", "schedule", "combine"}
    if not isinstance(state, Mapping) or not names <= state.keys():
        raise UserError(f"attach: this is no averager's state; {remedy}")
    made, mine = state.get("algorithm", _parts(algorithm)), _parts(algorithm)
    if made != mine:
        raise UserError(f"attach: the state is of {made}, not of {mine}; {remedy}")
    if (P := state.get("P", fleet.P)) != fleet.P:
        raise SharedError(
            f"attach: the state is of a job of {P} ranks, not {fleet.P}: start as many as before"
        )
    if (rank := state.get("rank", fleet.rank)) != fleet.rank:
        raise UserError(
            f"attach: the state is of rank {rank}, and this is rank {fleet.rank}: save a file on "
            "every rank, and load on each its own"
        )
    if (n := state.get("d", flat.size)) != flat.size:
        raise UserError(
            f"attach: the state is of a model with {n} numbers, not {flat.size}; build the same "
            "model"
        )
    if (theirs := state.get("master", {}).keys()) != (own := flat.masters().keys()):
        raise UserError(
            f"attach: the state keeps float32 values of {shown([*theirs]) or 'no tensor'}, not of "
            f"{shown([*own]) or 'none'}; attach with the same master= and the same types"
        )
    needed = {*algorithm.participants.state_dict(), *(["about"] if algorithm.delay else [])}
    if missing := needed - state.get("averaging", {}).keys():
        raise UserError(
            f"attach: the state does not say {min(missing)}: an earlier version made it; {remedy}"
        )
    average, schedule = algorithm.average.state_dict(), algorithm.schedule.state_dict()
    shapes = {name: tuple(x.shape) for name, x in state["combine"].items()}
    fits = shapes == {name: tuple(x.shape) for name, x in average.items()}
    if not fits or state["schedule"].keys() != schedule.keys():
        raise UserError(f"attach: the state has {shapes or 'no'} tensors, not {mine}'s; {remedy}")


def _parts(algorithm: Algorithm) -> str:
    """Return the kinds of an algorithm's parts."""
    schedule = algorithm.schedule
    inner = [schedule.rest] if isinstance(schedule, Switched) else []
    kinds = (schedule, *inner, algorithm.average, algorithm.exchange)
    how = [str(part) for part in (algorithm.delay, algorithm.wire) if part is not None]
    if (pieces := len(algorithm.average.pieces)) > 1:
        how.append(f"{pieces - 1} fragments")
    return " + ".join([*(type(part).__name__ for part in kinds), *how])
