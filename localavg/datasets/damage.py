"""Try to decode every picture while a dataset is prepared, and list those that cannot be."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from localavg.datasets import jpegs
from localavg.errors import UserError, shown

MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""first bytes of a picture: JPEG, and PNG too, because one of ImageNet's .JPEG files is a PNG"""
LISTED = 20
"""damaged pictures that an error names; of more, it gives the number"""


class Checker:
    """Threads that decode pictures. Use it as a context manager.

    count: pictures so far. damaged: the number of those found damaged so far. At most as many
    pictures as threads are held.
    """

    def __init__(self) -> None:
        jpegs.pillow()  # raises UserError where it is not installed
        self.count = self.damaged = 0
        self._first: list[str] = []  # the first LISTED of them, with what is wrong
        self._threads = jpegs.default_threads()
        self._flight: deque[tuple[str, Future[str]]] = deque()

    def __enter__(self) -> Checker:
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, name: str, packed: bytes) -> None:
        """Begin to decode a picture that the error calls `name`."""
        self.count += 1
        self._flight.append((name, self._pool.submit(complaint, packed)))
        if len(self._flight) > self._threads:
            self._take()

    def finish(self) -> None:
        """Wait for all pictures; UserError lists the damaged ones, in the order of `add`."""
        while self._flight:
            self._take()
        if self.damaged:
            left = self.damaged - len(self._first)
            more = f" and {left} more" if left else ""
            raise UserError(
                f"{self.damaged} of {self.count} pictures cannot be used: "
                f"{', '.join(self._first)}{more}; replace or remove them"
            )

    def _take(self) -> None:
        """Wait for the first picture in flight, and note what is wrong with it."""
        name, future = self._flight.popleft()
        if wrong := future.result():
            self.damaged += 1
            if len(self._first) < LISTED:
                self._first.append(f"{shown(name)} ({wrong})")


def complaint(packed: bytes) -> str:
    """Return what is wrong with a packed picture, "" if it can be decoded to its end.

    A JPEG that is whole but has wrong bytes in its middle can be decoded, and is not found.
    """
    if not packed:
        return "empty"
    if not packed.startswith(MAGIC):
        return f"it begins with {packed[:4]!r}, not as JPEG or PNG"
    try:
        jpegs.decoded(packed, (1, 1))
    except (UserError, MemoryError):
        raise
    except Exception as error:
        return jpegs.why(error)
    return ""
