"""The commit of a checkout, and whether files differ from it, read from git's own files.

No process is started: a run may ask after MPI has started, when a process must not fork.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import BinaryIO

NAME = 20  # bytes in the name of an object; a repository with longer names is not read
DELTAS = {6: "offset", 7: "name"}  # kinds of packed entries that change another object
TREE, SUBMODULE = "40000", "160000"  # modes in a tree


class Unreadable(Exception):
    """A repository that is damaged, or of a form that is not known here."""


def head(checkout: Path) -> str | None:
    """Return the name of the commit that is checked out; None if there is none or it is unknown."""
    try:
        return Repository(checkout).head()
    except (OSError, ValueError, Unreadable):
        return None


def changed(checkout: Path, commit: str, folder: str) -> bool | None:
    """Return whether files below `folder` differ from the commit; None if it cannot be found out.

    A Python file that the commit does not have counts, other new files do not.
    """
    try:
        blobs = dict(Repository(checkout).blobs(commit, folder))
        there = {str(path.relative_to(checkout)) for path in (checkout / folder).rglob("*.py")}
        return bool(there - set(blobs)) or any(
            not _is(checkout / path, name) for path, name in blobs.items()
        )
    except (OSError, ValueError, Unreadable, zlib.error, struct.error, IndexError):
        return None


def _is(path: Path, name: str) -> bool:
    """Return whether a file has the content of the blob of this name."""
    try:
        data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
    except FileNotFoundError:
        return False
    return sha1(b"blob %d\0" % len(data) + data).hexdigest() == name


class Repository:
    """The objects and references of a checkout: its own, those of a worktree, alternates."""

    def __init__(self, checkout: Path) -> None:
        place = checkout / ".git"
        if place.is_file():  # of a worktree or submodule
            place = checkout / place.read_text().removeprefix("gitdir:").strip()
        common = place / "commondir"
        self.place = place
        self.common = place / common.read_text().strip() if common.exists() else place
        self.stores = [self.common / "objects"]
        alternates = self.stores[0] / "info" / "alternates"
        if alternates.exists():
            self.stores += [self.stores[0] / line for line in alternates.read_text().splitlines()]
        self.read = cache(self._read)

    def head(self) -> str:
        """Return the name of the commit at HEAD; raise Unreadable where there is none yet."""
        text = (self.place / "HEAD").read_text().strip()
        while text.startswith("ref:"):
            text = self._reference(text.removeprefix("ref:").strip())
        if len(bytes.fromhex(text)) != NAME:
            raise Unreadable(text)
        return text

    def _reference(self, name: str) -> str:
        for place in (self.place, self.common):
            if (place / name).is_file():
                return (place / name).read_text().strip()
        packed = self.common / "packed-refs"
        for line in packed.read_text().splitlines() if packed.exists() else []:
            if line.endswith(f" {name}"):
                return line.partition(" ")[0]
        raise Unreadable(name)

    def blobs(self, commit: str, folder: str) -> Iterator[tuple[str, str]]:
        """Yield the path and the name of every file below a folder of a commit."""
        tree = self.read(commit).partition(b"\n")[0].decode().removeprefix("tree ")
        for part in folder.split("/"):
            tree = {path: name for path, _, name in self._entries(tree)}.get(part, "")
            if not tree:
                return
        yield from self._below(tree, folder)

    def _below(self, tree: str, folder: str) -> Iterator[tuple[str, str]]:
        for path, mode, name in self._entries(tree):
            if mode == TREE:
                yield from self._below(name, f"{folder}/{path}")
            elif mode != SUBMODULE:
                yield f"{folder}/{path}", name

    def _entries(self, tree: str) -> Iterator[tuple[str, str, str]]:
        """Yield the path, the mode and the name of what lies directly in a tree."""
        data, at = self.read(tree), 0
        while at < len(data):
            end = data.index(b"\0", at)
            mode, _, path = data[at:end].decode("utf-8", "surrogateescape").partition(" ")
            at = end + 1 + NAME
            yield path, mode, data[end + 1 : at].hex()

    def _read(self, name: str) -> bytes:
        """Return the content of an object, loose or packed."""
        for store in self.stores:
            loose = store / name[:2] / name[2:]
            if loose.exists():
                return zlib.decompress(loose.read_bytes()).partition(b"\0")[2]
        for store in self.stores:
            for index in sorted((store / "pack").glob("*.idx")):
                if (at := _place(index, bytes.fromhex(name))) is not None:
                    with index.with_suffix(".pack").open("rb") as pack:
                        return self._unpacked(pack, at)
        raise Unreadable(name)

    def _unpacked(self, pack: BinaryIO, at: int) -> bytes:
        """Return the content of the entry at byte `at` of a pack."""
        pack.seek(at)
        byte = pack.read(1)[0]
        kind = byte >> 4 & 7
        while byte & 128:  # the rest of the size, which zlib finds by itself
            byte = pack.read(1)[0]
        base = b""
        if DELTAS.get(kind) == "name":
            base, here = self.read(pack.read(NAME).hex()), pack.tell()
        elif DELTAS.get(kind) == "offset":
            back, here = _back(pack), pack.tell()
            base = self._unpacked(pack, at - back)
        else:
            here = pack.tell()
        pack.seek(here)
        inflate, data = zlib.decompressobj(), b""
        while not inflate.eof and (piece := pack.read(1 << 16)):
            data += inflate.decompress(piece)
        return _applied(data, base) if kind in DELTAS else data


def _place(index: Path, name: bytes) -> int | None:
    """Return the first byte of an object in the pack of an index, None if it is not there."""
    data = index.read_bytes()
    if data[:8] != b"\xfftOc\0\0\0\2":
        raise Unreadable(index)
    fan = struct.unpack_from(">256I", data, 8)
    low, high = fan[name[0] - 1] if name[0] else 0, fan[name[0]]
    names, n = 8 + 4 * 256, fan[255]
    found = next((i for i in range(low, high) if data.startswith(name, names + NAME * i)), None)
    if found is None:
        return None
    offsets = names + (NAME + 4) * n
    (at,) = struct.unpack_from(">I", data, offsets + 4 * found)
    if at >> 31:  # in the table of long offsets
        (at,) = struct.unpack_from(">Q", data, offsets + 4 * n + 8 * (at & 0x7FFFFFFF))
    return at


def _back(pack: BinaryIO) -> int:
    """Read how many bytes before an entry its base begins."""
    byte = pack.read(1)[0]
    back = byte & 127
    while byte & 128:
        byte = pack.read(1)[0]
        back = (back + 1 << 7) | byte & 127
    return back


def _applied(delta: bytes, base: bytes) -> bytes:
    """Return what a delta makes of its base."""
    at, made = 0, bytearray()
    for _ in range(2):  # the sizes of the base and of the result
        while delta[at] & 128:
            at += 1
        at += 1
    while at < len(delta):
        code = delta[at]
        at += 1
        if not code & 128:  # the next bytes themselves
            made += delta[at : at + code]
            at += code
            continue
        numbers = [0] * 7  # four bytes of an offset and three of a size, those that are not 0
        for i in range(7):
            if code >> i & 1:
                numbers[i] = delta[at]
                at += 1
        first = int.from_bytes(bytes(numbers[:4]), "little")
        size = int.from_bytes(bytes(numbers[4:]), "little") or 0x10000
        made += base[first : first + size]
    return bytes(made)
