"""Averages behind a GPU's work, and in code, on ranks that share it: rows by every transport
against the sum in order, codes against the host's, and whole runs against the CPU and resumed.
"""

import late
import numpy as np
import pytest
from gpus import answered, aware, guarded, launch, place, take

RANKS, WAYS, CODES = (1, 2), ("staged", "cuda_aware", "nccl"), ("int8", "bf16", "lowrank:2")


def behind(world, aware):
    """{(transport, learners of a rank): the turns that went wrong, or why it is not there}."""
    import cupy

    from localavg.errors import UserError
    from localavg.parallel.probe import Probe
    from localavg.parallel.transport import choose, in_background

    x = cupy.ones((4096, 4096), np.float32)

    def busy():  # for some milliseconds
        for _ in range(5):
            cupy.matmul(x, x)

    def one(name, L):
        fleet, device = place(world, L * world.size)
        try:
            transport = choose(name, fleet, (), 0, device, Probe(*aware))
        except UserError as e:
            return str(e)
        background = in_background(transport, fleet)
        return [t for n in (7, 300_001) for t in late.flown(fleet, transport, background, n, busy)]

    return guarded({(name, L): lambda of=(name, L): one(*of) for name in WAYS for L in (1, 3)})


def begin_flights(folder):
    found = aware()
    return {ranks: launch(ranks, behind, found, timeout=100) for ranks in RANKS}


flights = answered("flights")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", WAYS)
def test_a_mean_in_the_background_is_of_the_copies(name, ranks, flights):
    for L in (1, 3):
        found = [take(each, (name, L)) for each in flights[ranks]]
        if isinstance(found[0], str):
            pytest.skip(found[0])
        assert found == [[]] * ranks


def coded(world):
    """{code: the rows after averages on the host, and on the GPU}."""
    from localavg.algorithms import wire as wires
    from localavg.parallel.device import on_host, put_
    from localavg.parallel.fleet import Fleet
    from localavg.parallel.transport import choose, in_code
    from localavg.parallel.transport.in_code import Coding
    from localavg.scope import Scope

    m, n = 300, 300 * 200 + 77

    def rounds(name, on_gpu):
        fleet = Fleet(world, 4, ranks_per_node=1)
        _, device = place(world, 4)
        where = ("staged", fleet, (), 0, device) if on_gpu else ("shared", fleet, (), 4 * n)
        transport, wire = in_code(choose(*where), fleet), wires.of(name)
        tensors = [(slice(0, m * 200), (m, 200)), (slice(m * 200, n), (77,))]
        transport.use(Coding(n, tensors, wire.code, wire.r))
        w, found = transport.zeros((fleet.L, n)), []
        transport.watch(w)
        transport.begin(w)
        values = np.zeros((fleet.L, n), np.float32)
        for t in range(4):
            for l, j in enumerate(fleet.learners):
                values[l] += np.random.default_rng([t, j]).standard_normal(n, np.float32)
            put_(w, values)
            transport.plain = t == 3
            transport.mean_(w, Scope.WORLD)
            transport.settle()
            values = on_host(w).copy()
            found.append(values)
        return found

    return guarded({name: lambda name=name: (rounds(name, False), rounds(name, True))
                    for name in CODES})  # fmt: skip


def begin_codes(folder):
    return launch(2, coded, timeout=100)


codes = answered("codes")


@pytest.mark.parametrize("name", CODES)
def test_rows_of_a_gpu_are_coded_as_those_of_the_host(name, codes):
    for rank in codes:
        here, there = take(rank, name)
        for a, b in zip(here, there, strict=True):
            assert np.array_equal(a, b)


def trained(world, folder):
    """{name: on the CPU, twice on the GPU, and for some resumed}."""

    def all_of(name):
        path = f"{folder}/{name}".replace(" ", "-")
        devices = {"cpu": "cpu", "one": "cuda", "two": "cuda"}
        found = {
            key: late.left(*late.train(world, name, f"{path}-{key}.h5", device))
            for key, device in devices.items()
        }
        if name in late.RESUMED:
            with pytest.raises(RuntimeError, match="stop"):
                late.train(world, name, f"{path}-stopped.h5", stop=True)
            again = late.train(world, name, f"{path}-stopped.h5", resume=True)
            found["resumed"] = late.left(*again)
        return found

    return guarded({name: lambda name=name: all_of(name) for name in late.RUNS})


def begin_late_runs(folder):
    return launch(2, trained, str(folder), timeout=180)


late_runs = answered("late_runs")


@pytest.mark.parametrize("name", late.RUNS)
def test_a_run_with_late_or_coded_averages_is_that_of_the_cpu_and_repeats_its_bits(name, late_runs):
    runs = take(late_runs[0], name)
    here, there = runs["cpu"], runs["one"]
    assert here[0] == there[0] == 0
    np.testing.assert_allclose(there[1], here[1], rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(there[2], here[2], rtol=5e-3)
    for other in (runs[key] for key in ("two", "resumed") if key in runs):
        assert np.array_equal(other[1], there[1]) and np.array_equal(other[2], there[2])
    assert runs.get("resumed", [None] * 5)[4] in (None, 1)
