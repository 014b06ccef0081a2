"""Sweeps: many runs from one TOML file. `plan` says which, `state` what became of them, `launch`
runs one.
"""
