"""Averages of rows on a GPU behind the learners' work, and in code, against the stand-in for CuPy,
whose streams run late. No GPU is claimed.
"""

import threading
import time
from contextlib import nullcontext
from unittest import mock

import late
import numpy as np
import pytest
import stand_in
import test_wires as wires
from mpi import call
from mpi4py import MPI
from test_gpu_logic import AWARE, device_of

from localavg.algorithms.base import Due, Mean
from localavg.algorithms.delay import Delay
from localavg.errors import UserError
from localavg.parallel import transport as transports
from localavg.parallel.device import Cpu, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.patient import Patient
from localavg.parallel.transport import choose, in_code
from localavg.parallel.transport.nccl import Nccl
from localavg.parallel.transport.staged import Staged
from localavg.scope import Scope
from localavg.training.flights import Flights

WAYS = ("cuda_aware", "staged", "nccl")


def made(name, fleet, clusters=()):
    """A transport of this name between stand-ins, and one for another thread."""
    transport = choose(name, fleet, clusters, 0, device_of(fleet), AWARE)
    return transport, transports.in_background(transport, fleet)


def in_background(world):
    """What is wrong with means in the background, and what MPI got from the other thread."""
    wrong, sent = [], []
    reduce = Patient.Allreduce

    def noted(comm, place, x, *how):
        sent.append(type(x).__module__)
        reduce(comm, place, x, *how)

    with mock.patch.object(Patient, "Allreduce", noted):
        for name in WAYS:
            for P, n in ((world.size, 7), (2 * world.size, 4321), (5, 1000)):
                fleet = Fleet(world, P)
                wrong += [(name, P, n, t) for t in late.flown(fleet, *made(name, fleet), n)]
    return wrong, sorted(set(sent))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_mean_in_the_background_is_of_the_copies_and_leaves_the_learners_alone(ranks):
    """No device memory is given to a nonblocking call of MPI: Open MPI crashes."""
    for wrong, sent in call(ranks, in_background):
        assert wrong == []
        assert sent == (["numpy"] if ranks > 1 else [])


def kinds(world):
    fleet = Fleet(world)
    found = {name: made(name, fleet) for name in WAYS}
    return {name: (type(a), type(b), a.groups[Scope.WORLD][0].comm is
                   b.groups[Scope.WORLD][0].comm) for name, (a, b) in found.items()}  # fmt: skip


def test_mpi_gets_no_gpu_memory_in_the_background():
    for found in call(2, kinds):
        assert found["cuda_aware"][1] is Staged and found["staged"][1] is Staged
        assert found["nccl"][1] is Nccl and not any(same for *_, same in found.values())


def ordered_sums(world):
    """Which stream NCCL's sums of two communicators were queued in, in order, on every rank."""
    fleet = Fleet(world)
    transport, background = made("nccl", fleet)
    w = transport.zeros((1, 1000))
    flights = Flights(Mean(), w, background, own=False)
    late = Nccl._sum_over_ranks_

    def delayed(self, x, group):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.05 + 0.1 * world.rank)
        late(self, x, group)

    with mock.patch.object(Nccl, "_sum_over_ranks_", delayed):
        stand_in.log.clear()
        for t in range(3):
            flights.begin(w, Due(Scope.WORLD, t))
            transport.mean(w)  # as an evaluation does
            flights.end()
    return [stream for stream, what in stand_in.log if what == "allReduce"]


def test_sums_of_two_communicators_of_nccl_begin_in_one_order():
    assert call(2, ordered_sums) == [["side", "main"] * 3] * 2


def test_a_mean_that_fails_in_the_background_keeps_nobody_waiting():
    fleet = Fleet(MPI.COMM_SELF)
    transport, background = made("nccl", fleet)
    with pytest.raises(ZeroDivisionError), background.aside():
        raise ZeroDivisionError
    assert background.landed.is_set() and transport.background is background


