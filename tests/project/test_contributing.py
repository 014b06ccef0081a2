"""The examples of CONTRIBUTING.md work."""

import re
import shutil

from mpi import ROOT
from pages import blocks, perform

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def put(package, block):
    """Put an example into a copy of the package as its first line says: at the end of a file, or at
    the line that begins so.
    """
    head, _, code = block.partition("\n")
    path, where, start = re.fullmatch(
        r"# (\S+?)(?:, (above|below|in place of): (.*))?", head
    ).groups()
    file = package / path
    if where is None:
        file.write_text((file.read_text() + "\n\n" if file.exists() else "") + code)
        return
    lines = file.read_text().splitlines(keepends=True)
    (at,) = [i for i, line in enumerate(lines) if line.startswith(start)]
    old, room = lines[at], "\n\n" * (code[0] != " ")
    lines[at : at + 1] = {"above": [code, room, old], "below": [old, code], "in place of": [code]}[
        where
    ]
    file.write_text("".join(lines))


def test_the_examples_of_adding_something_work(tmp_path):
    """All of them, one after the other, in one copy of the project."""
    for name in ("localavg", "jobs", "analysis"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    for language, what in blocks(CONTRIBUTING):
        if language != "sh":
            put(tmp_path, what)
        elif not what.startswith(("make ", ".venv/bin/python tests/", "find ")):
            status, text = perform(what, tmp_path, {"PYTHONPATH": tmp_path})
            assert status == 0, text
            assert " train " not in what or "updates of 4 learners" in text, text
        assert ("@about" in what) == ("\n@algorithm\n" in what)  # which `make docs` needs
    refused = ".venv/bin/localavg train doubling --K 0 --data epsilon-like:200x5 --out no.h5"
    status, text = perform(refused, tmp_path, {"PYTHONPATH": tmp_path})
    assert status == 2 and text == "localavg: --K 0: a period must be at least 1\n", text
    assert (tmp_path / "figures" / "periods.png").exists()
