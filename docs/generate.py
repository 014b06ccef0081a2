"""Write the generated parts of the pages in docs/, from the code that they are about.

A part stands between <!-- begin: NAME --> and <!-- end: NAME -->, where NAME is one of `PARTS`.

    python docs/generate.py     (or `make docs`; a test fails if a part is old)
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from localavg.__main__ import parser
from localavg.algorithms import ASYNCHRONOUS, BOTH, declared, make
from localavg.algorithms.about import about_of
from localavg.algorithms.common import COMMON
from localavg.cli.train import help_of
from localavg.files.schema import BENCHES, SCHEMA
from localavg.scope import Scope

HERE = Path(__file__).resolve().parent
T = 21_875  # updates, of Fig. 2 of LUPA-SGD
DEFAULT = re.compile(r"\s*\(default: ([^()]*(?:\([^()]*\)[^()]*)*)\)")
UNTITLED = ("options", "positional arguments", "optional arguments")  # argparse's own groups


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of Markdown."""
    titles = list(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cell(text) for text in line) + " |\n" for line in lines)


def cell(text: str) -> str:
    """Return a text for a cell of a table, which has one line and no | of its own."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return a text as code."""
    return f"`{text}`"


def flags(names: Iterable[str]) -> str:
    """Return the options of the command line with these names."""
    return " ".join(code("--" + name.replace("_", "-")) for name in names)


# --- docs/algorithms.md


def choose() -> str:
    """Return the table of what every algorithm does, and when to take it."""
    return table(
        ("algorithm", "what it does", "take it if"),
        (
            (code(name), (inspect.getdoc(function) or "").splitlines()[0], about.take_if)
            for name, function in BOTH.items()
            if (about := about_of(function))
        ),
    )


def costs() -> str:
    """Return the table of rounds, bytes, options and papers."""
    titles = ("algorithm", "rounds", "at 21 875", "bytes in a round", "its own options", "common")
    return table((*titles, "paper"), map(cost, BOTH))


def cost(name: str) -> tuple[str, ...]:
    """Return the row of an algorithm in the table of costs."""
    about = about_of(BOTH[name])
    if about is None:
        raise SystemExit(
            f"make docs: algorithm {name} has no row in the tables of docs/algorithms.md: put "
            f"@about(…) above its @algorithm, in {inspect.getsourcefile(BOTH[name])}"
        )
    own = [option for option in declared(name) if option not in COMMON]
    paper = re.sub(r"arXiv (\d+\.\d+)", r"[\1](https://arxiv.org/abs/\1)", about.source)
    return code(name), about.rounds, rounds(name), about.sent, flags(own), common(name), paper


def common(name: str) -> str:
    """Return which of the common options an algorithm takes; those of its own form count too."""
    lacking = [option for option in COMMON if option not in declared(name)]
    if not lacking:
        return "all"
    if len(lacking) == len(COMMON):
        return "none"
    taken = [option for option in COMMON if option not in lacking]
    return f"all but {flags(lacking)}" if len(lacking) < len(taken) else flags(taken)


