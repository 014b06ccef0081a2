"""``localavg theory``: print the papers' bounds, conditions and predictions as tables.

`command` prints them, `runs` measures a problem's constants on the problems of run files.
"""
