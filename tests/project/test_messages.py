"""Every message in docs/troubleshooting.md is one that the program prints."""

import re
import shutil
from ctypes.util import find_library

import pytest
from mpi import train_all
from pages import PAGES, perform
from samples import packed, photo

from localavg.parallel.transport import nccl

SMALL = " --data epsilon-like:400x20 --batch-size 10"


def messages():
    """The first cells of the table's rows, less the title's."""
    rows = re.findall(r"^\| `([^|]*)` \|", PAGES["docs/troubleshooting.md"], re.M)
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
    status, text = perform(PREPARE + "libsvm train.txt --test train.txt --out plain.h5", place)
    assert status == 0, text
    done = train_all(
        place, 1, {str(i): line.format(folder=place) for i, line in enumerate(MISTAKES)}
    ).done
    crowd = 2 * (
        (10**9 + shutil.disk_usage("/dev/shm").free) // 16_000
    )  # even; weights and gradients are twice what is free
    printed = [perform(command.format(crowd=crowd), place, env)[1] for command, env in LAUNCHES]
    printed.append(
        "--transport nccl: " + nccl._crowded([("host", "0000:00:00.0")] * 2)
    )  # what a GPU would be needed for
    return "\n".join([done.stdout, done.stderr, *printed])


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_table_is_printed(message, said):
    if "libcuda" in message and find_library("cuda"):
        pytest.skip("this machine has a GPU's driver")
    assert re.search(
        ".*".join(re.escape(part) for part in message.split("…")),
        re.sub(r"/\S*/(?=plain.h5)", "", said),
    ), said
