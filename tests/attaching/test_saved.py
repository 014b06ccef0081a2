"""What `attach` saves while a delayed average is on its way."""

from types import SimpleNamespace

import numpy as np
import pytest

import localavg
from localavg.attaching.saved import saved

pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)


def test_the_outer_optimiser_is_saved_after_the_step_of_a_mean_that_is_on_its_way():
    """Its state is complete when the mean has arrived, which the averages wait for."""
    algorithm = localavg.kavg(K=4, delay=3, outer="nesterov")
    average = algorithm.average
    average.state = np.zeros((2, 5), np.float32)

    def arrived():
        average.state[...] = 1
        return {"about": np.zeros(2)}

    flat = SimpleNamespace(size=5, masters=dict)
    state = saved(algorithm, flat, "shared", SimpleNamespace(state_dict=arrived))
    assert (state["combine"]["w_tilde"] == 1).all() and (state["combine"]["v"] == 1).all()
    assert [*state["averaging"]] == ["about"]
