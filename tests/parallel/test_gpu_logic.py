"""The code for GPUs against a stand-in for CuPy: order of waiting and sending, means, choices,
messages. No GPU is claimed.
"""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi import call
from mpi4py import MPI
from rows import mixed, ordered, values

from localavg.algorithms.outer import RULES
from localavg.errors import UserError
from localavg.files import checkpoint
from localavg.parallel import kernels
from localavg.parallel.device import Cpu, Cuda, choose_device, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.probe import Probe
from localavg.parallel.transport import choose
from localavg.parallel.transport.nccl import Nccl
from localavg.parallel.transport.staged import Staged
from localavg.scope import Scope
from localavg.training.keeper import Keeper
from localavg.training.monitor import Monitor
from localavg.training.stopwatch import Stopwatch

AWARE = Probe(True, "device memory was reduced in place, every number right")
UNAWARE = Probe(False, "the child ended with status 139: signal 11")


def device_of(fleet):
    return choose_device("cuda", fleet, load=lambda name: stand_in, driver=lambda: None)


class Checked:
    """A communicator that notes what is sent, and fails where device memory is sent while its
    stream is busy.
    """

    def __init__(self, comm):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    def bcast(self, value):
        return self.comm.bcast(value)

    def Allreduce(self, place, x):
        on_device = isinstance(x, stand_in.ndarray)
        assert not (on_device and stand_in.null.dirty), "sent before it was there"
        stand_in.log.append(("mpi", f"Allreduce {'device' if on_device else 'host'} {len(x)}"))
        self.comm.Allreduce(place, x)


def watched(fleet):
    """The same fleet with groups whose communicators are checked."""
    groups = fleet.groups
    kept = {}

    def checked(S):
        if S not in kept:
            kept[S] = [replace(g, comm=g.comm and Checked(g.comm)) for g in groups(S)]
        return kept[S]

    fleet.groups = checked
    return fleet


def by_weight(transport, fleet, rows):
    """What is wrong with means by weight of rows [P, n], some of which count nothing."""
    P, n = rows.shape
    transport.weights = counts = [(3 * j + 1) % 4 for j in range(P)]
    mean = np.array(counts) @ rows.astype(float) / sum(counts)
    used = [row for row, count in zip(rows, counts, strict=True) if count]
    S = np.mean([np.sum((mean - row) ** 2) for row in used])
    mine = rows[fleet.learners.start : fleet.learners.stop].copy()
    mine[[not counts[j] for j in fleet.learners]] = np.nan
    w, wrong = transport.zeros((fleet.L, n)), []
    for what, step in (("plain", None), ("S", None), ("step", lambda mean, columns: mean * -1)):
        put_(w, mine)
        told = transport.mean_(w, Scope.WORLD, what == "S", step)
        transport.settle()
        if not np.allclose(w.x, -mean if what == "step" else mean, 1e-5, 1e-5):
            wrong.append(what)
        if what == "S" and not np.isclose(told, S, 1e-4, 1e-4):
            wrong.append("told")
    put_(w, mine)
    if not np.allclose(on_host(transport.mean(w)), mean, 1e-5, 1e-5):
        wrong.append("mean")
    transport.weights = None
    return wrong


