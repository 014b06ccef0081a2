"""Curves of runs with matplotlib: the loss against updates and seconds, and the periods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from localavg.errors import UserError, pip_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (9.0, 2.8)  # inches of a figure with three panels


def new_figure(shown: bool) -> Figure:
    """Make an empty figure. shown: by pyplot, which shows it in a notebook.

    Raises UserError where matplotlib is not installed.
    """
    try:
        if shown:
            from matplotlib import pyplot

            return pyplot.figure(figsize=PANELS, layout="constrained")
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "matplotlib":
            raise
        raise UserError(
            f"curves are drawn by matplotlib, which is not installed: {pip_install('matplotlib')}"
        ) from e
    return Figure(figsize=PANELS, layout="constrained")


def draw(figure: Figure, runs: Mapping[str, Any]) -> list[Axes]:
    """Draw runs by their names into an empty figure, and return its three panels.

    They are the training loss of the averaged model against local updates and against seconds of
    training, and the periods of averages against updates. A run without evaluations shows the
    learners' mini-batch loss.
    """
    panels = list(figure.subplots(1, 3))
    for name, run in runs.items():
        rows, column = (run.eval, "train_loss") if len(run.eval) else (run.train, "loss")
        label = name if len(run.eval) else f"{name} (mini-batches)"
        mark = "." if len(rows) < 30 else ""
        (line,) = panels[0].plot(rows.t, rows[column], marker=mark, label=label)
        look = {"marker": mark, "color": line.get_color()}
        panels[1].plot(rows.wall_s, rows[column], **look)
        if len(run.averages):
            panels[2].step(run.averages.t, run.averages.period, where="pre", color=line.get_color())
    seconds = {bool(run.config.get("simulate")) for run in runs.values()}
    unit = "modelled s" if seconds == {True} else "s, some modelled" if True in seconds else "s"
    panels[0].set(xlabel="local updates", ylabel="training loss")
    panels[1].set(xlabel=f"training ({unit})", ylabel="training loss")
    panels[2].set(xlabel="local updates", ylabel="period (updates)", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=min(4, max(1, len(runs))), frameon=False)
    return panels
