"""`attach` on a CUDA GPU, by stand-ins: an average comes after the user's work in torch's stream,
and later work comes after the average, with CuPy's work in between. No GPU is claimed.

The loop on the stand-ins must have the bits of the loop on the CPU: a wait that is missing reads
old numbers.
"""

from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi import call
from mpi4py import MPI

import localavg
from localavg.errors import UserError
from localavg.files.record import load
from localavg.parallel.device import Cuda, choose_device

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from late_torch import Late, Stream  # noqa: E402
from torch import nn  # noqa: E402

from localavg.attaching import parts  # noqa: E402
from localavg.attaching import place as places  # noqa: E402
from localavg.attaching import row as rows  # noqa: E402
from localavg.attaching.place import Place  # noqa: E402

T = 10
ALGORITHMS = {
    "kavg-average": (lambda: localavg.kavg(K=3), {"state": "average"}),
    "kavg-reset": (lambda: localavg.kavg(K=3), {"state": "reset"}),
    "mavg": (lambda: localavg.mavg(K=3, mu=0.5), {}),
    "mavg-master": (lambda: localavg.mavg(K=3, mu=0.5), {"master": True}),
    "delay": (lambda: localavg.kavg(K=3, delay=2), {}),
    "delay-lerp": (lambda: localavg.mavg(K=3, mu=0.5, delay=2, merge="lerp", pull=0.5), {}),
    "delay-wire": (lambda: localavg.mavg(K=3, mu=0.5, delay=2, wire="int8"), {}),
    "wire": (lambda: localavg.kavg(K=3, wire="lowrank:1"), {"state": "average"}),
    "adpsgd": (lambda: localavg.adpsgd(p_init=2, Ks=6, warmup_steps=2), {}),
    "sync": (lambda: localavg.sync(), {}),
    "qsgd": (lambda: localavg.qsgd(), {}),
}
# on one rank, where a mean moves nothing
ALONE = ("kavg-reset", "mavg", "mavg-master", "qsgd", "delay-lerp")
TOGETHER = ("kavg-average", "mavg-master", "adpsgd", "sync", "delay", "delay-wire", "wire")


