"""Rows on disk while a dataset is prepared: sparse, in the order of the file."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from localavg.datasets.libsvm_text import ENTRY, Block
from localavg.datasets.prepared import slabs
from localavg.errors import UserError

SLAB_BYTES = 4 << 20
SHOWN_LABELS = 5


class Spool:
    """The rows of a LIBSVM file, kept in `file`, which is open to write and read.

    It takes 8 bytes per entry in the file and 5 bytes per row in memory.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.labels: list[float] = []
        """distinct labels, in order of appearance"""
        self.features = 0
        """largest index seen"""
        self.rows = 0
        self._codes: list[np.ndarray] = []  # [rows of a block] each: 0 for the first label, else 1
        self._counts: list[np.ndarray] = []  # [rows of a block] each: entries

    def append(self, block: Block) -> None:
        """Add the rows of a Block; UserError when a third label appears."""
        if not len(block.labels):
            return
        self.labels = list(dict.fromkeys([*self.labels, *block.labels.tolist()]))
        if len(self.labels) > 2:
            shown = ", ".join(f"{label:g}" for label in self.labels[:SHOWN_LABELS])
            raise UserError(
                f"{self.path} has more than two labels ({shown}, …); a dataset here has two classes"
            )
        self._codes.append((block.labels != self.labels[0]).astype(np.uint8))
        self._counts.append(block.counts)
        self.rows += len(block.counts)
        self.features = max(self.features, int(block.entries["index"].max(initial=-1)) + 1)
        try:
            self._file.write(block.entries.tobytes())
            self._file.flush()
        except OSError as error:
            what = f"temporary rows of {self.path}, beside `out`"
            raise UserError(f"{what}: {error.strerror}; make room") from error

    def signs(self, classes: Sequence[float]) -> np.ndarray:
        """Return y [n] float32: −1 where the label is classes[0], else +1."""
        signs = [-1.0 if label == classes[0] else 1.0 for label in self.labels]
        return np.array(signs, np.float32)[np.concatenate(self._codes)]

    def dense(
        self, features: int, order: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, x [m, features] float32) for consecutive rows, from row 0 on.

        Row i is the spooled row order[i].
        """
        nbytes = ENTRY.itemsize * np.concatenate(self._counts).astype(np.int64)  # [n]
        first = np.cumsum(nbytes) - nbytes  # [n]
        for start, stop in slabs(self.rows, 4 * features, slab_bytes=SLAB_BYTES):
            rows = np.arange(start, stop) if order is None else order[start:stop]  # [m]
            x = np.zeros((len(rows), features), np.float32)  # [m, d]
            for x_i, i in zip(x, rows, strict=True):
                entries = np.frombuffer(os.pread(self._file.fileno(), nbytes[i], first[i]), ENTRY)
                x_i[entries["index"]] = entries["value"]
            yield start, x
