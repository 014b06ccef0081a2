"""Sweeps: many runs from one TOML file.

`plan` expands the file to runs, `state` finds the state of a run, `folder` that of all runs in a
folder, `launch` starts runs here and `submit` hands them to a batch system.
"""