def means(world):
    """What is wrong over transports, learners, lengths and scopes, and the log of one average of
    each transport.
    """
    wrong, logs = [], {}
    for name in ("cuda_aware", "staged", "nccl"):
        for P in (world.size, 3 * world.size, 5, 7, 9):
            fleet = watched(Fleet(world, P))
            device = device_of(fleet)
            S = next(S for S in (3, 2, 1) if P % S == 0)
            transport = choose(name, fleet, (S,), 0, device, AWARE)
            if name == "staged":
                transport = Staged(fleet, device, (S,), piece=1000)
            mine = slice(fleet.learners.start, fleet.learners.stop)
            for n in (1, 7, 1000, 4321):
                for whole in (True, False):
                    rows = values(P, n, whole)
                    clusters = np.repeat(
                        [ordered(rows[c : c + S]) for c in range(0, P, S)], S, axis=0
                    )
                    for scope, expected in (
                        (Scope.WORLD, np.broadcast_to(ordered(rows), (P, n))),
                        (Scope.CLUSTER, clusters),
                    ):
                        for variance in (False, True):
                            w = transport.zeros((fleet.L, n))
                            put_(w, rows[mine])
                            stand_in.log.clear()
                            spread = transport.mean_(w, scope, variance)
                            if not variance and scope == Scope.WORLD:
                                logs[name, P, n] = list(stand_in.log)
                            transport.settle()
                            got = w.x
                            exact = whole or world.size == 1 or P == 2
                            good = (
                                np.array_equal
                                if exact
                                else lambda a, b: np.allclose(a, b, 1e-5, 1e-6)
                            )
                            S2 = (
                                sum(
                                    float(np.sum((expected[j] - rows[j]).astype(np.float64) ** 2))
                                    for j in range(P)
                                )
                                / P
                            )
                            if not good(got, expected[mine]) or (
                                variance and not np.isclose(spread, S2, 1e-5, 1e-6)
                            ):
                                wrong.append((name, P, n, whole, int(scope), variance))
                    if n == 1000 and (weighed := by_weight(transport, fleet, rows)):
                        wrong.append((name, P, n, weighed))
                    w = transport.zeros((fleet.L, n))
                    put_(w, rows[mine])
                    mean = on_host(transport.mean(w))
                    if not np.allclose(mean, ordered(rows), 1e-5, 1e-6) or not np.array_equal(
                        w.x, rows[mine]
                    ):
                        wrong.append((name, P, n, "mean"))
    return wrong, logs


def mixes(world):
    """What is wrong over learners and matrices, on a part of the columns, piece by piece."""
    from localavg.parallel.transport import mixing_on_device

    wrong, mixing_on_device.PIECE = [], 100
    for P in (world.size, 5, 7):
        fleet = Fleet(world, P)
        transport = choose("staged", fleet, (), 0, device_of(fleet), AWARE)
        mine, rows = slice(fleet.learners.start, fleet.learners.stop), values(P, 310, whole=False)
        ring = np.eye(P) / 2 + np.roll(np.eye(P), 1, axis=1) / 2
        first = np.eye(P)
        first[0, -1] = 0.25
        for name, W in {"ring": ring, "first": first, "none": np.eye(P)}.items():
            w = transport.zeros((fleet.L, 310))
            put_(w, rows[mine])
            transport.mix_(w[:, 3:307], W)
            transport.settle()
            expected = rows.copy()
            expected[:, 3:307] = mixed(rows[:, 3:307], W)
            if not np.array_equal(w.x, expected[mine]):
                wrong.append((P, name))
    return wrong


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows_on_the_device_are_mixed_to_the_bits_of_the_host(ranks):
    assert call(ranks, mixes) == [[]] * ranks


@pytest.fixture(params=[1, 2, 3, 4])
def found(request, once):
    return request.param, once(request.param, call, request.param, means)


def test_means_on_the_device_are_the_sum_in_order_divided_once(found):
    for wrong, _ in found[1]:
        assert wrong == []


def test_the_stream_is_waited_for_before_device_memory_is_sent_and_not_without_sending(found):
    ranks, answers = found
    for _, logs in answers:
        for L in (1, 3):
            log = logs["cuda_aware", L * ranks, 1000]
            if ranks == 1 and L > 1:
                assert log == [("main", "localavg_mean4")]
                continue
            sent = [("main", "synchronize"), ("mpi", "Allreduce device 1000")] if ranks > 1 else []
            assert log == [("main", "localavg_sum")] * (L > 1) + sent + [
                ("main", "localavg_finish")
            ]


def test_nccl_waits_for_nothing(found):
    ranks, answers = found
    for _, logs in answers:
        log = logs["nccl", 3 * ranks, 1000]
        travels = [("main", f"{name}") for name in ("localavg_sum", "allReduce", "localavg_finish")]
        assert log == (travels if ranks > 1 else [("main", "localavg_mean4")])


def test_staging_fetches_the_next_piece_before_it_reduces_this_one(found):
    ranks, answers = found
    for _, logs in answers:
        log = [entry for entry in logs["staged", ranks, 4321] if entry[0] != "main"]
        expected = []
        if ranks > 1:
            sizes = [1000, 1000, 1000, 1000, 321]
            expected = [("side", "copy 4000")]
            for k, size in enumerate(sizes):
                expected += [("side", f"copy {4 * n}") for n in sizes[k + 1 : k + 2]]
                expected += [
                    ("side", "wait"),
                    ("mpi", f"Allreduce host {size}"),
                    ("side", f"copy {4 * size}"),
                ]
        assert log == expected
        assert ("pinned", 4000) not in log  # memory is not made at an average


