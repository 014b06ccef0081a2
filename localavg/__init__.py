"""SGD with local updates and periodic averaging over MPI.

    Fleet                   the learners on the ranks of a communicator
    attach                  averages the models of your own torch loop
    kavg, mavg, adpsgd, …   the algorithms for `attach`: all synchronous ones of
                            localavg.algorithms; lengths are numbers of local updates
    train                   trains as the command line does, and returns the Run
    load, Run               reads a run file as pandas DataFrames
    compare                 a table of runs
    Recovered               what `attach` raises when ranks died and the others can go on
    UserError               a mistake in a call, setting or file of the user

Importing the package does not import MPI, torch, CuPy, h5py or NumPy: a module is imported when
one of its names is first used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Fleet": "parallel.fleet",
    "attach": "attaching.attach",
    "train": "library",
    "load": "files.record",
    "Run": "files.record",
    "compare": "files.compare",
    "Recovered": "attaching.recovery",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"localavg.{_HOME[name]}"), name)
    if name == "__all__":
        return [*_HOME, *_algorithms(), "__version__"]
    if find_spec(f"{__name__}.{name}"):  # a module: `from localavg import errors` imports it next
        raise AttributeError(name)
    if not name.startswith("_") and name in (table := _algorithms()):
        return table[name]
    raise AttributeError(f"module 'localavg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | {*_HOME, *_algorithms()})


def _algorithms() -> dict[str, object]:
    return import_module("localavg.algorithms").ALGORITHMS
