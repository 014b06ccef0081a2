"""How near two ways to compute a network's gradients are to each other."""

import numpy as np
from torch import nn

from localavg.problems.network import NORMS


def different_rows(net, L):
    """Other weights for every learner, [L, d]; the statistics stay positive."""
    w = np.zeros((L, net.d), np.float32)
    for row in w:
        net.initial_(row)
    return w * (1 + 0.1 * np.random.default_rng(1).random(w.shape, np.float32))


def apart(net, a, b, scale=None):
    """The largest difference between rows a and b [d], in units of each tensor's largest entry.

    The unit is a hundredth of the row's largest entry at least, a tenth for the bias of a
    convolution: before BatchNorm its gradient is 0 but for rounding, and has no size of its own.
    """
    scale = b if scale is None else scale
    convolutions = [k for k, m in net._skeleton.named_modules() if isinstance(m, nn.Conv2d)]
    most, units = np.abs(scale).max(), dict.fromkeys((f"{k}.bias" for k in convolutions), 0.1)
    return max(
        float(np.abs(a[s] - b[s]).max() / max(np.abs(scale[s]).max(), units.get(name, 0.01) * most))
        for name, s in net.rows.segments.items()
    )


def tolerance(net):
    """The most that two ways to compute a gradient in float32 are `apart` on a CPU."""
    return 1e-4 if any(isinstance(m, NORMS) for m in net._skeleton.modules()) else 1e-5
