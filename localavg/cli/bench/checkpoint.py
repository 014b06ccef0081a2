"""Time a checkpoint of weights and momentum against plain writing of as many bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from localavg.cli.bench import Row, medians, seconds
from localavg.errors import UserError
from localavg.files import checkpoint
from localavg.parallel.fleet import Fleet

RESNET_18 = 11_173_962 + 9_600  # floats of a row: parameters and statistics
BLOCK = 1 << 26  # bytes written at a time


def bench_checkpoint(fleet: Fleet, folder: str, d: int, repeats: int) -> list[Row]:
    """Write and read checkpoints of the fleet's learners in `folder`, with rows of d floats.

    Return one row {learners, ranks, bytes, ours_s, disk_s, restore_s, ours_over_disk}: medians of
    `repeats` interleaved turns, times of the slowest rank. disk_s: every rank writes as many bytes
    to a file with plain writes and then syncs it.
    """
    w = np.random.default_rng(fleet.rank).standard_normal((fleet.L, d), np.float32)
    try:
        made = fleet.together(lambda: tempfile.TemporaryDirectory(dir=os.path.abspath(folder)))
    except UserError as e:
        raise UserError(f"--folder {folder}: {e}; give a folder that every rank can write") from e
    with made:
        times = _times(fleet, Path(fleet.world.bcast(made.name)), w, repeats)
        fleet.world.Barrier()
    return [
        {
            "learners": fleet.P,
            "ranks": fleet.ranks,
            "bytes": 2 * 4 * d * fleet.P,
            **times,
            "ours_over_disk": times["disk_s"] / times["ours_s"],
        }
    ]


def _times(fleet: Fleet, folder: Path, w: np.ndarray, repeats: int) -> dict[str, float]:
    """Time writing and reading of w [L, d] and as much momentum, and plain writing. Collective."""
    state = {"weights": {"w": w}, "optimizer": {"0": w}}
    saved, plain = folder / "run.ckpt", folder / f"plain{fleet.rank}"

    def write() -> None:
        checkpoint.write(saved, 1, fleet, state)

    def write_plainly() -> None:
        fleet.together(lambda: _plain(plain, w))

    def read() -> None:
        checkpoint.read(saved, 1, fleet.rank, fleet.learners)

    def slowest(work: Callable[[], object]) -> float:
        fleet.world.Barrier()
        return max(fleet.world.allgather(seconds(work)))

    write()  # so that every turn finds a checkpoint
    ways = {
        "ours_s": lambda: slowest(write),
        "disk_s": lambda: slowest(write_plainly),
        "restore_s": lambda: slowest(read),
    }
    return medians(ways, repeats)


def _plain(path: Path, w: np.ndarray) -> None:
    """Write w twice to a file, block by block, sync it and remove it."""
    with open(path, "wb") as f:
        for _ in range(2):
            data = w.reshape(-1).view(np.uint8).data
            for i in range(0, len(data), BLOCK):
                f.write(data[i : i + BLOCK])
        f.flush()
        os.fsync(f.fileno())
    path.unlink()
