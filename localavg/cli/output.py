"""What a command prints: into a pipe that nobody reads any more too, and with any file name."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any, TextIO


class _Out(io.FileIO):
    """A file that drops what is written once its reader has ended, as ``head`` does.

    It drops what cannot be written too, such as on a full disk, and keeps the error for `lost`. The
    command goes on: other ranks may wait for it.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
        except OSError as error:
            _Out.error = error
            return memoryview(data).nbytes


def lost() -> OSError | None:
    """Return why a part of the output could not be written, None if all was."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return _Out.error


def set_up() -> None:
    """Let standard output and errors outlive their reader; print names that are not UTF-8.

    Of Pillow's warnings, the one on large pictures is not printed.

    Streams that were replaced, as in a test, are left as they are.
    """
    # Pillow's word on pictures of 89 to 179 million pixels, which are taken; larger ones it refuses
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        # A file's name is printed in its own bytes, so that it can be read back by a script.
        sys.stdout = _outliving(sys.stdout, "surrogateescape")
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _outliving(sys.stderr, "backslashreplace")


def _outliving(stream: TextIO, errors: str) -> TextIO:
    """Return a stream that writes to the same file."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Out(stream.fileno(), "w", closefd=False)),
        stream.encoding,
        errors,
        line_buffering=bool(stream.line_buffering),
    )