@pytest.mark.parametrize("delay", [Delay(3), Delay(3, "lerp", 0.3), Delay(2, "daso"),
                                   Delay(3, "lerp", 1.0)], ids=str)  # fmt: skip
def test_a_merge_on_the_device_is_that_on_the_host(delay):
    """Of some columns, too; in one pass over the rows."""
    rng = np.random.default_rng(0)
    w, z, own = rng.normal(size=(3, 4, 70)).astype(np.float32)
    there = [stand_in.asarray(x) for x in (w, z, own)]
    for columns in (slice(None), slice(3, 60)):
        stand_in.log.clear()
        for rows in ((w, z, own), there):
            part = [x[:, columns] for x in rows]
            delay.merge_(*part[:2], part[2] if delay.keeps_copies else None, 4)
        assert len(stand_in.log) == 1
        np.testing.assert_allclose(on_host(there[0]), w, rtol=1e-6, atol=1e-6)
        put_(there[1], z)


def hiding_on_device(world):
    from localavg.cli.bench import hiding

    stand_in.gpus[0] = 1
    fleet, ways = Fleet(world), ("sleeping", "computing")
    with mock.patch.object(hiding, "ON_GPU", 8):
        return hiding.bench_hiding(fleet, [1000], ["kavg"], ways, 2, 1, 1, device=device_of(fleet))


def test_what_a_delay_hides_on_the_device_can_be_timed():
    for rows in call(2, hiding_on_device):
        assert [row["transport"] for row in rows] == ["staged"] * 2
        assert all(row[f"{name}_s"] > 0 for row in rows for name in ("never", "delayed", "average"))


# ---------------------------------------------------------------------------------------- in code

SETTINGS = ("bf16-2", "int8-1", "int8-3", "lowrank:2-2", "clusters", "step", "weights")


def rounds(world, settings, on_device):
    """Rows, S and bytes after each average in code, and after one of other rows; what is kept."""
    P, ranks_per_node, clusters, wire, step, weighted = settings
    fleet = Fleet(world, P, ranks_per_node)
    if on_device:
        plain, lay = choose("staged", fleet, clusters, 0, device_of(fleet)), stand_in.asarray
    else:
        plain, lay = choose("shared", fleet, clusters, 4 * wires.PLACES.d), np.asarray
    transport = in_code(plain, fleet)
    transport.use(wires.coding_of(wire))
    w, other = transport.zeros((fleet.L, wires.PLACES.d)), transport.zeros((fleet.L, 50))
    transport.watch(w, PIECES if step else (slice(None),))
    w[...] = lay(wires.start_of())
    transport.begin(w)
    found, scopes, n = [], wires.scopes(clusters), wires.n
    for t, scope in enumerate(scopes):
        drift = lay(np.array([wires.drift(t, j) for j in fleet.learners]))
        w += drift  # queued, as an update is
        other += drift[:, :50]
        transport.weights = wires.counts(P, True, t) if weighted else None
        transport.plain = t == len(scopes) - 1
        counters = wires.count(transport, scope)
        if step is None:
            S = transport.mean_(w, scope, t % 2 == 1)
        else:  # in pieces
            S = sum(transport.mean_(w[:, piece], scope, True, wires.shrunk) for piece in PIECES[1:])
        transport.weights = None
        transport.mean_(other, scope)
        sent = sum(each.nbytes for each in counters)
        told = transport.sum_bytes(scope), transport.payload_bytes(4 * n, scope)[1]
        found.append((on_host(w).copy(), on_host(other).copy(), S, sent, told))
    return found, transport.state_dict(), transport.name


PIECES = (slice(None), slice(0, 64), slice(64, wires.PLACES.d))


