"""One counter-based generator for every random draw of a run, and the streams by their names."""

from __future__ import annotations

import numpy as np


def generator(seed: int, who: int, when: int, stream: int = 0) -> np.random.Generator:
    """Independent random numbers for every (seed, who, when) and each of the streams (0: sampling,
    1: rounding).
    """
    return np.random.Generator(np.random.Philox(key=[seed, who], counter=[0, 0, when, stream]))
