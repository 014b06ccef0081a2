"""One counter-based generator for every random draw of a run, and its streams by name."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What is drawn. Numbers of different streams are independent, whatever seed, who and when."""

    SAMPLING = 0  # which examples a learner takes (learner/sampling.py)
    ROUNDING = 1  # up or down, in QSGD's quantiser (algorithms/qsgd.py)
    IMAGES = 2  # how images are cropped and flipped (problems/feed.py)
    NETWORK = 3  # what a network draws itself: dropout's seeds (problems/network.py)
    TIMES = 4  # the modelled times of local updates (simulate/timing.py)


def generator(seed: int, who: int, when: int, stream: Stream) -> np.random.Generator:
    """Independent random numbers for every (seed, who, when) and each of the streams."""
    return np.random.Generator(np.random.Philox(key=[seed, who], counter=[0, 0, when, stream]))
