"""How auto chooses among the ways between GPUs, against a stand-in for CuPy whose averages are made
slow by a clock of the test: the fastest, alike on all ranks, said with its times. No GPU is claimed.
"""

import re
from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi import call
from mpi4py import MPI

from localavg.parallel import measure
from localavg.parallel.device import choose_device
from localavg.parallel.fleet import Fleet
from localavg.parallel.probe import Probe
from localavg.parallel.transport import choose, trial
from localavg.parallel.transport.cuda_aware import CudaAware
from localavg.parallel.transport.nccl import Nccl
from localavg.parallel.transport.staged import Staged

WORKS, CRASHES = Probe(True, "right"), Probe(False, "status 139")
SLOW_S, QUICK_S = 0.004, {"nccl": 0.002, "cuda_aware": 0.001, "staged": 0.003}  # of an average
WAYS = Nccl, CudaAware, Staged
N = 1000
LIMIT = 900  # floats of an array, where memory is short
CASES = {  # name: what differs from 2 ranks, a GPU each, on one host, where all ways are possible
    "all": {},
    "one rank is slow": {"slow": ["cuda_aware"], "on": [1]},
    "only staged is not slow": {"slow": ["nccl", "cuda_aware"], "on": [0]},
    "one GPU": {"gpus": 1},
    "one GPU, cuda_aware is slow": {"gpus": 1, "slow": ["cuda_aware"]},
    "one way": {"gpus": 1, "aware": CRASHES},
    "untried": {"gpus": 1, "aware": None},
    "two hosts, tried on one": {"gpus": 1, "hosts": ["a", "b"]},
    "the same, asked for": {"gpus": 1, "hosts": ["a", "b"], "name": "cuda_aware"},
    "two hosts, tried on both": {
        "gpus": 1,
        "hosts": ["a", "b"],
        "aware": Probe(True, "right", nodes=2),
    },
    "resumed": {"earlier": "staged"},
    "resumed where it is impossible": {"gpus": 1, "slow": ["cuda_aware"], "earlier": "nccl"},
    "resumed from the host": {"earlier": "shared"},
    "short of memory": {"slow": ["nccl", "cuda_aware"], "short": [1], "P": 4},
}


def chosen(
    world, name="auto", gpus=4, slow=(), on=(0, 1), aware=WORKS, hosts=None, earlier=None,
    short=(), P=None,
):  # fmt: skip
    """What `choose` takes in one case, why, and how many averages it tried."""
    fleet, zeros, sums, now = Fleet(world, P), stand_in.zeros, [], [0.0]
    fleet.hosts = hosts or fleet.hosts
    stand_in.gpus[0] = gpus

    def scarce(shape, dtype=float):
        if world.rank in short and np.prod(shape) > LIMIT:
            raise MemoryError("out of memory")
        return zeros(shape, dtype)

    def counted(self, x, group):
        sums.append(len(x))
        now[0] += SLOW_S if self.name in slow and world.rank in on else QUICK_S[self.name]
        real[type(self)](self, x, group)

    real = {way: way._sum_over_ranks_ for way in WAYS}
    with (
        mock.patch.object(stand_in, "zeros", scarce),
        mock.patch.object(measure, "perf_counter", lambda: now[0]),
    ):
        for way in WAYS:
            mock.patch.object(way, "_sum_over_ranks_", counted).start()
        try:
            device = choose_device("cuda", fleet, lambda _: stand_in, lambda: None)
            known = aware if world.rank == 0 else None
            transport = choose(name, fleet, (), 8 * N, device, known, n=N, earlier=earlier)
        finally:
            mock.patch.stopall()
    return transport.name, transport.why, sums


def choices(world):
    return {case: chosen(world, **how) for case, how in CASES.items()}


@pytest.fixture(scope="module")
def found():
    first, second = call(2, choices)
    assert [(name, why) for name, why, _ in first.values()] == [
        (name, why) for name, why, _ in second.values()
    ], "the ranks differ"
    return first


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("all", "cuda_aware"),
        ("one rank is slow", "nccl"),
        ("only staged is not slow", "staged"),
        ("one GPU", "cuda_aware"),
        ("one GPU, cuda_aware is slow", "staged"),
        ("two hosts, tried on both", "cuda_aware"),
        ("resumed where it is impossible", "staged"),
        ("resumed from the host", "cuda_aware"),
    ],
)
def test_auto_takes_the_way_whose_slowest_rank_is_the_fastest(case, name, found):
    assert found[case][0] == name
    assert "the fastest for an average of 1000 floats (" in found[case][1]


def test_the_times_of_all_ways_that_work_are_said_and_why_not_the_others(found):
    times = {case: re.findall(r"(\w+) (\d+) ms", found[case][1]) for case in CASES}
    assert times["one rank is slow"] == [("nccl", "2"), ("cuda_aware", "4"), ("staged", "3")]
    assert times["one GPU"] == [("cuda_aware", "1"), ("staged", "3")]
    assert "not nccl: 2 ranks share GPU 0000:00:00.0" in found["one GPU"][1]
    for case, words in (("one way", "status 139"), ("untried", "not tried")):
        name, why, sums = found[case]
        assert name == "staged" and words in why and not times[case] and not sums


def test_what_was_tried_on_one_node_is_not_taken_between_nodes_unless_it_is_asked_for(found):
    name, why, _ = found["two hosts, tried on one"]
    assert name == "nccl" and "not tried between nodes" in why
    assert found["the same, asked for"][:2] == ("cuda_aware", "asked for")


def test_a_resumed_run_keeps_its_way_without_a_trial(found):
    assert found["resumed"] == ("staged", "that of the run that is resumed", [])


def test_without_the_memory_shorter_rows_are_timed_and_scaled(found):
    name, why, sums = found["short of memory"]
    assert name == "staged" and "1000 floats, by 125 of them, for want of memory" in why
    assert set(sums) == {125} and len(sums) == 3 * (trial.WARM_UP + trial.TURNS)
    assert "nccl 32 ms; cuda_aware 32 ms; staged 24 ms" in why


def test_nothing_is_tried_for_one_rank():
    name, why, sums = chosen(MPI.COMM_SELF, aware=None, P=3)
    assert (name, why, sums) == ("device", "one rank: nothing travels", [])
    asked = chosen(MPI.COMM_SELF, name="cuda_aware", aware=None)
    assert asked == ("cuda_aware", "asked for", [])
