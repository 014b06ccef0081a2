"""Expand a sweep's TOML file to named runs with their command lines.

Nothing is started here, and no run file is read.

    [sweep]                         title, paper, figure
    [common]                        options of `localavg train` by their names, for all runs
    [grid]                          option = [values]: every combination is a run
    [paper], [gpu], [laptop],       options and [paper.grid] of this scale; also `ranks` and `seeds`
    [digits] or [root]
    [[runs]]                        a line of the figure: algorithm, its options, its own
                                    `grid.option = [values]`
    [runs.paper], [runs.laptop]     what differs at this scale; also [runs.gpu]
                                    `only = "paper"` next to the algorithm leaves the block out
                                    at other scales

The scale gpu is the paper's with all learners on one GPU: it has the paper's sections, then its
own, and `file.levels` says what differs. The scales digits, the laptop's on other data, and root,
the laptop's with measured times, have the laptop's sections, then their own. A value or a list
replaces the one of a section above it in this list. `false` removes an option. `seeds` is the
number of repeats (seeds 0, 1, …); `ranks` is the largest number of MPI ranks of a run, or
"learners" for one rank a learner.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localavg import algorithms
from localavg.cli.parser import meant
from localavg.cli.sweep.file import SCALES, Table, levels, scales, tables
from localavg.cli.sweep.names import Value, named
from localavg.cli.train import given as settings
from localavg.errors import UserError
from localavg.parallel.layout import fewest_ranks
from localavg.training import checks

OURS = {"out", "seed", "resume", "time-limit", "help"}  # options that the sweep sets itself


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    name: its run file's name without .h5. ranks: MPI ranks. words: of its command line, after
    `localavg` and up to `--out`. given: what the parser of the command line made of the words.
    """

    name: str
    ranks: int
    words: tuple[str, ...]
    given: Mapping[str, object]

    @property
    def asked(self) -> dict[str, object]:
        """Return every setting of the run by its name in the run file, defaults included."""
        return checks.all_settings(checks.read(self.given))


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
    changes: Mapping[str, Value] | None = None,
) -> Sweep:
    """Read the runs of the file at a scale.

    train: the parser of `localavg train`, which checks every option and value. seeds, ranks and
    changes (options by name) replace those of the file. Raises UserError that names the file,
    section and option.
    """
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: must be one of {', '.join(SCALES)}")
    table = {**tables(Path(path)), "set": changes or {}}
    reader = _Reader(Path(path), scale, train, seeds, ranks)
    found = [
        run for i, block in enumerate(table["runs"], 1) for run in reader.block(table, block, i)
    ]
    if not found:
        raise UserError(f"{path}: no runs at scale {scale}: every block is for another scale")
    names = named(str(path), [(run.algorithm, run.options, run.gridded, run.seed) for run in found])
    runs = [
        Planned(name, run.ranks, ("train", *run.words), run.given)
        for name, run in zip(names, found, strict=True)
    ]
    return Sweep(Path(path), scale, table.get("sweep", {}), tuple(runs))


@dataclass(frozen=True)
class _Choice:
    """The values of an option, one a run; the section that gives them; whether it is a grid."""

    option: str
    values: list[Value]
    section: str
    grid: bool


@dataclass
class _Run:
    """A run without a name."""

    algorithm: str
    options: dict[str, tuple[str, Value]]  # argparse's dest -> option, value
    gridded: set[str]
    ranks: int
    seed: int
    words: list[str]
    given: dict[str, object]