def choices(world):
    """What choose() answers to every request and situation: the transport and why, or the error."""
    answers = {}
    for available in (True, False):
        for gpus in (1, 4):
            for known in ("aware", "unaware", "untried"):
                stand_in.nccl.available, stand_in.gpus[0] = available, gpus
                fleet = watched(Fleet(world))
                device = device_of(fleet)
                aware = (
                    {"aware": AWARE, "unaware": UNAWARE, "untried": None}[known]
                    if fleet.rank == 0
                    else None
                )
                for name in ("nccl", "cuda_aware", "staged", "shared", "mpi"):
                    try:
                        transport = choose(name, fleet, (), 0, device, aware)
                        answers[available, gpus, known, name] = transport.name, transport.why
                    except UserError as e:
                        answers[available, gpus, known, name] = "error", str(e)
    for name in ("nccl", "cuda_aware", "staged"):
        try:
            choose(name, Fleet(world), (), 0)
        except UserError as e:
            answers[name] = str(e)
    stand_in.nccl.available, stand_in.gpus[0] = True, 4
    return answers


@pytest.fixture(scope="module")
def chosen():
    first, second = call(2, choices)
    assert first == second
    return first


def test_a_transport_that_was_asked_for_is_taken_or_the_run_ends(chosen):
    assert chosen[True, 4, "untried", "nccl"] == ("nccl", "asked for")
    assert chosen[True, 4, "aware", "cuda_aware"] == ("cuda_aware", "asked for")
    assert chosen[False, 1, "untried", "staged"] == ("staged", "asked for")
    for situation, name, words in (
        ((True, 1, "aware"), "nccl", "2 ranks share GPU"),
        ((False, 4, "aware"), "nccl", "without NCCL"),
        ((True, 4, "unaware"), "cuda_aware", "status 139"),
        ((True, 4, "untried"), "cuda_aware", "not tried"),
    ):
        kind, message = chosen[(*situation, name)]
        assert (
            kind == "error"
            and message.startswith(f"`transport = {name}`: ")
            and words in message
            and "\n" not in message
        )
    for name in ("shared", "mpi"):
        assert (
            chosen[True, 4, "aware", name][0] == "error"
            and "host's memory" in chosen[True, 4, "aware", name][1]
        )
    for name in ("nccl", "cuda_aware", "staged"):
        assert "add `device = cuda`" in chosen[name]


# ------------------------------------------------------------------------------------------- what n


def test_rows_that_do_not_fit_in_the_gpu_are_one_clear_line(monkeypatch):
    def full(*_):
        raise MemoryError("out of memory\nby far")

    device = device_of(One())
    monkeypatch.setattr(stand_in, "zeros", full)
    with pytest.raises(UserError, match=r"^`device = cuda`: 2 GB more do not fit .*`learners`"):
        device.zeros((5, 100_000_000))


class One:
    """A fleet of one rank, by place on the machine."""

    def __init__(self, place=0):
        self.rank, self.hosts, self.place = 0, ["here"], place

    def together(self, work):
        return work()


@pytest.mark.parametrize(("place", "gpus", "index"), [(0, 4, 0), (3, 4, 3), (5, 4, 1), (2, 1, 0)])
def test_a_rank_takes_the_gpu_of_its_place_on_the_machine(place, gpus, index, monkeypatch):
    monkeypatch.setattr(stand_in, "gpus", [gpus])
    device = device_of(One(place))
    assert isinstance(device, Cuda) and device.index == index == stand_in.Used.index
    assert device.identity == ("here", f"0000:{index:02d}:00.0")


def bench_on_device(world, way):
    from localavg.cli.bench import average

    fleet = Fleet(world, ranks_per_node=1)
    how = {"device": device_of(fleet), "aware": AWARE if way == "cuda_aware" else None}
    with mock.patch.object(average, "_torch_averager", lambda *_: None):
        return average.bench_average(fleet, way, [1000], 2, **how, wire="int8")


@pytest.mark.parametrize("way", ["cuda_aware", "staged"])
def test_averages_on_the_device_can_be_timed(way):
    for (row,) in call(2, bench_on_device, way):
        assert row["transport"] == way and all(
            row[name] > 0 for name in ("ours_s", "allreduce_s", "floor_s", "wire_s")
        )
        assert row["plain_bytes"] > 3 * row["wire_bytes"]


