"""Packed pictures in a file, and threads that decode them.

A prepared file of kind "jpeg" holds a split's pictures unchanged, one after another. They are read
by their place in the file (`os.pread`) and not by HDF5, which would let one thread read at a time.
No process is forked, as MPI must not be.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from localavg.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""share of the picture, and width / height, of a random crop

The values are those of Szegedy et al. (2015), "Going deeper with convolutions", §6.
"""
TRIES = 10
"""draws of a random crop"""
NUMBERS = 2 * TRIES + 3
"""uniform random numbers in [0, 1) a picture: area and aspect of each try, row, column, flip"""
MARGIN = 8 / 7
"""resize the shorter side to size × MARGIN (256 for 224) before the centre crop"""
THREADS = 8
"""largest default number of threads"""


class Jpegs:
    """The pictures of one split; len() is their number. Threads may decode at the same time."""

    def __init__(
        self,
        path: str,
        split: str,
        first_byte: int,
        places: np.ndarray,
        name: Callable[[int], str] = str,
    ) -> None:
        """Open the file.

        places: [n, 2] int64; picture i is bytes places[i, 0] … places[i, 1] − 1, counted from
        `first_byte` of the file. name(i) is what errors call picture i.
        """
        self.path, self.split, self.name = path, split, name
        self._first, self._places = first_byte, places
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._places)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def packed(self, i: int) -> bytes:
        """Return picture i as it was packed."""
        start, stop = self._places[i].tolist()
        found = os.pread(self._descriptor, stop - start, self._first + start)
        if len(found) < stop - start:
            raise UserError(
                f"{self.path} is cut short: picture {self.name(i)} of /{self.split} is not all "
                "there; prepare it again"
            )
        return found

    def decode(
        self, i: int, size: tuple[int, int], numbers: np.ndarray | None = None
    ) -> np.ndarray:
        """Return picture i as uint8 [H, W, 3] for size = (H, W).

        It is in colour even if the file is not (grey, palette, CMYK, PNG). numbers [NUMBERS]: those
        of a `random_crop`, which is resized; None: the picture is resized with `MARGIN` and cut in
        the centre. Resizing is bilinear over all the pixels covered. UserError names a picture that
        cannot be decoded.
        """
        packed = self.packed(i)
        try:
            return decoded(packed, size, numbers)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{self.path}: picture {self.name(i)} of /{self.split} cannot be decoded "
                f"({why(error)}); prepare it again from whole pictures"
            ) from error


def why(error: Exception) -> str:
    """Return in one line why Pillow could not decode a picture.

    It raises many types: OSError, SyntaxError, struct.error, DecompressionBombError, …
    """
    if type(error).__name__ == "UnidentifiedImageError":  # its text has the address of an object
        return "damaged at its beginning"
    return str(error).strip().split("\n")[0] or type(error).__name__


def pillow() -> ModuleType:
    """Return Pillow's Image module; UserError where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            f"Pillow, which decodes pictures, cannot be loaded ({error}); pip install pillow"
        ) from error
    return Image


def decoded(packed: bytes, size: tuple[int, int], numbers: np.ndarray | None = None) -> np.ndarray:
    """Decode a packed picture to uint8 [H, W, 3]; see `Jpegs.decode`."""
    Image = pillow()
    with Image.open(io.BytesIO(packed)) as picture:
        W, H = picture.size
        crop = centre(W, H, size) if numbers is None else random_crop(W, H, numbers)
        left, top, width, height = crop
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which is far less work, as long as
        # that leaves as many pixels as are needed.
        picture.draft(None, (math.ceil(W * size[1] / width), math.ceil(H * size[0] / height)))
        x, y = picture.size[0] / W, picture.size[1] / H
        box = (
            left * x,
            top * y,
            min((left + width) * x, picture.size[0]),
            min((top + height) * y, picture.size[1]),
        )
        image = in_colour(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
    array = np.asarray(image)  # [H, W, 3]
    return array[:, ::-1] if numbers is not None and numbers[-1] < 0.5 else array


def in_colour(picture: Image) -> Image:
    """Return a picture in red, green and blue of 8 bits each.

    Deeper grey keeps its upper 8 bits, as Pillow keeps those of deeper colours. Pillow's `convert`
    would set every value above 255 to 255. ValueError for values beyond 16 bits.
    """
    if picture.mode.startswith(("I", "F")):  # one channel of 16 or 32 bits
        values = np.asarray(picture)  # [H, W]
        if picture.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its values (Pillow's mode {picture.mode}) do not fit in 16 bits")
        picture = pillow().fromarray((values >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours; Pillow warns of the direct way
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def random_crop(W: int, H: int, numbers: np.ndarray) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of a random crop of a W x H picture, in pixels.

    Of `TRIES` draws of area (uniform) and aspect (uniform in its logarithm) the first that fits is
    taken; where none does, the largest crop of an aspect within bounds, in the centre. numbers:
    [NUMBERS], uniform in [0, 1): area and aspect of each try, then top, left and, for the caller,
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
    """Return (left, top, width, height) of the centre crop of a W x H picture.

    The crop is what is left when the picture is scaled to `MARGIN` · size and cut to size.
    """
    scale = min(W / size[1], H / size[0]) / MARGIN  # pixels of the picture in one of the result
    width, height = scale * size[1], scale * size[0]
    return (W - width) / 2, (H - height) / 2, width, height


def default_threads() -> int:
    """Return the number of cores that may be used, at most `THREADS`."""
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    return min(THREADS, cores)


class Pictures:
    """Images that threads decode at the moment."""

    def __init__(self, images: np.ndarray, futures: list[Future[None]]) -> None:
        self._images, self._futures = images, futures

    def result(self) -> np.ndarray:
        """Wait for the images and return them, [B, H, W, 3] uint8.

        If one fails, its error is raised and the rest is cancelled.
        """
        try:
            for future in self._futures:
                future.result()
        except BaseException:
            self.cancel()
            raise
        return self._images

    def cancel(self) -> None:
        """Cancel the images whose decoding has not begun."""
        for future in self._futures:
            future.cancel()

    def end(self) -> None:
        """Cancel the images, and wait until nothing is written to their memory any more."""
        self.cancel()
        wait(self._futures)


class Decoder:
    """Threads that decode pictures to uint8 images of one shape.

    threads: their number (default: the number of cores that may be used, at most 8).
    """

    def __init__(
        self, pictures: Jpegs, shape: tuple[int, int, int], threads: int | None = None
    ) -> None:
        self.pictures, self.shape = pictures, shape
        self._pool = ThreadPoolExecutor(threads or default_threads(), "decode")

    def begin(
        self, rows: np.ndarray, numbers: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> Pictures:
        """Start to decode the pictures rows [B], with random crops if numbers [B, NUMBERS].

        out [B, H, W, 3] uint8: the memory for the images (default: new memory).
        """
        images = np.empty((len(rows), *self.shape), np.uint8) if out is None else out

        def work(k: int, row: int) -> None:
            own = None if numbers is None else numbers[k]  # [NUMBERS]
            images[k] = self.pictures.decode(row, self.shape[:2], own)

        futures = [self._pool.submit(work, k, row) for k, row in enumerate(rows.tolist())]
        return Pictures(images, futures)

    def close(self) -> None:
        """End the threads; pictures whose decoding has not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
