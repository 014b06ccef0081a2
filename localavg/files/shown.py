"""Runs in words: the lines of a printed `Run`, and the row of one in a table of several."""

from __future__ import annotations

import math
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from localavg.config import TrainConfig
from localavg.interfaces import Settings

SHOWN = ("learners", "batch_size", "lr", "seed")
"""settings in a printed Run, after the algorithm's own and the data"""
END = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
COMMON = {f.name for f in fields(TrainConfig)}
ADDED = {"rows", "d", "data_name", "test_rows", "bench"}
"""what /config has in addition to settings"""


def lines(run: Any) -> str:
    """Return three lines about a Run: what it is, where it ended, and where its file lies."""
    return "\n  ".join((_what(run.config), _end(run), _place(run)))


def own_options(config: Settings) -> Settings:
    """Return the algorithm's own options in the settings of a run file, those that are set."""
    return {
        name: value
        for name, value in config.items()
        if name not in COMMON | ADDED and value is not None
    }


def last(run: Any) -> dict[str, float]:
    """Return what the last evaluation of a Run found, without what was not computed."""
    if not len(run.eval):
        return {}
    row = run.eval.iloc[-1]
    return {name: float(row[name]) for name in END if not math.isnan(row[name])}


def wall_s(run: Any) -> float:
    """Return the seconds of training, evaluations left out; NaN where nothing is recorded."""
    walls = [float(t.wall_s.iloc[-1]) for t in (run.train, run.eval) if len(t)]
    return max(walls, default=math.nan)


def updates(run: Any) -> int:
    """Return the updates of a learner that are recorded."""
    return max((int(t.t.iloc[-1]) for t in (run.train, run.eval) if len(t)), default=0)


def _what(config: Settings) -> str:
    """Return the algorithm with its options, the data, and the main settings."""
    if bench := config.get("bench"):
        return f"bench {bench}"
    given = {
        **own_options(config),
        "data": config.get("data_name", config.get("data")),
        "model": config.get("model"),
        **{name: config.get(name) for name in SHOWN},
    }
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    return f"{config.get('algorithm', 'no algorithm')}: {', '.join(words) or 'no settings'}"


def _end(run: Any) -> str:
    """Return the state of a run, its length and its last evaluation."""
    if run.rows is not None:
        return f"{run.status}, {len(run.rows)} rows in .rows"
    modelled = "modelled " if run.config.get("simulate") else ""
    took = f", {wall_s(run):.3g} {modelled}s" if not math.isnan(wall_s(run)) else ""
    of = f" of {run.config['steps']}" if run.config.get("steps") else ""
    at = int(run.eval.t.iloc[-1]) if len(run.eval) else 0
    found = ", ".join(f"{name} {value:.4g}" for name, value in last(run).items())
    if found:
        found = f", {found}" if at == updates(run) else f", after update {at} {found}"
    why = run.attrs.get("failure") if run.status != "finished" else None
    return f"{run.status}: {updates(run)}{of} updates{took}{found}" + (f" ({why})" if why else "")


def _place(run: Any) -> str:
    """Return the path of the file; of one that is marked running, when it was written last."""
    if run.status != "running":
        return f"in {run.path}"
    host = str(run.provenance.get("process", "")).partition(" ")[0]
    on = f" by a process on {host}" if host else ""
    try:
        age = f"{time.time() - Path(run.path).stat().st_mtime:.0f} s ago"
    except OSError:
        age = "and is gone now"
    return f"in {run.path}, written{on} {age}"


def row(run: Any) -> dict[str, Any]:
    """Return the row of a Run in a table of several."""
    averages = run.averages
    sent = averages.bytes_node.sum() + averages.bytes_cross.sum()
    return {
        "status": run.status,
        "updates": updates(run),
        "averages": len(averages),
        "bytes": int(sent),
        **{name: last(run).get(name, math.nan) for name in END},
        "seconds": wall_s(run),
        "average_s": float(averages.seconds.sum()),
    }