class Net(nn.Module):
    """A convolution by channels_last, BatchNorm, and a bfloat16 layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3)
        self.last = nn.Linear(12, 1).bfloat16()
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        z = torch.relu(self.norm(self.first(x)))
        return self.last(z.flatten(1).bfloat16()).float()


def loop(fleet, name, gpu=None, path=None):
    """All numbers of the averaged and the own model in mid-period and at T, and after the end."""
    make, how = ALGORITHMS[name]
    torch.manual_seed(fleet.rank)
    net, seen = Net(), []
    data = [torch.randn(8, 2, 3, 3) * (1 + fleet.rank) for _ in range(T)]
    with gpu or nullcontext():
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        averager = localavg.attach(net, fleet, make(), optimizer, seed=3, log=path, **how)
        places = [x.data_ptr() for x in net.state_dict().values()]
        for t, x in enumerate(data, 1):
            optimizer.zero_grad()
            loss = (net(x) - x.mean((1, 2, 3)).unsqueeze(1)).square().mean()
            loss.backward()
            optimizer.step()
            averager.step(loss)
            if t in (5, T):
                with averager.averaged():
                    seen.append(numbers(net))
                seen.append(numbers(net))
        state = averager.state_dict()
        averager.load_state_dict(state)
        averager.finish()
        seen.append(numbers(net))
    assert [x.data_ptr() for x in net.state_dict().values()] == places
    return seen


def numbers(net):
    """All numbers of a net, which are there when its stream was waited for."""
    for stream in list(stand_in.Stream.known.values()):
        if isinstance(stream, Stream):
            stream.synchronize()
    return {name: x.detach().float().numpy().copy() for name, x in net.state_dict().items()}


@contextmanager
def on_gpu(late):
    """Models lie on a GPU by stand-ins, while the context lasts."""

    def tensor(row, device):
        return torch.from_numpy(row.x if isinstance(row, stand_in.ndarray) else row)

    def place_of(where, fleet):
        return Place(Cuda(stand_in, fleet.rank, "here"), where, late)

    with mock.patch.object(parts, "place_of", place_of), mock.patch.object(rows, "tensor", tensor):
        yield


def on_stand_in(fleet, name, nccl=False, path=None):
    """The loop where the user's stream is another one than CuPy's."""
    late, available = Late(Stream()), stand_in.nccl.available
    stand_in.nccl.available = nccl
    try:
        with on_gpu(late):
            seen = loop(fleet, name, late, path)
    finally:
        stand_in.nccl.available = available
    assert late.inside == []
    return seen


def same(found, expected):
    pairs = zip(found, expected, strict=True)
    return all(np.array_equal(a[key], b[key]) for a, b in pairs for key in b)


def compared(world):
    """The loops whose bits are other than those on the CPU, by algorithm and transport."""
    differ = []
    for name in TOGETHER if world.size > 1 else ALONE:
        fleet = localavg.Fleet(world, ranks_per_node=1 if "wire" in name else None)
        expected = loop(fleet, name)
        for nccl in (False, True) if name in ("mavg-master", "delay") else (False,):
            if not same(on_stand_in(fleet, name, nccl), expected):
                differ.append((name, nccl))
    return differ


def test_a_loop_in_any_stream_has_the_bits_of_the_cpu():
    assert compared(MPI.COMM_SELF) == []


def test_two_ranks_have_the_bits_of_the_cpu():
    assert call(2, compared) == [[], []]


def test_the_stand_in_finds_work_in_another_stream(monkeypatch):
    fleet = localavg.Fleet(MPI.COMM_SELF)
    expected = loop(fleet, "mavg")
    assert same(on_stand_in(fleet, "mavg"), expected)
    monkeypatch.setattr(Place, "here", lambda self: nullcontext())
    assert not same(on_stand_in(fleet, "mavg"), expected)


def test_the_log_is_that_of_the_cpu_and_names_the_gpu(tmp_path):
    fleet = localavg.Fleet(MPI.COMM_SELF)
    loop(fleet, "mavg", path=str(tmp_path / "cpu.h5"))
    on_stand_in(fleet, "mavg", path=str(tmp_path / "gpu.h5"))
    cpu, gpu = load(tmp_path / "cpu.h5"), load(tmp_path / "gpu.h5")
    assert (cpu.config["device"], gpu.config["device"]) == ("cpu", "cuda")
    assert gpu.status == "finished" and gpu.train.t.tolist() == cpu.train.t.tolist()
    assert gpu.train.loss.tolist() == cpu.train.loss.tolist()
    assert gpu.provenance["gpus"] == ["here 0000:00:00.0"]


def test_a_step_in_a_capture_is_refused_and_does_not_count():
    late, fleet = Late(Stream()), localavg.Fleet(MPI.COMM_SELF)
    with on_gpu(late):
        averager = localavg.attach(Net(), fleet, localavg.kavg(K=2))
        late.capturing = True
        with pytest.raises(UserError, match=r"in the capture of a CUDA graph; capture without it"):
            averager.step()
        late.capturing = False
        assert averager.t == 0
        averager.step()
        averager.finish()
    assert late.inside == []


@pytest.mark.parametrize("missing", [True, False])
def test_cupy_takes_the_models_gpu_or_one_line_tells_what_to_install(missing, monkeypatch):
    def load(name):
        if missing:
            raise ImportError("No module named 'cupy'")
        return stand_in

    def choose(name, fleet, place):
        return choose_device(name, fleet, load, lambda: None, place)

    monkeypatch.setattr(places, "choose_device", choose)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    where, fleet = torch.device("cuda:3"), localavg.Fleet(MPI.COMM_SELF)
    if missing:
        with pytest.raises(
            UserError, match=r"^.*CuPy cannot be loaded .*; .* -m pip install cupy-cuda13x.*$"
        ):
            places.place_of(where, fleet)
    else:
        assert places.place_of(where, fleet).device.index == 3 == stand_in.Used.index
