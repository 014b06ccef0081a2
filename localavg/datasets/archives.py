"""Reading tar archives member by member, without unpacking them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from localavg.errors import UserError
from localavg.files.hdf5 import reason


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while an archive is read into a UserError that names it."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: {reason(error)}; give the archive as it was fetched") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        why = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} is damaged, cut short or no tar archive ({why}); fetch it again"
        ) from error


def members(
    path: str | Path, file: BinaryIO | None = None
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield (archive, member) for the plain files of a tar archive, packed by gzip, bzip2, xz or
    not; `file`: it is in there.

    Nothing is kept of the members that went by. UserError if the archive is missing, damaged or cut
    short.
    """
    with reading(path), tarfile.open(path if file is None else None, "r", file) as tar:
        while (member := tar.next()) is not None:
            if member.isfile():
                yield tar, member
            tar.members.clear()
        _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise where an archive does not end after its last member: tarfile takes a spoilt or cut
    header for the end.
    """
    if not isinstance(
        tar.fileobj, io.BufferedReader
    ):  # gzip and its like find out for themselves, at their very end
        while tar.fileobj.read(1 << 20):
            pass
    else:
        tar.fileobj.seek(tar.offset)
        block = tar.fileobj.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(
                f"no member begins at byte {tar.offset}, and the archive does not end there"
            )


def content(
    path: str | Path, tar: tarfile.TarFile, member: tarfile.TarInfo, most_bytes: int | None = None
) -> bytes:
    """The bytes of a member; UserError if they are not all there or more than `most_bytes`."""
    if most_bytes is not None and member.size > most_bytes:
        raise UserError(
            f"{path}: {member.name} has {member.size} bytes, and more than {most_bytes} cannot be "
            "right"
        )
    with reading(path):
        found = tar.extractfile(member).read()
        if len(found) != member.size:
            raise EOFError(f"{member.name} is not all there")
    return found


def md5(path: str | Path) -> str:
    """The MD5 checksum of a file, which tells an official archive from another (not a safeguard
    against forgery).
    """
    with reading(path), open(path, "rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()