class _Reader:
    """Reads the runs of one file at one scale; arguments as those of `read`."""

    def __init__(
        self,
        path: Path,
        scale: str,
        train: argparse.ArgumentParser,
        seeds: int | None,
        ranks: int | None,
    ) -> None:
        self.path, self.scale, self.train, self.seeds, self.ranks = path, scale, train, seeds, ranks
        self.flags = train._option_string_actions  # flag -> argparse's action

    def fail(self, section: str, option: str, value: object, rule: str) -> UserError:
        """Make the error of an option in a section of the file."""
        return UserError(f"{self.path}: [{section}] {option} = {value!r}: {rule}")

    def block(self, table: Table, block: Table, i: int) -> Iterator[_Run]:
        """Yield all runs of the i-th [[runs]] block, checked."""
        where = f"runs {i} {block['algorithm']}"
        if block.get("only", self.scale) not in SCALES:
            raise self.fail(where, "only", block["only"], f"must be one of {', '.join(SCALES)}")
        if block.get("only", self.scale) not in scales(self.scale):
            return
        chosen, seeds, ranks = self.choices(table, block, where)
        gridded = {dest for dest, choice in chosen.items() if choice.grid}
        for values in itertools.product(*(choice.values for choice in chosen.values())):
            options = {
                dest: (choice.option, value)
                for (dest, choice), value in zip(chosen.items(), values, strict=True)
                if value is not False
            }
            for seed in range(self.seeds or seeds):
                yield self.run(block["algorithm"], options, gridded, ranks, seed)

    def choices(
        self, table: Table, block: Table, where: str
    ) -> tuple[dict[str, _Choice], int, int | str]:
        """Return the choices of a block by argparse's dest, its seeds and its ranks.

        The sections are read in order of strength: a later one replaces what an earlier one chose.
        """
        chosen: dict[str, _Choice] = {}
        seeds, ranks = 1, 1
        for section, level in levels(table, block, where, self.scale):
            self.refuse_twice(section, level)
            for option, value in level.items():
                if option == "grid":
                    for name, values in value.items():
                        self.choose(chosen, name, values, section, grid=True)
                elif option == "seeds":
                    seeds = self.number(option, value, section)
                elif option == "ranks":
                    ranks = value if value == "learners" else self.number(option, value, section)
                elif option not in ("algorithm", "only", *SCALES) or level is not block:
                    self.choose(chosen, option, value, section, grid=False)
        return chosen, seeds, ranks

    def refuse_twice(self, section: str, level: Table) -> None:
        """Raise UserError for an option that a section gives twice: in its grid too, or as --tau.

        One of the two would have no effect.
        """
        given: dict[str, str] = {}  # argparse's dest -> how the section writes it
        grid = level.get("grid", {})
        for option, value in [*level.items(), *((f"grid.{name}", x) for name, x in grid.items())]:
            action = self.flags.get(f"--{option.removeprefix('grid.')}")
            if action is not None and action.dest in given:
                rule = f"the section also has {given[action.dest]}: leave one out"
                raise self.fail(section, option, value, rule)
            if action is not None:
                given[action.dest] = option

    def number(self, option: str, value: Value, section: str) -> int:
        """Return the value of `seeds` or `ranks`, or raise UserError."""
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            or_learners = ', or "learners"' if option == "ranks" else ""
            rule = f"must be a whole number of at least 1{or_learners}"
            raise self.fail(section, option, value, rule)
        return value

    def choose(
        self, chosen: dict[str, _Choice], option: str, value: Value, section: str, grid: bool
    ) -> None:
        """Check the value of an option, or in a grid its list of values, and choose it."""
        if option in OURS:
            more = " and give seeds = HOW_MANY" if option == "seed" else ""
            raise self.fail(
                section, option, value, f"the sweep sets this itself: leave it out{more}"
            )
        if (action := self.flags.get(f"--{option}")) is None:
            like = meant(f"--{option.replace('_', '-')}", self.flags)
            hint = f" (write it {like.removeprefix('--')})" if like else ""
            rule = f"localavg train has no option --{option}{hint}; see its --help"
            raise self.fail(section, option, value, rule)
        values = value if grid else [value]
        if not isinstance(values, list) or not values:
            raise self.fail(section, option, value, "a grid needs a list of values")
        for one in values:
            try:
                self.train.parse_args(["kavg", *self.words(option, one)])
            except UserError as e:
                raise self.fail(section, option, one, str(e)) from e
        chosen[action.dest] = _Choice(option, values, section, grid)

    def words(self, option: str, value: Value) -> list[str]:
        """Return an option and its value as words of a command line."""
        if value is False:
            return []
        if value is True:
            return [f"--{option}"]
        values = value if isinstance(value, list) else [value]
        return [f"--{option}", *map(str, values)]

    def run(
        self,
        algorithm: str,
        options: dict[str, tuple[str, Value]],
        gridded: set[str],
        ranks: int | str,
        seed: int,
    ) -> _Run:
        """Make one run: parse its command line and try its settings."""
        words = [algorithm]
        for option, value in options.values():
            words += self.words(option, value)
        words += ["--seed", str(seed)]
        given = settings(self.train.parse_args(words))
        try:
            config = checks.read(given)
        except UserError as e:
            raise UserError(f"{self.path}: {algorithm} at scale {self.scale}: {e}") from e
        P = config.learners or 1
        count = fewest_ranks(P, self.ranks or (P if ranks == "learners" else int(ranks)))
        if algorithm in algorithms.ASYNCHRONOUS:
            servers = {**algorithms.options(algorithm), **config.options}["servers"]
            count = 1 if config.simulate else count + servers
        return _Run(algorithm, options, gridded, count, seed, words, given)
