"""``localavg plan``: predict what averages cost, against the period, the delay and the nodes."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from localavg.cli import Commands, above_0, at_least_1, flag, launched, print_table, write_json
from localavg.cli.plan_rows import left_out, predicted
from localavg.errors import UserError, amount

if TYPE_CHECKING:
    from localavg.simulate.plan import Machine

GIVEN = ("step_s", "bandwidth", "floats")  # what a plan without a run file needs
LEFT_OUT = (
    "The model leaves out: learners that are slow all the time, other traffic on the links, faster "
    "links inside a group of nodes, evaluations and checkpoints, and what computing and averaging "
    "take from each other (a delayed average needs some time of a core). It says nothing of the "
    "loss: a longer period or a delay may need more updates."
)


def add(commands: Commands) -> None:
    """Declare the command."""
    p = commands.add_parser(
        "plan",
        help="predict the wall clock, the share of communication and the bytes of averages",
        description="Predict the wall clock, the share of communication and the bytes of a run "
        "with averages of everyone, against the period K, the delay and the number of nodes, on "
        f"the modelled clock of train --simulate. {LEFT_OUT}",
    )
    p.set_defaults(call=_plan)
    p.add_argument(
        "run",
        nargs="?",
        metavar="RUN.h5",
        help="take what was measured in this run of kavg or another algorithm, one learner a rank, "
        "on 2 ranks or more (default: the numbers below)",
    )
    _add_machine(p.add_argument_group("the machine; each number replaces that of RUN.h5"))
    g = p.add_argument_group("values that the table ranges over")
    g.add_argument(
        "--nodes",
        type=at_least_1,
        nargs="+",
        metavar="N",
        help="number of nodes (default: those of RUN.h5, otherwise 2 4 8)",
    )
    g.add_argument(
        "--bandwidth",
        type=bytes_per_s,
        nargs="+",
        metavar="X",
        help="bandwidth of a node's link, such as 1gbit or 100mbit, or in bytes per second "
        "(default: that of RUN.h5, if it was between nodes)",
    )
    g.add_argument(
        "--K",
        type=at_least_1,
        nargs="+",
        metavar="N",
        default=[1, 2, 4, 8, 16, 32, 64],
        help="local updates between averages (default: 1 2 4 8 16 32 64)",
    )
    g.add_argument(
        "--delay",
        type=updates_or_K,
        nargs="+",
        metavar="N",
        default=[0, "K"],
        help="updates after which an average is merged, at most K, with fragments below K/F; the "
        "letter K stands for the longest delay (default: 0 K)",
    )
    g.add_argument(
        "--wire",
        nargs="+",
        metavar="CODE",
        default=["float32"],
        help="code in which averages cross nodes: float32, bf16, int8 or lowrank:r, which needs "
        "--tensors; the time of coding is left out (default: float32)",
    )
    g.add_argument(
        "--fragments",
        type=at_least_1,
        nargs="+",
        metavar="N",
        default=[1],
        help="pieces of the weights that average in turn, each once in K updates (default: 1)",
    )
    p.add_argument(
        "--json", metavar="FILE", help="also write the rows to this file (default: only print)"
    )


def _add_machine(g: argparse._ArgumentGroup) -> None:
    numbers: tuple[tuple[str, str], ...] = (
        ("step-s", "mean time of a local update, in seconds"),
        (
            "step-cv",
            "standard deviation of that time, divided by its mean (default without RUN.h5: 0.1)",
        ),
        ("latency-s", "latency of a message between nodes, in seconds (default: 5e-6)"),
        (
            "node-s",
            "seconds of an average inside a node, as bench average measures it (default: that of "
            "RUN.h5 if it was on one node, otherwise 0)",
        ),
    )
    for name, what in numbers:
        g.add_argument(f"--{name}", type=float, metavar="X", help=what)
    wholes = (
        ("floats", "length of a learner's weights, in floats of 4 bytes"),
        ("ranks-per-node", "ranks on a node, one learner each (default: RUN.h5's, otherwise 1)"),
        ("steps", "T, local updates of a learner (default: those of RUN.h5, otherwise 1000)"),
    )
    for name, what in wholes:
        g.add_argument(f"--{name}", type=at_least_1, metavar="N", help=what)
    g.add_argument(
        "--tensors",
        type=shape,
        nargs="+",
        metavar="SHAPE",
        help="shapes of the model's weights, such as 64x3x3x3 64 10x64 10; --floats beyond them "
        "are not coded by lowrank (default: not known)",
    )
    g.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of the times (default: 0)"
    )


def bytes_per_s(text: str) -> float:
    """Convert a bandwidth such as 1gbit, 100mbit or 1.25e8 to bytes per second."""
    found = re.fullmatch(r"(.+?)([kmg])bit", text.lower())
    if not found:
        return above_0(text)
    return above_0(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]] / 8


def shape(text: str) -> tuple[int, ...]:
    """Convert the shape of a tensor such as 64x3x3x3."""
    return tuple(at_least_1(side) for side in text.split("x"))


def updates_or_K(text: str) -> int | str:
    """Convert a delay: a number of updates, or the letter K."""
    if text == "K":
        return text
    if (number := int(text)) < 0:
        raise ValueError(text)
    return number


def _plan(args: argparse.Namespace) -> int:
    if launched():
        raise UserError("plan on several ranks: it uses one process; run it without mpirun")
    machine, floats, T = _machine(args)
    rows = []
    nodes = args.nodes or ([machine.nodes] if args.run else [2, 4, 8])
    rates = args.bandwidth or [machine.timing.bandwidth_bytes_per_s]
    for N, rate in product(nodes, rates):
        timing = replace(machine.timing, bandwidth_bytes_per_s=rate)
        rows += predicted(args, replace(machine, nodes=N, timing=timing), floats, T)
    _print(rows, machine, floats, T)
    if missing := left_out(args):
        print(
            "\nLeft out, because no delay may be longer than the period, and fragments need a "
            f"period of as many updates and a mean before the next piece: {missing}."
        )
    if args.json:
        write_json(args.json, rows)
    return 0


def _machine(args: argparse.Namespace) -> tuple[Machine, int, int]:
    """Return the machine that is asked for, the floats of a model, and T."""
    from localavg.files.record import load
    from localavg.simulate.plan import Machine, measured
    from localavg.simulate.timing import Timing

    if args.tensors is not None:
        inside = sum(map(math.prod, args.tensors))
        args.floats = args.floats or inside
    if args.run:
        run = load(args.run, weights=False)
        machine, d, T = measured(run), run.config["d"], run.config["steps"]
        if machine.nodes == 1 and not args.bandwidth and max(args.nodes or [1]) > 1:
            raise UserError(
                f"{args.run}: was on one node, and says nothing of a link between nodes; give "
                "--bandwidth"
            )
        machine = replace(machine, node_s=machine.node_s * (args.floats or d) / d)
    else:
        if missing := [flag(name) for name in GIVEN if getattr(args, name) is None]:
            raise UserError(f"plan needs {', '.join(missing)}; give them, or a run file")
        machine, d, T = Machine(Timing()), args.floats, 1000
    names = ("step_s", "step_cv", "latency_s")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    machine = replace(machine, timing=replace(machine.timing, **given))
    if args.node_s is not None:
        machine = replace(machine, node_s=args.node_s)
    if args.ranks_per_node is not None:
        machine = replace(machine, ranks=args.ranks_per_node)
    floats = args.floats or d
    if args.tensors is not None and inside > floats:
        raise UserError(
            f"--tensors: they have {inside} numbers, more than --floats {floats}; leave one of "
            "them out"
        )
    return machine, floats, args.steps or T


def _print(rows: list[dict[str, object]], machine: Machine, floats: int, T: int) -> None:
    """Print a table for each number of nodes and bandwidth, and what the model leaves out."""
    timing = machine.timing
    places: dict[tuple, list[dict]] = {}
    for row in rows:
        places.setdefault((row["nodes"], row["bandwidth_bytes_per_s"]), []).append(row)
    for (nodes, rate), of in places.items():
        link = f" at {8e-9 * rate:.4g} Gbit/s" if nodes > 1 else ""
        title = (
            f"{nodes} node{'s' * (nodes > 1)} of {machine.ranks} learner"
            f"{'s' * (machine.ranks > 1)}{link}: {T} updates of {timing.step_s:.3g} s, weights of "
            f"{amount(4 * floats)}"
        )
        shown = [
            {
                "K": row["K"],
                "fragments": row["fragments"],
                "wire": row["wire"],
                "delay": row["delay"],
                "an average (s)": row["average_s"],
                "wall_s": row["wall_s"],
                "per update (s)": row["wall_s"] / T,
                "averaging (%)": round(100 * row["communicate"], 1),
                "waiting (%)": round(100 * row["wait"], 1),
                "on a link": amount(row["link_bytes"]),
            }
            for row in of
        ]
        print_table(title, shown)
    print(f"\n{LEFT_OUT}")
