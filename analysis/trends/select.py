"""The runs that a claim compares: those that agree in all other settings, by their seeds."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import output
import quantities

from localavg.files.record import Run

from .rule import Decision, Values

SHARED = (  # settings in which runs that are compared must agree
    "problem",
    "data_name",
    "model",
    "learners",
    "batch_size",
    "lr",
    "optimizer",
    "momentum",
    "state",
    "lr_schedule",
    "factor",
    "milestones",
    "decay_every",
    "warmup_epochs",
    "sampling",
    "l2",
    "epochs",
    "steps",
    "no_augment",
)
SYMBOLS = {"learners": "P", "lr": "γ₀", "K1": "K₁", "K2": "K₂", "mu": "μ"}
Quantity: TypeAlias = Callable[[Run], float]


@dataclass(frozen=True)
class Finding:
    """What the runs show of a claim in one place: a problem and its settings."""

    where: str
    decision: Decision
    numbers: str

    @property
    def verdict(self) -> str:
        """The verdict of the decision."""
        return self.decision.verdict


Check: TypeAlias = Callable[[list[Run]], Iterator[Finding]]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper's figure.

    text: what is claimed. sweep: whose runs decide. scale: where it would be decided if no number
    of seeds does here.
    """

    text: str
    sweep: str
    check: Check
    scale: str = "--scale gpu, with the paper's P and epochs"


def alike(found: Iterable[Run], *but: str) -> list[list[Run]]:
    """Group the ended runs that agree in all shared settings except those named in `but`."""
    left_out = {*but, "steps"} if "learners" in but else set(but)
    shared = [name for name in SHARED if name not in left_out]
    groups: dict[str, list[Run]] = {}

    def place(run: Run) -> tuple[str, int]:
        return quantities.problem(run), run.config.get("learners") or 0

    for run in sorted(found, key=place):
        if run.status == "finished" or quantities.diverged(run):
            groups.setdefault(str([run.config.get(name) for name in shared]), []).append(run)
    return list(groups.values())


def chosen(found: Iterable[Run], algorithm: str | None = None, **settings: Any) -> list[Run]:
    """Return the runs of an algorithm (None: of all) with these settings."""
    return [
        run
        for run in found
        if algorithm in (None, run.config["algorithm"])
        and all(run.config.get(name) == x for name, x in settings.items())
    ]


def of(
    found: Iterable[Run], quantity: Quantity, algorithm: str | None = None, **settings: Any
) -> Values:
    """Return a quantity of the `chosen` runs, by seed."""
    return {run.config.get("seed"): quantity(run) for run in chosen(found, algorithm, **settings)}


def always(values: Values, x: float) -> Values:
    """Return the number x for all seeds of `values`."""
    return dict.fromkeys(values, x)


def settings_of(found: Iterable[Run], name: str, algorithm: str) -> list[Any]:
    """Return the values of a setting among the runs of an algorithm, sorted."""
    runs = chosen(found, algorithm)
    return sorted({run.config[name] for run in runs if run.config.get(name) is not None})


def mean(values: Values, digits: int = 2) -> str:
    """Write mean ± standard deviation and, in brackets, the number of values."""
    return f"{output.spread(list(values.values()), digits)} ({len(values)})"


def loss(run: Run) -> float:
    """Return the training loss at the end; of a diverged run that of guessing."""
    if quantities.diverged(run):
        return float(np.log(run.config.get("classes") or 10))
    return quantities.end(run, "train_loss")


def where(run: Run, *names: str, **more: Any) -> str:
    """Write the problem, these settings of a run, and more settings."""
    settings = {name: run.config.get(name) for name in names} | more
    words = [f"{SYMBOLS.get(name, name)} = {value}" for name, value in settings.items()]
    return ", ".join([quantities.problem(run), *words])
