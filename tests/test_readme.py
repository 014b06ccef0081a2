"""Every command of the README is run, by a test or by a make target."""

import re
import shlex
import subprocess

import pytest
from mpi import ROOT

README = (ROOT / "README.md").read_text()
LINES = [line.strip().split("  #")[0].strip() for line in README.splitlines() if line.startswith("    ")]
COMMANDS = [line for line in LINES if re.match(r"(make|jobs/|mpirun|\.venv/bin/|python) ?", line)]
ELSEWHERE = {  # make targets; long or other people's files; what runs them
    "make run": "the main job itself", "make test": "this", "make bench": "a benchmark",
    ".venv/bin/python -m localavg prepare epsilon epsilon_normalized.bz2 --test epsilon_normalized.t.bz2 --shuffle 0 "
    "--out epsilon.h5": "test_prepare.py, on small files of that format",
    "jobs/local/mpirun -n 2 python -m mpi4py -m localavg bench average": "make bench",
}
LIMIT_S = 120


def test_the_commands_are_found():
    assert len(COMMANDS) >= 8 and set(ELSEWHERE) <= set(COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place to run them in, that looks like the top of the checkout."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("jobs", ".venv", "localavg", "tests", "analysis"):
        (place / name).symlink_to(ROOT / name)
    rows = "".join(f"{'+1' if i % 3 else '-1'} 1:{i / 10} 2:{-i / 7}\n" for i in range(40))
    for name in ("train.txt", "test.txt"):
        (place / name).write_text(rows)
    return place


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_a_command_of_the_readme_runs(command, folder):
    done = subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
