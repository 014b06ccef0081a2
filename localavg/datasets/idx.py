"""Read IDX files, the format of MNIST and its kin: plain, or compressed by gzip.

A file is two zero bytes, the type of the values, the number of dimensions, the dimensions as
big-endian int32, and the values (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from localavg.datasets.writer import check_file
from localavg.errors import UserError, amount
from localavg.files.hdf5 import reason

TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
HOLDS = {1: "labels", 3: "images"}
"""what a file of so many dimensions holds"""
MOST_BYTES = 1 << 34
"""of one file: far above any set of this kind"""


class Idx(NamedTuple):
    """The values of a file, uint8 [n] or [n, H, W], and the MD5 checksum of what was unpacked."""

    values: np.ndarray
    md5: str


def read(path: Path, holds: str) -> Idx:
    """Read the `images` [n, H, W] or `labels` [n] of a file.

    UserError if it is missing, cut short, too long, of another type, or holds something else.
    """
    packed = _unpacked(path)
    if len(packed) < 4 or packed[:2] != b"\0\0" or packed[2] not in TYPES:
        raise UserError(
            f"{path} is no IDX file: it begins with {packed[:4].hex(' ') or 'nothing'}, not with "
            "00 00 08; fetch it again"
        )
    if TYPES[packed[2]] != "uint8":
        raise UserError(f"{path} holds {TYPES[packed[2]]} values, not bytes (uint8)")
    dimensions = packed[3]
    if HOLDS.get(dimensions) != holds:
        found = HOLDS.get(dimensions, "something else")
        raise UserError(
            f"{path} holds {found} ({dimensions} dimensions), not {holds}; give the file of the "
            f"{holds}"
        )
    start = 4 + 4 * dimensions
    complete = len(packed) >= start
    shape = tuple(np.frombuffer(packed[4:start], ">i4").tolist()) if complete else ()
    if min(shape, default=0) < 1:
        raise UserError(f"{path} has the dimensions {shape}, which hold no {holds}; fetch it again")
    if (need := math.prod(shape)) != (there := len(packed) - start):
        raise UserError(
            f"{path} is damaged: {' x '.join(map(str, shape))} {holds} are {need} bytes, and the "
            f"file has {there}; fetch it again"
        )
    digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    return Idx(np.frombuffer(packed, np.uint8, offset=start).reshape(shape), digest)


def _unpacked(path: Path) -> bytes:
    """Return what a file holds; UserError if it cannot be read."""
    try:
        check_file(path)
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else open(path, "rb") as file:
            packed = file.read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}; give the file as it was fetched") from error
    if len(packed) > MOST_BYTES:
        raise UserError(f"{path} is larger than {amount(MOST_BYTES)}; is it an IDX file?")
    return packed
