"""The pages for readers, README.md, CONTRIBUTING.md and docs/*.md: their steps, headings and links.

A step is something that a reader does: a line of a ```sh block, inline code that begins like a
command, or a ```python block. A ```python or ```toml block whose first line is a comment with the
name of a file, `# mine.py`, is what the reader writes into that file. A ```text block shows what
the step before it prints, and a block without a language is a quotation.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mpi import LIMIT_S, ROOT, need

START = re.compile(
    r"(make|mpirun|srun(?= "
    r"-)|sbatch|bsub|python3?|pip|export|apt-get|docker|jobs/\S+|\.venv/bin/\S+) \S"
)
BLOCK = re.compile(r"```(\w*)\n(.*?)```|(?<!`)`([^`\n]+)`(?!`)", re.S)
NAMED = re.compile(r"# (\S+\.(?:py|toml|sh))\n")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
"""the text of README.md and of the pages in docs/, by their paths"""


class Step(NamedTuple):
    """Something to do: what, in which language; the file to write it to, and what it prints."""

    language: str
    what: str
    file: str = ""
    prints: str = ""


def steps(text: str) -> list[Step]:
    """Return the steps of a page in their order."""
    found: list[Step] = []
    for language, what in blocks(text):
        if language == "":
            continue
        if language == "text":
            found[-1] = found[-1]._replace(prints=what)
        elif language != "sh" and (name := NAMED.match(what)):
            found.append(Step("file", what, name[1]))
        else:
            found.append(Step(language, what))
    return found


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of sh blocks, the commands among the text and the other blocks, each with
    its language.
    """
    for fence in BLOCK.finditer(text):
        language, block, inline = fence.groups()
        if inline:
            if START.match(inline):
                yield "sh", inline
        elif language == "sh":
            yield from (("sh", line.split("  #")[0].strip()) for line in block.splitlines())
        else:
            yield language, block


def prose(text: str) -> str:
    """Return a page without its blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(text: str) -> set[str]:
    """Return the anchors that a forge gives to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken_links(name: str, text: str) -> list[str]:
    """Return the links of a page that lead to no file or heading, and the files it names that are
    not there.
    """
    here = (ROOT / name).parent
    links = [link for link in re.findall(r"\]\(([^)\s]+)", text) if not link.startswith("http")]
    found = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = here / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    files = re.findall(r"`((?:localavg|tests|analysis|jobs|data|docs)/[\w./-]*\w)`", prose(text))
    return found + [path for path in files if not Path(ROOT / path).exists()]


def shows(printed: str, lines: str) -> bool:
    """Return whether all `lines` are among the printed ones, whatever the numbers.

    A line … stands for any lines, and a … in a line for any words.
    """
    there = [_masked(line) for line in printed.splitlines()]
    wanted = [_masked(line) for line in lines.splitlines() if line.strip() not in ("", "…")]
    return all(any(re.fullmatch(_pattern(line), one) for one in there) for line in wanted)


def _masked(line: str) -> str:
    """Replace the numbers of a line by #, and its runs of blanks and dashes by one."""
    line = re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?", "#", line)
    return " ".join(re.sub(r"-{2,}", "-", line).split())


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part.strip()) for part in line.split("…"))


def perform(
    command: str, folder: Path, env: Mapping[str, str | os.PathLike] | None = None
) -> tuple[int, str]:
    """Run the words of a command in a folder; return its status and everything that it printed."""
    need("openmpi")
    words = ["env", *(f"{name}={value}" for name, value in (env or {}).items())]
    done = subprocess.run(
        [*words, *shlex.split(command)],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
    )
    return done.returncode, done.stdout + done.stderr
