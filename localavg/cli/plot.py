"""``localavg plot RUN…``: draw the curves of runs into a file."""

from __future__ import annotations

import argparse

from localavg.cli import Commands
from localavg.errors import FINISHED, UserError


def add(commands: Commands) -> None:
    """Declare the command."""
    p = commands.add_parser(
        "plot",
        help="draw the curves of runs into a file",
        description="Draw the training loss of runs against local updates and against seconds, and "
        "the periods of their averages. It needs matplotlib.",
    )
    p.add_argument("runs", metavar="RUN", nargs="+", help="a run file, or a folder of run files")
    p.add_argument(
        "--out",
        metavar="FILE",
        default="curves.png",
        help="the picture, whose ending names its format, such as .png, .pdf or .svg; an earlier "
        "one is replaced (default: %(default)s)",
    )
    p.set_defaults(call=_plot)


def _plot(args: argparse.Namespace) -> int:
    from localavg.files import drawing
    from localavg.files.compare import names
    from localavg.files.reading import load_many

    figure = drawing.new_figure(shown=False)
    runs = load_many(args.runs)
    drawing.draw(figure, dict(zip(names(runs), runs, strict=True)))
    try:
        figure.savefig(args.out, dpi=150)
    except (OSError, ValueError) as e:  # ValueError: a format that matplotlib does not know
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise UserError(f"--out {args.out}: {why}; give another file") from e
    print(args.out)
    return FINISHED
