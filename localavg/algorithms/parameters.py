"""The options of an algorithm, read from the parameters of its function.

    K: Annotated[int, "local updates between averages"] = 16
    Ks: Annotated[float, FractionOfT("Ks", 0.25, "…")]
    **common: Unpack[Common]

The last stands for the keys of a TypedDict, options that several algorithms have in common; one
that is not given is None.
In Python every length is a number of local updates. A `Length` is one that the command line takes
in another unit. It is converted to updates when the length of the run is known.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, wraps
from numbers import Real
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar, get_args, get_type_hints

from localavg.algorithms.base import Algorithm
from localavg.errors import LARGEST, UserError, bad, like, positive, whole
from localavg.interfaces import Settings

Given = ParamSpec("Given")
Made = TypeVar("Made")

AUTO = "auto"
"""a period that is chosen while training"""
OR_AUTO = "or auto, chosen while training by the time of averages and the spread of the learners"
FILLED_IN = {
    "P",
    "momentum",
    "step_size",
}  # settings of the run that a function may take; they are no options


@dataclass(frozen=True)
class Length(ABC):
    """A length on the command line: the option's name, its default, and its help with the unit."""

    name: str
    default: int | float | str | None
    help: str
    kind: ClassVar[type] = float
    """what the command line takes, if the default is None"""

    @property
    def takes(self) -> Callable[[str], Any]:
        """What turns a word of the command line into a value."""
        return self.kind if self.default is None else type(self.default)

    @abstractmethod
    def updates(self, value: Any, T: int, epoch: float) -> Any:
        """Return `value` in local updates; the run has T of them, an epoch has `epoch`."""

    def meaning(self, value: Any) -> object:
        """Return what is equal for all values, not None, that mean the same in any run."""
        return value


MOST_EPOCHS = 1e9
"""largest number of epochs: no run is as long"""


def updates_or_auto(text: str) -> int | str:
    """Convert a period: a number of updates, or the word auto."""
    return AUTO if text == AUTO else int(text)


class Period(Length):
    """A fixed period, in updates everywhere; or auto, which chooses it while training."""

    @property
    def takes(self) -> Callable[[str], Any]:
        return updates_or_auto

    def updates(self, value: int | str, T: int, epoch: float) -> int | str:
        return value


class FractionOfT(Length):
    """A fraction of T below 1, or a whole number of updates."""

    def updates(self, value: float, T: int, epoch: float) -> int:
        positive(self.name, value)
        # 0.29 · 100 is 29, not 28.999999999999996
        if value >= 1 and (value > LARGEST or int(value) != value):
            rule = "must be a whole number of updates below 2^63, or a fraction of the run below 1"
            raise bad(self.name, value, rule)
        return int(round(value * T, 9)) if value < 1 else int(value)


class Epochs(Length):
    """A number of epochs, rounded up to whole updates; None stays None."""

    def updates(self, value: float | None, T: int, epoch: float) -> int | None:
        if value is None:
            return None
        if not 0 <= value <= MOST_EPOCHS:
            rule = f"must be a number of epochs of at least 0 and at most {MOST_EPOCHS:g}"
            raise bad(self.name, value, rule)
        return math.ceil(round(value * epoch, 9))


class StagesInEpochs(Length):
    """A period for each stage, FROM_EPOCH:K,FROM_EPOCH:K,…; in updates: pairs (from_t, K)."""

    def updates(self, value: str, T: int, epoch: float) -> list[tuple[int, int]]:
        return [(round(start * epoch), K) for start, K in self.meaning(value)]

    def meaning(self, value: str) -> list[tuple[float, int]]:
        try:
            pairs = [stage.split(":") for stage in value.split(",")]
            stages = [(float(start), int(K)) for start, K in pairs]
        except ValueError:
            stages = []
        starts = [start for start, _ in stages]
        if not stages or not all(0 <= start <= MOST_EPOCHS for start in starts):
            rule = "must read FROM_EPOCH:K,FROM_EPOCH:K,… such as 0:4,80:8"
            raise bad(self.name, value, rule)
        if starts[0] != 0 or sorted(set(starts)) != starts:
            rule = "the first stage must begin at epoch 0, and each other one after the one before"
            raise bad(self.name, value, rule)
        return stages