def beside(world, names):
    """The rounds of each setting on the host, and on the device where nothing else is sent."""
    refused = mock.Mock(side_effect=AssertionError("sent without a code"))
    answers = {}
    for name in names:
        settings = wires.SETTINGS[name]
        here = rounds(world, settings, on_device=False)
        nothing = mock.patch.object(Staged, "_sum_over_ranks_", refused)
        with nullcontext() if settings[2] else nothing:  # small clusters average by `staged`
            answers[name] = here, rounds(world, settings, on_device=True)
    return answers


@pytest.fixture(scope="module")
def in_both():
    return call(4, beside, SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_averages_in_code_have_the_bits_and_the_bytes_of_the_host(in_both, name):
    for rank in in_both:
        (here, kept, _), (there, kept_there, transport) = rank[name]
        assert transport == "staged"
        for (w, other, S, *sent), (w2, other2, S2, *sent2) in zip(here, there, strict=True):
            assert np.array_equal(w, w2) and np.array_equal(other, other2)
            assert np.isclose(S, S2, rtol=1e-6, equal_nan=True) and sent == sent2
        assert kept.keys() == kept_there.keys()
        for part in kept:
            assert np.array_equal(kept[part], kept_there[part])


def one_node(world):
    fleet = Fleet(world)
    with pytest.raises(UserError, match="one node, so nothing crosses nodes"):
        in_code(choose("staged", fleet, (), 0, device_of(fleet)), fleet)


def test_a_wire_on_a_gpu_needs_several_nodes_too():
    one_node(MPI.COMM_SELF)


# ------------------------------------------------------------------------------------------- runs

SHORT = ("overlap", "delayed wire")  # the others take another minute


def trained(world, folder, names):
    """{name: the run on the CPU, and on the stand-in}, and {name: in one go, and resumed}."""
    stand_in.gpus[0], both, resumed = 1, {}, {}

    def train(name, path, device="cuda", **more):
        return late.train(world, name, f"{folder}/{path}.h5", device, on, **more)

    def on(name, fleet):
        return Cpu() if name == "cpu" else device_of(fleet)

    for name in names:
        runs = [train(name, f"{name}-{device}", device) for device in ("cpu", "cuda")]
        both[name] = [late.left(*each) for each in runs]
    for name in [name for name in names if name in late.RESUMED]:
        with pytest.raises(RuntimeError, match="stop"):
            train(name, f"{name}-stopped", stop=True)
        again = train(name, f"{name}-stopped", resume=True)
        resumed[name] = [both[name][1], late.left(*again)]
    return both, resumed


def some(names):
    """The names, those that are not SHORT marked as long."""
    return [pytest.param(x, marks=[pytest.mark.long] * (x not in SHORT)) for x in names]


@pytest.fixture(scope="module")
def runs(once, tmp_path_factory):
    """The runs of all names that are as long as this one."""

    def of(name):
        names = [x for x in late.RUNS if (x in SHORT) == (name in SHORT)]
        return once(names[0], call, 2, trained, str(tmp_path_factory.mktemp("runs")), names)[0]

    return of


@pytest.mark.parametrize("name", some(late.RUNS))
def test_a_run_with_what_is_late_or_coded_is_that_of_the_cpu(runs, name):
    here, there = runs(name)[0][name]
    assert here[0] == there[0] == 0
    np.testing.assert_allclose(there[1], here[1], rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(there[2], here[2], rtol=1e-3)
    assert np.array_equal(there[3][:, :3], here[3][:, :3])  # when, begun when, over whom
    if "wire" in name:
        assert np.array_equal(there[3], here[3])  # the bytes too: a node sends a row once
    assert (there[5] > 0).all()


@pytest.mark.parametrize("name", some(late.RESUMED))
def test_a_run_with_what_is_late_or_coded_goes_on_to_the_same_bits(runs, name):
    whole, resumed = runs(name)[1][name]
    assert (whole[4], resumed[4]) == (0, 1)
    assert np.array_equal(whole[1], resumed[1]) and np.array_equal(whole[2], resumed[2])
    assert np.array_equal(whole[3], resumed[3])
