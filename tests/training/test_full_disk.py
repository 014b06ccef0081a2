"""A disk that fills during a run. Root, to mount a small one; `make test-root`."""

import os
import re
import subprocess

import numpy as np
import pytest
from mpi import run

from localavg.files import checkpoint
from localavg.files.record import load

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
]

LINE = (
    "-m localavg train kavg --K 5 --data digits --model resnet8 --learners 2 --batch-size 8 "
    "--steps 40 --lr 0.02 "
    "--optimizer momentum --transport mpi --save-weights --checkpoint-every 10 --resume --out"
)


def train(out, *more):
    return run(2, *LINE.split(), out, *more)


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(disk, tmp_path):
    out, filler = disk / "run.h5", disk / "filler"
    assert train(tmp_path / "whole.h5").returncode == 0
    assert train(out, "--time-limit", "0.2s").returncode == 75
    saved = checkpoint.found(checkpoint.folder_of(out))
    rows = len(load(out).train)
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    room = (
        out.stat().st_size + 200_000
    )  # for the run file made anew, not for a checkpoint of twice its size
    os.truncate(filler, filler.stat().st_size - room)

    full = train(out)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert re.search(r"cannot write this (checkpoint|run file) .*No space left", full.stderr), (
        full.stderr
    )
    assert checkpoint.found(checkpoint.folder_of(out)) == saved and len(load(out).train) >= rows

    filler.unlink()
    assert train(out).returncode == 0
    np.testing.assert_array_equal(load(out).weights, load(tmp_path / "whole.h5").weights)
