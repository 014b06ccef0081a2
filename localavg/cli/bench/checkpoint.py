"""A checkpoint of ResNet-18's size with momentum, against writing as many bytes one after the
other.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from localavg.cli.bench import medians, seconds
from localavg.errors import UserError
from localavg.files import checkpoint
from localavg.parallel.fleet import Fleet

RESNET_18 = 11_173_962 + 9_600  # floats of a row: parameters and statistics
BLOCK = 1 << 26  # bytes written at a time


def bench_checkpoint(fleet: Fleet, folder: str, d: int, repeats: int) -> list[dict[str, Any]]:
    """Weights and momentum of the fleet's learners in `folder`: {learners, ranks, bytes, ours_s,
    disk_s, restore_s}.

    disk_s: every rank writes as many bytes to one file with plain writes, then syncs. Medians of
    interleaved turns, times of the slowest rank.
    """
    w = np.random.default_rng(fleet.rank).standard_normal((fleet.L, d), np.float32)
    state = {"weights": {"w": w}, "optimizer": {"0": w}}

    def slowest(work: Any) -> float:
        fleet.world.Barrier()
        return max(fleet.world.allgather(seconds(work)))

    try:
        made = fleet.together(lambda: tempfile.TemporaryDirectory(dir=os.path.abspath(folder)))
    except UserError as e:
        raise UserError(f"--folder {folder}: {e}; give a folder that every rank can write") from e
    with made:
        place = Path(fleet.world.bcast(made.name))
        checkpoint.write(place / "run.ckpt", 1, fleet, state)  # whatever comes first finds one
        times = medians(
            {
                "ours_s": lambda: slowest(
                    lambda: checkpoint.write(place / "run.ckpt", 1, fleet, state)
                ),
                "disk_s": lambda: slowest(
                    lambda: fleet.together(lambda: _plain(place / f"plain{fleet.rank}", w))
                ),
                "restore_s": lambda: slowest(
                    lambda: checkpoint.read(place / "run.ckpt", 1, fleet.rank, fleet.learners)
                ),
            },
            repeats,
        )
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


def _plain(path: Path, w: np.ndarray) -> None:
    with open(path, "wb") as f:
        for _ in range(2):
            data = w.reshape(-1).view(np.uint8).data
            for i in range(0, len(data), BLOCK):
                f.write(data[i : i + BLOCK])
        f.flush()
        os.fsync(f.fileno())
    path.unlink()
