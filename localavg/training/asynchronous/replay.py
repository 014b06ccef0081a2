"""The order of arrival of an earlier run, for another run to repeat.

The weights depend on the settings and the order alone. So a run that replays another one ends with
the same bits, on any number of ranks and servers, and whether the other was measured or simulated.
On another device they are the same to rounding.
"""

from __future__ import annotations

from localavg.config import TrainConfig
from localavg.errors import SharedError, UserError
from localavg.files import record
from localavg.interfaces import Settings
from localavg.training.checks import FREE

IDLE = FREE | {  # settings that do not change the weights
    "replay",
    "device",
    "engine",
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


def check(c: TrainConfig) -> None:
    """Raise UserError, on all ranks, for a setting that does not go with `replay`.

    A learner that starts again from the center, after a loss or a restart, makes another run.
    """
    asked = {
        "on_failure": c.on_failure if c.on_failure != "end" else None,
        "checkpoint_every": c.checkpoint_every,
        "time_limit": c.time_limit,
    }
    for name, value in asked.items():
        if c.replay and value is not None:
            raise SharedError(
                f"`{name} = {value}` with `replay`: a run that goes on from the center does not "
                "repeat another one; leave one of them out"
            )


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
    if len(earlier.events) or earlier.provenance.get("resumes", 0):
        raise UserError(
            f"`replay = {path}`: its learners started from the center again, after ranks died or a "
            "restart, and an order alone cannot repeat that; give a run that went through"
        )
    if earlier.status != "finished" or len(earlier.staleness) != P * -(-T // K):
        raise UserError(
            f"`replay = {path}`: is {earlier.status} and has {len(earlier.staleness)} exchanges of "
            f"{P * -(-T // K)}; give a finished run"
        )
    return earlier.staleness.learner.tolist()
