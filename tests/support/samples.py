"""What several test files train on or load: prepared files, images, packed pictures, and who asks
for them.
"""

import io
from typing import NamedTuple

import h5py
import numpy as np

from localavg.datasets import Dataset, Split

N, D = 168, 20  # rows of a prepared file, a multiple of 7, 8 and 12; features


class Data(NamedTuple):
    """A prepared file and, in float64, what is in it."""

    path: str
    X: np.ndarray  # [N, D]
    y: np.ndarray  # [N]


def write(path, noise, n=N, d=D):
    """A prepared dataset of n rows of d features, said to be shuffled so that all samplings take it."""
    rng = np.random.default_rng(7)
    X = (
        rng.normal(size=(n, d)) + 1.5 * np.linspace(-1, 1, n)[:, None] * rng.normal(size=d)
    ) / np.sqrt(d)
    X = X.astype(np.float32)
    y = np.where(X @ rng.normal(size=d) + noise * rng.normal(size=n) > 0, 1, -1).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update({"schema": 1, "kind": "features", "name": path.stem, "shuffled": True})
        file.attrs["classes"] = [-1.0, 1.0]
        file["train/x"], file["train/y"] = X, y
    return Data(str(path), X.astype(np.float64), y.astype(np.float64))


def random_images(shape, n, classes=10, **more):
    """A dataset of uint8 noise with random labels."""
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (n, *shape), np.uint8), draw.integers(0, classes, n)
    channels = shape[2]
    return Dataset(
        "noise",
        "images",
        Split(x, y),
        Split(x[:7], y[:7]),
        tuple(map(str, range(classes))),
        True,
        shape,
        (100.0,) * channels,
        (60.0,) * channels,
        **more,
    )


def photo(W, H, seed=0):
    """A picture [H, W, 3] whose colours tell the place."""
    random, (h, w) = np.random.default_rng(seed), np.mgrid[:H, :W]
    a, b, c = random.integers(40, 200, 3)
    colours = np.stack(
        [a + 50 * np.sin(w / 15), b + 50 * np.cos(h / 19), c + 0.1 * (w + h) % 50], -1
    )
    return colours.clip(0, 255).astype(np.uint8)


def packed(image, mode="RGB", format="JPEG", **options):
    """The bytes of a picture's file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(
        file, format, **({"quality": 95} if format == "JPEG" else {}) | options
    )
    return file.getvalue()


class Fixed:
    """A sampler that always draws the same rows."""

    def __init__(self, rows):
        self.rows, self.B = rows, len(rows)

    def batch(self, j, t):
        return self.rows


class Node:
    """The communicator of one node, seen from one of its ranks."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def Barrier(self):
        pass


class Fleet:
    """One rank of a node; ranks given the same `shared` list share their arrays."""

    def __init__(self, rank=0, size=1, shared=None):
        self.node, self.shared, self.asked = Node(rank, size), shared, 0

    def node_array(self, shape, dtype, **words):
        self.asked += 1
        if self.shared is None:
            return np.empty(shape, dtype)
        if self.asked > len(self.shared):
            self.shared.append(np.full(shape, np.nan, dtype))
        return self.shared[self.asked - 1]

    def together(self, work):
        return work()
