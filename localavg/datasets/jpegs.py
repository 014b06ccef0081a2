"""Packed pictures in a file, and threads that decode them.

A prepared file of kind "jpeg" holds a split's pictures as they were, one after another; they are
read by their place in the file (`os.pread`), past HDF5, which would let one thread read at a time.
Nothing forks: MPI must not be forked.
"""

from __future__ import annotations

import io
import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from localavg.errors import UserError

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""share of the picture, and width / height, of a random crop (Szegedy et al. 2015, "Going deeper
with convolutions" §6)
"""
TRIES = 10
NUMBERS = 2 * TRIES + 3
"""uniform random numbers in [0, 1) that a picture takes: area and aspect of each try, row, column,
flip
"""
MARGIN = 8 / 7
"""of the shorter side before the cut in the centre: 256 for 224"""
THREADS = 8


class Jpegs:
    """The pictures of one split. len() says how many; threads may decode at the same time."""

    def __init__(self, path: str, split: str, first_byte: int, places: np.ndarray) -> None:
        """places [n, 2] int64: picture i is bytes places[i, 0] … places[i, 1] − 1 from `first_byte`
        of the file on.
        """
        self.path, self.split = path, split
        self._first, self._places = first_byte, places
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._places)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def packed(self, i: int) -> bytes:
        """Picture i as it was packed."""
        start, stop = self._places[i].tolist()
        found = os.pread(self._descriptor, stop - start, self._first + start)
        if len(found) < stop - start:
            raise UserError(
                f"{self.path} is cut short: picture {i} of /{self.split} is not all there; prepare "
                "it again"
            )
        return found

    def decode(
        self, i: int, size: tuple[int, int], numbers: np.ndarray | None = None
    ) -> np.ndarray:
        """Picture i as uint8 [H, W, 3] for size = (H, W): colour, whatever it was (grey, palette,
        CMYK, PNG).

        numbers [NUMBERS]: `random_crop` of it, resized; None: resized to `MARGIN` and cut in the
        centre. Resizing is bilinear over all the pixels it covers. UserError names a picture that
        cannot be decoded.
        """
        packed = self.packed(i)
        try:
            return decoded(packed, size, numbers)
        except (UserError, MemoryError):
            raise
        # Pillow has many kinds: OSError, SyntaxError, struct.error, DecompressionBombError, …
        except Exception as error:
            raise UserError(
                f"{self.path}: picture {i} of /{self.split} cannot be decoded ({error}); prepare "
                "it again from "
                f"whole archives"
            ) from error


def pillow() -> Any:
    """Pillow's Image module; UserError where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            f"Pillow, which decodes pictures, cannot be loaded ({error}); pip install pillow"
        ) from error
    return Image


def decoded(packed: bytes, size: tuple[int, int], numbers: np.ndarray | None = None) -> np.ndarray:
    """A packed picture as uint8 [H, W, 3]; see `Jpegs.decode`."""
    Image = pillow()
    with Image.open(io.BytesIO(packed)) as picture:
        W, H = picture.size
        if numbers is None:
            left, top, width, height = centre(W, H, size)
        else:
            left, top, width, height = random_crop(W, H, numbers)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8, while that leaves as many pixels as are wanted:
        # far less work.
        picture.draft(None, (math.ceil(W * size[1] / width), math.ceil(H * size[0] / height)))
        x, y = picture.size[0] / W, picture.size[1] / H
        box = (
            left * x,
            top * y,
            min((left + width) * x, picture.size[0]),
            min((top + height) * y, picture.size[1]),
        )
        image = picture if picture.mode == "RGB" else picture.convert("RGB")
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
    array = np.asarray(image)  # [H, W, 3]
    return array[:, ::-1] if numbers is not None and numbers[-1] < 0.5 else array


def random_crop(W: int, H: int, numbers: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, width, height) in pixels of a crop of a W x H picture, of random area, aspect and
    place.

    Of `TRIES` draws of area (uniform) and aspect (uniform in its logarithm) the first that fits is
    taken; where none does, the largest crop of an aspect within bounds, in the centre. numbers
    [NUMBERS] uniform in [0, 1): area and aspect of each try, then top, left and, for the caller,
    the flip.
    """
    low, high = map(math.log, ASPECT)
    for area, aspect in numbers[: 2 * TRIES].reshape(TRIES, 2).tolist():
        area = W * H * (AREA[0] + (AREA[1] - AREA[0]) * area)
        aspect = math.exp(low + (high - low) * aspect)
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= W and 0 < height <= H:
            top, left = numbers[2 * TRIES : 2 * TRIES + 2].tolist()
            return int(left * (W - width + 1)), int(top * (H - height + 1)), width, height
    width, height = min(W, max(1, round(H * ASPECT[1]))), min(H, max(1, round(W / ASPECT[0])))
    return (W - width) // 2, (H - height) // 2, width, height


def centre(W: int, H: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, width, height) of what is left of a W x H picture whose sides are scaled to
    `MARGIN` · size and cut.
    """
    scale = min(W / size[1], H / size[0]) / MARGIN  # pixels of the picture in one of the result
    width, height = scale * size[1], scale * size[0]
    return (W - width) / 2, (H - height) / 2, width, height


class Pictures:
    """Images that are being decoded."""

    def __init__(self, images: np.ndarray, futures: list[Future]) -> None:
        self._images, self._futures = images, futures

    def result(self) -> np.ndarray:
        """The images [B, H, W, 3] uint8, when all are there. If one fails, its error is raised and
        the rest left undone.
        """
        try:
            for future in self._futures:
                future.result()
        except BaseException:
            self.cancel()
            raise
        return self._images

    def cancel(self) -> None:
        """Leave undone what has not begun."""
        for future in self._futures:
            future.cancel()


class Decoder:
    """Threads that decode pictures to uint8 images of one shape; `threads` defaults to the cores at
    hand, 8 at most.
    """

    def __init__(
        self, pictures: Jpegs, shape: tuple[int, int, int], threads: int | None = None
    ) -> None:
        self.pictures, self.shape = pictures, shape
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        self._pool = ThreadPoolExecutor(threads or min(THREADS, cores), "decode")

    def begin(self, rows: np.ndarray, numbers: np.ndarray | None = None) -> Pictures:
        """Start to decode pictures rows [B], changed by numbers [B, NUMBERS] or not."""
        images = np.empty((len(rows), *self.shape), np.uint8)

        def work(k: int, row: int) -> None:
            images[k] = self.pictures.decode(
                row, self.shape[:2], None if numbers is None else numbers[k]
            )

        return Pictures(
            images, [self._pool.submit(work, k, row) for k, row in enumerate(rows.tolist())]
        )

    def close(self) -> None:
        """End the threads; what has not begun is left undone."""
        self._pool.shutdown(wait=True, cancel_futures=True)
