"""Scikit-learn's hand-written digits (E. Alpaydin, C. Kaynak 1998).

They are 1797 real images of 8x8 pixels, grey values 0 … 16. They come with the package, so they
need no file and no network. A fixed shuffle selects 1437 to train on and 360 to test on, the
numbers of scikit-learn's 80 : 20 split. Scikit-learn itself is not imported, which would take
seconds.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from localavg.errors import UserError

SHAPE = (8, 8, 1)
SIZES = {"train": 1437, "test": 360}
SHUFFLE = 0
"""seed of the order: numpy.random.default_rng(SHUFFLE).permutation(1797)[i] is image i"""
MEAN, STD = (4.887,), (6.017,)
"""mean and standard deviation of the grey values of the training images"""


def fill(split: str, x: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
    """Fill rows start … stop − 1 of x uint8 [n, 8, 8, 1] and y int64 [n], all rows of a split."""
    found = np.loadtxt(_file(), np.uint8, delimiter=",")  # [1797, 65], a row 64 pixels, the digit
    order = np.random.default_rng(SHUFFLE).permutation(len(found))  # [1797]
    first = 0 if split == "train" else SIZES["train"]
    rows = found[order[first + start : first + stop]]
    x[start:stop] = rows[:, :-1].reshape(-1, *SHAPE)
    y[start:stop] = rows[:, -1]


def _file() -> Path:
    """Return the file of the images in scikit-learn's package."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            return path
    raise UserError(
        "`data = digits`: scikit-learn's file datasets/data/digits.csv.gz is not found; install it "
        "again with pip install --force-reinstall scikit-learn, or choose other data"
    )
