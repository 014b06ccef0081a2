"""SGD with local updates and periodic averaging over MPI.

    Fleet                   the learners over the ranks of a communicator
    attach                  average the models of your own torch loop
    kavg, mavg, adpsgd, …   what `attach` does: every synchronous algorithm of localavg.algorithms;
                            lengths are numbers of local updates
    load                    a run file as pandas DataFrames
    UserError               a mistake in what was asked for

Importing the package loads neither MPI, torch, CuPy, h5py nor NumPy: a name is looked up in its
module when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Fleet": "parallel.fleet",
    "attach": "attaching.averager",
    "load": "files.record",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"localavg.{_HOME[name]}"), name)
    if name == "__all__":
        return [*_HOME, *_algorithms(), "__version__"]
    if not name.startswith("_") and name in (table := _algorithms()):
        return table[name]
    raise AttributeError(f"module 'localavg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | {*_HOME, *_algorithms()})


def _algorithms() -> dict[str, Any]:
    return import_module("localavg.algorithms").ALGORITHMS
