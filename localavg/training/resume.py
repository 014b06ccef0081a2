"""Decide whether a run may start, from which checkpoint it resumes, and with which run file.

`earlier` looks for a run in the same file, `resume` finds the checkpoint and opens the run file,
and `restore_` puts the checkpoint into the parts of the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import checkpoint
from localavg.files.checkpoint import Saved
from localavg.files.hdf5 import set_aside
from localavg.files.record import Record, Run, load, refuse_existing, stored
from localavg.interfaces import Array, Settings
from localavg.parallel.device import put_
from localavg.parallel.fleet import Fleet
from localavg.training.build import NOTHING, Chosen
from localavg.training.checks import FREE, all_settings, difference, recorded
from localavg.training.meaning import same

LACKING = {"engine": ("loop", "auto"), "deterministic": ("yes",)}
"""settings that run files of earlier versions lack: what they meant, and what else is like it"""


class Earlier(NamedTuple):
    """The run that is in the file `out` already."""

    run: Run | None
    """its file, on the rank that writes"""
    there: bool
    """whether there is a run; the same on all ranks"""
    finished: bool
    """whether the run is finished; the same on all ranks"""
    chosen: Chosen
    """what it keeps when it is resumed; the same on all ranks"""


class Start(NamedTuple):
    """Where a run starts."""

    saved: Saved | None
    """the checkpoint to resume from; None: start from the beginning"""
    file: Record | None
    """the run file, on the rank that writes; a mirror of it, on all ranks"""


class Part(Protocol):
    """A part of a run whose state is saved."""

    def state_dict(self) -> Settings:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""


def earlier(c: TrainConfig, fleet: Fleet, writes: bool) -> Earlier:
    """Look for an earlier run before any data is read. writes: this rank writes the run file.

    Collective. Raises UserError on every rank if the file must not be changed, or if it has a
    finished run with other settings.
    """
    run = fleet.together(lambda: _found(c) if writes else None)
    finished = run is not None and run.status == "finished"
    if finished:
        print(f"{c.path} is finished already", file=sys.stderr)
    there = any(fleet.world.allgather(run is not None))
    chosen = fleet.world.bcast(_chosen(run) if run else NOTHING)
    return Earlier(run, there, any(fleet.world.allgather(finished)), chosen)


def resume(
    c: TrainConfig,
    fleet: Fleet,
    before: Earlier,
    config: Settings,
    provenance: Settings,
    writes: bool,
    d: int | None = None,
) -> Start:
    """Find the checkpoint to resume from, and open the run file on the rank that writes.

    config, provenance: what to write to the run file about this run. d: the length of a row in a
    checkpoint, or of the center; None if runs of this kind save none, and start from the beginning.
    Collective. Raises UserError on every rank if the earlier run has other settings or its file
    cannot be written.
    """
    fleet.together(lambda: _check_settings(c.path, before.run, config))
    saved = latest(c, fleet) if d is not None and before.there else None

    def opened() -> Record | None:
        if not writes:
            return None
        if saved and d is not None:
            _check_version(saved, d)
            print(f"localavg: {c.path} resumes after step {saved.t}", file=sys.stderr)
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
    """Read the latest checkpoint that every rank can read. Return None if there is none.

    Damaged checkpoints are reported on stderr and renamed. Collective.
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
    """Put the checkpoint into w [L, d] and the parts. Return the number of updates made."""
    if saved is None:
        return 0
    t, state, ranks = saved
    put_(w, state["weights"]["w"])
    for name, part in parts.items():
        part.load_state_dict(state.get(name, {}))
    state.clear()  # it is larger than the weights, and the caller still holds it
    if ranks != fleet.ranks and fleet.rank == 0:
        print(
            f"localavg: saved by {ranks} ranks, resumed by {fleet.ranks}: sums over ranks may "
            "round differently than in an uninterrupted run",
            file=sys.stderr,
        )
    return t


def _chosen(run: Run) -> Chosen:
    """Return what was chosen for a run; a file of an earlier version does not name its engine."""
    engine = run.provenance.get("engine", LACKING["engine"][0])
    return Chosen(run.config.get("device"), engine, run.provenance.get("transport"))


def _found(c: TrainConfig) -> Run | None:
    folder = checkpoint.folder_of(c.path)
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0) > 0
    if not (c.resume or requeued):
        refuse_existing(c.path)
    if os.path.exists(c.path) and os.path.getsize(c.path) == 0:  # killed while creating the file
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


def _check_version(saved: Saved, d: int) -> None:
    """Raise UserError for a checkpoint whose rows or times are not of this version."""
    if "center" in saved.state:
        return
    if "meetings" not in saved.state["monitor"] or saved.state["weights"]["w"].shape[1] != d:
        raise UserError(
            f"the checkpoint after step {saved.t} is of an earlier version, which laid out rows or "
            "counted times otherwise: resume with that version, or give another `out`"
        )


def _check_settings(path: str, run: Run | None, config: Settings) -> None:
    if run is None:
        return
    there = recorded(run.config)
    for name, value in config.items():
        like = LACKING.get(name, (None,))
        if name not in there and value in like:
            continue
        was = there.get(name, like[0])
        if name not in FREE and not same(name, config, {**there, name: was}):
            raise UserError(
                f"`resume`: {path} was made with {name} = {was}, not {stored(value)}; give the "
                "same settings, or another `out`"
            )
