"""The averages of an earlier synchronous run, for another run to repeat.

What steered them, such as the time, need not be the same again: with the other settings alike the
run that replays has the bits of the first one.
"""

from __future__ import annotations

from dataclasses import replace

from localavg.algorithms.base import Algorithm
from localavg.algorithms.replayed import Replayed
from localavg.algorithms.switch import Switched
from localavg.errors import UserError
from localavg.files import record


def replayed(algorithm: Algorithm, path: str, T: int) -> Algorithm:
    """Return the algorithm with the averages of the run file at `path`, for a run of T updates.

    Raises UserError for a run of another algorithm, one that is not finished, or a shorter one.
    """
    earlier = record.load(path, weights=False)
    if (name := earlier.config.get("algorithm")) != algorithm.name:
        raise UserError(
            f"`replay = {path}`: is a run of {name}, not of {algorithm.name}; give one of "
            f"{algorithm.name}"
        )
    made = int(earlier.averages.t.max()) if len(earlier.averages) else 0
    if earlier.status != "finished" or made < T:
        raise UserError(
            f"`replay = {path}`: is {earlier.status}, with averages up to update {made} of {T}; "
            "give a finished run of at least as many updates"
        )
    t0 = algorithm.schedule.begins
    rows = earlier.averages[(earlier.averages.scope == record.WORLD) & (earlier.averages.t > t0)]
    ends = Replayed((rows.t - t0).tolist())
    return replace(algorithm, schedule=Switched(ends, t0) if t0 else ends)
