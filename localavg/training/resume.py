"""May this run start, or go on, from where, and with which run file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from mpi4py import MPI

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import checkpoint
from localavg.files.checkpoint import Saved
from localavg.files.hdf5 import set_aside
from localavg.files.record import Record, Run, load, refuse_existing, stored
from localavg.interfaces import Array, Settings
from localavg.parallel.device import put_
from localavg.parallel.fleet import Fleet
from localavg.training.checks import FREE, all_settings, difference


class Earlier(NamedTuple):
    """The run that `out` has already."""

    run: Run | None
    """its file, on the rank that writes"""
    there: bool
    """whether there is one; alike on all ranks"""
    finished: bool
    """whether it is finished; alike on all ranks"""


class Start(NamedTuple):
    """Where a run starts."""

    saved: Saved | None
    """the checkpoint to go on from; None: from the beginning"""
    file: Record | None
    """the run file, on the rank that writes"""


class Part(Protocol):
    """A part of a run whose state is saved."""

    def state_dict(self) -> Settings:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


def earlier(c: TrainConfig, fleet: Fleet, writes: bool) -> Earlier:
    """Look for an earlier run before anything is read. writes: this rank writes the run file.

    Collective. Raises UserError on every rank where the file may not be touched, or is another
    run's that is finished.
    """
    run = fleet.together(lambda: _found(c) if writes else None)
    finished = run is not None and run.status == "finished"
    if finished:
        print(f"{c.path} is finished already", file=sys.stderr)
    there = fleet.world.allreduce(run is not None, MPI.LOR)
    return Earlier(run, there, fleet.world.allreduce(finished, MPI.LOR))


def resume(
    c: TrainConfig,
    fleet: Fleet,
    before: Earlier,
    config: Settings,
    provenance: Settings,
    writes: bool,
    checkpoints: bool = True,
) -> Start:
    """Find the checkpoint to go on from, and open the run file on the rank that writes.

    config, provenance: what the run file says of this run. checkpoints: runs of this kind make
    some; others start from the beginning. Collective. Raises UserError on every rank where the
    earlier run has other settings or its file cannot be written.
    """
    fleet.together(lambda: _check_settings(c.path, before.run, config))
    saved = latest(c, fleet) if checkpoints and before.there else None

    def opened() -> Record | None:
        if not writes:
            return None
        if saved:
            print(f"localavg: {c.path} goes on after step {saved.t}", file=sys.stderr)
            rows = {name: int(n) for name, n in saved.state["record"].items()}
            return Record.reopen(c.path, rows, provenance)
        if before.there:
            aside = set_aside(c.path, "unfinished")
            print(
                f"localavg: {c.path} has no checkpoint: kept as {aside}, starting from the "
                "beginning",
                file=sys.stderr,
            )
        return Record.create(c.path, config, provenance)

    return Start(saved, fleet.together(opened))


def latest(c: TrainConfig, fleet: Fleet) -> Saved | None:
    """Read the latest checkpoint that every rank can read, None where there is none.

    Damaged ones are reported on stderr and set aside. Collective.
    """
    folder = checkpoint.folder_of(c.path)
    for t in fleet.world.bcast(checkpoint.found(folder) if fleet.rank == 0 else None):
        try:
            return fleet.together(partial(checkpoint.read, folder, t, fleet.rank, fleet.learners))
        except UserError as e:
            if fleet.rank == 0:
                print(f"localavg: {e}; going back to the one before", file=sys.stderr)
            aside = partial(checkpoint.put_aside, folder, t)
            fleet.together(aside if fleet.rank == 0 else lambda: None)
    return None


def restore_(saved: Saved | None, fleet: Fleet, w: Array, parts: Mapping[str, Part]) -> int:
    """Put what was saved into w [L, d] and the parts; returns how many updates were made."""
    if saved is None:
        return 0
    t, state, ranks = saved
    put_(w, state["weights"]["w"])
    for name, part in parts.items():
        part.load_state_dict(state.get(name, {}))
    state.clear()  # as large as the weights and more, and held elsewhere too
    if ranks != fleet.ranks and fleet.rank == 0:
        print(
            f"localavg: saved by {ranks} ranks, resumed by {fleet.ranks}: sums over ranks may "
            "round differently than in an uninterrupted run",
            file=sys.stderr,
        )
    return t


def _found(c: TrainConfig) -> Run | None:
    folder = checkpoint.folder_of(c.path)
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0) > 0
    if not (c.resume or requeued):
        refuse_existing(c.path)
    if os.path.exists(c.path) and os.path.getsize(c.path) == 0:  # killed as it was made
        os.unlink(c.path)
    if not os.path.exists(c.path):
        if folder.exists():
            raise UserError(
                f"{folder} has checkpoints but their run file {c.path} is gone; bring it back, or "
                f"move the folder away"
            )
        return None
    found = load(c.path, weights=False)
    if found.status == "finished" and (other := difference(all_settings(c), found.config)):
        raise UserError(
            f"`resume`: {c.path} is finished, but {other}; give the same settings, or another `out`"
        )
    return found


def _check_settings(path: str, run: Run | None, config: Settings) -> None:
    if run is None:
        return
    for name, value in config.items():
        was = run.config.get(name)
        if name not in FREE and was != stored(value):
            raise UserError(
                f"`resume`: {path} was made with {name} = {was}, not {stored(value)}; give the "
                "same settings, or another `out`"
            )
