"""The head of a run file: every setting as it took effect, and the machine that the run used."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import asdict
from typing import Protocol

import numpy as np
from mpi4py import MPI

from localavg.files.record import Record
from localavg.interfaces import Device
from localavg.learner.sampling import ByClass
from localavg.parallel.device import Cuda
from localavg.parallel.fleet import Fleet
from localavg.training.build import Experiment, Task
from localavg.training.checks import all_settings, own_options
from localavg.training.meaning import PATHS


class Carrier(Protocol):
    """What carries weights between ranks: a transport, or messages to servers."""

    @property
    def name(self) -> str:
        """Return its name."""

    @property
    def why(self) -> str:
        """Return why it was chosen."""


def config(task: Task) -> dict[str, object]:
    """Return /config: every setting as it took effect, in one flat table."""
    c, problem, data = task.config, task.problem, task.problem.data
    # The paths of files are absolute, so that they can be found from any folder.
    where = os.path.abspath(c.data) if os.path.exists(c.data) else c.data
    own, settings = own_options(c, task.length.epoch), all_settings(c)
    return {
        **settings,
        **{name: os.path.abspath(str(x)) for name in PATHS if (x := settings[name]) is not None},
        "data": where,
        "learners": task.length.P,
        "steps": task.length.T,
        "problem": type(problem).__name__.lower(),
        "rows": problem.n,
        "d": sum(map(math.prod, problem.shapes.values())),
        "data_name": data.name,
        "test_rows": 0 if data.test is None else len(data.test.y),
        **(asdict(task.timing) if task.timing else {}),
        **_participation(task),
        **({"switch": own["switch"]} if own.get("switch") is not None else {}),
    }


def _participation(task: Task) -> dict[str, object]:
    """Return how many learners work in a round, and how much they count, if not all and alike."""
    if not isinstance(task, Experiment) or not task.algorithm.participants.asked:
        return {}
    participants = task.algorithm.participants
    return {"participants": participants.m, "weights": participants.by}


def machine(e: Experiment) -> dict[str, object]:
    """Return a part of /provenance: `hosts`, `gpus`, and why this device and engine. Collective."""
    engine = {"engine": e.engine.name, "engine_why": e.engine_why}
    device = {"device_why": e.device.why}
    return hosts(e.fleet, e.transport) | gpus(e.fleet, e.device) | engine | device | redraws(e)


def redraws(task: Task) -> dict[str, object]:
    """Return a part of /provenance: how often the rows of the learners were drawn anew."""
    sampler = task.sampler
    return {"sampling_redraws": sampler.redraws} if isinstance(sampler, ByClass) else {}


def write_holdings(file: Record, task: Task, says: bool = True) -> None:
    """Write how many rows of each class a learner has, if it got its rows by class.

    says: print how many classes nobody has.
    """
    if not isinstance(task.sampler, ByClass):
        return
    counts = task.sampler.counts()
    for learner, label, rows in counts:
        file.append("holdings", learner=learner, label=label, rows=rows)
    classes, held = len(np.unique(task.sampler.y)), len({label for _, label, _ in counts})
    if held < classes and says:
        print(
            f"localavg: --sampling {task.config.sampling} with {task.length.P} learners: nobody "
            f"has rows of {classes - held} of the {classes} classes, which are not trained on",
            file=sys.stderr,
        )


def hosts(fleet: Fleet, carrier: Carrier) -> dict[str, object]:
    """Return a part of /provenance: ranks, hosts, MPI library and transport."""
    return {
        "mpi_library": MPI.Get_library_version().splitlines()[0].rstrip("\0 "),
        "hosts": sorted(set(fleet.hosts)),
        "ranks": fleet.ranks,
        "nodes": fleet.nodes,
        "learners_per_rank": fleet.layout.per_rank,
        "threads": fleet.threads,
        "transport": carrier.name,
        "transport_why": carrier.why,
    }


def gpus(fleet: Fleet, device: Device) -> dict[str, object]:
    """Return a part of /provenance: host and PCI address of the GPU of every rank with one.

    Collective.
    """
    mine = device.identity if isinstance(device, Cuda) else None
    found = [" ".join(identity) for identity in fleet.world.allgather(mine) if identity]
    return {"gpus": found} if found else {}
