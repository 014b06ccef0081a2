"""SGD with local updates and periodic averaging over MPI.

Importing the package loads neither MPI, torch, CuPy nor h5py: a name below is looked up in its
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
    "sync": "algorithms.sync",
    "qsgd": "algorithms.qsgd",
    "kavg": "algorithms.kavg",
    "oneshot": "algorithms.lupa",
    "adalupa": "algorithms.lupa",
    "mavg": "algorithms.mavg",
    "hieravg": "algorithms.hieravg",
    "adpsgd": "algorithms.adpsgd",
    "piecewise": "algorithms.adpsgd",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'localavg' has no attribute {name!r}")
    return getattr(import_module(f"localavg.{_HOME[name]}"), name)
