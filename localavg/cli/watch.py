"""``localavg status DIR --watch``: print the states of runs again and again while some run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localavg.cli.sweep.state import State

EVERY_S = 2.0  # run files are written about as often
CLEAR = "\x1b[H\x1b[2J"  # what empties a terminal
QUIET = 2  # looks in a row without a running run that end it: a sweep starts its runs one by one


def watch(
    look: Callable[[], Mapping[str, State]],
    show: Callable[[Mapping[str, State]], None],
    every_s: float = EVERY_S,
) -> Mapping[str, State]:
    """Show the states until no run runs any more, or Ctrl-C; return the last ones.

    On a terminal `show` prints them all at the top, each time. Elsewhere each run that changed is
    a plain line, and `show` prints at the end only.
    """
    terminal, quiet, states = sys.stdout.isatty(), 0, look()
    seen: dict[str, str] = {}
    try:
        while True:
            lines = {name: line(name, state) for name, state in states.items()}
            if terminal:
                print(CLEAR, end="")
                show(states)
            else:
                for text in (text for name, text in lines.items() if seen.get(name) != text):
                    print(text, flush=True)
            seen = lines
            quiet = 0 if any(s.kind == "running" for s in states.values()) else quiet + 1
            if quiet == QUIET or (quiet and all(s.kind == "finished" for s in states.values())):
                break
            sleep(every_s)
            states = look()
    except KeyboardInterrupt:
        print()
    if not terminal:
        show(states)
    return states


def line(name: str, state: State) -> str:
    """Return the state of a run in one line."""
    words = [f"{name}: {word(state)}", progress(state), *pace(state).values(), state.why]
    return ", ".join(text for text in words if text)


def word(state: State) -> str:
    """Return the word for the state of a run.

    A run whose process is gone died. Where that cannot be seen from this host, it is silent.
    """
    stale = "silent" if state.why.startswith("silent") else "died"
    return {"finished": "done", "missing": "to do", "stale": stale}.get(state.kind, state.kind)


def progress(state: State) -> str:
    """Return how many updates of how many are made; "" where it is not known."""
    return f"{state.t} of {state.T} updates" if state.T else ""


def pace(state: State) -> dict[str, str]:
    """Return the last loss, and of a running run its rate and the time that is left, in words."""
    found = {} if state.loss is None else {"loss": f"loss {state.loss:.4g}"}
    if state.kind == "running" and state.rate:
        found["rate"] = f"{state.rate:.3g} updates/s"
        if state.T:
            found["left"] = f"{duration((state.T - state.t) / state.rate)} left"
    return found


def duration(seconds: float) -> str:
    """Return a time in its largest units, such as 45 s, 3 min or 2 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
