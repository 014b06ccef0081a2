"""``localavg bench WHAT``: measure speed and memory against what the hardware can do."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from localavg.algorithms.outer import RULES
from localavg.cli import Commands, launched, print_table, probed, rank, world, write_json
from localavg.cli.bench import delay, options, period
from localavg.errors import UserError

if TYPE_CHECKING:
    from localavg.cli.bench import Row
    from localavg.parallel.fleet import Fleet


def add(commands: Commands) -> None:
    """Declare the command and one subcommand for each benchmark."""
    p = commands.add_parser(
        "bench", help="measure speed and memory against what the hardware can do"
    )
    whats = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    options.add_train(whats).set_defaults(call=_train)
    options.add_start(whats).set_defaults(call=_start)
    options.add_memory(whats).set_defaults(call=_memory)
    options.add_average(whats).set_defaults(call=_average)
    delay.add(whats).set_defaults(call=_delay)
    period.add(whats).set_defaults(call=_period)
    options.add_checkpoint(whats).set_defaults(call=_checkpoint)
    for s in whats.choices.values():
        s.add_argument(
            "--json", metavar="FILE", help="also write the rows to this file (default: only print)"
        )


def _train(args: argparse.Namespace) -> int:
    from localavg.parallel.fleet import Fleet

    here = world()
    if here.size > 1:
        raise UserError(
            f"bench train on {here.size} ranks: it measures one rank; run it without mpirun"
        )
    fleet = Fleet(here, args.learners)
    if args.problem == "logistic" and args.model:
        raise UserError(
            f"--model {args.model}: logistic regression has no network; leave out --problem or "
            "--model"
        )
    if args.problem == "network" or args.model:
        rows = _network(args, fleet)
    else:
        from localavg.cli.bench.logistic import bench_logistic
        from localavg.parallel.device import choose_device

        device, B = choose_device(args.device, fleet), args.batch_size or 128
        steps = args.steps or (21_875 if device.name == "cpu" else 100)
        rows = bench_logistic(fleet, args.data, B, steps, args.repeats, device, args.engine)
    return _print("local updates, samples a second", rows, args.json)


def _network(args: argparse.Namespace, fleet: Fleet) -> list[Row]:
    """Run `bench train` on a network."""
    if not args.model:
        raise UserError("bench train --problem network needs --model NAME")
    from localavg.cli.bench.network import bench_network
    from localavg.parallel.device import choose_device

    if args.device == "cpu" and args.precision == "tf32":
        raise UserError("--precision tf32 is for GPUs: add --device cuda")
    if args.device == "cpu" and args.deterministic == "no":
        raise UserError("--deterministic no is for GPUs: add --device cuda")
    return bench_network(
        fleet,
        args.model,
        args.side,
        args.batch_size or 64,
        args.steps or 10,
        args.repeats,
        args.precision,
        choose_device(args.device, fleet),
        args.engine,
        args.deterministic,
    )


def _start(args: argparse.Namespace) -> int:
    if launched():
        raise UserError("bench start under mpirun: it measures one rank; run it without mpirun")
    from localavg.cli.bench.start import bench_start

    settings: dict[str, object] = {
        "algorithm": "kavg",
        "K": 16,
        "data": args.data,
        "learners": args.learners,
        "batch_size": 16,
        "steps": 1,
        "device": args.device,
    }
    if model := args.model or ("nin" if args.data == "digits" else None):
        settings["model"] = model
    rows = bench_start(settings, args.repeats)
    return _print("the start of a run (s)", rows, args.json)


def _memory(args: argparse.Namespace) -> int:
    from localavg.cli.bench.memory import bench_memory

    rows = bench_memory(world(), args.data, args.steps)
    return _print("memory of a training run", rows, args.json)


def _average(args: argparse.Namespace) -> int:
    from localavg.files.provenance import provenance

    # both start children, so they come before MPI
    origin = provenance() if args.out and rank() == 0 else {}
    aware = probed(args.device == "cuda", args.transport)
    here = world()
    from localavg.cli.bench.average import SIZES, bench_average, floats, new_file
    from localavg.parallel import survive
    from localavg.parallel.device import choose_device
    from localavg.parallel.fleet import Fleet
    from localavg.training.recover import CONTINUE

    kept = args.on_failure == CONTINUE
    fleet = Fleet(here, args.learners, args.ranks_per_node, outlives=kept)
    device = choose_device(args.device, fleet)
    how = args.transport, floats(args.sizes) if args.sizes else SIZES, args.repeats
    if kept:
        survive.check()
    more: tuple[Any, ...] = device, aware, args.outer, args.graph, args.wire, kept
    file = new_file(fleet, *how, args.out, origin, *more) if args.out else None
    rows = bench_average(fleet, *how, file, *more)
    ratios = [_ratios(row, args.outer, fleet) for row in rows]
    return _print("one average (s), and ours against it", rows, args.json, ratios)


def _ratios(row: Row, outer: str | None, fleet: Fleet) -> Row:
    """Return the times of others divided by ours, and that of an outer step by that of its bytes.

    The bytes are at the mean's rate: the mean reads and writes each row of the node once, the step
    each row that it keeps.
    """
    against = ("allreduce_s", "torch_s", "floor_s")
    found: Row = {name.replace("_s", " / ours"): row[name] / row["ours_s"] for name in against}
    if not math.isnan(row["gossip_s"]):
        found["gossip / its floor"] = row["gossip_s"] / row["gossip_floor_s"]
        found["ours / gossip"] = row["ours_s"] / row["gossip_s"]
    if not math.isnan(row["wire_s"]):
        found["ours / wire"] = row["ours_s"] / row["wire_s"]
        found["bytes / wire's"] = row["plain_bytes"] / row["wire_bytes"]
    if not math.isnan(row["kept_s"]):
        found["kept / ours"] = row["kept_s"] / row["ours_s"]
    if outer:
        its_bytes_s = row["ours_s"] * RULES[outer]().kept / fleet.layout.node_learners(fleet.rank)
        found["step / its bytes"] = (row["outer_s"] - row["ours_s"]) / its_bytes_s
    return found


def _delay(args: argparse.Namespace) -> int:
    aware = probed(args.device == "cuda", "auto")  # starts a child, so it comes before MPI
    here = world()
    if here.size == 1:
        raise UserError("bench delay on 1 rank: nothing travels; run it under mpirun -n 2")
    return _print(
        "a round of updates and one average (s)", delay.rows(args, here, aware), args.json
    )


def _period(args: argparse.Namespace) -> int:
    rows, chosen = period.rows(args, world())
    _print(f"seconds to a training loss of {args.loss:g}", rows, args.json)
    if rank() == 0:
        print("\nK of auto, and the update from which it held:", *chosen, sep="\n")
    return 0


def _checkpoint(args: argparse.Namespace) -> int:
    from localavg.cli.bench.checkpoint import RESNET_18, bench_checkpoint
    from localavg.parallel.fleet import Fleet

    fleet = Fleet(world(), args.learners)
    rows = bench_checkpoint(fleet, args.folder, args.floats or RESNET_18, args.repeats)
    return _print("one checkpoint (s) against plain writing of as many bytes", rows, args.json)


def _print(title: str, rows: list[Row], path: str | None, more: Sequence[Row] = ()) -> int:
    """Print rows on rank 0, write them to `path` as JSON, and return the exit status of success.

    A single row is printed as a column. more: columns that are only printed, for each row.
    """
    if rank() != 0:
        return 0
    shown: list[Row] = [
        {**row, **added} for row, added in zip(rows, more or [{}] * len(rows), strict=True)
    ]
    if len(rows) == 1:
        shown = [{"": key, " ": value} for key, value in shown[0].items()]
    print_table(title, shown)
    if path:
        write_json(path, rows)
    return 0
