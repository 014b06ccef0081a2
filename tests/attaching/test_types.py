"""`attach` for parameters of bfloat16, float16 and several types, and for what users do around a
step: autocast, gradient scalers, accumulation, clipping, groups, channels_last, torch.compile.

The oracles hold all learners in one process. Updates are made of given gradients, so that nothing
is rounded but where it is said, and the bits must agree.
"""

import io

import numpy as np
import pytest
from mpi import call
from mpi4py import MPI

import localavg
from localavg.attaching.saved import tell_other_sums
from localavg.errors import UserError

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

T, K, MU, LR = 13, 3, 0.5, 0.25
FLOAT32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TYPES = {"bf16": (BF16,) * 4, "mixed": (BF16, FLOAT32, F16, BF16)}
CASES = {  # algorithm, options of attach
    "kavg": (lambda: localavg.kavg(K=K), {}),
    "kavg-master": (lambda: localavg.kavg(K=K), {"master": True}),
    "mavg": (lambda: localavg.mavg(K=K, mu=MU), {}),
    "mavg-master": (lambda: localavg.mavg(K=K, mu=MU), {"master": True}),
    "average": (lambda: localavg.kavg(K=K), {"state": "average"}),
    "sync": (lambda: localavg.sync(), {}),
}
NAMES = [(types, case) for types in TYPES for case in CASES]
RESTARTED = [("mixed", case) for case in ("mavg", "mavg-master", "average", "sync")]


class Net(nn.Module):
    """Four parameters of these types, and a statistic of the last one's."""

    def __init__(self, types):
        super().__init__()
        torch.manual_seed(1)
        sizes = [(7, 5), (9,), (3, 4, 2), ()]
        self.p = nn.ParameterList(
            nn.Parameter(torch.randn(s).to(d)) for s, d in zip(sizes, types, strict=True)
        )
        self.register_buffer("statistic", torch.randn(6).to(types[-1]))

    def gradients_(self, j, t):
        """What learner j has in update t; the statistic moves too."""
        torch.manual_seed(100 * t + j)
        for p in self.p:
            p.grad = torch.randn(p.shape).to(p.dtype) / 8
        self.statistic.mul_(0.5).add_(torch.randn(6).to(self.statistic.dtype))


def optimiser_of(net):
    return torch.optim.SGD(net.parameters(), LR, momentum=0.5)


def bits(net):
    return [x.detach().float().numpy().copy() for x in net.state_dict().values()]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------- the oracle


def expected(types, case, P, T=T):
    """The bits of every learner after T updates, and after the end."""
    nets = [Net(TYPES[types]) for _ in range(P)]
    optimisers = [optimiser_of(net) for net in nets]
    rows = [everything(net) for net in nets]
    kept = [[x.float() for x in row] for row in rows]  # of each learner, in float32
    last = [[x.clone() for x in row] for row in rows]  # the tensors after the last average
    w_tilde = [p.detach().float().clone() for p in nets[0].p]
    v = [torch.zeros_like(x) for x in w_tilde]

    def average():
        for i in range(len(rows[0])):
            for j in range(P):
                p = rows[j][i]
                own = p.dtype == FLOAT32 or "master" not in case
                change = p.float() - last[j][i].float()
                kept[j][i] = p.float() if own else kept[j][i] + change
            mean = sum(kept[j][i] for j in range(P)) / P
            if case.startswith("mavg") and i < len(v):
                v[i] = MU * v[i] + (mean - w_tilde[i])
                w_tilde[i] = mean = w_tilde[i] + v[i]
            for j in range(P):
                kept[j][i] = mean
                rows[j][i].copy_(mean)
                last[j][i].copy_(rows[j][i])
        if case == "average":
            for p in zip(*(net.parameters() for net in nets), strict=True):
                states = [o.state[x]["momentum_buffer"] for o, x in zip(optimisers, p, strict=True)]
                mean = sum(x.float() for x in states) / P
                for x in states:
                    x.copy_(mean)

    for t in range(1, T + 1):
        for j, net in enumerate(nets):
            net.gradients_(j, t)
        if case == "sync":
            for parameters in zip(*(net.parameters() for net in nets), strict=True):
                mean = sum(p.grad.float() for p in parameters) / P
                for p in parameters:
                    p.grad.copy_(mean)
        for optimiser in optimisers:
            optimiser.step()
        if case != "sync" and t % K == 0:
            average()
    local = [bits(net) for net in nets]
    if case != "sync":
        average()
    else:
        mean = sum(net.statistic.float() for net in nets) / P
        for net in nets:
            net.statistic.copy_(mean)
    return local, [bits(net) for net in nets]


