"""The folder of a sweep: its run files, and sweep.json with the names of all runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from localavg.cli.sweep import state
from localavg.cli.sweep.plan import Planned, Sweep
from localavg.cli.sweep.state import State
from localavg.errors import UserError
from localavg.files import atomic
from localavg.files.hdf5 import clear_errors
from localavg.training.checks import difference


def title(sweep: Sweep, folder: Path) -> str:
    """Return the line that stands above a table of the sweep's runs."""
    return f"{sweep.about.get('title', sweep.path.stem)} ({sweep.scale}), in {folder}"


def states_of(runs: Sequence[Planned], folder: Path) -> dict[str, State]:
    """Return the states of the runs by their names.

    Raises UserError if a run file holds a run of other settings than the one that was asked for.
    """
    states = {run.name: state.look(folder / f"{run.name}.h5") for run in runs}
    for run in runs:
        found = states[run.name]
        if found.config is not None and (what := difference(run.asked, found.config)):
            raise UserError(
                f"{folder / run.name}.h5 holds another run, {found.kind}, of other settings "
                f"({what}): move it away, or give another --out"
            )
    return states


def write_plan(sweep: Sweep, folder: Path) -> None:
    """Write the names of all runs into the folder, for `localavg status` to find missing runs."""
    plan = {
        **sweep.about,
        "file": str(sweep.path),
        "scale": sweep.scale,
        "runs": [run.name for run in sweep.runs],
    }
    problem = f"{folder}: cannot write into this folder of run files"
    with clear_errors(problem, "give another --out, or make room"):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(folder / "sweep.json") as part:
            part.write_text(json.dumps(plan, indent=1) + "\n")
