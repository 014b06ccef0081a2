"""The order of arrival of an earlier run, for another run to repeat.

The weights depend on the settings and the order alone. So a run that replays another one ends with
the same bits, on any number of ranks and servers, and whether the other was measured or simulated.
On another device they are the same to rounding.
"""

from __future__ import annotations

from localavg.errors import UserError
from localavg.files import record
from localavg.interfaces import Settings
from localavg.training.checks import FREE

IDLE = FREE | {  # settings that do not change the weights
    "replay",
    "device",
    "engine",
    "servers",
    "log_every",
    "eval_every",
    "eval_examples",
    "grad_norm",
    "save_weights",
    "calibrate",
    "epochs",
    "simulate",
    "timing_from",
    "step_s",
    "step_cv",
    "latency_s",
    "bandwidth_bytes_per_s",
    "service_s",
}


def order_of(path: str, settings: Settings, P: int, T: int, K: int) -> list[int]:
    """Return the learner of every exchange in the run file at `path`, in order.

    Raises UserError for a run that has other settings or is not complete.
    """
    earlier = record.load(path, weights=False)
    for name, value in settings.items():
        if name not in IDLE and (was := earlier.config.get(name)) != record.stored(value):
            raise UserError(
                f"`replay = {path}`: made with {name} = {was}, not {record.stored(value)}; give "
                "the same settings"
            )
    if earlier.status != "finished" or len(earlier.staleness) != P * -(-T // K):
        raise UserError(
            f"`replay = {path}`: is {earlier.status} and has {len(earlier.staleness)} exchanges of "
            f"{P * -(-T // K)}; give a finished run"
        )
    return earlier.staleness.learner.tolist()
