"""The parser of the command line: its errors are UserErrors that recognise a misspelt option."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from localavg.errors import UserError

ALIKE = 0.7
"""least likeness, from 0 to 1, of an option that is suggested"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises its errors, so that only rank 0 prints them."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse the command line; UserError names what is unknown and the option it is like."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            refuse(self, found, unknown)
        return found


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
    like: list[str] = []
    for word in unknown:
        name = word.partition("=")[0].replace("_", "-")
        like += get_close_matches(name, options, 1, ALIKE) if name.startswith("-") else []
    hint = f"; did you mean {like[0]}?" if like else ""
    raise UserError(f"unrecognized arguments: {' '.join(unknown)}{hint} (see {prog} --help)")


def _innermost(
    parser: argparse.ArgumentParser, found: argparse.Namespace
) -> argparse.ArgumentParser:
    """Return the parser of the command, or of its subcommand, that was found."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return _innermost(action.choices[getattr(found, action.dest)], found)
    return parser
