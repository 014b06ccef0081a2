"""Downpour and EAMSGD on a GPU: two ranks with learners and a server, and simulated time, against
the CPU in the same order of arrival.
"""

import numpy as np
import pytest
from gpus import answered, guarded, launch, take

LOGISTIC = "--data epsilon-like:400x20 --batch-size 8 --lr 0.2 --steps 24 --learners 4"
NETWORK = (
    "--data digits --model nin --batch-size 8 --lr 0.01 --steps 12 --learners 4 "
    "--sampling shuffle --eval-examples 200"
)
RULES = {"downpour": "downpour --K 3", "eamsgd": "eamsgd --K 4 --alpha 0.2 --momentum 0.8"}
KINDS = {"logistic": LOGISTIC, "network": NETWORK}


def run(world, line, path):
    """What `localavg train LINE` leaves in its run file: weights, losses, the order, the GPUs."""
    from drive import command_lines

    from localavg.files import record

    words = ["train", *line.split(), "--save-weights", "--out", path]
    assert command_lines(world, [words]) == [0], line
    world.barrier()  # a server writes the file
    found = record.load(path)
    return (
        found.weights,
        found.train.loss.to_numpy(),
        found.staleness.learner.to_numpy(),
        found.provenance.get("gpus", ()),
    )


def runs(world, folder):
    """{(algorithm, kind, where): what its run left}; `again` and `cpu` replay `cuda`."""
    work, modelled = {}, world.size == 1
    for name, rule in RULES.items():
        for kind, how in KINDS.items():
            path = f"{folder}/{name}-{kind}-"
            same = "--simulate --step-cv 0.5" if modelled else f"--replay {path}cuda.h5"
            lines = {
                "cuda": f"--device cuda {same if modelled else ''}",
                "again": f"--device cuda {same}",
                "cpu": same,
            }
            for where, more in lines.items():
                line = f"{rule} {how} {more}"
                work[name, kind, where] = lambda line=line, out=f"{path}{where}.h5": run(
                    world, line, out
                )
    return guarded(work)


def begin_raced(folder):
    return launch(3, runs, str(folder))[0]


def begin_simulated(folder):
    return launch(1, runs, str(folder))[0]


raced, simulated = answered("raced"), answered("simulated")


@pytest.fixture(params=["raced", "simulated"])
def answers(request, raced, simulated):
    return {"raced": raced, "simulated": simulated}[request.param]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_gives_the_center_of_the_cpu_in_the_same_order(name, kind, answers):
    there, here = (take(answers, (name, kind, where)) for where in ("cuda", "cpu"))
    assert np.array_equal(there[2], here[2])
    assert len(there[3]) in (1, 2) and len(here[3]) == 0  # no server has a GPU
    tight = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(there[1], here[1], rtol=1e-3 if kind == "logistic" else 2e-2)
    if kind == "logistic":
        np.testing.assert_allclose(there[0], here[0], **tight)
    else:  # rounding grows over the updates of a network
        assert np.linalg.norm(there[0] - here[0]) <= 1e-2 * np.linalg.norm(here[0])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_order_gives_the_same_bits(name, kind, answers):
    first, second = (take(answers, (name, kind, where)) for where in ("cuda", "again"))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[2], second[2])
