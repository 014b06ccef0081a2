"""Downpour and EAMSGD at work: learners, servers of the center variable, and the messages between
them.

The arithmetic is `localavg.center`'s. `learners` makes local updates, `log` keeps the order of
arrival; `client` and `server` send real `messages`, `simulate` drives the same pieces by the
`arrivals` of a modelled machine; `run` makes a run of either.
"""
