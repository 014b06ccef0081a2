"""``localavg bench WHAT``: speed and memory against what the machine can do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from localavg.cli import at_least_1, print_table, rank, world
from localavg.errors import UserError


def add(commands: Any) -> None:
    """The benchmarks."""
    p = commands.add_parser(
        "bench", help="measure speed and memory against what the machine can do"
    )
    whats = p.add_subparsers(dest="what", required=True, metavar="WHAT")

    s = whats.add_parser(
        "train",
        help="local updates against a bare loop and the floor",
        description="Local updates against a bare loop and the floor: logistic regression, or with "
        "--model a network on random images of its size.",
    )
    s.add_argument(
        "--problem", choices=("logistic", "network"), help="(default: what --model calls for)"
    )
    s.add_argument("--model", metavar="NAME", help="the network")
    s.add_argument(
        "--side",
        type=at_least_1,
        help="height and width of its images (default: those it was made for)",
    )
    s.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    s.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where a network is trained"
    )
    s.add_argument(
        "--learners",
        type=at_least_1,
        default=1,
        help="of a network, against a bare loop of one (default: 1)",
    )
    s.add_argument("--cuda-graphs", action="store_true", help="as in training")
    s.add_argument(
        "--data",
        default="epsilon-like:200000x2000",
        help="of logistic regression (default: %(default)s)",
    )
    s.add_argument("--batch-size", type=at_least_1, help="(default: 128; for networks 64)")
    s.add_argument("--steps", type=at_least_1, help="(default: 21875; for networks 10)")
    s.add_argument("--repeats", type=at_least_1, default=7)
    s.set_defaults(call=_train)

    s = whats.add_parser(
        "memory", help="the memory of a training run against its data, under mpirun"
    )
    s.add_argument("--data", default="epsilon-like")
    s.add_argument("--steps", type=at_least_1, default=50)
    s.set_defaults(call=_memory)

    s = whats.add_parser(
        "average",
        help="one average against Allreduce, torch's averager and the floor, under mpirun",
    )
    s.add_argument(
        "--sizes",
        nargs="+",
        metavar="N|MODEL",
        help="floats in a row, or networks whose parameters and statistics "
        "it holds; cifar10: all networks for its images (default: 2 000 … 25.6 million)",
    )
    s.add_argument("--learners", type=at_least_1, help="P (default: one a rank)")
    s.add_argument(
        "--ranks-per-node", type=at_least_1, help="split each machine into nodes of so many ranks"
    )
    s.add_argument(
        "--transport",
        choices=("auto", "shared", "mpi", "cuda_aware", "staged", "nccl"),
        default="auto",
    )
    s.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the rows lie")
    s.add_argument("--repeats", type=at_least_1, default=11)
    s.add_argument(
        "--out",
        metavar="FILE.h5",
        help="write the rows there as HDF5; analysis/bench_average.py draws it",
    )
    s.set_defaults(call=_average)

    s = whats.add_parser(
        "checkpoint", help="a checkpoint with momentum against plain writing, under mpirun"
    )
    s.add_argument("--folder", default=".", help="on the disk to be measured (default: here)")
    s.add_argument(
        "--floats", type=at_least_1, help="of a learner's weights (default: ResNet-18's)"
    )
    s.add_argument("--learners", type=at_least_1, default=8)
    s.add_argument("--repeats", type=at_least_1, default=5)
    s.set_defaults(call=_checkpoint)

    for s in whats.choices.values():
        s.add_argument("--json", metavar="FILE", help="write the rows there too")


def _train(args: argparse.Namespace) -> int:
    from localavg.parallel.fleet import Fleet

    here = world()
    if here.size > 1:
        raise UserError(
            f"bench train on {here.size} ranks: it measures one rank; run it without mpirun"
        )
    fleet = Fleet(here, args.learners)
    if args.problem == "network" or args.model:
        if not args.model:
            raise UserError("bench train --problem network needs --model NAME")
        from localavg.cli.bench.network import bench_network
        from localavg.parallel.device import choose_device

        if args.device == "cpu" and (args.cuda_graphs or args.precision == "tf32"):
            raise UserError(
                f"{'--cuda-graphs' if args.cuda_graphs else '--precision tf32'} is for GPUs: add "
                "--device cuda"
            )
        rows = bench_network(
            fleet,
            args.model,
            args.side,
            args.batch_size or 64,
            args.steps or 10,
            args.repeats,
            args.precision,
            choose_device(args.device, fleet),
            args.cuda_graphs,
        )
    elif args.device == "cuda" or args.learners > 1 or args.cuda_graphs:
        raise UserError(
            "bench train of logistic regression measures one learner on the CPU; give --model for "
            "a network"
        )
    else:
        from localavg.cli.bench.logistic import bench_logistic

        rows = bench_logistic(
            fleet, args.data, args.batch_size or 128, args.steps or 21_875, args.repeats
        )
    return _tell("local updates, samples a second", rows, args.json)


def _memory(args: argparse.Namespace) -> int:
    from localavg.cli.bench.memory import bench_memory

    return _tell(
        "memory of a training run", bench_memory(world(), args.data, args.steps), args.json
    )


def _average(args: argparse.Namespace) -> int:
    from localavg.files.provenance import provenance
    from localavg.parallel.probe import probed

    origin = provenance() if args.out and rank() == 0 else {}  # runs git: before MPI starts
    aware = None
    if args.device == "cuda" and args.transport in ("auto", "cuda_aware") and rank() == 0:
        aware = probed()  # in a child, likewise before
    here = world()
    from localavg.cli.bench.average import SIZES, bench_average, floats, new_file
    from localavg.parallel.device import choose_device
    from localavg.parallel.fleet import Fleet

    fleet = Fleet(here, args.learners, args.ranks_per_node)
    device = choose_device(args.device, fleet)
    how = args.transport, floats(args.sizes) if args.sizes else SIZES, args.repeats
    file = new_file(fleet, *how, args.out, origin, device, aware) if args.out else None
    rows = bench_average(fleet, *how, file, device, aware)
    return _tell(
        "one average (s), and ours against it",
        rows,
        args.json,
        ratios=("allreduce_s", "torch_s", "floor_s"),
    )


def _checkpoint(args: argparse.Namespace) -> int:
    from localavg.cli.bench.checkpoint import RESNET_18, bench_checkpoint
    from localavg.parallel.fleet import Fleet

    rows = bench_checkpoint(
        Fleet(world(), args.learners), args.folder, args.floats or RESNET_18, args.repeats
    )
    return _tell("one checkpoint (s) against plain writing of as many bytes", rows, args.json)


def _tell(
    title: str, rows: list[dict[str, Any]], path: str | None, ratios: tuple[str, ...] = ()
) -> int:
    """Print rows, one below the other where there is one, with ours_s against the columns of
    `ratios`; write them to path.
    """
    if rank() == 0:
        shown = [
            row | {name.replace("_s", " / ours"): row[name] / row["ours_s"] for name in ratios}
            for row in rows
        ]
        print_table(
            title,
            shown if len(rows) > 1 else [{"": key, " ": value} for key, value in shown[0].items()],
        )
        if path:
            try:
                with open(path, "w") as f:
                    json.dump(rows, f, indent=1)
            except OSError as e:
                raise UserError(f"--json {path}: {e.strerror}; give a file you can write") from e
    return 0
