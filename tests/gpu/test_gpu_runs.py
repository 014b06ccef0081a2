"""Whole runs on a GPU: every synchronous algorithm against the CPU, bits that repeat, a run that was
killed.
"""

import os
import signal

import numpy as np
import pytest
from gpus import answered, at_once, guarded, launch, take

DATA = "--data epsilon-like:400x20 --batch-size 8 --lr 0.5 --steps 24 --learners 4"
ALGORITHMS = {
    "sgd": f"{DATA} --learners 1",
    "sync": f"{DATA} --sampling block --grad-norm",
    "qsgd": DATA,
    "kavg": f"--K 3 {DATA} --variance steps",
    "oneshot": DATA,
    "diloco": f"--K 3 {DATA} --optimizer adam",
    "slowmo": f"--K 3 {DATA} --optimizer momentum --state reset",
    "mavg": f"--K 3 --mu 0.5 {DATA} --optimizer nesterov --state average",
    "hieravg": f"--K1 2 --K2 4 --S 2 {DATA} --optimizer momentum",
    "adpsgd": f"--p-init 2 --Ks 8 --warmup 0.2 {DATA} --optimizer adam --lr 0.01",
    "adalupa": f"--tau0 3 --alpha 0.5 {DATA}",
    "piecewise": f"--pieces 0:3,2:5 {DATA}",
    "postlocal": f"--K 3 --switch 0.5 {DATA} --optimizer momentum",
    "fedavg": f"--K 3 --participants 2 {DATA} --optimizer momentum",
    "adacomm": f"--tau0 4 --block 8 {DATA}",
    "qsr": f"--alpha 0.9 --K 3 {DATA} --optimizer adamw --lr 0.01",
    "gossip": f"--K 2 --graph ring {DATA}",
}
NETWORK = (
    "mavg --K 3 --mu 0.5 --data digits --model nin --batch-size 8 --lr 0.02 --steps 24 --learners 4 "
    "--optimizer momentum --sampling shuffle --checkpoint-every 5 --eval-examples 200"
)
CARD = "--device cuda --transport staged"
KILLED_AT = 13  # between two checkpoints


def run(world, line, path):
    """What `localavg train LINE` leaves in its run file: status, weights and losses."""
    from drive import command_lines

    from localavg.files import record

    words = ["train", *line.split(), "--save-weights", "--out", path]
    (status,) = command_lines(world, [words])
    found = record.load(path)
    return (
        status,
        found.weights,
        found.train.loss.to_numpy(),
        int(found.provenance.get("resumes", 0)),
    )


def both_devices(world, folder):
    """{(algorithm, device): what its run left}."""
    return guarded(
        {
            (
                name,
                device,
            ): lambda line=f"{name} {line} {how}", path=f"{folder}/{name}-{device}.h5": run(
                world, line, path
            )
            for name, line in ALGORITHMS.items()
            for device, how in (("cpu", "--device cpu"), ("cuda", CARD))
        }
    )


def begin_algorithms(folder):
    return at_once((both_devices, str(folder)))


algorithms = answered("algorithms")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(name, algorithms):
    here, there = (take(algorithms, (name, device)) for device in ("cpu", "cuda"))
    assert here[0] == there[0] == 0
    if name == "qsgd":  # which rounds at random: another last bit is another level at times
        assert np.linalg.norm(there[1] - here[1]) <= 0.05 * np.linalg.norm(here[1])
    else:
        np.testing.assert_allclose(there[1], here[1], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(there[2], here[2], rtol=1e-3)


def test_no_synchronous_algorithm_is_left_out():
    from localavg.algorithms import ALGORITHMS as ALL

    assert {*ALL} == {*ALGORITHMS}


def repeated(world, folder):
    """Two runs by the loop, two by the graph, and one by the graph with any kernel."""
    names = ("loop", "loop again", "graph", "graph again")
    lines = {name: f"--engine {name.split()[0]}" for name in names}
    lines["any kernel"] = "--engine graph --deterministic no"  # last: it sets torch's own switch
    return guarded(
        {
            name: lambda name=name, line=line: run(
                world, f"{NETWORK} {CARD} {line}", f"{folder}/{name}.h5"
            )
            for name, line in lines.items()
        }
    )


def killed(world, path):
    """Kill this process by -9 as update KILLED_AT begins."""
    from localavg.training import build

    def make(c, epoch):
        def step_size(t):
            if t == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            return c.lr

        return step_size

    build.stepsizes.make = make
    run(world, f"{NETWORK} {CARD} --engine graph", path)


def resumed(world, path):
    return {"resumed": run(world, f"{NETWORK} {CARD} --engine graph --resume", path)}


def begin_bits(folder):
    return at_once((repeated, str(folder)))


def begin_after_a_kill(folder):
    path = str(folder / "killed.h5")
    try:
        launch(1, killed, path)
    except pytest.fail.Exception as e:  # the launch has no answer
        return launch(1, resumed, path)[0] | {"why": str(e)}
    return {"why": "it was not killed"}


bits, after_a_kill = answered("bits"), answered("after_a_kill")


def check_same(a, b):
    assert a[0] == b[0] == 0
    assert np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])


@pytest.mark.parametrize("engine", ["loop", "graph"])
def test_two_runs_have_the_same_bits(engine, bits):
    check_same(take(bits, engine), take(bits, f"{engine} again"))


def test_a_run_by_the_graph_has_the_bits_of_one_by_the_loop(bits):
    check_same(take(bits, "graph"), take(bits, "loop"))


def test_any_kernel_trains_as_well(bits):
    status, w, losses, _ = take(bits, "any kernel")
    assert status == 0 and np.isfinite(w).all()
    np.testing.assert_allclose(losses, take(bits, "graph")[2], rtol=0.1)


def test_a_run_that_was_killed_goes_on_to_the_same_bits(bits, after_a_kill):
    assert "status 137" in after_a_kill["why"], after_a_kill["why"]
    found = take(after_a_kill, "resumed")
    assert found[3] == 1
    check_same(found, take(bits, "graph"))
