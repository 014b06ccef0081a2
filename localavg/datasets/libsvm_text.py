"""LIBSVM text to rows: a rank parses its chunks of a file; a mistake is named by its line."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from localavg.errors import UserError

CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 16 << 20
ENTRY = np.dtype([("index", "<i4"), ("value", "<f4")])
"""One stored feature of a row; index from 0."""
COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x1f\x8b": gzip.open,
}
"""How to open a file, by its first bytes."""
FOREIGN = {
    b"PK\x03\x04": ("a .zip archive", "unpack it with unzip"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it with zstd -d"),
    b"\x04\x22\x4d\x18": ("an lz4 archive", "unpack it with lz4 -d"),
    b"7z\xbc\xaf\x27\x1c": ("a .7z archive", "unpack it with 7z x"),
    b"\x1f\x9d": ("a .Z archive", "unpack it with uncompress"),
    b"\xff\xfe": ("UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", "give a prepared one to train as `data`"),
}
"""What a file is that begins with these bytes, and what to do with it."""
TAR = slice(257, 262)
"""Where "ustar" stands in a tar archive."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 512


class Indices(NamedTuple):
    """Which feature indices the lines of a file may have."""

    first: int = 1
    """the index of the first feature: 1, or 0 in some files"""
    features: int | None = None
    """the number of features, None: any"""

    @property
    def rule(self) -> str:
        """Return how a line reads."""
        return (
            f"a line reads 'label index:value index:value …', indices from {self.first} and "
            "increasing"
        )


class Block(NamedTuple):
    """The rows of one chunk, sparse."""

    labels: np.ndarray  # [n] float64, as in the file
    counts: np.ndarray  # [n] uint32, entries of each row
    entries: np.ndarray  # [Σ counts] of type ENTRY, row after row
    position: int  # bytes of the file, as stored, read so far


def check_kind(path: Path) -> None:
    """Raise UserError for a file whose first bytes show that it holds no LIBSVM text."""
    with _named(path), open(path, "rb") as file:
        heads = file.read(HEAD_BYTES), _unpacked(file).read(HEAD_BYTES)
    for head in heads:
        found = next((about for magic, about in FOREIGN.items() if head.startswith(magic)), None)
        if head[TAR] == b"ustar":
            found = "a tar archive", "unpack it with tar -xf"
        elif found is None and head is heads[-1] and b"\0" in head:
            # UTF-16 without a byte order mark: every other byte of plain text is 0
            wide = any(len(half) > 1 and not any(half[:8]) for half in (head[::2], head[1::2]))
            found = FOREIGN[b"\xff\xfe"] if wide else ("binary data", "is it the right file?")
        if found:
            is_ = "is" if head == heads[0] else "unpacks to"
            raise UserError(f"{path} {is_} {found[0]}, not LIBSVM text; {found[1]}")


def blocks(path: Path, size: int, indices: Indices, rank: int, ranks: int) -> Iterator[Block]:
    """Yield the Blocks of every ranks-th chunk of the file, from chunk `rank` on.

    UserError names the file, the line and the rule where the text breaks it. The file must have
    `size` bytes, as it has on rank 0.
    """
    with _named(path), open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise UserError(
                f"{path} differs between ranks 0 and {rank}; put it on a file system that all "
                "ranks share"
            )
        for begin, lines in _chunks(path, _unpacked(file), indices, rank, ranks):
            yield _parsed(path, begin, lines, indices, file.tell())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Context manager: turn an error in reading a file into a UserError that names it."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        if error.strerror:
            raise UserError(f"{path}: {error.strerror}") from error
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def _unpacked(file: BinaryIO) -> BinaryIO:
    """Return the text in an open file, which may be compressed, from its beginning."""
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    opener = next((COMPRESSED[magic] for magic in COMPRESSED if head.startswith(magic)), None)
    return file if opener is None else opener(file)


