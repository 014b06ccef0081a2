"""Runs of Downpour and EAMSGD: learners, servers of the center variable, and their messages.

The arithmetic is in `localavg.algorithms.center`. `learners` makes local updates, and `log` records
the order of arrival. `client` and `server` send real `messages`; `simulate` uses the same parts in
the order that `localavg.simulate.arrivals` models. `run` starts either kind of run.
"""
