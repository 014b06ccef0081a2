"""The parser of the command line: its errors are UserErrors that recognise a misspelt option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from localavg.errors import LARGEST, UserError, like

CALLED = {
    "--batch": "--batch-size",
    "--bs": "--batch-size",
    "--dataset": "--data",
    "--iterations": "--steps",
    "--learning-rate": "--lr",
    "--local-steps": "--K",
    "--max-epochs": "--epochs",
    "--max-steps": "--steps",
    "--network": "--model",
    "--num-epochs": "--epochs",
    "--num-learners": "--learners",
    "--num-steps": "--steps",
    "--num-workers": "--learners",
    "--output": "--out",
    "--period": "--K",
    "--random-seed": "--seed",
    "--scheduler": "--lr-schedule",
    "--sync-every": "--K",
    "--updates": "--steps",
    "--wd": "--weight-decay",
    "--workers": "--learners",
}
"""options by the names that they have elsewhere"""
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "at_least_1": "a whole number of at least 1",
    "above_0": "a finite number above 0",
    "shape": "the sizes of a tensor such as 64x3x3x3",
    "bytes_per_s": "bits per second such as 1gbit or 100mbit, or a number of bytes per second",
    "updates_or_auto": "a whole number of at least 1, or auto",
    "updates_or_K": "a whole number of at least 0, or K, the period",
}
"""what a type of argparse takes, in words"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises its errors, so that only rank 0 prints them."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError; where a value is of the wrong type, name the value and the type."""
        if found := re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message, re.DOTALL):
            option, kind, value = found.groups()
            message = f"{option.split('/')[0]} {value}: must be {KINDS.get(kind, kind)}"
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse the command line; UserError names what is unknown and the option it is like."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            refuse(self, found, unknown)
        return found

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Convert an option's words; refuse what no option takes: empty words, huge integers.

        An empty word is what a shell makes of a variable that is not set.
        """
        values = super()._get_values(action, arg_strings)
        if action.nargs == argparse.PARSER:  # the words of a subcommand, which has its own parser
            return values
        name = action.option_strings[0] if action.option_strings else action.metavar
        if "" in arg_strings:
            self.error(f"{name} is empty: give a value, or leave it out")
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int) and abs(value) > LARGEST:
                self.error(f"{name} {value}: must be below 2^63")
        return values


def refuse(top: Parser, found: argparse.Namespace, unknown: list[str]) -> NoReturn:
    """Raise UserError for the words of a command line that are unknown; found: the other words."""
    used = _innermost(top, found)
    algorithm = getattr(found, "algorithm", None)
    options, prog = list(used._option_string_actions), used.prog
    if algorithm is not None:
        from localavg.algorithms import BOTH
        from localavg.cli.train import ANY, help_of

        if algorithm in BOTH:
            prog = prog.replace(ANY, algorithm)
            options = list(help_of("", algorithm)._option_string_actions)
    names = [word.partition("=")[0].replace("_", "-") for word in unknown]
    found_like = [meant(name, options) for name in names if name.startswith("-")]
    hint = next((f"; did you mean {option}?" for option in found_like if option), "")
    raise UserError(f"unrecognized arguments: {' '.join(unknown)}{hint} (see {prog} --help)")


def meant(name: str, options: Collection[str]) -> str:
    """Return the option that an unknown one is elsewhere, or is like; "" if there is none."""
    called = CALLED.get(name.lower(), "")
    return called if called in options else like(name, options)


def _innermost(
    parser: argparse.ArgumentParser, found: argparse.Namespace
) -> argparse.ArgumentParser:
    """Return the parser of the command, or of its subcommand, that was found."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return _innermost(action.choices[getattr(found, action.dest)], found)
    return parser
