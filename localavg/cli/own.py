"""Algorithms of the user's own, which `localavg.train` takes in place of a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from localavg import algorithms
from localavg.algorithms.parameters import declared, options_of
from localavg.cli.train import check_names
from localavg.errors import UserError

FORM = "def mine(K: int = 16) -> Algorithm, as a row of the table is made (CONTRIBUTING.md)"


def name_of(function: Callable[..., algorithms.Algorithm]) -> str:
    """Put a function that makes an Algorithm into the table, and return its name there.

    It stays there while the process lives. Another function of its name takes its place, so that a
    cell of a notebook can run again. Raises UserError where a run could not take its options.
    """
    name = getattr(function, "__name__", "")
    known = algorithms.BOTH.get(name)
    if known is function:
        return name
    if not inspect.isfunction(function) or not name.isidentifier():
        raise UserError(f"algorithm {function}: must be a name, or a function: {FORM}")
    if known is not None and known.__module__.startswith("localavg."):
        raise UserError(f"algorithm {name}: localavg has one of this name; give yours another one")
    _check_options(name, function)
    algorithms.BOTH[name] = algorithms.ALGORITHMS[name] = function
    return name


def _check_options(name: str, function: Callable) -> None:
    """Raise UserError unless each parameter can be an option of a run."""
    check_names(name, declared(function))
    for parameter, about in declared(function).items():
        if about.default is inspect.Parameter.empty:
            raise UserError(f"algorithm {name}: `{parameter}` needs a default: {FORM}")
    options_of(function)
