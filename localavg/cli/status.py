"""``localavg status DIR``: what became of the runs in a folder, or of one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from localavg.errors import FAILED, FINISHED, GO_ON, UserError

if TYPE_CHECKING:
    from localavg.cli.sweep.state import State

WORDS = {
    "finished": "done",
    "running": "running",
    "missing": "missing",
    "interrupted": "interrupted",
    "stale": "interrupted",
    "failed": "failed",
}


def add(commands: Any) -> None:
    p = commands.add_parser(
        "status",
        help="what became of the runs in a folder",
        description=(
            "What became of the runs of a sweep, or of one run file. Exit status: 0 all done, 75 "
            "some are interrupted and the same "
            "command goes on with them, 1 otherwise."
        ),
    )
    p.add_argument("where", metavar="DIR", help="a folder of run files, or one run file")
    p.set_defaults(call=_status)


def _status(args: argparse.Namespace) -> int:
    from localavg.cli.sweep import state

    where = Path(args.where)
    if where.is_dir():
        names = {path.stem for path in where.glob("*.h5")} | {
            path.name[:-8] for path in where.glob("*.h5.lock")
        }
        title, order = _planned(where / "sweep.json")
        states = {
            name: state.look(where / f"{name}.h5") for name in [*order, *sorted(names - set(order))]
        }
        if not states:
            raise UserError(f"{where}: no run files (*.h5) here: give the folder of a sweep")
    elif where.exists():
        title, states = "", {where.stem: state.look(where)}
    else:
        raise UserError(
            f"{where}: no such folder or run file: give the folder of a sweep, or a run file"
        )
    print_states(title or str(where), states, every=True)
    kinds = {s.kind for s in states.values()}
    return FINISHED if kinds == {"finished"} else GO_ON if "interrupted" in kinds else FAILED


def _planned(path: Path) -> tuple[str, list[str]]:
    """The title and the names of the runs that a sweep left in its folder."""
    if not path.exists():
        return "", []
    try:
        plan = json.loads(path.read_text())
        return f"{plan.get('title', plan['file'])} ({plan['scale']}), in {path.parent}", list(
            plan["runs"]
        )
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"{path}: cannot read this list of runs ({e}): start its sweep again"
        ) from e


def print_states(title: str, states: Mapping[str, State], every: bool = False) -> None:
    """A table of the runs, `every` one or those that are neither done nor missing, and a line that
    counts them.
    """
    from localavg.cli import print_table

    rows = [
        {
            "run": name,
            "status": WORDS[s.kind],
            "updates": f"{s.t} of {s.T}" if s.T else "-",
            "": shorten(s.why, 60),
        }
        for name, s in states.items()
        if every or s.kind not in ("finished", "missing")
    ]
    if rows:
        print_table(title, rows)
    counts = {
        word: sum(WORDS[s.kind] == word for s in states.values())
        for word in dict.fromkeys(WORDS.values())
    }
    print(
        f"{'' if rows else title + ': '}{len(states)} runs: "
        + ", ".join(f"{n} {word}" for word, n in counts.items()),
        flush=True,
    )
