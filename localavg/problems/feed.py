"""Mini-batches of images for torch networks: what turns (learner j, update t) into tensors.

A batch, its random changes included, is a function of (seed, j, t) alone, however learners lie over
ranks and wherever a run starts again: the sampler says which rows, and `generator(seed, j,
t, Stream.IMAGES)` how they are changed. Networks get x [B, C, H, W] float32, (x − mean)/std, whose
memory is channels_last, and y [B] int64.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from localavg.datasets import Augment, Dataset, Split
from localavg.datasets.jpegs import NUMBERS, Decoder, Pictures
from localavg.errors import UserError
from localavg.learner.sampling import Sampler
from localavg.streams import Stream, generator

TABLE_BYTES = (
    16 << 20
)  # a set that is not changed, and this small as floats, is normalised once, on every rank
AHEAD = 2  # batches of pictures that are decoded while one is used


class Feed:
    """Mini-batches of uint8 images that lie in memory; on a GPU, in its memory.

    Tensors are valid until the next call, and read only.

    How an image is changed (`data.augment`) is one integer in [0, 2 (2p + 1)²), p the padding, all
    of a batch drawn in one call: its last bit says whether the image is flipped, after the crop,
    and the rest, row · (2p + 1) + column, which pixel of the padded image comes first.
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
        self._tables = (
            (self.x.numpy(), self.y.numpy()) if device == "cpu" else None
        )  # NumPy gathers a few rows faster
        self._B = -1

    def __call__(self, j: int, t: int) -> tuple[Tensor, Tensor]:
        """Learner j's mini-batch for update t = 1, 2, …"""
        batch = self.sampler.batch(j, t)
        if isinstance(batch, slice):
            x, y = self.x[batch], self.y[batch]
        else:
            x, y = self._gathered(batch)
        if not self._ready:
            if self.change:
                x = self._changed(x, generator(self.seed, j, t, Stream.IMAGES))
            x = self._normalise(x)
        return x.permute(0, 3, 1, 2), y

    def close(self) -> None:
        """Nothing runs."""

    def _gathered(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows [B] of x and y, in buffers."""
        if len(rows) != self._B:
            self._B = len(rows)
            self._x = torch.empty(
                (self._B, *self.x.shape[1:]), dtype=self.x.dtype, device=self.device
            )
            self._y = torch.empty(self._B, dtype=self.y.dtype, device=self.device)
            self._out = (self._x.numpy(), self._y.numpy()) if self._tables else None
        if self._tables:
            (x, y), (x_out, y_out) = self._tables, self._out
            x.take(rows, 0, x_out, "clip")  # without a mode NumPy would buffer x_out
            y.take(rows, 0, y_out, "clip")
        else:
            where = _moved(torch.from_numpy(rows), self.device)
            torch.index_select(self.x, 0, where, out=self._x)
            torch.index_select(self.y, 0, where, out=self._y)
        return self._x, self._y

    def _changed(self, x: Tensor, random: np.random.Generator) -> Tensor:
        """Images [B, H, W, C] uint8, each cropped from its padded self and flipped, or not; `x`
        stays as it is.
        """
        B, H, W, C = x.shape
        p, places = self.change.pad, 2 * self.change.pad + 1
        place, flip = np.divmod(random.integers(0, 2 * places**2, B), 2)  # [B], [B]
        if p:
            padded = torch.zeros((B, H + 2 * p, W + 2 * p, C), dtype=x.dtype, device=self.device)
            padded[:, p:-p, p:-p] = x
            image, row, column, _ = padded.stride()
            windows = padded.as_strided((B, places, places, H, W * C), (image, row, column, row, 1))
            first = _moved(
                torch.from_numpy(np.stack([np.arange(B), *np.divmod(place, places)])), self.device
            )  # [3, B]
            x = windows[first[0], first[1], first[2]].view(B, H, W, C)
        if self.change.flip:
            which = _moved(torch.from_numpy(np.flatnonzero(flip)), self.device)
            x = x.index_copy(0, which, x.index_select(0, which).flip(2))
        return x


class JpegFeed:
    """Mini-batches of pictures that threads decode from their file while the learners compute.

    They come in the order t = 1 … T and, for each t, over `learners`: batches are prepared in that
    order, `ahead` of them beside the one asked for, and no more. Any other call is answered too,
    and the order goes on from there. What goes wrong in a thread is raised by the call that wanted
    the batch.

    `data.augment.resized` with `augment`: a crop of random area and aspect, resized, flipped or not
    (`jpegs.random_crop`); without, resized and cut in the centre.
    threads: how many decode (default: as many as cores may be used, 8 at most).
    """

    def __init__(
        self,
        data: Dataset,
        sampler: Sampler,
        seed: int,
        learners: range,
        T: int,
        device: str = "cpu",
        augment: bool = True,
        ahead: int = AHEAD,
        threads: int | None = None,
    ) -> None:
        self.sampler, self.seed, self.learners, self.T, self.device = (
            sampler,
            seed,
            learners,
            T,
            device,
        )
        self.ahead, self.y = ahead, data.train.y
        self.change = data.augment if augment else Augment()
        self._normalise = Normalise(data, device)
        self._decoder = Decoder(data.train.x, data.shape, threads)
        self._flight: deque[tuple[tuple[int, int], Pictures, np.ndarray]] = (
            deque()
        )  # ((j, t), pictures, labels [B])

    def __call__(self, j: int, t: int) -> tuple[Tensor, Tensor]:
        """Learner j's mini-batch for update t = 1, 2, …"""
        if not self._flight or self._flight[0][0] != (j, t):
            self._cancel()
            self._flight.append(self._begin(j, t))
        pair, pictures, y = self._flight.popleft()
        following = self._flight[-1][0] if self._flight else pair
        while len(self._flight) < self.ahead and (following := self._after(*following)):
            self._flight.append(self._begin(*following))
        x = _moved(torch.from_numpy(pictures.result()), self.device)
        return self._normalise(x).permute(0, 3, 1, 2), _moved(torch.from_numpy(y), self.device)

    def close(self) -> None:
        """End the threads; what is not yet decoded stays so."""
        self._cancel()
        self._decoder.close()

    def _after(self, j: int, t: int) -> tuple[int, int] | None:
        if j + 1 in self.learners:
            return j + 1, t
        return (self.learners[0], t + 1) if t < self.T else None

    def _begin(self, j: int, t: int) -> tuple[tuple[int, int], Pictures, np.ndarray]:
        batch = self.sampler.batch(j, t)
        rows = np.arange(batch.start, batch.stop) if isinstance(batch, slice) else batch  # [B]
        numbers = (
            generator(self.seed, j, t, Stream.IMAGES).random((len(rows), NUMBERS))
            if self.change
            else None
        )
        return (j, t), self._decoder.begin(rows, numbers), self.y[rows]

    def _cancel(self) -> None:
        for _, pictures, _ in self._flight:
            pictures.cancel()
        self._flight.clear()


class Normalise:
    """(x − mean)/std of a dataset's channels: [m, H, W, C] uint8 → float32, as x · scale +
    shift.
    """

    def __init__(self, data: Dataset, device: str) -> None:
        mean, std = (
            torch.tensor(values, dtype=torch.float64) for values in (data.mean, data.std)
        )  # [C]
        # A number for each pixel, not each channel: an inner loop of three is ten times slower.
        self._scale, self._shift = (
            values.to(torch.float32).expand(data.shape).contiguous().to(device)
            for values in (1 / std, -mean / std)
        )  # [H, W, C]
        self._out = torch.empty((0, *data.shape), device=device)

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised images, in a buffer that the next call with as many images overwrites."""
        if len(self._out) != len(x):
            self._out = torch.empty(x.shape, device=x.device)
        self._out.copy_(x)
        return torch.addcmul(self._shift, self._out, self._scale, out=self._out)


def examples(
    data: Dataset, split: Split, lo: int, hi: int, size: int, device: str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows lo … hi − 1 of a split of `data` as they are, (x [m, C, H, W], y [m]) for `size` of them
    at a time.

    Pictures are resized so that the shorter side is 8/7 of the network's (256 for 224) and cut in
    the centre. Tensors are valid until the next step.
    """
    normalise = Normalise(data, device)
    cuts = [(a, min(a + size, hi)) for a in range(lo, hi, size)]
    for x, (a, b) in zip(_plain(data, split, cuts), cuts, strict=True):
        yield (
            normalise(_moved(x, device)).permute(0, 3, 1, 2),
            _moved(torch.from_numpy(split.y[a:b]), device),
        )


def _plain(data: Dataset, split: Split, cuts: list[tuple[int, int]]) -> Iterator[Tensor]:
    """The images [b − a, H, W, C] uint8 of rows a … b − 1 for each of the cuts."""
    if data.kind == "images":
        yield from (torch.from_numpy(split.x[a:b]) for a, b in cuts)
        return
    decoder, flight = Decoder(split.x, data.shape), deque()
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
    """The feed of a dataset of images for the learners of this rank."""
    if data.kind == "images":
        return Feed(data, sampler, seed, device, augment)
    if data.kind == "jpeg":
        return JpegFeed(data, sampler, seed, learners, T, device, augment)
    raise UserError(
        f"`data = {data.name}`: a network needs images, not {data.kind}; use digits, cifar10-like "
        "or a file that "
        f"`prepare cifar10`, `prepare imagenet` or `prepare folder` wrote"
    )


def _moved(x: Tensor, device: str) -> Tensor:
    """x on the device; to a GPU by way of pinned memory, so that the copy need not wait."""
    return x if device == "cpu" else x.pin_memory().to(device, non_blocking=True)
