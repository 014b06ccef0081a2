"""Read tar archives member by member, without unpacking them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from localavg.datasets.writer import check_file
from localavg.errors import UserError
from localavg.files.hdf5 import reason


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Context manager: turn an error in reading an archive into a UserError that names it."""
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
    path: str | Path, file: IO[bytes] | None = None
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield (archive, member) for the plain files of a tar archive, which may be compressed.

    file: the open archive, if it is not to be opened by its path. Members that were yielded before
    are not kept in memory. UserError if the archive is missing, damaged or cut short.
    """
    with reading(path):
        if file is None:
            check_file(path)
        with tarfile.open(path if file is None else None, "r", file) as tar:
            while (member := tar.next()) is not None:
                if member.isfile():
                    yield tar, member
                tar.members.clear()  # type: ignore[attr-defined]  # typeshed does not list it
            _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise unless the archive ends after its last member.

    tarfile takes a damaged or cut header for the end.
    """
    file = tar.fileobj
    assert file is not None, "it is open"
    if not isinstance(file, io.BufferedReader):  # gzip and the like check themselves at their end
        while file.read(1 << 20):
            pass
    else:
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(
                f"no member begins at byte {tar.offset}, and the archive does not end there"
            )


def content(
    path: str | Path, tar: tarfile.TarFile, member: tarfile.TarInfo, most_bytes: int | None = None
) -> bytes:
    """Return the bytes of a member; UserError if they are incomplete or more than `most_bytes`."""
    if most_bytes is not None and member.size > most_bytes:
        raise UserError(
            f"{path}: {member.name} has {member.size} bytes, and more than {most_bytes} cannot be "
            "right; fetch the archive again"
        )
    with reading(path):
        file = tar.extractfile(member)
        assert file is not None, "it is a plain file"
        found = file.read()
        if len(found) != member.size:
            raise EOFError(f"{member.name} is not all there")
    return found


def md5(path: str | Path) -> str:
    """Return the MD5 checksum of a file.

    It shows whether an archive is the official one; it does not protect against forgery.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with reading(path):
        check_file(path)
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
