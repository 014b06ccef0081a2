"""``localavg doctor``: check whether training will work here.

`facts` defines what it knows, `gather` finds it out, `advice` draws conclusions, and `command`
prints both.
"""
