"""A sweep at scale gpu on a machine with a GPU."""

from localavg.cli.sweep import gpu
from localavg.cli.sweep.plan import Planned


def test_the_gpu_is_found():
    gpu.check_gpu([Planned("a", 1, (), {"device": "cuda"})])


def test_the_rate_of_a_run_is_measured_on_the_gpu():
    given = {"algorithm": "eamsgd", "data": "epsilon-like:400x20", "learners": 8, "batch_size": 8}
    given |= {"simulate": True, "device": "cuda"}
    rate = gpu.measured_rate(None)(Planned("a", 1, (), given))
    assert isinstance(rate, gpu.Rate) and rate.examples_per_s > 0 and rate.rows == 400