def _chunks(
    path: Path, text: BinaryIO, indices: Indices, rank: int, ranks: int
) -> Iterator[tuple[int, bytes]]:
    """Yield this rank's chunks, each with the position of its first byte.

    Chunk c holds the lines that begin in bytes c · CHUNK_BYTES … (c + 1) · CHUNK_BYTES − 1 of the
    unpacked text.
    """
    for start in itertools.count(rank * CHUNK_BYTES, ranks * CHUNK_BYTES):
        if start > text.tell():  # else the last line of the chunk before ended here or later
            text.seek(start - 1)
            _rest_of_line(path, text, indices)
        begin, stop = text.tell(), start + CHUNK_BYTES
        lines = text.read(max(0, stop - begin))
        if not lines and begin < stop:
            return
        if lines and not lines.endswith(b"\n"):
            lines += _rest_of_line(path, text, indices)
        yield begin, lines


def _rest_of_line(path: Path, text: BinaryIO, indices: Indices) -> bytes:
    begin, rest = text.tell(), text.readline(LONGEST_LINE_BYTES)
    if len(rest) == LONGEST_LINE_BYTES:
        what = f"{path}, line {_line_at(path, begin)}"
        raise UserError(f"{what}: longer than {LONGEST_LINE_BYTES >> 20} MiB; {indices.rule}")
    return rest


def _line_at(path: Path, begin: int) -> int:
    """Return the number, from 1, of the line that byte `begin` of the unpacked text belongs to."""
    with open(path, "rb") as file:
        text = _unpacked(file)
        sizes = [CHUNK_BYTES] * (begin // CHUNK_BYTES) + [begin % CHUNK_BYTES]
        return 1 + sum(text.read(size).count(b"\n") for size in sizes)


def _parsed(path: Path, begin: int, text: bytes, indices: Indices, position: int) -> Block:
    from sklearn.datasets import load_svmlight_file  # type: ignore[import-untyped]

    why, d = "", indices.features
    if begin == 0:
        text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        rows, labels = load_svmlight_file(
            io.BytesIO(text), dtype=np.float32, zero_based=indices.first == 0
        )
        good = np.isfinite(labels).all() and np.isfinite(rows.data).all()
        good = good and (d is None or rows.indices.max(initial=-1) < d)
        # Python reads 1_000 as a number, LIBSVM does not.
        good = good and not (b"_" in text and re.search(rb"^[^#\n]*_", text, re.MULTILINE))
    except (ValueError, OverflowError) as error:
        good, why = False, f"here or below, {str(error)[:120]}"
    if not good:
        complaints = (_complaint(line.split(b"#")[0], indices) for line in text.split(b"\n"))
        number, why = next(((k, c) for k, c in enumerate(complaints) if c), (0, why))
        raise UserError(f"{path}, line {_line_at(path, begin) + number}: {why}; {indices.rule}")
    entries = np.empty(rows.nnz, ENTRY)
    entries["index"], entries["value"] = rows.indices, rows.data
    return Block(labels, np.diff(rows.indptr).astype(np.uint32), entries, position)


def _complaint(line: bytes, indices: Indices) -> str:
    """Return what is wrong with a line without its comment, "" where nothing is."""
    words = [word for word in line.split() if not word.startswith(b"qid:")]
    label, *entries = words or [b"0"]
    if b"_" in line:
        return "'_' is no part of a number"
    if bad := _not_finite(label):
        return f"label {bad} is not a finite number"
    before, features = indices.first - 1, indices.features
    for entry in entries:
        text, colon, value = entry.partition(b":")
        shown = repr(entry[:40].decode(errors="replace"))
        if not (colon and value and text.removeprefix(b"+").isdigit()):
            return f"{shown} is not index:value"
        if (index := int(text[:20])) <= before:
            if index < indices.first:
                return f"{shown}: indices start at 1; if they start at 0 here, add `zero_based`"
            return f"{shown} comes after index {before}"
        if index > np.iinfo(ENTRY["index"]).max:
            return f"{shown}: the index is too large"
        if features is not None and index - indices.first >= features:
            return f"feature index {index} is beyond `features = {features}`"
        if bad := _not_finite(value, np.float32):
            return f"the value of feature {index} is {bad}, not a finite float32"
        before = index
    return ""


def _not_finite(text: bytes, kind: type = float) -> str:
    """Return what a text reads as where that is no finite number of this type, else ""."""
    try:
        with np.errstate(over="ignore"):
            number = kind(float(text))
    except ValueError:
        return text[:40].decode(errors="replace")
    return "" if np.isfinite(number) else str(number)
