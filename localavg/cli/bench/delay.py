"""``localavg bench delay``: its options, and the rows that it asks for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from localavg.cli import Commands, above_0, at_least_1
from localavg.cli.bench import WAYS, options

if TYPE_CHECKING:
    from mpi4py import MPI

    from localavg.cli.bench import Row
    from localavg.parallel.probe import Probe


def add(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench delay`."""
    s = whats.add_parser(
        "delay",
        help="time rounds with averages at once, delayed and never, under mpirun",
        description="Time rounds of updates that sleep, as a rank does while its GPU works, or "
        "that compute on the device, with an average at the end of each that is made at once, "
        "delayed by a round, or never made. Print what part of an average the delay hides, and the "
        "CPU seconds that it takes, divided by the cores.",
    )
    wholes = (
        ("sizes", [4_000_000], "floats in a row", "+"),
        ("K", 4, "updates in a round", None),
        ("rounds", 3, "rounds that are timed together", None),
        ("repeats", 5, "turns, whose medians are printed", None),
    )
    for name, default, what, nargs in wholes:
        text = " ".join(map(str, default)) if isinstance(default, list) else default
        s.add_argument(
            f"--{name}",
            type=at_least_1,
            nargs=nargs,
            default=default,
            metavar="N",
            help=f"{what} (default: {text})",
        )
    s.add_argument(
        "--algorithms",
        nargs="+",
        choices=("kavg", "mavg", "diloco", "slowmo"),
        default=["kavg", "mavg", "diloco"],
        metavar="NAME",
        help="average as these algorithms do (default: kavg mavg diloco)",
    )
    s.add_argument(
        "--updates",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        metavar="WAY",
        help=f"let updates do this (default: {' '.join(WAYS)})",
    )
    s.add_argument(
        "--length",
        type=above_0,
        default=1.0,
        metavar="X",
        help="let the updates of a round take X times as long as one average (default: 1)",
    )
    options.add_device(s, "average rows, and compute updates,")
    s.add_argument(
        "--ranks-per-node",
        type=at_least_1,
        metavar="N",
        help="treat every N ranks of a host as one node (default: all ranks of a host)",
    )
    return s


def rows(args: argparse.Namespace, world: MPI.Intracomm, aware: Probe | None) -> list[Row]:
    """Return the rows of the benchmark. Collective."""
    from localavg.cli.bench.hiding import bench_hiding
    from localavg.parallel.device import choose_device
    from localavg.parallel.fleet import Fleet

    fleet = Fleet(world, None, args.ranks_per_node)
    device = choose_device(args.device, fleet)
    how = args.sizes, args.algorithms, args.updates, args.K, args.rounds, args.repeats
    return bench_hiding(fleet, *how, args.length, device, aware)
