"""Where a network's tensors lie: at multiples of 256 bytes, with zeros between them that stay zero,
and that no file holds.
"""

from math import prod

import h5py
import numpy as np
import pytest
import torch
from mpi import call
from mpi4py import MPI
from samples import random_images

from localavg import algorithms, datasets, models
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.learner.flat import Flat, Places
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport.mpi import HostMPI
from localavg.parallel.transport.shared import SharedMemory
from localavg.problems.constants import network_constants
from localavg.problems.logistic import Logistic
from localavg.problems.network import Network

BYTES = 256
L = 3  # learners of a rank


def small(model):
    side = models.MODELS[model].side
    return Network(random_images((side, side, 3 if side > 8 else 1), 4), model, 0.0, seed=0)


def askew(network, rows):
    """The tensors of these rows [L, d] that begin elsewhere."""
    return [
        f"{name} of row {l}"
        for l, row in enumerate(rows)
        for name, tensor in network.views(row).items()
        if tensor.data_ptr() % BYTES
    ]


@pytest.mark.parametrize("model", models.MODELS)
def test_every_tensor_begins_at_a_multiple_of_256_bytes(model):
    network = small(model)
    flat = Flat(network.shapes, L, network.parameters, align=network.align)
    assert flat.d == network.d and 4 * flat.d % BYTES == 0
    assert askew(network, flat.w) == []
    assert 4 * flat.d_trained % BYTES == 0  # where the statistics begin


def of_a_transport(world):
    """The tensors that begin elsewhere in rows of each transport on the host."""
    fleet, network = Fleet(world, L * world.size), small("nin")
    found = {}
    for make in (HostMPI, SharedMemory):
        transport = make(fleet)
        for kind in (transport.zeros, transport.ordinary):
            rows = kind((fleet.L, network.d))
            found[f"{make.__name__} {kind.__name__}"] = askew(network, rows) + [
                "not zero" for _ in range(1) if rows.any()
            ]
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_of_every_transport_on_the_host_begin_there_too(ranks):
    for found in call(ranks, of_a_transport):
        assert not any(found.values()), found


def test_the_d_of_logistic_regression_stays_the_number_of_features():
    problem = Logistic(datasets.load("epsilon-like:60x3", Fleet(MPI.COMM_SELF)), 0.0)
    flat = Flat(problem.shapes, 2, problem.parameters, align=problem.align)
    assert problem.d == flat.d == flat.d_trained == flat.size == 3


PLACES = Places({"a": (3, 5), "b": (), "none": (0,), "c": (64,), "mean": (2,)}, 4, align=64)


def test_places_have_gaps_that_packing_leaves_out():
    assert [s.start for s in PLACES.segments.values()] == [0, 64, 128, 128, 192]
    assert PLACES.d == 256 and PLACES.d_trained == 192
    assert PLACES.size == 15 + 1 + 64 + 2
    numbers = np.arange(1, PLACES.size + 1, dtype=np.float32)
    row = PLACES.unpacked(numbers)
    assert row.shape == (256,) and np.count_nonzero(row) == PLACES.size
    assert row[192:194].tolist() == numbers[-2:].tolist()
    assert np.array_equal(PLACES.packed(row), numbers)


# Settings of which each leaves other traces in a row: optimisers, exchanges, averages, states.
OF_A_ROW = [
    {"algorithm": "kavg", "K": 2, "optimizer": "momentum", "state": "average"},
    {"algorithm": "kavg", "K": 3, "optimizer": "nesterov", "statistics": "keep"},
    {"algorithm": "mavg", "K": 2},
    {"algorithm": "sync", "optimizer": "adam"},
    {"algorithm": "qsgd", "optimizer": "adam"},
    {"algorithm": "adpsgd", "p_init": 2, "warmup": 0, "Ks": 4, "variance": "steps"},
    {"algorithm": "hieravg", "K1": 1, "K2": 3, "S": 2, "optimizer": "adam", "state": "reset"},
]


def gaps(flat):
    """Which columns of a row no tensor has."""
    gap = np.ones(flat.d, bool)
    for segment in flat.segments.values():
        gap[segment] = False
    return gap


