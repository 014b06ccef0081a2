"""Mini-batches of images for torch networks: (learner j, update t) → tensors.

A batch, its random changes included, is a function of (seed, j, t) alone, however learners lie over
ranks and wherever a run is resumed: the sampler gives the rows, `generator(seed, j, t,
Stream.IMAGES)` their changes. Networks get x [B, C, H, W] float32, (x − mean)/std, whose memory is
channels_last, and y [B] int64.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from localavg.datasets import Augment, Dataset, Split
from localavg.datasets.jpegs import Decoder, Pictures
from localavg.errors import UserError
from localavg.learner.sampling import Sampler
from localavg.problems.jpeg_feed import AHEAD, JpegFeed
from localavg.problems.normalise import Normalise, moved
from localavg.streams import Stream, generator

TABLE_BYTES = 16 << 20
"""a set without random changes that is at most this large as float32 is normalised once"""


class Feed:
    """Mini-batches of uint8 images that lie in memory; on a GPU, in its memory.

    Tensors are valid until the next call, and read only.

    The change of an image (`data.augment`) is one integer in [0, 2 (2p + 1)²), p the padding; those
    of a batch are drawn in one call. Its last bit is whether the image is flipped, after the crop.
    The rest, row · (2p + 1) + column, is the pixel of the padded image that comes first.
    """

    def __init__(
        self, data: Dataset, sampler: Sampler, seed: int, device: str = "cpu", augment: bool = True
    ) -> None:
        self.sampler, self.seed, self.device = sampler, seed, device
        self.change = data.augment if augment else Augment()
        self.x = torch.from_numpy(data.train.x).to(device)  # [n, H, W, C] uint8
        self.y = torch.from_numpy(data.train.y).to(device)  # [n]
        self._normalise = Normalise(data, device)
        self._ready = not self.change and 4 * self.x.numel() <= TABLE_BYTES
        if self._ready:
            self.x = self._normalise(self.x)
        on_cpu = device == "cpu"  # NumPy gathers a few rows faster
        self._tables = (self.x.numpy(), self.y.numpy()) if on_cpu else None
        self._B = -1
        self._out: tuple[np.ndarray, np.ndarray] | None = None  # the buffers of a batch, by NumPy

    def __call__(self, j: int, t: int) -> tuple[Tensor, Tensor]:
        """Return learner j's mini-batch for update t = 1, 2, …."""
        batch = self.sampler.batch(j, t)
        if isinstance(batch, slice):
            x, y = self.x[batch], self.y[batch]
        else:
            x, y = self._gathered(batch)
        if not self._ready:
            if self.change:
                x = self._changed(x, self._changes(j, t, len(y)))
            x = self._normalise(x)
        return x.permute(0, 3, 1, 2), y

    def step(self, learners: range, t: int) -> tuple[Tensor, Tensor]:
        """Return the mini-batches x [L, B, C, H, W], y [L, B] of L learners for update t."""
        batches = [self.sampler.batch(j, t) for j in learners]
        rows = [np.arange(b.start, b.stop) if isinstance(b, slice) else b for b in batches]
        L, B = len(rows), len(rows[0])
        x, y = self._gathered(np.concatenate(rows))
        if not self._ready:
            if self.change:
                x = self._changed(x, np.concatenate([self._changes(j, t, B) for j in learners]))
            x = self._normalise(x)
        return x.unflatten(0, (L, B)).permute(0, 1, 4, 2, 3), y.view(L, B)

    def close(self) -> None:
        """Do nothing: no thread runs."""

    def _gathered(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return rows [B] of x and y, in buffers."""
        if len(rows) != self._B:
            self._B = len(rows)
            shape = self._B, *self.x.shape[1:]
            self._x = torch.empty(shape, dtype=self.x.dtype, device=self.device)
            self._y = torch.empty(self._B, dtype=self.y.dtype, device=self.device)
            self._out = (self._x.numpy(), self._y.numpy()) if self._tables else None
        if self._tables and self._out:
            (x, y), (x_out, y_out) = self._tables, self._out
            x.take(rows, 0, x_out, "clip")  # without a mode NumPy would buffer x_out
            y.take(rows, 0, y_out, "clip")
        else:
            where = moved(torch.from_numpy(rows), self.device)
            torch.index_select(self.x, 0, where, out=self._x)
            torch.index_select(self.y, 0, where, out=self._y)
        return self._x, self._y

    def _changes(self, j: int, t: int, B: int) -> np.ndarray:
        """Return the numbers [B] of the changes of learner j's images for update t."""
        places = 2 * self.change.pad + 1
        return generator(self.seed, j, t, Stream.IMAGES).integers(0, 2 * places**2, B)

    def _changed(self, x: Tensor, changes: np.ndarray) -> Tensor:
        """Return images [B, H, W, C] uint8, each cropped from its padded self and flipped or not.

        x is not changed. changes: a number [B] for each image.
        """
        B, H, W, C = x.shape
        p, places = self.change.pad, 2 * self.change.pad + 1
        place, flip = np.divmod(changes, 2)  # [B], [B]
        if p:
            padded = torch.zeros((B, H + 2 * p, W + 2 * p, C), dtype=x.dtype, device=self.device)
            padded[:, p:-p, p:-p] = x
            image, row, column, _ = padded.stride()
            windows = padded.as_strided((B, places, places, H, W * C), (image, row, column, row, 1))
            corners = np.stack([np.arange(B), *np.divmod(place, places)])  # [3, B]
            first = moved(torch.from_numpy(corners), self.device)
            x = windows[first[0], first[1], first[2]].view(B, H, W, C)
        if self.change.flip:
            which = moved(torch.from_numpy(np.flatnonzero(flip)), self.device)
            x = x.index_copy(0, which, x.index_select(0, which).flip(2))
        return x


def examples(
    data: Dataset, split: Split, lo: int, hi: int, size: int, device: str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows lo … hi − 1 of a split of `data` unchanged, `size` at a time.

    Each item is (x [m, C, H, W], y [m]), valid until the next one. Pictures are resized so that the
    shorter side is 8/7 of the network's (256 for 224) and cut in the centre.
    """
    normalise = Normalise(data, device)
    cuts = [(a, min(a + size, hi)) for a in range(lo, hi, size)]
    for images, (a, b) in zip(_plain(data, split, cuts), cuts, strict=True):
        x = normalise(moved(images, device)).permute(0, 3, 1, 2)
        yield x, moved(torch.from_numpy(split.y[a:b]), device)


def _plain(data: Dataset, split: Split, cuts: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield the images [b − a, H, W, C] uint8 of rows a … b − 1 for each of the cuts."""
    if data.kind == "images":
        yield from (torch.from_numpy(split.x[a:b]) for a, b in cuts)
        return
    decoder = Decoder(split.x, data.image_shape)
    flight: deque[Pictures] = deque()
    try:
        for a, b in cuts:
            flight.append(decoder.begin(np.arange(a, b)))
            if len(flight) > AHEAD:
                yield torch.from_numpy(flight.popleft().result())
        while flight:
            yield torch.from_numpy(flight.popleft().result())
    finally:
        decoder.close()


def make_feed(
    data: Dataset,
    sampler: Sampler,
    seed: int,
    learners: range,
    T: int,
    device: str = "cpu",
    augment: bool = True,
) -> Feed | JpegFeed:
    """Make the feed of a dataset of images for the learners of this rank."""
    if data.kind == "images":
        return Feed(data, sampler, seed, device, augment)
    if data.kind == "jpeg":
        return JpegFeed(data, sampler, seed, learners, T, device, augment)
    raise UserError(
        f"`data = {data.name}`: a network needs images, not {data.kind}; use digits, cifar10-like "
        "or a file that `prepare cifar10`, `prepare imagenet` or `prepare folder` wrote"
    )
