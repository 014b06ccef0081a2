"""``localavg train ALGORITHM``: the options are the fields of TrainConfig and the parameters of the
algorithms.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from localavg.algorithms import ASYNCHRONOUS, BOTH, declared
from localavg.algorithms import options as options_of
from localavg.cli import rank, world
from localavg.config import TrainConfig
from localavg.training import checks


def add(commands: Any) -> None:
    rows = [(name, make.__doc__.splitlines()[0]) for name, make in BOTH.items()]
    takes = {name: " ".join(f"--{o.replace('_', '-')}" for o in options_of(name)) for name in BOTH}
    table = "\n".join(f"  {name:<10} {doc}\n{'':13}{takes[name]}".rstrip() for name, doc in rows)
    p = commands.add_parser(
        "train",
        help="train with one algorithm",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train with one algorithm, under mpirun or alone.",
        epilog=f"algorithms:\n{table}",
    )
    p.set_defaults(call=_train)
    p.add_argument("algorithm", metavar="ALGORITHM", help="one of the algorithms below")
    groups: dict[str, Any] = {}
    hints = get_type_hints(TrainConfig)
    for f in fields(TrainConfig):
        if not (group := f.metadata["group"]):
            continue
        to = groups.setdefault(group, p.add_argument_group(group) if group not in groups else None)
        kind = next(
            (t for t in (*get_args(hints[f.name]), hints[f.name]) if t in (int, float, str, bool)),
            str,
        )
        how = {"type": kind, "choices": f.metadata.get("choices")}
        if kind is bool:
            how = {"action": "store_true"}
        elif isinstance(f.default, tuple):
            how["nargs"] = "+"
        elif not how["choices"]:
            how["metavar"] = f.metadata.get(
                "metavar", "N" if kind is int else "X" if kind is float else "TEXT"
            )
        default = (
            f" (default: {f.default})" if kind is not bool and f.default not in (None, ()) else ""
        )
        to.add_argument(
            checks.flag(f.name),
            default=argparse.SUPPRESS,
            dest=f.name,
            help=f.metadata["help"].replace("%", "%%") + default,
            **how,
        )
    own = p.add_argument_group("options of the algorithms")
    for name, option in {o: declared(a)[o] for a in reversed(BOTH) for o in declared(a)}.items():
        flags = [checks.flag(name)] + (["--tau"] if name == "K" else [])
        how = (
            {"action": "store_true"}
            if option.kind is bool
            else {"type": option.kind, "metavar": "X"}
        )
        own.add_argument(
            *flags, dest=f"own {name}", default=argparse.SUPPRESS, help=option.help, **how
        )


def _train(args: argparse.Namespace) -> int:
    config = checks.read(vars(args))
    from localavg.files.provenance import provenance

    origin = provenance() if rank() == 0 else None  # runs git: before MPI starts
    how = {}
    if (
        config.device == "cuda"
        and config.algorithm not in ASYNCHRONOUS
        and config.transport in ("auto", "cuda_aware")
    ):
        from localavg.parallel.probe import probed

        how["aware"] = probed() if rank() == 0 else None  # in a child, likewise before
    here = world()
    if config.algorithm in ASYNCHRONOUS:
        from localavg.training.asynchronous.run import run
    else:
        from localavg.training.run import run

    return run(config, here, origin, **how)
