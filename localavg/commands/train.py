"""``localavg train ALGORITHM``: the options are the fields of TrainConfig and the parameters of the algorithms."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from localavg.algorithms import ASYNCHRONOUS, BOTH, options
from localavg.commands import rank, world
from localavg.config import TrainConfig, UserError

LOCKSTEP = {"ranks_per_node": None, "transport": "auto", "statistics": "average", "optimizer": "sgd", "state": "keep",
            "variance": "no"}  # what only the synchronous algorithms can have otherwise
MODEL = ("machine", "step_s", "step_cv", "latency_s", "bandwidth_bytes_per_s", "service_s")


def add(commands: Any) -> None:
    rows = [(name, make.__doc__.splitlines()[0]) for name, make in BOTH.items()]
    takes = {name: " ".join(f"--{o.replace('_', '-')}" for o in options(name)) for name in BOTH}
    table = "\n".join(f"  {name:<10} {doc}\n{'':13}{takes[name]}".rstrip() for name, doc in rows)
    p = commands.add_parser("train", help="train with one algorithm", formatter_class=argparse.RawDescriptionHelpFormatter,
                            description="Train with one algorithm, under mpirun or alone.", epilog=f"algorithms:\n{table}")
    p.set_defaults(call=_train)
    p.add_argument("algorithm", metavar="ALGORITHM", help="one of the algorithms below")
    groups: dict[str, Any] = {}
    hints = get_type_hints(TrainConfig)
    for f in fields(TrainConfig):
        if not (group := f.metadata["group"]):
            continue
        to = groups.setdefault(group, p.add_argument_group(group) if group not in groups else None)
        kind = next((t for t in (*get_args(hints[f.name]), hints[f.name]) if t in (int, float, str, bool)), str)
        how = {"type": kind, "choices": f.metadata.get("choices")}
        if kind is bool:
            how = {"action": "store_true"}
        elif isinstance(f.default, tuple):
            how["nargs"] = "+"
        elif not how["choices"]:
            how["metavar"] = f.metadata.get("metavar", "N" if kind is int else "X" if kind is float else "TEXT")
        default = f" (default: {f.default})" if kind is not bool and f.default not in (None, ()) else ""
        to.add_argument(_flag(f.name), default=argparse.SUPPRESS, dest=f.name,
                        help=f.metadata["help"].replace("%", "%%") + default, **how)
    own = p.add_argument_group("options of the algorithms")
    for option in dict.fromkeys(o for name in BOTH for o in options(name)):
        default = next(options(name)[option] for name in BOTH if option in options(name))
        flags = [_flag(option)] + (["--tau"] if option == "K" else [])
        how = {"action": "store_true"} if isinstance(default, bool) else {"type": type(default), "metavar": "X"}
        own.add_argument(*flags, dest=f"own {option}", default=argparse.SUPPRESS, **how)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _train(args: argparse.Namespace) -> int:
    given = vars(args)
    options = {key.removeprefix("own "): value for key, value in given.items() if key.startswith("own ")}
    names = {f.name for f in fields(TrainConfig)}
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in names}
    config = TrainConfig(**settings)
    _refuse_idle(settings, config)
    from localavg.provenance import provenance

    origin = provenance() if rank() == 0 else None  # runs git: before MPI starts
    how = {}
    if config.device == "cuda" and config.algorithm not in ASYNCHRONOUS and config.transport in ("auto", "cuda_aware"):
        from localavg.commands.gpus import probed

        how["aware"] = probed() if rank() == 0 else None  # in a child, likewise before
    here = world()
    if config.algorithm in ASYNCHRONOUS:
        from localavg.asynchronous.run import run
    else:
        from localavg.run import run

    return run(config, options, here, origin, **how)


def _refuse_idle(given: dict[str, Any], c: TrainConfig) -> None:
    """An option that does nothing beside the others is a mistake."""
    asynchronous = c.algorithm in ASYNCHRONOUS
    others = [name for name, value in LOCKSTEP.items() if getattr(c, name) != value]
    no_momentum = c.algorithm != "eamsgd" and c.optimizer not in ("momentum", "nesterov")
    kept = f"{c.algorithm}, which makes no checkpoints" if asynchronous else "a run with --simulate, which makes no checkpoints"
    idle = {
        "lr": (c.schedule == "inverse", "--schedule inverse, whose γ_t is 4/(μ(t+a))"),
        "factor": (c.schedule != "steps", f"--schedule {c.schedule}; use --schedule steps"),
        "warmup_from": (not c.warmup_epochs, "a run without --warmup-epochs"),
        **dict.fromkeys(("no_augment", "statistics", "calibrate", "precision", "compile"),
                        (c.problem == "logistic", "--problem logistic")),
        **dict.fromkeys(others, (asynchronous, f"{c.algorithm}, whose local update and messages are its own")),
        "momentum": (no_momentum, c.algorithm if asynchronous else f"--optimizer {c.optimizer}; use --optimizer momentum"),
        **dict.fromkeys(MODEL, (not c.simulate, "a run whose time is measured; add --simulate")),
        **dict.fromkeys(("checkpoint_every", "time_limit", "resume"), (asynchronous or c.simulate, kept)),
        "replay": (c.simulate or not asynchronous, "a simulated run, which repeats itself" if asynchronous else c.algorithm),
    }
    if not asynchronous:
        idle["service_s"] = True, f"{c.algorithm}, which has no servers"
    for name, (does_nothing, beside) in idle.items():
        if name in given and does_nothing:
            said = _flag(name) + f" {given[name]}" * (given[name] is not True)
            raise UserError(f"{said} means nothing to {beside}{', or' if ';' in beside else ';'} leave it out")
