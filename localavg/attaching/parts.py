"""The parts of an averager: what works on the rows of a model, on the ranks of one fleet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

from localavg.algorithms.base import Algorithm
from localavg.attaching.around import Around
from localavg.attaching.asked import Asked
from localavg.attaching.checks import check_same
from localavg.attaching.exchange import Exchanging
from localavg.attaching.feedback import Feedback
from localavg.attaching.log import Log
from localavg.attaching.look import Look
from localavg.attaching.meetings import Meetings
from localavg.attaching.place import Place, place_of
from localavg.attaching.recovery import Recovery
from localavg.attaching.row import Row, averaged, by_type
from localavg.attaching.start import Rows, start
from localavg.interfaces import UNTIMED, Transport
from localavg.parallel.fleet import Fleet
from localavg.training.averaging import Averaging
from localavg.training.delayed import Delayed
from localavg.training.payload import Payload

Watching = Callable[[], AbstractContextManager[None]]


class Parts(NamedTuple):
    """What works on the rows of a model."""

    fleet: Fleet
    algorithm: Algorithm
    place: Place
    transport: Transport
    flat: Row
    payload: Payload
    log: Log | None
    feedback: Feedback
    meetings: Meetings
    exchanging: Exchanging
    around: Around
    averaging: Averaging
    look: Look


def lay_out(
    asked: Asked,
    fleet: Fleet,
    log: Log | None,
    watching: Watching,
    recovery: Recovery | None,
    again: bool,
) -> Parts:
    """Move the model into its row on the ranks of `fleet`, as the first of them has it. Collective.

    log: of the fleet before. watching: makes the context of a meeting. recovery: what goes back
    when ranks die. again: whether ranks were lost before.
    """
    import torch

    # the algorithm that was given never begins
    asked = replace(asked, fleet=fleet, algorithm=deepcopy(asked.algorithm))
    algorithm = asked.algorithm
    tensors = by_type(averaged(asked.model, asked.statistics == "average"))
    check_same(fleet, tensors)
    first = next(iter(tensors.values()), torch.empty(0))
    place = place_of(first.device, fleet)
    algorithm.exchange.start(fleet.learners, asked.seed)
    fleet.together(lambda: algorithm.average.lay_out(fleet.learners, fleet.P, asked.seed))
    with place.here():
        rows = start(asked, tensors, place, again)
        return _on(rows, asked, place, log, watching, recovery)


def _on(
    rows: Rows,
    asked: Asked,
    place: Place,
    log: Log | None,
    watching: Watching,
    recovery: Recovery | None,
) -> Parts:
    """Make what works on these rows. Collective."""
    fleet, algorithm = asked.fleet, asked.algorithm
    transport, background, flat, gradients, state = rows
    payload = Payload(
        algorithm, background or transport, flat, state, gradients=gradients.row.d_trained
    )
    if log is not None:
        log.move(fleet, transport, payload)
    elif asked.log is not None:
        log = Log(asked, place, transport, payload, flat.size)
    laps = log or UNTIMED
    feedback = Feedback(fleet, laps, algorithm, asked.log is not None)
    meetings = Meetings(asked, flat)
    exchanging = Exchanging(
        algorithm.exchange, transport, gradients, meetings, log, place, watching
    )
    around = Around(meetings, log, laps, asked.objective)
    pieces = algorithm, transport, flat, state
    how: dict[str, Any] = {
        "objective": around.objective, "losses": feedback, "laps": laps,
        "pace": log.pace() if log else feedback.pace(transport.settle),
        "before": around.before, "after": around.after,
    }  # fmt: skip
    averaging = (
        Averaging(*pieces, **how)
        if background is None
        else Delayed(*pieces, background=background, begun=around.begun, **how)
    )
    # nothing is on its way where the model is copied
    averaging.holds = recovery is not None
    look = Look(meetings, transport, place, log, laps, averaging.pace, recovery, watching)
    return Parts(
        fleet, algorithm, place, transport, flat, payload, log, feedback, meetings, exchanging,
        around, averaging, look,
    )  # fmt: skip
