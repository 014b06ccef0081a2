"""``localavg train ALGORITHM``.

The options are the fields of TrainConfig and the parameters of the algorithm's function.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from functools import cache
from inspect import getdoc
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from localavg import algorithms
from localavg.algorithms import ALGORITHMS, ASYNCHRONOUS, BOTH
from localavg.algorithms.about import about_of
from localavg.algorithms.parameters import updates_or_auto
from localavg.cli import age_s, flag, in_flags, probed, rank, world
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.interfaces import Settings
from localavg.models import MODELS
from localavg.training import checks

if TYPE_CHECKING:
    from mpi4py import MPI

    from localavg.parallel.probe import Probe
    from localavg.training.ending import Outcome

ANY = "ALGORITHM"  # stands for the name of an algorithm
WIDTH = 100  # of the text about the algorithms
ALSO = {  # other names of options: those of the papers, and earlier ones
    "K": ("--tau",),
    "lr_schedule": ("--schedule",),
    "decay_every": ("--every",),
    "timing_from": ("--machine",),
}
RESERVED = {"call", "command", "help", "nesterov"}  # what the command line itself uses
SHOWN = {"--tau"}  # those of them that --help shows
METAVARS: dict[Callable, str] = {int: "N", float: "X", updates_or_auto: "N"}


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command. It takes all algorithms' options, so errors can name the right algorithm."""
    p = commands.add_parser(
        "train", prog=f"localavg train {ANY}", help="train with one algorithm", add_help=False
    )
    p.set_defaults(call=_train)
    p.add_argument("-h", "--help", action=_Help)
    p.add_argument("algorithm", metavar=ANY)
    for name in BOTH:
        check_names(name, algorithms.declared(name))
    for name, option in _any_option().items():
        _add_own(p, name, option)
    for f in fields(TrainConfig):
        if f.metadata["group"]:
            _add_common(p, f)
    # the earlier name of --outer nesterov --outer-lr 1, which `checks.read` translates
    p.add_argument("--nesterov", action="store_true", default=SUPPRESS, help=SUPPRESS)


def check_names(algorithm: str, options: Iterable[str]) -> None:
    """Raise UserError if an option of an algorithm has the name of a setting of every run."""
    also = {word.removeprefix("--").replace("-", "_") for words in ALSO.values() for word in words}
    taken = (also | RESERVED).union(f.name for f in fields(TrainConfig)) - {"tau"}
    if found := [name for name in options if name in taken]:
        raise UserError(
            f"algorithm {algorithm}: `{found[0]}` is a setting of every run; give the parameter "
            "another name"
        )


def _any_option() -> dict[str, algorithms.Option]:
    """Return the options of all algorithms; of one name the first, whose K may be auto."""
    return {o: x for a in reversed(BOTH) for o, x in algorithms.declared(a).items()}


def given(args: argparse.Namespace) -> dict[str, object]:
    """Return the settings that a parsed command line gives, by their names."""
    return {name: value for name, value in vars(args).items() if name not in ("command", "call")}


