"""One counter-based generator for every random draw of a run, and its streams by name."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

DRAWN = 8  # float32 numbers that Philox makes at once


class Stream(IntEnum):
    """What is drawn. Numbers of different streams are independent, whatever seed, who and when."""

    SAMPLING = 0  # which examples a learner takes (learner/sampling.py)
    ROUNDING = 1  # up or down, in QSGD's quantiser (algorithms/qsgd.py)
    IMAGES = 2  # how images are cropped and flipped (problems/feed.py)
    NETWORK = 3  # what a network draws itself: dropout's seeds (problems/network.py)
    TIMES = 4  # the modelled times of local updates (simulate/timing.py)
    MEAN_ROUNDING = 5  # up or down, where QSGD codes the mean (algorithms/qsgd.py)
    PARTITION = 6  # which rows a learner holds (learner/partition.py)
    PARTICIPANTS = 7  # which learners work in a round (algorithms/participants.py)
    GOSSIP = 8  # who gossips with whom (algorithms/graphs.py, matchings.py)
    LOW_RANK = 9  # the first factors of averages of low rank (parallel/transport/low_rank.py)


def generator(seed: int, who: int, when: int, stream: Stream) -> np.random.Generator:
    """Independent random numbers for every (seed, who, when) and each of the streams."""
    return np.random.Generator(np.random.Philox(key=[seed, who], counter=[0, 0, when, stream]))


def uniform(seed: int, who: int, when: int, stream: Stream, start: int, stop: int) -> np.ndarray:
    """Return the numbers start … stop − 1 of a stream of float32 numbers in [0, 1)."""
    bits = np.random.Philox(key=[seed, who], counter=[0, 0, when, stream])
    bits.advance(start // DRAWN)
    skipped = start % DRAWN
    return np.random.Generator(bits).random(stop - start + skipped, np.float32)[skipped:]
