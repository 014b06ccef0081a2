"""A sweep's TOML file, expanded into named runs with their command lines. Nothing is started or
looked for here.

    [sweep]                         title, paper, figure
    [common]                        options of `localavg train` by their names, for all runs
    [grid]                          option = [values]: every combination is a run
    [paper] or [laptop]             options and [paper.grid] of this scale; also `ranks` and `seeds`
    [[runs]]                        a line of the figure: algorithm, its options, its own
                                    `grid.option = [values]`
    [runs.paper] or [runs.laptop]   what differs at this scale
                                    `only = "paper"` beside the algorithm leaves the block out
                                    elsewhere

The later in this list, the stronger: a value or a list replaces what was said above it. `false`
takes an option away. `seeds` is how many repeats (seeds 0, 1, …); `ranks` how many MPI ranks at
most, or "learners" for one each.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localavg import algorithms
from localavg.cli.sweep.file import SCALES, tables
from localavg.cli.sweep.names import named
from localavg.errors import UserError
from localavg.parallel.layout import fewest_ranks
from localavg.training import checks

OURS = {"out", "seed", "resume", "time-limit", "help"}  # options that the sweep sets itself


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: its name, MPI ranks, and its words after `localavg`, up to `--out`."""

    name: str
    ranks: int
    words: tuple[str, ...]
    given: Mapping[str, Any]
    """What the command line's parser made of the words."""

    @property
    def asked(self) -> dict[str, Any]:
        """Every setting of the run by its name in the run file, defaults included."""
        return checks.every(checks.read(self.given))


@dataclass(frozen=True)
class Sweep:
    """A file at one scale. about: its [sweep] table."""

    path: Path
    scale: str
    about: Mapping[str, str]
    runs: tuple[Planned, ...]