def on_artificial_nodes(world):
    return device_of(Fleet(world, ranks_per_node=2)).index


def test_artificial_nodes_do_not_put_two_ranks_on_one_gpu():
    assert call(4, on_artificial_nodes) == [0, 1, 2, 3]


def test_columns_of_a_matrix_on_the_device_can_be_filled_from_the_host():
    w, values = stand_in.zeros((3, 5), np.float32), np.arange(6, dtype=np.float64).reshape(3, 2)
    put_(w[:, 1:3], values)
    assert np.array_equal(w.get()[:, 1:3], values) and w.get().sum() == values.sum()


def test_work_of_the_device_is_waited_for_before_the_time_of_V_t_is_left_out():
    told = []
    monitor = object.__new__(Monitor)
    monitor.clock, monitor.averages = Stopwatch(), SimpleNamespace(drifted=lambda *_: None)
    monitor.transport = SimpleNamespace(
        settle=lambda: told.append("settle"),
        variance=lambda w: told.append("V") or 1.0,
        take_spread_s=lambda: 0.0,
    )
    barrier = SimpleNamespace(Barrier=lambda: told.append("meet"))
    monitor.fleet = SimpleNamespace(world=barrier)
    monitor.drifted(None)
    assert told == ["settle", "meet", "settle", "V"]


def test_work_of_the_device_is_waited_for_before_the_time_of_a_checkpoint_is_left_out(tmp_path):
    told, keep = [], Keeper(Fleet(MPI.COMM_SELF), None, tmp_path)
    monitor = SimpleNamespace(
        computed=lambda: told.append("computed"), clock=Stopwatch(), state_dict=dict
    )
    keep.w, keep.monitor, keep.parts = None, monitor, {"monitor": monitor}
    with mock.patch.object(checkpoint, "write", lambda *_: told.append("write")):
        keep.save(3)
    assert told == ["computed", "write"]


def missing(name):
    raise ImportError("libcudart.so.12: cannot open shared object file")


def no_library(*_):
    raise RuntimeError("no libnvrtc\nlooked for it everywhere")


without_libraries = SimpleNamespace(__version__="14", cuda=stand_in.cuda, zeros=no_library)


def no_driver():
    raise OSError("libcuda.so.1: cannot open")


@pytest.mark.parametrize(
    ("load", "driver", "gpus", "words"),
    [
        (lambda name: stand_in, no_driver, 4, "no NVIDIA driver"),
        (missing, lambda: None, 4, "CuPy cannot be loaded"),
        (
            lambda name: without_libraries,
            lambda: None,
            4,
            "CuPy 14 cannot compute on here (no libnvrtc); install",
        ),
        (lambda name: stand_in, lambda: None, -1, "cudaErrorNoDevice"),
        (lambda name: stand_in, lambda: None, 0, "may see"),
    ],
)
def test_no_driver_no_cupy_and_no_gpu_are_each_one_clear_line(
    load, driver, gpus, words, monkeypatch
):
    monkeypatch.setattr(stand_in, "gpus", [gpus])
    with pytest.raises(UserError) as error:
        choose_device("cuda", One(), load, driver)
    assert (
        str(error.value).startswith("`device = cuda`: ")
        and words in str(error.value)
        and "\n" not in str(error.value)
    )


def test_the_cpu_asks_for_nothing():
    device = choose_device("cpu", One(), missing, no_driver)
    assert type(device) is Cpu and device.xp is np and type(device.zeros((2, 3))) is np.ndarray