class _Help(argparse.Action):
    """Prints the help of the algorithm named before --help, or of the command, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **how: object) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, default=SUPPRESS)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        shown = help_of(parser.prog.removesuffix(f" {ANY}"), getattr(namespace, "algorithm", None))
        print(shown.format_help(), end="")
        parser.exit()


def help_of(prog: str, algorithm: str | None) -> argparse.ArgumentParser:
    """Make the parser for --help: with one algorithm's options, or with a list of algorithms."""
    if algorithm is not None and algorithm not in BOTH:
        raise algorithms.unknown(algorithm)
    about = _table() if algorithm is None else _about(algorithm)
    shown = argparse.ArgumentParser(
        f"{prog} {algorithm or ANY}",
        usage=f"{prog} {algorithm or ANY} [OPTION ...]",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    if algorithm:
        own = shown.add_argument_group(f"options of {algorithm}")
        for name, option in algorithms.declared(algorithm).items():
            _add_own(own, name, option)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for f in fields(TrainConfig):
        if (group := f.metadata["group"]) and _concerns(f, algorithm):
            if group not in groups:
                groups[group] = shown.add_argument_group(group)
            _add_common(groups[group], f)
    return shown


def _table() -> str:
    """Return a list of all algorithms, one line each."""
    text = "Train with one algorithm, under mpirun or alone.\n"
    for title, table in (
        ("learners that average (synchronous)", ALGORITHMS),
        ("learners around a center variable (asynchronous)", ASYNCHRONOUS),
    ):
        text += f"\n{title}:\n"
        for name, function in table.items():
            text += f"  {name:<10} {(getdoc(function) or name).splitlines()[0]}\n"
    return text + "\nlocalavg train ALGORITHM --help also shows the algorithm's own options."


def _about(algorithm: str) -> str:
    """Return the text about one algorithm: its docstring, and when to take it."""
    doc = "\n\n".join(map(str, filter(None, (getdoc(BOTH[algorithm]), about_of(BOTH[algorithm])))))
    return "\n\n".join(textwrap.fill(" ".join(p.split()), WIDTH) for p in doc.split("\n\n"))


def _concerns(f: Field, algorithm: str | None) -> bool:
    """Return whether a setting can have an effect with the algorithm."""
    rules = (rule for rule in f.metadata["rules"] if rule.setting == "algorithm")
    return algorithm is None or all(
        rule.value is not None or (algorithm in rule.values) != rule.inverted for rule in rules
    )


def _add_own(to: argparse._ActionsContainer, name: str, option: algorithms.Option) -> None:
    _add(to, name, option.kind, option.default, option.help, {})


@cache
def _hints() -> dict[str, object]:
    return get_type_hints(TrainConfig)


def kind_of(f: Field) -> type:
    """Return the kind of a setting's value, or of each where there are several."""
    hint = _hints()[f.name]
    return next((t for t in (*get_args(hint), hint) if t in (int, float, str, bool)), str)


def _add_common(to: argparse._ActionsContainer, f: Field) -> None:
    kind = kind_of(f)
    extra = {key: f.metadata[key] for key in ("choices", "metavar") if key in f.metadata}
    if isinstance(f.default, tuple):
        extra["nargs"] = "+"
    help = f.metadata["help"]
    if f.name == "model":
        help += f"; one of {', '.join(MODELS)}"
    _add(to, f.name, kind, f.default, help, extra)


def _add(
    to: argparse._ActionsContainer,
    name: str,
    kind: Callable[[str], Any],
    default: object,
    help: str,
    how: Mapping[str, Any],
) -> None:
    """Add one option with its hidden names. The result has no entry for an option not given."""
    if kind is bool:
        how = {"action": "store_true"}
        help += " (default: off)"
    else:
        metavar = {} if "choices" in how else {"metavar": METAVARS.get(kind, "TEXT")}
        how = {"type": kind, **metavar, **how}
        if default not in (None, ()):
            help += f" (default: {default})"
    how = {**how, "dest": name, "default": SUPPRESS}
    also = ALSO.get(name, ())
    shown = [flag(name), *(word for word in also if word in SHOWN)]
    to.add_argument(*shown, help=help.replace("%", "%%"), **how)
    if hidden := [word for word in also if word not in SHOWN]:
        to.add_argument(*hidden, help=SUPPRESS, **how)


def may_use_gpus(config: TrainConfig) -> bool:
    """Return whether averages of the run may be between GPUs, as far as the settings tell.

    With `device = auto`, logistic regression takes a GPU by its data, which are not known yet.
    """
    asked = config.names_network or config.transport == "cuda_aware"
    on_device = config.device == "cuda" or (config.device == "auto" and asked)
    return on_device and config.algorithm not in ASYNCHRONOUS


def start(
    config: TrainConfig,
    world: MPI.Intracomm,
    origin: Settings | None,
    aware: Probe | None,
    age_s: float,
) -> Outcome:
    """Run on the ranks of `world`. The arguments are those of `training.run.run`. Collective."""
    if config.algorithm in ASYNCHRONOUS:
        from localavg.training.asynchronous import run as asynchronous

        return asynchronous.run(config, world, origin, age_s)
    from localavg.training.run import run

    return run(config, world, origin, aware, age_s)


def _train(args: argparse.Namespace) -> int:
    config = checks.read(given(args))
    from localavg.files.provenance import provenance

    origin = provenance() if rank() == 0 else None
    aware = probed(may_use_gpus(config), config.transport)  # before MPI starts
    outcome = start(config, world(), origin, aware, age_s())
    if outcome.text:
        print(in_flags(outcome.text), file=sys.stderr)
        print(config.path, flush=True)
    return outcome.status
