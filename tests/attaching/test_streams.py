"""`attach` on a CUDA GPU, by stand-ins: an average comes after the user's work in torch's stream,
and later work comes after the average, with CuPy's work in between. No GPU is claimed.

The loop on the stand-ins must have the bits of the loop on the CPU: a wait that is missing reads
old numbers.
"""

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import stand_in
from mpi import call

import localavg
from localavg.errors import UserError
from localavg.parallel.device import Cuda

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from late_torch import Late, Stream  # noqa: E402
from torch import nn  # noqa: E402

from localavg.attaching import averager as averagers  # noqa: E402
from localavg.attaching import row as rows  # noqa: E402
from localavg.attaching.place import Place  # noqa: E402

D, T = 5, 13
ALGORITHMS = {
    "kavg": (lambda: localavg.kavg(K=3), {}),
    "kavg-average": (lambda: localavg.kavg(K=3), {"state": "average"}),
    "kavg-reset": (lambda: localavg.kavg(K=3), {"state": "reset"}),
    "mavg": (lambda: localavg.mavg(K=3, mu=0.5), {}),
    "mavg-master": (lambda: localavg.mavg(K=3, mu=0.5), {"master": True}),
    "adpsgd": (lambda: localavg.adpsgd(p_init=2, Ks=6, warmup_steps=2), {}),
    "sync": (lambda: localavg.sync(), {}),
    "qsgd": (lambda: localavg.qsgd(), {}),
}


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


def patched(late, fleet):
    """The models lie on a GPU by stand-ins, while the context lasts."""

    def tensor(row, device):
        return torch.from_numpy(row.x if isinstance(row, stand_in.ndarray) else row)

    def place_of(where, fleet):
        return Place(Cuda(stand_in, fleet.rank, "here"), where, late)

    stack = nullcontext() if late is None else mock.patch.object(averagers, "place_of", place_of)
    return stack, mock.patch.object(rows, "tensor", tensor)


def on_stand_in(fleet, name, stream, nccl=True):
    """The loop where the user's stream is another one than CuPy's."""
    stand_in.nccl.available, stand_in.came_over[0] = nccl, fleet.world
    late = Late(stream)
    place, tensor = patched(late, fleet)
    with place, tensor:
        seen = loop(fleet, name, late)
    assert late.inside == []
    return seen


def compared(world):
    """The loops whose bits are other than those on the CPU."""
    fleet, differ = localavg.Fleet(world), []
    for name in ALGORITHMS:
        expected = loop(fleet, name)
        for nccl in (True, False) if world.size > 1 else (True,):
            found = on_stand_in(fleet, name, Stream(), nccl)
            same = [
                all(np.array_equal(a[key], b[key]) for key in a)
                for a, b in zip(found, expected, strict=True)
            ]
            if not all(same):
                differ.append((name, nccl, same))
    return differ, dropped(fleet)


def dropped(fleet):
    """Whether a loop whose kernels are queued elsewhere has the bits of the CPU."""
    expected = loop(fleet, "mavg")
    with mock.patch.object(Place, "here", lambda self: nullcontext()):
        found = on_stand_in(fleet, "mavg", Stream(), nccl=False)
    return all(np.array_equal(found[-1][key], expected[-1][key]) for key in expected[-1])


@pytest.fixture(scope="module", params=[1, 2])
def answers(request):
    return call(request.param, compared)


def test_a_loop_in_any_stream_has_the_bits_of_the_cpu(answers):
    assert [differ for differ, _ in answers] == [[]] * len(answers)


def test_the_stand_in_finds_work_in_another_stream(answers):
    assert [same for _, same in answers] == [False] * len(answers)
