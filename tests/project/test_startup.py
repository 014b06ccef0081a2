"""What a launch loads: every run of a sweep pays for it."""

import sys

import numpy as np
from mpi import call

from localavg import models
from localavg.datasets.dataset import Dataset, Split

SLOW = ("torch._dynamo", "sklearn", "pandas", "scipy.stats")  # a second or two each


def loaded_by_a_run(world, path):
    """Train one network on the CPU; returns the exit status and which of SLOW that loaded."""
    import drive

    line = f"train kavg --K 2 --learners 2 --data digits --model mlp --steps 4 --batch-size 16 --out {path}"
    return drive.command_lines(world, [line.split()]), [
        name for name in SLOW if name in sys.modules
    ]


def test_a_run_of_a_network_on_the_cpu_loads_no_compiler_no_scikit_learn_and_no_pandas(tmp_path):
    assert call(1, loaded_by_a_run, tmp_path / "run.h5") == [([0], [])]


def loaded_by_the_models(world):
    """Have a problem of every model in the table; returns which of SLOW that loaded."""
    from localavg.problems.network import Network

    for name, model in models.MODELS.items():
        shape = (max(model.side, model.least),) * 2 + (3,)
        split = Split(np.zeros((2, *shape), np.uint8), np.zeros(2, np.int64))
        Network(
            Dataset("two", "images", split, None, ("a", "b"), True, shape, (0.0,) * 3, (1.0,) * 3),
            name,
            0.0,
            0,
        )
    return [name for name in SLOW if name in sys.modules]


def test_no_models_shapes_need_torchs_compiler():
    assert call(1, loaded_by_the_models) == [[]]
