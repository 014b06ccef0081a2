"""LIBSVM text to rows: a file in chunks of whole lines, a chunk parsed at a time, mistakes named by
line.
"""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from localavg.errors import UserError

CHUNK_BYTES = 4 << 20
LONGEST_LINE_BYTES = 16 << 20
ENTRY = np.dtype([("index", "<i4"), ("value", "<f4")])
"""One stored feature of a row; index from 0."""
COMPRESSED = {b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open, b"\x1f\x8b": gzip.open}
"""How to open a file, by its first bytes."""
RULE = "a line reads `label index:value index:value …`, indices from 1 and increasing"


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file."""

    number: int
    """place of the chunk in the file, from 0"""
    text: bytes | None
    """the lines; None for a chunk of another rank"""
    lines_before: Callable
    """function that returns how many lines of the file come before the chunk"""
    position: int
    """bytes of the file (as stored) read when this chunk has been"""


@dataclass(frozen=True)
class Block:
    """The rows of one chunk, sparse."""

    number: int
    """place of the chunk in the file"""
    labels: np.ndarray
    """[n] float64, as in the file"""
    counts: np.ndarray
    """[n] uint32 entries of each row"""
    entries: np.ndarray
    """[Σ counts] of type ENTRY, row after row"""


def blocks(
    path: str | os.PathLike, features: int | None = None, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[int, Block | None]]:
    """Yield (position, Block) for every chunk of the file, the Block None unless chunk number mod
    ranks is rank.

    UserError names the file, the line and the rule where the text breaks it; `features` is the
    largest index allowed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            opener = next(
                (COMPRESSED[magic] for magic in COMPRESSED if head.startswith(magic)), None
            )
            file.seek(0)
            chunks = (
                _packed_chunks(path, file, opener, rank, ranks)
                if opener
                else _chunks(path, file, rank, ranks)
            )
            for chunk in chunks:
                yield chunk.position, None if chunk.text is None else parse(path, chunk, features)
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        if error.strerror:
            raise UserError(f"{path}: {error.strerror}") from error
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def _chunks(path, file, rank, ranks):
    """Chunks of plain text: chunk c holds the lines that begin in bytes c · CHUNK_BYTES … (c + 1) ·
    CHUNK_BYTES − 1.
    """
    size = os.fstat(file.fileno()).st_size
    for number, start in enumerate(range(0, size, CHUNK_BYTES)):
        text, stop = None, min(start + CHUNK_BYTES, size)
        begin = start
        if number % ranks == rank:
            file.seek(max(0, start - 1))
            if start:
                _rest_of_line(path, file, start)
            begin = file.tell()
            text = file.read(max(0, stop - begin))
            if text and not text.endswith(b"\n"):
                text += _rest_of_line(path, file, stop)
        yield Chunk(number, text, lambda begin=begin: _count_lines(path, begin), stop)


def _rest_of_line(path, file, position):
    rest = file.readline(LONGEST_LINE_BYTES)
    if len(rest) == LONGEST_LINE_BYTES:
        raise _too_long(path, _count_lines(path, position))
    return rest


def _count_lines(path, stop):
    """Return the number of line ends in the first `stop` bytes of a plain file."""
    lines = 0
    with open(path, "rb") as file:
        while stop > 0 and (piece := file.read(min(stop, CHUNK_BYTES))):
            lines += piece.count(b"\n")
            stop -= len(piece)
    return lines


def _packed_chunks(path, file, opener, rank, ranks):
    """Chunks of a compressed file: every rank unpacks all of it and keeps its own."""
    rest, number, lines = b"", 0, 0
    with opener(file) as stream:
        while piece := stream.read(CHUNK_BYTES):
            text = rest + piece
            cut = text.rfind(b"\n") + 1
            text, rest = text[:cut], text[cut:]
            if text:
                yield Chunk(
                    number,
                    text if number % ranks == rank else None,
                    lambda lines=lines: lines,
                    file.tell(),
                )
                number, lines = number + 1, lines + text.count(b"\n")
            if len(rest) >= LONGEST_LINE_BYTES:
                raise _too_long(path, lines)
    if rest:
        yield Chunk(number, rest if number % ranks == rank else None, lambda: lines, file.tell())


def _too_long(path, lines):
    return UserError(
        f"{path}, line {lines + 1}: longer than {LONGEST_LINE_BYTES >> 20} MiB; {RULE}"
    )


def parse(path: str | os.PathLike, chunk: Chunk, features: int | None = None) -> Block:
    """Return the Block of a Chunk; UserError as in `blocks`."""
    try:
        rows, labels = _load(chunk.text)
    except (ValueError, OverflowError) as error:
        lines = chunk.text.split(b"\n")
        at = _first_bad(lines)
        raise _mistake(path, chunk, at, _complaint(lines[at], error)) from error
    entries = np.empty(rows.nnz, ENTRY)
    entries["index"], entries["value"] = rows.indices, rows.data
    if b"_" in chunk.text:  # Python reads 1_000 as a number, LIBSVM does not
        for at, line in enumerate(chunk.text.split(b"\n")):
            if b"_" in line.split(b"#")[0]:
                raise _mistake(path, chunk, at, "`_` is no part of a number")
    if not np.isfinite(labels).all():
        row = int(np.argmin(np.isfinite(labels)))
        raise _mistake(path, chunk, _line_of_row(chunk, row), f"label {labels[row]} is not finite")
    wrong = ~np.isfinite(entries["value"])
    if features is not None:
        wrong |= entries["index"] >= features
    if wrong.any():
        entry = int(np.argmax(wrong))
        row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
        index, value = int(entries["index"][entry]) + 1, entries["value"][entry]
        if features is not None and index > features:
            complaint = f"feature index {index} is beyond --features {features}"
        else:
            complaint = f"the value of feature {index} is {value}, not a finite float32"
        raise _mistake(path, chunk, _line_of_row(chunk, row), complaint)
    return Block(chunk.number, labels, np.diff(rows.indptr).astype(np.uint32), entries)


def _load(text):
    from sklearn.datasets import load_svmlight_file

    return load_svmlight_file(io.BytesIO(text), dtype=np.float32, zero_based=False)


def _first_bad(lines):
    """Return the place of the first line that does not parse, by halving."""
    low, high = 0, len(lines)  # lines[:low] parse, lines[low:high] do not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _load(b"\n".join(lines[low:middle]))
            low = middle
        except (ValueError, OverflowError):
            high = middle
    return low


def _complaint(line, error):
    """Return what is wrong with a line that made the parser raise `error`."""
    entries = line.split(b"#")[0].split()[1:]
    before = 0
    for entry in entries:
        index, colon, value = entry.partition(b":")
        shown = f"`{entry[:40].decode(errors='replace')}`"
        if not (colon and value and index.isdigit()):
            return f"{shown} is not index:value"
        if int(index[:20]) == 0:
            return f"{shown}: indices start at 1"
        if int(index[:20]) <= before:
            return f"{shown} comes after index {before}"
        before = int(index[:20])
        if before > np.iinfo(ENTRY["index"]).max:
            return f"{shown}: the index is too large"
    return str(error)[:120]


def _line_of_row(chunk, row):
    """Return the place in the chunk of the line that holds its row `row`."""
    holds = (at for at, line in enumerate(chunk.text.split(b"\n")) if line.split(b"#")[0].split())
    return next(at for place, at in enumerate(holds) if place == row)


def _mistake(path, chunk, at, complaint):
    return UserError(f"{path}, line {chunk.lines_before() + at + 1}: {complaint}; {RULE}")
