"""Rows on disk while a dataset is prepared: sparse in the order of the file, then dense in the
order wanted.
"""

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
    """The rows of a LIBSVM file, kept in `file` (open to write and read), 8 bytes an entry; 5 bytes
    a row in memory.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.labels = []
        """distinct labels, in order of appearance"""
        self.features = 0
        """largest index seen"""
        self._file = file
        self._codes, self._counts = [], []

    def append(self, block: Block) -> None:
        """Add the rows of a Block; UserError when a third label appears."""
        for label in _distinct(block.labels):
            if label not in self.labels:
                self.labels.append(label)
        if len(self.labels) > 2:
            shown = ", ".join(f"{label:g}" for label in self.labels[:SHOWN_LABELS])
            raise UserError(
                f"{self.path} has more than two labels ({shown}, …); a dataset here has two classes"
            )
        self._codes.append(
            (block.labels != self.labels[:1]).astype(np.uint8)
            if self.labels
            else np.empty(0, np.uint8)
        )
        self._counts.append(block.counts)
        self.features = max(self.features, int(block.entries["index"].max(initial=-1)) + 1)
        try:
            self._file.write(block.entries.tobytes())
        except OSError as error:
            raise UserError(
                f"temporary rows of {self.path}, beside --out: {error.strerror}; make room"
            ) from error

    @property
    def rows(self) -> int:
        """number of rows"""
        return sum(map(len, self._counts))

    def signs(self, classes: Sequence[float]) -> np.ndarray:
        """Return y [n] float32: −1 where the label is classes[0], else +1."""
        codes = np.concatenate(self._codes)  # [n]
        by_code = np.array(
            [-1.0 if label == classes[0] else 1.0 for label in self.labels], np.float32
        )
        return by_code[codes]

    def dense(
        self, features: int, order: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, x [m, features] float32) for consecutive rows, from 0; row i is the spooled
        row order[i].
        """
        counts = np.concatenate(self._counts).astype(np.int64)  # [n]
        ends = np.cumsum(counts)  # [n]
        for start, stop in slabs(len(counts), 4 * features, slab_bytes=SLAB_BYTES):
            rows = np.arange(start, stop) if order is None else order[start:stop]  # [m]
            lengths = counts[rows]  # [m]
            entries = np.empty(lengths.sum(), ENTRY)
            if order is None:
                self._read(entries, ends[start] - counts[start])
            else:
                places = np.cumsum(lengths) - lengths  # [m]
                for i in np.argsort(rows):
                    self._read(
                        entries[places[i] : places[i] + lengths[i]], ends[rows[i]] - lengths[i]
                    )
            x = np.zeros((stop - start, features), np.float32)  # [m, d]
            x[np.repeat(np.arange(stop - start), lengths), entries["index"]] = entries["value"]
            yield start, x

    def _read(self, entries, first):
        self._file.seek(int(first) * ENTRY.itemsize)
        self._file.readinto(memoryview(entries).cast("B"))


def _distinct(values):
    """Return the distinct values in order of appearance."""
    found, first = np.unique(values, return_index=True)
    return found[np.argsort(first)].tolist()