def rounds(name: str) -> str:
    """Return the number of rounds in T updates with the default options, – if it is not fixed."""
    about = about_of(BOTH[name])
    if name in ASYNCHRONOUS:
        return str(-(-T // declared(name)["K"].default))
    if name in ("postlocal", "qsr") or (about and about.rounds.startswith("steered")):
        return "–"  # by the step size, or by feedback
    algorithm = make(name, {}, T, epoch=T / 100)
    schedule, exchange = algorithm.schedule, algorithm.exchange
    met = (
        Scope.WORLD in (exchange.at(t), schedule.after(t) if t < T else schedule.final)
        for t in range(1, T + 1)
    )
    return str(sum(met))


def common_options() -> str:
    """Return the table of the options that algorithms have in common."""
    return options(a for a in own_options("kavg") if a.dest in COMMON)


# --- docs/command-line.md


def own_options(algorithm: str) -> list[argparse.Action]:
    """Return the options of an algorithm, as `--help` has them."""
    first, *_ = titled(help_of("localavg train", algorithm))
    return list(first[1])


def titled(command: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Yield the groups of options that --help shows, with their titles; those without one first."""
    found: dict[str, list[argparse.Action]] = {"": []}
    for group in command._action_groups:
        title = "" if group.title in UNTITLED else str(group.title)
        found.setdefault(title, []).extend(group._group_actions)
    for title, actions in found.items():
        if shown := [a for a in actions if a.help != argparse.SUPPRESS and a.dest != "help"]:
            yield title, shown


def options(actions: Iterable[argparse.Action]) -> str:
    """Return a table of options with their defaults."""
    return table(("option", "default", "what it does"), map(option, actions))


def option(action: argparse.Action) -> tuple[str, str, str]:
    """Return the row of an option."""
    text = (action.help or "") % {**vars(action), "prog": "localavg"}
    found = DEFAULT.findall(text)
    default = found[-1] if found else "required" if action.required else ""
    return written(action), default, DEFAULT.sub("", text)


def written(action: argparse.Action) -> str:
    """Return how an option is written on the command line."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    value = " ".join(value) if isinstance(value, tuple) else value
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        value = ""
    if action.nargs in ("+", "*"):
        value += " …"
    return code(" ".join(filter(None, (", ".join(action.option_strings), value))))


def train() -> str:
    """Return the options of `train`: of the algorithms, and of all runs."""
    text = "### Options of the algorithms\n\n"
    for name in BOTH:
        own = [a for a in own_options(name) if a.dest not in COMMON] if declared(name) else []
        text += f"`{name}`" + (f"\n\n{options(own)}\n" if own else ": none of its own\n\n")
    text += f"### Options common to algorithms\n\n{common_options()}"
    for title, actions in titled(help_of("localavg train", None)):
        text += f"\n### Train: {title}\n\n{options(actions)}"
    return text


def commands() -> str:
    """Return all other commands with their options."""
    return "\n".join(
        section(name, command) for name, command in subcommands(parser()).items() if name != "train"
    )


def subcommands(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser by name."""
    return {
        name: sub
        for action in command._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, sub in action.choices.items()
    }


def section(name: str, command: argparse.ArgumentParser, depth: int = 2) -> str:
    """Return the section of a command, with its subcommands."""
    about = " ".join((command.description or "").split())
    parts = [f"{'#' * depth} {name}", *filter(None, [about])]
    inner = subcommands(command)
    for title, actions in titled(command):
        if not any(isinstance(a, argparse._SubParsersAction) for a in actions):
            parts += [*filter(None, [title]), options(actions).strip()]
    parts += [section(f"{name} {sub}", its, depth + 1).strip() for sub, its in inner.items()]
    return "\n\n".join(parts) + "\n"


# --- docs/run-files.md


def schema() -> str:
    """Return the tables of a run file: every column, its unit, its type and its meaning."""
    return "\n".join(columns(group, SCHEMA[group]) for group in SCHEMA)


def benches() -> str:
    """Return the tables of the files that benchmarks write."""
    return "\n".join(columns(group, BENCHES[group]) for group in BENCHES)


def columns(group: str, of_group: dict) -> str:
    """Return one table of a run file."""
    rows = ((code(name), kind(dtype), unit, text) for name, (dtype, unit, text) in of_group.items())
    return f"### /{group}\n\n" + table(("column", "type", "unit", "meaning"), rows)


def kind(dtype: object) -> str:
    """Return the type of a column in words."""
    return {"i8": "int64", "i1": "int8", "f8": "float64"}.get(str(dtype), "text")


PARTS = {
    "choose": choose,
    "costs": costs,
    "common": common_options,
    "train": train,
    "commands": commands,
    "schema": schema,
    "benches": benches,
}
PART = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end: \2 -->)", re.S)


def fresh(text: str) -> str:
    """Return a page with its generated parts as the code has them now."""
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", text)


def main() -> None:
    """Rewrite the pages whose generated parts are old, and print their names."""
    for page in sorted(HERE.glob("*.md")):
        old = page.read_text()
        if (new := fresh(old)) != old:
            page.write_text(new)
            print(page.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
