"""The averages of an earlier synchronous run, for another run to repeat.

What steered them, such as the time, need not be the same again: with the other settings alike the
run that replays has the bits of the first one.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from localavg.algorithms.base import Algorithm
from localavg.algorithms.replayed import Replayed
from localavg.algorithms.switch import Switched
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.interfaces import Settings
from localavg.training.checks import all_settings, difference


def replayed(
    algorithm: Algorithm, c: TrainConfig, options: Settings, T: int, prints: bool
) -> Algorithm:
    """Return the algorithm with the averages of the run file `c.replay`, for a run of T updates.

    options: the algorithm's, filled in. If `prints`, print the first setting that differs there.
    Raises UserError for a run of another algorithm or with another `switch`, one that is not
    finished, or a shorter one.
    """
    path = str(c.replay)
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
    there, here = earlier.config.get("switch"), options.get("switch")
    if (there or None) != (here or None):
        raise UserError(
            f"`replay = {path}`: its averages begin with `switch = {there}`, and here it is "
            f"{here}; give the same"
        )
    if prints and (other := difference(all_settings(c), {**earlier.config, "replay": c.replay})):
        print(f"localavg: replay {path}: {other}", file=sys.stderr)
    t0 = algorithm.schedule.begins
    rows = earlier.averages[earlier.averages.scope == record.WORLD]
    ends = Replayed((rows.begun - t0).tolist())  # a delayed one ends after the delay again
    return replace(algorithm, schedule=Switched(ends, t0) if t0 else ends)
