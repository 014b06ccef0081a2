"""``localavg.compare``: several runs in one table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import shown
from localavg.files.reading import Run, load_many

if TYPE_CHECKING:
    from pandas import DataFrame

ALWAYS = ("algorithm", "learners")
UNCOMPARED = {*ALWAYS, "options", "out", "resume"}


def compare(runs: Iterable[Run | str | os.PathLike[str]] | str | os.PathLike[str]) -> DataFrame:
    """Return a table with a row a run: how it was made, how it ended, and what it cost.

    runs: Runs, run files and folders of them, also mixed. Columns: algorithm, its own options,
    learners, the common settings in which the runs differ; then status, updates, averages, bytes
    that they sent, losses and accuracies of the averaged model at the end (NaN where not computed),
    seconds of training without evaluations, and average_s, the seconds in averages without waiting.
    Raises UserError as `load_many` does, and where there is nothing to compare.
    """
    from pandas import DataFrame

    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    found = [run for x in given for run in ([x] if isinstance(x, Run) else load_many(x))]
    if not found:
        raise UserError("compare: no runs; give a list of Runs, run files or folders")
    own = [shown.own_options(run.config) for run in found]
    options = list(dict.fromkeys(name for set_ in own for name in set_))
    common = _differing(found)
    rows = [
        {"algorithm": run.config.get("algorithm")}
        | {name: set_.get(name) for name in options}
        | {name: run.config.get(name) for name in ("learners", *common)}
        | shown.row(run)
        for run, set_ in zip(found, own, strict=True)
    ]
    table = DataFrame(rows, index=names(found)).rename_axis("run")
    return table.astype(table[options].convert_dtypes().dtypes)  # whole numbers where some lack


def names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its file's, with the folder where several files have it."""
    count = Counter(run.path.stem for run in runs)
    return [run.path.stem if count[run.path.stem] == 1 else str(run.path) for run in runs]


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the common settings in which some runs differ, in the order of the command line."""
    return [
        f.name
        for f in fields(TrainConfig)
        if f.name not in UNCOMPARED and len({str(run.config.get(f.name)) for run in runs}) > 1
    ]
