"""``localavg status DIR``: print the state of the runs in a folder, or of one run."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from localavg.cli import Commands, print_table
from localavg.cli.watch import pace, watch, word
from localavg.errors import FAILED, FINISHED, GO_ON, UserError

if TYPE_CHECKING:
    from localavg.cli.sweep.state import State

WORDS = ("done", "running", "to do", "interrupted", "died", "silent", "failed")
ANY = set(WORDS) - {"died", "silent"}  # those that are counted where no run is in this state too


def add(commands: Commands) -> None:
    """Declare the command."""
    p = commands.add_parser(
        "status",
        help="print the state of the runs in a folder",
        description="Print the state of the runs of a sweep, or of one run file. Exit status: 0 if "
        "all are done; 75 if some are interrupted and the same command resumes them; 1 otherwise.",
    )
    p.add_argument("where", metavar="DIR", help="a folder of run files, or one run file")
    p.add_argument(
        "--watch",
        action="store_true",
        help="print again every 2 seconds, with the loss, the rate and the time left of running "
        "runs, until none runs or Ctrl-C (default: off)",
    )
    p.set_defaults(call=_status)


def _status(args: argparse.Namespace) -> int:
    from localavg.files.hdf5 import clear_errors

    where = Path(args.where)
    with clear_errors(f"{where}: cannot look into it", "make it readable, or name another"):
        title, states = _found(where)
    show = partial(print_states, title or str(where), every=True)
    if args.watch:
        states = dict(watch(lambda: _found(where)[1], show))
    else:
        show(states)
    kinds = {s.kind for s in states.values()}
    return FINISHED if kinds == {"finished"} else GO_ON if "interrupted" in kinds else FAILED


def _found(where: Path) -> tuple[str, dict[str, State]]:
    """Return the title of a folder or run file, "" if it has none, and its states by name."""
    from localavg.cli.sweep import state

    if where.is_dir():
        names = {path.stem for path in where.glob("*.h5")}
        names |= {path.name.removesuffix(".h5.lock") for path in where.glob("*.h5.lock")}
        title, planned = _planned(where / "sweep.json")
        order = [*planned, *sorted(names - set(planned))]
        states = {name: state.look(where / f"{name}.h5") for name in order}
        if not states:
            raise UserError(f"{where}: no run files (*.h5) here: give the folder of a sweep")
    elif where.exists():
        title, states = "", {where.stem: state.look(where)}
    else:
        raise UserError(
            f"{where}: no such folder or run file: give the folder of a sweep, or a run file"
        )
    return title, states


def _planned(path: Path) -> tuple[str, list[str]]:
    """Read the title and the names of the runs that a sweep wrote into its folder, if it did."""
    if not path.exists():
        return "", []
    try:
        plan = json.loads(path.read_text())
        title = f"{plan.get('title', plan['file'])} ({plan['scale']}), in {path.parent}"
        if not all(isinstance(name, str) for name in plan["runs"]):
            raise TypeError("its runs are no names")
        return title, list(plan["runs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path}: cannot read this list of runs ({e}): start its sweep again"
        ) from e


def print_states(title: str, states: Mapping[str, State], every: bool = False) -> None:
    """Print a table of runs, and a line with how many are in each state.

    The table has the runs that are neither done nor to do, or with `every` all runs.
    """
    rows = [
        {
            "run": name,
            "status": word(s),
            "updates": f"{s.t} of {s.T}" if s.T else "-",
            "latest": ", ".join(pace(s).values()),
            "why": shorten(s.why, 60),
        }
        for name, s in states.items()
        if every or s.kind not in ("finished", "missing")
    ]
    if rows:
        print_table(title, rows)
    counts = Counter(word(s) for s in states.values())
    start = "" if rows else f"{title}: "
    numbers = ", ".join(f"{counts[name]} {name}" for name in WORDS if counts[name] or name in ANY)
    print(f"{start}{len(states)} runs: {numbers}", flush=True)