def everything(net):
    return [p.data for p in net.p] + [net.statistic]


# ----------------------------------------------------------------------------- under MPI


class Loop:
    """A user's loop around one net."""

    def __init__(self, fleet, types, case):
        make, how = CASES[case]
        self.rank, self.net = fleet.rank, Net(TYPES[types])
        self.optimiser = optimiser_of(self.net)
        self.averager = localavg.attach(self.net, fleet, make(), self.optimiser, **how)

    def train(self, start, end, look=False):
        for t in range(start + 1, end + 1):
            self.net.gradients_(self.rank, t)
            self.optimiser.step()
            self.averager.step()
            if look:
                with self.averager.averaged():
                    self.seen = bits(self.net)
                self.averager.state_dict()
        return self

    @property
    def parts(self):
        return self.net, self.optimiser, self.averager


def run_cases(world):
    """{(types, case): the bits at T, after the end, and of the averaged model at T}."""
    fleet, found = localavg.Fleet(world), {}
    for types, case in NAMES:
        loop = Loop(fleet, types, case).train(0, T)
        local = bits(loop.net)
        with loop.averager.averaged():
            averaged = bits(loop.net)
        loop.averager.finish()
        found[types, case] = local, bits(loop.net), averaged
    return found


def odd_ends(world):
    """By (types, case): whether looks and a restart leave the bits, and addresses stay."""
    fleet, found = localavg.Fleet(world), {}
    for types, case in RESTARTED:
        whole = Loop(fleet, types, case).train(0, T)
        looked = Loop(fleet, types, case)
        places = [x.data_ptr() for x in everything(looked.net)]
        looked.train(0, T, look=True)
        stopped, file = Loop(fleet, types, case).train(0, 7), io.BytesIO()
        torch.save([x.state_dict() for x in stopped.parts], file)
        file.seek(0)
        resumed = Loop(fleet, types, case)
        for x, state in zip(resumed.parts, torch.load(file), strict=True):
            x.load_state_dict(state)
        resumed.train(7, T)
        for loop in (whole, looked, resumed):
            loop.averager.finish()
        stay = places == [x.data_ptr() for x in everything(looked.net)]
        found[types, case] = (
            same(bits(whole.net), bits(looked.net)),
            same(bits(whole.net), bits(resumed.net)),
            stay,
        )
    return found