def trained(world):
    """Train digits with each of the settings; what is not zero in the gaps."""
    from localavg.training import loop, run
    from localavg.training.build import build

    found = {}
    for how in OF_A_ROW:
        options = {name: how[name] for name in how if name in algorithms.options(how["algorithm"])}
        plain = {name: value for name, value in how.items() if name not in {*options}}
        c = TrainConfig(
            options=options, data="digits", model="resnet8", learners=4, steps=7, batch_size=4,
            lr=0.1, eval_examples=16, **plain,
        )  # fmt: skip
        e = build(c, Fleet(world, c.learners))
        monitor, keeper = run.watched(e, None)
        loop.train(e, monitor, keeper)
        gap = gaps(e.flat)
        left = {"weights": e.flat.w, **{str(i): s for i, s in enumerate(e.optimizer.state)}}
        average = {k: v for k, v in vars(e.algorithm.average).items() if isinstance(v, np.ndarray)}
        for name, rows in (left | average).items():
            if np.any(rows[..., gap[: rows.shape[-1]]]):
                found[f"{how}"] = name
        assert gap.any() and e.flat.w.any()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_gaps_stay_zero_under_every_optimizer_exchange_and_average(ranks):
    assert call(ranks, trained) == [{}] * ranks


def test_an_estimate_of_constants_leaves_the_gaps_zero(monkeypatch):
    """They are directions in which a network has no curvature."""
    network = small("resnet8")
    gap, gradient_, seen = gaps(network.rows), network.gradient_, []

    def watched(w, batch, out):
        seen.append(w[gap].any())
        return gradient_(w, batch, out)

    monkeypatch.setattr(network, "gradient_", watched)
    packed = Places(network.shapes, network.parameters, network.align).packed
    start = np.zeros(network.d, np.float32)
    network.initial_(start)
    _, found = network_constants(network, 0, 4, [packed(start)], 0.5)
    assert found["weights"] == 2 and len(seen) > 100 and not any(seen)


@pytest.mark.parametrize("how", [("kavg", {"K": 2}, False), ("eamsgd", {"K": 2}, True)], ids=str)
def test_the_run_file_holds_and_counts_the_numbers_of_the_model(how, tmp_path):
    from localavg.training.asynchronous.run import run as asynchronous
    from localavg.training.run import run

    name, options, simulate = how
    c = TrainConfig(
        algorithm=name, options=options, data="digits", model="nin", learners=2, steps=4,
        batch_size=4, lr=0.1, save_weights=True, simulate=simulate, out=str(tmp_path / "run.h5"),
    )  # fmt: skip
    (asynchronous if simulate else run)(c, MPI.COMM_SELF)
    found = record.load(c.path)
    module = models.make("nin", (8, 8, 1), 10)
    numbers = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    size = sum(x.numel() for x in numbers)
    assert found.config["d"] == size
    assert found.weights.shape == found.initial_weights.shape == (size,)
    torch.manual_seed(c.seed)
    first = next(iter(models.make("nin", (8, 8, 1), 10).parameters())).detach()
    as_stored = first.permute(0, 2, 3, 1).flatten().numpy()
    assert np.array_equal(found.initial_weights[: prod(first.shape)], as_stored)


def test_a_checkpoint_of_rows_without_gaps_is_refused_in_one_line(tmp_path):
    from localavg.training.run import run

    def settings(**more):
        return TrainConfig(
            algorithm="kavg", options={"K": 2}, data="digits", model="nin", learners=2, steps=40,
            batch_size=4, out=str(tmp_path / "run.h5"), checkpoint_every="5", **more,
        )  # fmt: skip

    stopped(settings())
    for path in tmp_path.glob("run.h5.ckpt/*/rank*.h5"):
        with h5py.File(path, "r+") as file:
            old = file["weights/w"]
            rows, sums = old[:, :-1], old.attrs["checksum"]
            del file["weights/w"]
            new = file.create_dataset("weights/w", data=rows)
            new.attrs["checksum"] = crc(rows, sums)
    with pytest.raises(UserError, match=r"^the checkpoint after step \d+ is of an earlier version"):
        run(settings(resume=True), MPI.COMM_SELF)


def crc(rows, like):
    import zlib

    return np.array([zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in rows], like.dtype)


def stopped(c):
    """Train until the first checkpoint, as if killed then."""
    from localavg.training import keeper
    from localavg.training.run import run

    class Killed(Exception):
        pass

    save, keeper.Keeper.save = keeper.Keeper.save, None

    def saved(self, t):
        save(self, t)
        raise Killed

    keeper.Keeper.save = saved
    try:
        with pytest.raises(Killed):
            run(c, MPI.COMM_SELF)
    finally:
        keeper.Keeper.save = save