@dataclass(frozen=True)
class Option:
    """An option of an algorithm on the command line.

    parameter: the parameter of the function that takes it. length: how to convert it to updates,
    None if no conversion is needed.
    """

    name: str
    parameter: str
    kind: Callable[[str], Any]
    default: object
    help: str
    length: Length | None


class Declared(NamedTuple):
    """A parameter of an algorithm's function, or a key of its `**common`."""

    default: object
    hint: object


@cache
def declared(function: Callable) -> dict[str, Declared]:
    """Return what an algorithm's function takes, by name, its common options one by one."""
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Declared] = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            (common,) = get_args(hints.get(p.name)) or (None,)  # of Unpack[Common]
            if common is None:
                raise UserError(f"`**{p.name}` of an algorithm: declare it as Unpack[Common]")
            keys = get_type_hints(common, include_extras=True)
            found |= {name: Declared(None, hint) for name, hint in keys.items()}
        else:
            found[p.name] = Declared(p.default, hints.get(p.name))
    return found


@cache
def options_of(function: Callable) -> dict[str, Option]:
    """Return the options of an algorithm's function, by their names on the command line.

    These are all its parameters except those in FILLED_IN.
    """
    found = [_option(name, p) for name, p in declared(function).items() if name not in FILLED_IN]
    return {option.name: option for option in found}


def arguments(
    function: Callable, given: Settings, T: int, epoch: float, run: Settings
) -> dict[str, object]:
    """Return the arguments of an algorithm's function.

    These are its options, `given` or by default, with lengths in updates, and the settings of the
    `run` that it takes.
    """
    found = {name: run[name] for name in declared(function) if name in run}
    for option in options_of(function).values():
        value, length = given.get(option.name, option.default), option.length
        found[option.parameter] = length.updates(value, T, epoch) if length else value
    return found


def algorithm(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorate a function of the table: it refuses arguments of another kind than it declares.

    What it makes has its name and its arguments, if that is an `Algorithm`.
    """
    signature, takes = inspect.signature(function), declared(function)

    @wraps(function)
    def make(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        if stray := [name for name in kwargs if name not in takes]:
            meant = f"; did you mean {known}?" if (known := like(stray[0], takes)) else ""
            raise UserError(f"{function.__name__} takes {', '.join(takes)}, not {stray[0]}{meant}")
        bound = signature.bind(*args, **kwargs)
        given = {**{name: p.default for name, p in takes.items()}, **bound.arguments, **kwargs}
        given = {name: given[name] for name in takes if given[name] is not inspect.Parameter.empty}
        for name, value in given.items():
            _check_kind(name, value, _bare(takes[name].hint))
        made = function(*args, **kwargs)
        if isinstance(made, Algorithm):
            options = {k: v for k, v in given.items() if k not in FILLED_IN}
            return replace(made, name=function.__name__, options=options)
        return made

    return make


def _check_kind(name: str, value: object, hint: object) -> None:
    """Raise UserError if a value is not of the plain kind that its hint declares."""
    kind = _plain(hint)
    if kind is None or (value is None and type(None) in get_args(hint)):
        return
    if kind is int:
        whole(name, value)
    elif kind is float:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise bad(name, repr(value), "must be a number, such as 0.5")
    elif not isinstance(value, kind):
        raise bad(name, repr(value), f"must be of type {kind.__name__}")


def _plain(hint: object) -> type | None:
    """Return which of bool, int, float and str a hint declares, None for several or none."""
    kinds = (hint, *get_args(hint))
    plain = [kind for kind in (bool, int, float, str) if kind in kinds]
    return plain[0] if len(plain) == 1 else None


def _bare(hint: Any) -> object:
    """Return a hint without its note."""
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _option(name: str, p: Declared) -> Option:
    note = next(iter(getattr(p.hint, "__metadata__", ())), "")
    kind = _plain(_bare(p.hint))
    if isinstance(note, Length):
        return Option(note.name, name, note.takes, note.default, note.help, note)
    if kind is None:
        raise UserError(f"`{name}` of an algorithm: declare it as bool, int, float or str")
    return Option(name, name, kind, p.default, note, None)