class Operations(TorchDispatchMode):
    """Notes the operations that torch does."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation._schema.name)
        return operation(*args, **(kwargs or {}))


def operations(world):
    """What torch does in an average of 20 layers of two types, by master."""
    found = {}
    for master in (False, True):
        net = nn.Sequential(*(nn.Linear(4, 4).to(BF16 if i % 2 else FLOAT32) for i in range(20)))
        how = {"master": master}
        averager = localavg.attach(net, localavg.Fleet(world), localavg.kavg(K=1), **how)
        with Operations() as noted:
            averager.step()
        found[master] = noted.names
    return found


class Images(nn.Module):
    """Convolutions whose kernels lie by channels_last, and one that has one input channel."""

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(rank)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3),
            nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5),
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.layers(x)


def by_hand(world, attached, compiled=False):
    """The ends of a loop with all that users do around a step, and the kernels' strides.

    kavg by `attach`, or by hand: a call of MPI for each tensor.
    """
    net = Images(0)
    strides = [x.stride() for x in net.parameters()]
    no_decay = [p for p in net.parameters() if p.dim() < 2]
    decay = [p for p in net.parameters() if p.dim() > 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "lr": 0.2}]
    optimiser = torch.optim.SGD(groups, 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)
    averager = localavg.attach(net, localavg.Fleet(world), localavg.kavg(K=4)) if attached else None
    if compiled:
        net.compile(backend="aot_eager")
    for t in range(1, 13):
        optimiser.zero_grad()
        for part in range(2):
            torch.manual_seed(1000 * t + 10 * part + world.rank)
            x, y = torch.randn(6, 1, 8, 8), torch.randint(5, (6,))
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y) / 2
            scaler.scale(loss).backward()
        if t == 6 and world.rank == 0:
            net.layers[3].bias.grad[0] = float("inf")  # this rank skips its step
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        scaler.step(optimiser)
        scaler.update()
        if averager is not None:
            averager.step()
        elif t % 4 == 0:
            for x in net.state_dict().values():
                if x.is_floating_point():
                    x.copy_(sum(world.allgather(x.clone())) / world.size)
    kept = strides == [x.stride() for x in net.parameters()]
    return bits(net), kept, scaler.get_scale()


def loops(world):
    return by_hand(world, True), by_hand(world, False)


def refused(world):
    """What is said of states with and without masters, and of a type that changes."""
    fleet, said = localavg.Fleet(world), {}
    with_, without = (Loop(fleet, "bf16", case).train(0, 4) for case in ("kavg-master", "kavg"))
    for name, to, state in (("with", without, with_), ("without", with_, without)):
        try:
            to.averager.load_state_dict(state.averager.state_dict())
        except UserError as e:
            said[name] = str(e)
    return said


def all_of_it(world):
    checks = run_cases, odd_ends, operations, loops, refused
    return {check.__name__: check(world) for check in checks}


@pytest.fixture(scope="module", params=[1, 2])
def answers(request):
    if request.param == 1:
        return [all_of_it(MPI.COMM_SELF)]
    return call(request.param, all_of_it)


@pytest.mark.parametrize(("types", "case"), NAMES)
def test_smaller_types_are_averaged_in_float32_and_rounded_once(answers, types, case):
    local, final = expected(types, case, len(answers))
    for j, answer in enumerate(answers):
        found = answer["run_cases"][types, case]
        assert same(found[0], local[j]) and same(found[1], final[j])
        assert same(found[2], answers[0]["run_cases"][types, case][2])


def test_masters_keep_what_rounding_cuts_off(answers):
    """The cases differ, or the oracle would not tell them apart."""
    for types in TYPES:
        ends = [answers[0]["run_cases"][types, case][1] for case in CASES]
        for i, end in enumerate(ends):
            assert not any(same(end, other) for other in ends[:i]) or len(answers) == 1


@pytest.mark.parametrize(("types", "case"), RESTARTED)
def test_looks_and_a_restart_leave_the_bits_and_addresses_stay(answers, types, case):
    for answer in answers:
        assert answer["odd_ends"][types, case] == (True, True, True)


def test_an_average_converts_all_tensors_of_a_type_at_once(answers):
    for answer in answers:
        names = answer["operations"]
        assert names[False] == ["aten::copy_"] * 2
        assert len(names[True]) <= 5


def test_what_users_do_around_a_step_changes_nothing(answers):
    """Autocast, a scaler that skips a step, accumulation, clipping, groups, channels_last."""
    for answer in answers:
        (mine, kept, scale), (by_hand, *_) = answer["loops"]
        assert kept and scale != 64.0
        for a, b in zip(mine, by_hand, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_state_without_masters_is_not_one_with_them(answers):
    for answer in answers:
        assert answer["refused"].keys() == {"with", "without"}
        assert all("attach with the same master=" in x for x in answer["refused"].values())


def test_a_model_on_two_devices_is_refused_by_name():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        there = nn.Parameter(torch.empty(3, device="cuda:1"))
    net = nn.Module()
    net.here, net.there = nn.Parameter(torch.zeros(2)), there
    words = "attach: there is on cuda:1 and here on cpu; put the whole model on one device"
    with pytest.raises(UserError, match=words):
        localavg.attach(net, localavg.Fleet(MPI.COMM_SELF), localavg.kavg())


def test_a_compiled_model_is_averaged():
    compiled = by_hand(MPI.COMM_SELF, True, compiled=True)
    plain = by_hand(MPI.COMM_SELF, True)
    for a, b in zip(compiled[0], plain[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_state_of_another_transport_is_told(capsys):
    for state in ({}, {"transport": "staged"}):
        tell_other_sums(state, "staged")
        assert capsys.readouterr().err == ""
    tell_other_sums({"transport": "nccl"}, "staged")
    told = capsys.readouterr().err
    assert "nccl" in told and "staged" in told and told.count("\n") == 1


@pytest.mark.parametrize("after", [1.0, 0.0])
def test_finish_takes_the_step_size_of_the_last_update(after):
    """A scheduler has set that of the next update by then."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = localavg.attach(
        model, localavg.Fleet(MPI.COMM_SELF), localavg.slowmo(K=4), optimizer
    )
    start = float(model.weight.detach()[0, 0])
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        averager.step()
    state = averager.state_dict()
    optimizer.param_groups[0]["lr"] *= after
    averager.load_state_dict(state)
    averager.finish()
    # t = 4: u = 0.8/γ, w̃ = w_0 − 0.8; at the end u = u/2 + 0.4/γ, w̃ = w̃ − 0.8
    assert float(model.weight.detach()[0, 0]) == pytest.approx(start - 1.6, rel=1e-6)
