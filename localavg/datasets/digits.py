"""Scikit-learn's hand-written digits: 1797 real images of 8x8 pixels, grey values 0 … 16 (E.
Alpaydin, C. Kaynak 1998).

They come with the package, so they need no file and no network. A fixed shuffle deals out 1437 to
learn from and 360 to test on, as scikit-learn's 80 : 20 split counts them.
"""

import numpy as np

SHAPE = (8, 8, 1)
SIZES = {"train": 1437, "test": 360}
SHUFFLE = 0
"""Image i of the set is image numpy.random.default_rng(SHUFFLE).permutation(1797)[i] of
scikit-learn's.
"""
MEAN, STD = (4.887,), (6.017,)
"""of the grey values of the training images"""


def fill(split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
    """Fill rows start … stop − 1 of x uint8 [n, 8, 8, 1] and y int64 [n], which stand for all rows
    of a split.
    """
    if start == stop:
        return  # scikit-learn takes a second to import
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(SHUFFLE).permutation(len(found.target))  # [1797]
    first = 0 if split == "train" else SIZES["train"]
    rows = order[first + start : first + stop]
    x[start:stop, :, :, 0] = found.images[rows]
    y[start:stop] = found.target[rows]