def test_nothing_of_cuda_is_loaded_where_it_is_not_asked_for():
    code = (
        "import sys, localavg.parallel.transport, localavg.parallel.device, "
        "localavg.parallel.kernels; "
        "assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_stand_in_is_not_taken_for_numpy():
    x = stand_in.zeros((2, 3), np.float32)
    for misuse in (
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
        lambda: x.__setitem__(0, np.ones(3)),
    ):
        with pytest.raises(TypeError):
            misuse()


@pytest.mark.parametrize("l", [1, 2, 3, 5])
def test_kernels_for_rows_give_the_bits_of_the_sum_in_order(l):
    rows = values(l, 777, whole=False)
    wide = stand_in.asarray(np.concatenate([rows, rows], axis=1))
    x, total = wide[:, :777], stand_in.zeros(777, np.float32)
    kernels.sum_rows_(stand_in, x, total)
    kernels.finish_(stand_in, total, l, x)
    assert np.array_equal(x.get(), np.broadcast_to(ordered(rows), x.shape))
    assert np.array_equal(wide.get()[:, 777:], rows)
    mean = stand_in.asarray(ordered(rows))
    expected = np.sum((rows.astype(np.float64) - ordered(rows)) ** 2)
    assert kernels.spread(stand_in, stand_in.asarray(rows), mean) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_of_an_outer_optimiser_does_what_numpy_does(rule):
    rng = np.random.default_rng(0)
    host, there = (RULES[rule](0.3, 0.7) for _ in range(2))
    w = rng.normal(size=(1, 50)).astype(np.float32)
    memory = {
        "host": lambda shape: np.zeros(shape, np.float32),
        "device": lambda shape: stand_in.zeros(shape, np.float32),
    }
    host.start(w, 40, SimpleNamespace(common=memory["host"]))
    there.start(stand_in.asarray(w), 40, SimpleNamespace(common=memory["device"]))
    for gamma in (0.1, 0.1, 0.01, 0.02):
        host.gamma = there.gamma = gamma
        mean = rng.normal(size=50).astype(np.float32)
        for columns in (slice(0, 30), slice(30, 40)):
            given = stand_in.asarray(mean)[columns]
            found, expected = there.step(given, columns), host.step(mean[columns], columns)
            np.testing.assert_allclose(found.get(), expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(there.state.get(), host.state, rtol=2e-5, atol=1e-5)


def test_a_communicator_of_nccl_is_made_for_each_group_that_spans_ranks():
    for answer in call(4, groups_of_nccl):
        assert answer == (2, 1)


def groups_of_nccl(world):
    """How many NCCL communicators clusters of two and everyone take, and those without clusters."""
    fleet = watched(Fleet(world))
    return len(Nccl(fleet, device_of(fleet), (2,))._of), len(Nccl(fleet, device_of(fleet))._of)


# --------------------------------------------------------------------------------------------------

RUNS = {  # name: (algorithm, its options, settings)
    "kavg": ("kavg", {"K": 3}, {}),
    "mavg": ("mavg", {"K": 3, "mu": 0.5}, {"optimizer": "nesterov", "state": "average"}),
    "hieravg": ("hieravg", {"K1": 2, "K2": 4, "S": 2}, {"optimizer": "momentum"}),
    "slowmo": ("slowmo", {"K": 3}, {"optimizer": "momentum", "state": "reset"}),
    "yogi": ("kavg", {"K": 3, "outer": "yogi"}, {"variance": "averages"}),
    "adpsgd": ("adpsgd", {"p_init": 2}, {"optimizer": "adam", "lr": 0.01}),
    "sync": ("sync", {}, {"sampling": "block", "variance": "averages", "grad_norm": True}),
    "qsgd": ("qsgd", {}, {}),
    "ring": ("gossip", {"mix": "first"}, {"optimizer": "momentum", "variance": "averages"}),
    "push": ("gossip", {"graph": "push"}, {"optimizer": "momentum", "state": "average", "lr": 0.1}),
}


def trained(world, data, folder):
    """Train everything on the CPU and on the stand-in; rank 0 gives the weights, losses and
    evaluations of each.
    """
    from unittest import mock

    from localavg.config import TrainConfig
    from localavg.files import record
    from localavg.training import run as module
    from localavg.training import where

    answers = {}
    for name, (algorithm, options, settings) in RUNS.items():
        for device in ("cpu", "cuda"):
            path = f"{folder}/{name}-{device}.h5"
            c = TrainConfig(
                algorithm=algorithm,
                options=options,
                data=data,
                learners=4,
                steps=12,
                out=path,
                save_weights=True,
                device=device,
                **{"batch_size": 8, "lr": 0.5, "checkpoint_every": "5", **settings},
            )
            stand_in.gpus[0] = 1
            with mock.patch.object(
                where,
                "choose_device",
                lambda name, fleet: Cpu() if name == "cpu" else device_of(fleet),
            ):
                status = module.run(c, world).status
            if world.rank == 0:
                run = record.load(path)
                answers[name, device] = (
                    status,
                    run.weights,
                    run.train.loss.to_numpy(),
                    run.eval.to_numpy(),
                    run.averages.variance.to_numpy(),
                    run.provenance["transport"],
                )
                if device == "cuda":
                    assert (
                        len(run.provenance["gpus"]) == world.size
                        and "0000:00:00.0" in run.provenance["gpus"][0]
                    )
                else:
                    assert "gpus" not in run.provenance
    return answers


@pytest.fixture(scope="module")
def both(shards, tmp_path_factory):
    return [
        call(ranks, trained, shards.path, str(tmp_path_factory.mktemp("runs")))[0]
        for ranks in (1, 2)
    ]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_device_is_the_run_on_the_cpu(both, name):
    """Weights, losses, evaluations, S; checkpoints are written on the way, from the device."""
    for answers in both:
        status, weights, losses, evaluations, variance, transport = answers[name, "cuda"]
        on_cpu = answers[name, "cpu"]
        assert status == 0 and transport in ("device", "staged", "nccl")
        np.testing.assert_allclose(weights, on_cpu[1], rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(losses, on_cpu[2], rtol=1e-4)
        np.testing.assert_allclose(evaluations[:, 3:], on_cpu[3][:, 3:], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(variance, on_cpu[4], rtol=1e-3, atol=1e-9)


def stopped_and_resumed(world, data, folder):
    """Weights of M-AVG with Adam on the stand-in: in one go, and resumed after it failed between
    two checkpoints.
    """
    from unittest import mock

    from localavg.config import TrainConfig
    from localavg.files import record
    from localavg.training import build, where
    from localavg.training import run as module

    def make(c, epoch):
        def step_size(t):
            if t == 9 and c.out.endswith("stopped.h5") and not c.resume:
                raise RuntimeError("stop")
            return 0.01

        return step_size

    def train(name, **more):
        c = TrainConfig(
            algorithm="mavg",
            options={"K": 3, "mu": 0.5},
            data=data,
            learners=2,
            steps=14,
            batch_size=8,
            out=f"{folder}/{name}.h5",
            lr=0.01,
            save_weights=True,
            device="cuda",
            optimizer="adam",
            checkpoint_every="4",
            log_every=5,
            **more,
        )
        return module.run(c, world).status

    with (
        mock.patch.object(where, "choose_device", lambda name, fleet: device_of(fleet)),
        mock.patch.object(build.stepsizes, "make", make),
    ):
        train("whole")
        with pytest.raises(RuntimeError, match="stop"):
            train("stopped")
        train("stopped", resume=True)
    runs = [record.load(f"{folder}/{name}.h5") for name in ("whole", "stopped")]
    return [
        (run.weights, run.train.loss.to_numpy(), int(run.provenance.get("resumes", 0)))
        for run in runs
    ]


def test_a_run_on_the_device_goes_on_from_its_checkpoint_bit_for_bit(shards, tmp_path):
    whole, resumed = call(1, stopped_and_resumed, shards.path, str(tmp_path))[0]
    assert resumed[2] == 1 and whole[2] == 0
    assert np.array_equal(whole[0], resumed[0]) and np.array_equal(whole[1], resumed[1])


def test_scalars_of_host_and_device_become_numbers_in_their_order():
    from localavg.parallel.device import numbers

    values = [0.5, stand_in.asarray(np.float32(2)), np.float32(3), stand_in.asarray(np.float64(4))]
    assert numbers(values).tolist() == [0.5, 2, 3, 4] and numbers([]).shape == (0,)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_the_kernels_of_the_local_updates_do_what_numpy_does(name):
    from localavg.learner import optim

    rng = np.random.default_rng(1)
    host, there = (optim.make(name, 0.9, "keep") for _ in range(2))
    w = rng.normal(size=(3, 70)).astype(np.float32)
    v = stand_in.asarray(w)
    host.start((3, 60), None)
    there.start((3, 60), None, lambda shape: stand_in.zeros(shape, np.float32))
    for gamma in (0.1, 0.1, 0.01):
        g = rng.normal(size=(3, 70)).astype(np.float32)
        there.update_(v[:, :60], stand_in.asarray(g)[:, :60], gamma)
        host.update_(w[:, :60], g[:, :60], gamma)
        np.testing.assert_allclose(v.get(), w, rtol=2e-6, atol=2e-6)
