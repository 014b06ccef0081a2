"""Prepare CIFAR-10 from its official archives, the python or the binary version.

Both hold five training batches and a test batch of 10 000 images of 32x32 pixels: red, green and
blue planes, row by row. The binary version is records of a label and 3072 bytes. The python version
is pickles, which could run any code when loaded. They are read by an unpickler that knows only
numbers, strings, lists, dicts and, by two classes of this module, arrays of bytes; it refuses any
other name.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePosixPath

import numpy as np

from localavg.datasets import archives, progress
from localavg.datasets.dataset import Augment
from localavg.datasets.image_writer import write_images
from localavg.datasets.writer import Communicator, check_out, on_root, shuffled
from localavg.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MD5 = {"python": "c58f30108f718f92721af3b95e74349a", "binary": "c32a1d4ab5d03f1284b67883e8d87530"}
BATCHES = tuple(f"data_batch_{k}" for k in (1, 2, 3, 4, 5))
ROWS = 10_000
"""images in a batch"""
PIXELS = 3 * 32 * 32


def prepare_cifar10(
    archive: str | Path,
    out: str | Path,
    shuffle: int | None = None,
    name: str = "cifar10",
    comm: Communicator | None = None,
) -> bool:
    """Write the prepared file `out` from cifar-10-python.tar.gz or cifar-10-binary.tar.gz.

    Return whether the archive's MD5 is the official one. shuffle: a seed; training row i is then
    row numpy.random.default_rng(shuffle).permutation(50000)[i] of the five batches in order (None:
    row i). The attributes `md5` and `official` of the file describe the archive. Rank 0 of `comm`
    works. UserError if a batch is missing, has another number of images, a label that is not 0 … 9
    or a forbidden name, if the archive is damaged, or if `out` exists.
    """
    if shuffle is not None and shuffle < 0:
        raise UserError(f"`shuffle = {shuffle}` is a seed and must not be negative")
    return on_root(comm, lambda: _write(Path(archive), out, shuffle, name))


def _write(archive: Path, out: str | Path, shuffle: int | None, name: str) -> bool:
    check_out(out)
    checksum = archives.md5(archive)
    batches = _batches(archive)
    training = zip(*(batches[batch] for batch in BATCHES), strict=True)
    x, y = (np.concatenate(parts) for parts in training)  # [n, 32, 32, 3], [n]
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(y))  # [n]
        x, y = x[order], y[order]
    official = checksum in MD5.values()
    attributes = {
        "name": name,
        "source": archive.name,
        "md5": checksum,
        "official": official,
        **shuffled(shuffle),
    }
    splits = {"train": (x, y), "test": batches["test_batch"]}
    write_images(out, splits, CLASSES, Augment(pad=4, flip=True), attributes)
    return official


def _batches(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read all six batches: {batch: (x uint8 [ROWS, 32, 32, 3], y [ROWS])}.

    UserError where one is missing or wrong.
    """
    wanted = {*BATCHES, "test_batch"}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    most_bytes = 4 * ROWS * PIXELS + (1 << 20)
    with progress.bar(len(wanted) * ROWS * PIXELS, f"read {archive.name}") as bar:
        for tar, member in archives.members(archive):
            file = PurePosixPath(member.name)
            if file.name in wanted or (file.stem in wanted and file.suffix == ".bin"):
                what = f"{archive}: {member.name}"
                packed = archives.content(archive, tar, member, most_bytes)
                planes, labels = (_binary if file.suffix else _pickled)(packed, what)
                found[file.stem] = _checked(planes, labels, what)
                bar.update(len(packed))
    if missing := sorted(wanted - set(found)):
        raise UserError(
            f"{archive} lacks {', '.join(missing)}; fetch cifar-10-python.tar.gz or "
            "cifar-10-binary.tar.gz again"
        )
    return found


def _checked(planes: np.ndarray, labels: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images [ROWS, 32, 32, 3] and labels [ROWS] from planes [ROWS, 3072] and labels.

    UserError where a shape or a label is wrong.
    """
    if planes.shape != (ROWS, PIXELS) or labels.shape != (ROWS,):
        raise UserError(
            f"{what} has {len(planes)} images and {len(labels)} labels, not {ROWS} of each; fetch "
            "it again"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if wrong.size:
        raise UserError(
            f"{what}: label {labels[wrong[0]]} of image {wrong[0]} is not 0 … 9; fetch the archive "
            "again"
        )
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _binary(packed: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Read planes [n, 3072] and labels [n] from a batch of the binary version."""
    if len(packed) % (1 + PIXELS):
        raise UserError(
            f"{what} has {len(packed)} bytes, no multiple of {1 + PIXELS}; fetch the archive again"
        )
    rows = np.frombuffer(packed, np.uint8).reshape(-1, 1 + PIXELS)  # [n, 3073]
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _pickled(packed: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Read planes [n, 3072] and labels [n] from a batch of the python version."""
    try:
        found = _Unpickler(io.BytesIO(packed), encoding="bytes").load()
        batch = {k.decode() if isinstance(k, bytes) else k: value for k, value in found.items()}
        labels = batch["labels"]
        if not all(isinstance(label, int) for label in labels):
            raise TypeError("a label is no integer")
        return batch["data"].values(), np.array(labels, np.int64)
    except _Refused as error:
        raise UserError(
            f"{what} is no batch of CIFAR-10: it asks for {error}, which could run code; do not "
            "trust this archive"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"{what} cannot be read ({type(error).__name__}: {error}); fetch the archive again"
        ) from error


class _Refused(Exception):
    """A pickle names something that no batch needs."""


class _Type:
    """Replaces numpy.dtype in a batch's pickle: a code, which must be that of a byte."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Ignore byte order and alignment, which mean nothing for bytes."""


class _Array:
    """Replaces a NumPy array in a batch's pickle: its shape and its bytes."""

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Type, bool, str | bytes]) -> None:
        _, self.shape, self.type, self.by_columns, self.raw = state

    def values(self) -> np.ndarray:
        """Return the array; TypeError unless it is one of bytes by rows."""
        if self.type.code not in ("u1", "uint8") or self.by_columns:
            raise TypeError(f"an array of {self.type.code!r}, not of bytes by rows")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        return np.frombuffer(raw, np.uint8).reshape(self.shape)


def _encoded(text: str, encoding: str) -> bytes:
    """Return bytes that Python 3 wrote into an old pickle as text."""
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Reads pickles that name only what a batch needs."""

    def find_class(self, module: str, name: str) -> object:
        known = {
            "numpy.dtype": _Type,
            "numpy.ndarray": None,
            "_codecs.encode": _encoded,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
        }
        if f"{module}.{name}" not in known:
            raise _Refused(f"{module}.{name}")
        return known[f"{module}.{name}"]
