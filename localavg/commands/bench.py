"""``localavg bench WHAT``: speed and memory against what the machine can do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from localavg.commands import at_least_1, print_table, rank, world
from localavg.config import UserError


def add(commands: Any) -> None:
    """The three benchmarks."""
    p = commands.add_parser("bench", help="measure speed and memory against what the machine can do")
    whats = p.add_subparsers(dest="what", required=True, metavar="WHAT")

    s = whats.add_parser("train", help="local updates of one learner against a bare loop and the floor of reading the data")
    s.add_argument("--problem", choices=("logistic",), default="logistic")
    s.add_argument("--data", default="epsilon-like:200000x2000")
    s.add_argument("--batch-size", type=at_least_1, default=128)
    s.add_argument("--steps", type=at_least_1, default=21_875)
    s.add_argument("--repeats", type=at_least_1, default=7)
    s.set_defaults(call=_train)

    s = whats.add_parser("memory", help="the memory of a training run against its data, under mpirun")
    s.add_argument("--data", default="epsilon-like")
    s.add_argument("--steps", type=at_least_1, default=50)
    s.set_defaults(call=_memory)

    s = whats.add_parser("average", help="one average against Allreduce, torch's averager and the floor, under mpirun")
    s.add_argument("--sizes", type=at_least_1, nargs="+", metavar="N", help="floats in a row (default: 2 000 … 25.6 million)")
    s.add_argument("--learners", type=at_least_1, help="P (default: one a rank)")
    s.add_argument("--ranks-per-node", type=at_least_1, help="split each machine into nodes of so many ranks")
    s.add_argument("--transport", choices=("auto", "mpi", "shared"), default="auto")
    s.add_argument("--repeats", type=at_least_1, default=11)
    s.set_defaults(call=_average)

    for s in whats.choices.values():
        s.add_argument("--json", metavar="FILE", help="write the rows there too")


def _train(args: argparse.Namespace) -> int:
    from localavg.bench import bench_train
    from localavg.fleet import Fleet

    rows = bench_train(Fleet(world()), args.data, args.batch_size, args.steps, args.repeats)
    return _tell("one learner's local updates", rows, args.json)


def _memory(args: argparse.Namespace) -> int:
    from localavg.bench import bench_memory

    return _tell("memory of a training run", bench_memory(world(), args.data, args.steps), args.json)


def _average(args: argparse.Namespace) -> int:
    from localavg.bench_average import SIZES, bench_average
    from localavg.fleet import Fleet

    fleet = Fleet(world(), args.learners, args.ranks_per_node)
    rows = bench_average(fleet, args.transport, args.sizes or SIZES, args.repeats)
    return _tell("one average (s), and ours against it", rows, args.json, ratios=("allreduce_s", "torch_s", "floor_s"))


def _tell(title: str, rows: list[dict[str, Any]], path: str | None, ratios: tuple[str, ...] = ()) -> int:
    """Print rows, one below the other where there is one, with ours_s against the columns of `ratios`; write them to path."""
    if rank() == 0:
        shown = [row | {name.replace("_s", " / ours"): row[name] / row["ours_s"] for name in ratios} for row in rows]
        print_table(title, shown if len(rows) > 1 else [{"": key, " ": value} for key, value in shown[0].items()])
        if path:
            try:
                with open(path, "w") as f:
                    json.dump(rows, f, indent=1)
            except OSError as e:
                raise UserError(f"--json {path}: {e.strerror}; give a file you can write") from e
    return 0
