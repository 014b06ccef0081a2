"""The data that runs of a sweep need and that is not here, and what brings it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from localavg.cli.sweep.plan import Planned
from localavg.datasets import NAMED, where
from localavg.training import checks

BRINGS = {  # prepared file, without its suffix → the command that makes it
    "cifar10": "make cifar10",
    "fashion-mnist": "make fashion-mnist",
    "fashion-mnist-8": "make fashion-mnist",
    "upper-body": "make fashion-mnist",
    "even-odd": "make data/digits/even-odd.h5",
    "epsilon": "localavg prepare epsilon (data/epsilon/README.md)",
    "imagenet": "localavg prepare imagenet (data/imagenet/README.md)",
}


def without_data(todo: Sequence[Planned]) -> list[str]:
    """Describe each data set that is not here, in one line for all runs that need it.

    What the jobs will copy to their nodes, as the variable STAGE tells the templates, is here.
    """
    copied = map(Path, os.environ.get("STAGE", "").split())
    staged = {path.name for path in copied if path.is_file()}
    needed = Counter(str(checks.read(run.given).data) for run in todo)
    return [
        f"data {spec}: {count} run{'s need' if count > 1 else ' needs'} it, and there is no such "
        f"file, here or in {where.places(file)[-1].parent}; run "
        f"{BRINGS.get(Path(file).stem, 'localavg prepare (see its --help)')}, or give another by "
        "--set data=FILE.h5"
        for spec, count in needed.items()
        if (file := _file(spec)) and where.found(file) is None and file not in staged
    ]


def _file(spec: str) -> str:
    """Return the prepared file of a data set, "" for a set that needs none."""
    name = spec.partition(":")[0]
    if name == "fashion-mnist":
        return f"{name}.h5"
    return "" if name in NAMED else spec
