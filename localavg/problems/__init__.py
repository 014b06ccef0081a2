"""The problems that are trained: `logistic.py`, the simple example, and `network.py`, with torch.

A problem of your own has the methods of `interfaces.Problem`.
"""

from localavg.interfaces import Problem

__all__ = ["Problem"]
