"""Options that several commands of analysis/ have."""

import argparse
from pathlib import Path


def add_scale(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare --scale: do `what` with the runs of sweeps at this scale."""
    parser.add_argument(
        "--scale",
        default="laptop",
        choices=("laptop", "digits", "root", "paper", "gpu"),
        help=f"{what} the runs of sweeps at this scale (default: %(default)s)",
    )


def add_figures(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    """Declare the option `name`, the folder of the figures: do `what` with it."""
    parser.add_argument(
        name, type=Path, default=Path("figures"), help=f"{what} this folder (default: %(default)s)"
    )
