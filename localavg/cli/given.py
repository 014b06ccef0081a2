"""Settings that are given in Python, by their names and kinds on the command line."""

from __future__ import annotations

import os
from dataclasses import Field, fields
from numbers import Real
from typing import Any

from localavg import algorithms
from localavg.algorithms.parameters import AUTO, Option, updates_or_auto
from localavg.cli import flag
from localavg.cli.own import name_of
from localavg.cli.parser import meant
from localavg.cli.train import ALSO, kind_of
from localavg.config import TrainConfig
from localavg.errors import UserError, bad, whole
from localavg.interfaces import Settings


def read(given: Settings) -> dict[str, object]:
    """Return the settings as the command line would give them, those that are given."""
    algorithm = given["algorithm"]
    if not isinstance(algorithm, str):
        algorithm = name_of(algorithm)
    if algorithm not in algorithms.BOTH:
        raise algorithms.unknown(algorithm)
    earlier = {word.removeprefix("--"): name for name, words in ALSO.items() for word in words}
    found: dict[str, object] = {"algorithm": algorithm}
    for said, value in given.items():
        name = earlier.get(said, said)
        if name != "algorithm" and value is not None and value is not False:
            found[name] = _value(name, value, _known(algorithm).get(name))
    if not found.get("out") and (useless := {"resume", "checkpoint_every"} & found.keys()):
        raise UserError(f"`{min(useless)}` needs `out`: without it every run is in a new file")
    if found.get("on_failure") == "continue":
        raise UserError(
            "`on_failure = continue`: a program with lost ranks cannot go on after the run; use "
            "the command line, or leave it out"
        )
    return found


def _known(algorithm: str) -> dict[str, Field | Option]:
    """Return the settings that a run with this algorithm may have, and the options of others."""
    own = {name: x for a in algorithms.BOTH for name, x in algorithms.declared(a).items()}
    common = {f.name: f for f in fields(TrainConfig) if f.metadata["group"]}
    return {**own, **algorithms.declared(algorithm), **common}


def _value(name: str, value: Any, about: Field | Option | None) -> object:
    """Return a setting's value in its kind; UserError for another kind or an unknown setting."""
    if about is None and name != "nesterov":  # which `checks.read` translates
        known = {flag(setting): setting for setting in _known("kavg")}
        option = meant(flag(name), known)
        hint = f"; did you mean `{known[option]}`?" if option else ""
        raise UserError(f"`{name}`: no setting of a run has this name{hint}")
    if isinstance(about, Field) and isinstance(about.default, tuple):
        if not isinstance(value, list | tuple) or not value:
            raise bad(name, repr(value), "must be a list of numbers, such as [80, 120]")
        return tuple(_number(name, x) for x in value)
    kind: Any = (
        bool if about is None else kind_of(about) if isinstance(about, Field) else about.kind
    )
    if kind is updates_or_auto and value == AUTO:
        return AUTO
    if kind in (int, updates_or_auto):
        whole(name, value)
        return int(value)
    if kind is float:
        return _number(name, value)
    if kind is bool:
        if value is not True:
            raise bad(name, repr(value), "must be True or False")
        return True
    return _text(name, value)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise bad(name, repr(value), "must be a number, such as 0.5")
    return float(value)


def _text(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(text, str) or not text:
        raise bad(name, repr(value), "must be a text that is not empty")
    return text
