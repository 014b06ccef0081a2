"""What is trained. `logistic.py` is the plain example; `network.py` trains torch modules.

A problem of your own has the methods of `interfaces.Problem`.
"""

from localavg.interfaces import Problem

__all__ = ["Problem"]