def read(
    path: str | Path,
    scale: str,
    train: argparse.ArgumentParser,
    seeds: int | None = None,
    ranks: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Sweep:
    """The runs of the file at a scale; `seeds`, `ranks` and `changes`, options by name, replace the
    file's.

    train: the parser of `localavg train`, by which every option and value is checked. Raises
    UserError that names the file, section and option.
    """
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: must be one of {', '.join(SCALES)}")
    table = {**tables(Path(path)), "set": changes or {}}
    reader = _Reader(Path(path), scale, train, seeds, ranks)
    found = [
        run for i, block in enumerate(table["runs"], 1) for run in reader.block(table, block, i)
    ]
    if not found:
        raise UserError(f"{path}: no runs at scale {scale}: every block is for another one")
    names = named(str(path), [(run.algorithm, run.options, run.gridded, run.seed) for run in found])
    runs = [
        Planned(name, run.ranks, ("train", *run.words), run.given)
        for name, run in zip(names, found, strict=True)
    ]
    return Sweep(Path(path), scale, table.get("sweep", {}), tuple(runs))


@dataclass(frozen=True)
class _Choice:
    """The values an option takes, each a run's (None: left out), where that was said, and whether
    as a grid.
    """

    option: str
    values: list[Any]
    section: str
    grid: bool


@dataclass
class _Run:
    algorithm: str
    options: dict[str, tuple[str, Any]]  # argparse's dest -> option, value
    gridded: set[str]
    ranks: int
    seed: int
    words: list[str]
    given: dict[str, Any]


class _Reader:
    def __init__(
        self,
        path: Path,
        scale: str,
        train: argparse.ArgumentParser,
        seeds: int | None,
        ranks: int | None,
    ):
        self.path, self.scale, self.train, self.seeds, self.ranks = path, scale, train, seeds, ranks
        self.flags = train._option_string_actions  # what argparse knows, by flag

    def fail(self, section: str, option: str, value: Any, rule: str) -> UserError:
        return UserError(f"{self.path}: [{section}] {option} = {value!r}: {rule}")

    def block(self, table: Mapping[str, Any], block: Mapping[str, Any], i: int) -> Iterator[_Run]:
        """All runs of one [[runs]] block."""
        where = f"runs {i} {block['algorithm']}"
        if block.get("only", self.scale) not in SCALES:
            raise self.fail(where, "only", block["only"], f"must be one of {', '.join(SCALES)}")
        if block.get("only", self.scale) != self.scale:
            return
        levels = [
            ("common", table.get("common", {})),
            ("grid", {"grid": table.get("grid", {})}),
            (self.scale, table.get(self.scale, {})),
            (where, block),
            (f"{where}, {self.scale}", block.get(self.scale, {})),
            ("--set", table["set"]),
        ]
        chosen: dict[str, _Choice] = {}
        counts: dict[str, Any] = {"seeds": 1, "ranks": 1}
        for section, level in levels:
            for option, value in level.items():
                if option == "grid":
                    for name, values in value.items():
                        self.choose(chosen, name, values, section, grid=True)
                elif option in ("seeds", "ranks"):
                    counts[option] = self.number(option, value, section)
                elif option not in ("algorithm", "only", *SCALES) or level is not block:
                    self.choose(chosen, option, value, section, grid=False)
        dests = list(chosen)
        for values in itertools.product(*(chosen[dest].values for dest in dests)):
            options = {
                d: (chosen[d].option, v)
                for d, v in zip(dests, values, strict=True)
                if v is not False
            }
            for seed in range(self.seeds or counts["seeds"]):
                yield self.run(
                    block["algorithm"],
                    options,
                    {d for d in dests if chosen[d].grid},
                    counts["ranks"],
                    seed,
                )

    def number(self, option: str, value: Any, section: str) -> Any:
        """A number of seeds or ranks."""
        if option == "ranks" and value == "learners":
            return value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            rule = "must be a whole number of at least 1" + (
                ', or "learners"' if option == "ranks" else ""
            )
            raise self.fail(section, option, value, rule)
        return value

    def choose(
        self, chosen: dict[str, _Choice], option: str, value: Any, section: str, grid: bool
    ) -> None:
        """Let an option have a value, or in a grid a list of values, once they are checked."""
        if option in OURS:
            raise self.fail(
                section,
                option,
                value,
                "the sweep sets this itself: leave it out"
                + (" and give seeds = HOW_MANY" if option == "seed" else ""),
            )
        if (action := self.flags.get(f"--{option}")) is None:
            hint = f" (write it {option.replace('_', '-')})" if "_" in option else ""
            raise self.fail(
                section,
                option,
                value,
                f"localavg train has no option --{option}{hint}; see its --help",
            )
        if grid and not (isinstance(value, list) and value):
            raise self.fail(section, option, value, "a grid needs a list of values")
        for one in value if grid else [value]:
            try:
                self.train.parse_args(["kavg", *self.said(option, one)])
            except UserError as e:
                raise self.fail(section, option, one, str(e)) from e
        chosen[action.dest] = _Choice(option, value if grid else [value], section, grid)

    def said(self, option: str, value: Any) -> list[str]:
        """An option and its value as words of a command line."""
        if value is False:
            return []
        if value is True:
            return [f"--{option}"]
        values = value if isinstance(value, list) else [value]
        return [f"--{option}", *map(str, values)]

    def run(
        self, algorithm: str, options: dict, gridded: set[str], ranks: int | str, seed: int
    ) -> _Run:
        """One run, its command line parsed and its settings tried."""
        words = [
            algorithm,
            *(word for option, value in options.values() for word in self.said(option, value)),
        ]
        words += ["--seed", str(seed)]
        given = vars(self.train.parse_args(words))
        try:
            config = checks.read(given)
            made = algorithms.make(algorithm, config.options, T=10**9, epoch=1e6)
        except UserError as e:
            raise UserError(f"{self.path}: {algorithm} at scale {self.scale}: {e}") from e
        P = config.learners or 1
        count = fewest_ranks(P, self.ranks or (P if ranks == "learners" else int(ranks)))
        if isinstance(made, algorithms.Asynchronous):
            count = 1 if config.simulate else count + made.servers
        return _Run(algorithm, options, gridded, count, seed, words, given)
