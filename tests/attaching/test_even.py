"""What goes wrong in a user's own loop is said on every rank, and ends the job.

Loops that go on after an error run together in one launch a number of ranks; those that end the job
have a launch each.
"""

import math
import re

import pytest
from mpi import call, run

import localavg
from localavg.errors import SharedError
from localavg.scope import Scope

torch = pytest.importorskip(
    "torch", reason="localavg.attach is for torch, which is not installed: make test"
)
from torch import nn  # noqa: E402
from torch.nn.functional import mse_loss  # noqa: E402

D = 4
RANKS = [2, pytest.param(3, marks=pytest.mark.long)]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 3), nn.Linear(3, 1))


def sgd(parameters, lr=0.1, **how):
    return torch.optim.SGD(parameters, lr, **how)


def backward(model, rank, t, scale=1.0, scaled=lambda loss: loss):
    """Gradients of this rank's own mini-batch of update t."""
    torch.manual_seed(1000 * t + rank)
    x = torch.randn(8, D)
    scaled(scale * mse_loss(model(x), x.sum(1, keepdim=True))).backward()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def said(function):
    """The message of the error that all ranks have; "alone: …" for one of this rank only."""
    try:
        function()
    except SharedError as e:
        return str(e)
    except localavg.UserError as e:
        return f"alone: {e}"
    return None


# ---------------------------------------------------------------------------- exchanges of gradients


def new_optimizer(fleet, algorithm, optimizer, model, **how):
    averager = localavg.attach(model, fleet, algorithm, optimizer, **how)
    new = torch.optim.AdamW(model.parameters())
    return averager, lambda t: new.step()


def second_for_a_part(fleet, algorithm, optimizer, model, **how):
    averager = localavg.attach(model, fleet, algorithm, optimizer, **how)
    second = torch.optim.Adam(model[1].parameters())
    return averager, lambda t: (second.step(), optimizer.step())


def replaced(fleet, algorithm, optimizer, model, **how):
    averager = localavg.attach(model, fleet, algorithm, optimizer, **how)

    def step(t):
        if t == 2:
            model[1].weight = nn.Parameter(model[1].weight.detach().clone())
        optimizer.step()

    return averager, step


def skipped(fleet, algorithm, optimizer, model, **how):
    averager = localavg.attach(model, fleet, algorithm, optimizer, **how)
    last = fleet.rank == fleet.ranks - 1
    return averager, lambda t: None if last and t == 2 else optimizer.step()


def skipped_after_the_exchange(fleet, algorithm, optimizer, model, **how):
    averager, step = skipped(fleet, algorithm, optimizer, model, **how)
    return averager, lambda t: (averager.exchange(), step(t))


def never(fleet, algorithm, optimizer, model, **how):
    return localavg.attach(model, fleet, algorithm, optimizer, **how), lambda t: None


def closure(fleet, algorithm, optimizer, model, **how):
    averager = localavg.attach(model, fleet, algorithm, optimizer, **how)
    return averager, lambda t: optimizer.step(lambda: 0.0)


def frozen_on_some(fleet, algorithm, optimizer, model, **how):
    averager = localavg.attach(model, fleet, algorithm, optimizer, **how)

    def step(t):
        optimizer.step()
        optimizer.zero_grad()
        model[1].bias.requires_grad_(fleet.rank == 0)

    return averager, step


FAULTS = {
    frozen_on_some: (
        2,
        "update 2 has gradients of 1.bias on rank 0, but not on .*; train and freeze",
    ),
    new_optimizer: (1, "a step of AdamW trained the model, which was not given at attach"),
    second_for_a_part: (1, "a step of Adam trained the model, which was not given at attach"),
    replaced: (2, "1.weight is trainable and in none of the optimizers given"),
    skipped: (
        2,
        "update 2 did not exchange the gradients of 0.weight, 0.bias, 1.weight and 1 more",
    ),
    skipped_after_the_exchange: (
        2,
        "update 2 .stepped optimisers: 0., but .*stepped optimisers: none",
    ),
    never: (1, "update 1 did not exchange the gradients of 0.weight"),
    closure: (1, "call backward.. first and step.. without a closure"),
}  # (t at which it is told, what)
EXCHANGING = {"sync": localavg.sync, "qsgd": lambda: localavg.qsgd(bits=6)}


def told(fleet, make, algorithm, **how):
    """When and what is said in a loop of four updates with this fault."""
    model = net()
    averager, step = make(fleet, algorithm, sgd(model.parameters(), momentum=0.9), model, **how)
    for t in range(1, 5):
        model.zero_grad()
        backward(model, fleet.rank, t)
        if (message := said(lambda t=t: (step(t), averager.step()))) is not None:
            return t, message
    return None


def every_fault(fleet):
    return {
        (name, make.__name__): told(fleet, make, algorithm())
        for name, algorithm in EXCHANGING.items()
        for make in FAULTS
    }


STATES = {new_optimizer: 2, second_for_a_part: 2, replaced: 2}  # t of the first average is 2


def every_fault_of_a_state(fleet):
    return {
        make.__name__: told(fleet, make, localavg.kavg(K=2), state=state)
        for make in STATES
        for state in ("average", "reset")
    }


# ------------------------------------------------------------------------- exchanges that are right


def reference(P, T, make, scale=lambda t: 1.0):
    """The weights of one process that takes the mean gradient of all learners."""
    model = net()
    optimizers = make(model)
    for t in range(1, T + 1):
        model.zero_grad()
        for rank in range(P):
            backward(model, rank, t, scale(t) / P)
        for optimizer in optimizers:
            optimizer.step()
    return weights(model)


def pair(model):
    return [sgd(model[0].parameters(), momentum=0.9), torch.optim.Adam(model[1].parameters())]


def several(fleet, explicit):
    """Two optimisers, exchanged by their steps or all at once."""
    model = net()
    optimizers = pair(model)
    averager = localavg.attach(model, fleet, localavg.sync(), optimizers)
    for t in range(1, 6):
        model.zero_grad(set_to_none=t % 2 == 0)
        backward(model, fleet.rank, t)
        if explicit:
            averager.exchange()
        for optimizer in optimizers[:: 1 if t % 2 else -1]:
            optimizer.step()
        assert averager.step() is Scope.WORLD
    averager.finish()
    return weights(model), reference(fleet.P, 5, pair)


def adversaries(fleet):
    """A second backward between the steps of two optimisers: each exchanges its own gradients."""
    model, ends = net(), []
    for learners in (1, fleet.P):
        model = net()
        first, second = optimizers = pair(model)
        alone = learners == 1
        averager = None if alone else localavg.attach(model, fleet, localavg.sync(), optimizers)
        for t in range(1, 6):
            for optimizer, seed in ((first, 100), (second, 200)):
                model.zero_grad()
                for rank in range(fleet.P) if alone else (fleet.rank,):
                    backward(model, rank, t + seed, 1 / fleet.P if alone else 1.0)
                optimizer.step()
            if averager is not None:
                averager.step()
        ends.append(weights(model))
    return ends


class Counted(localavg.algorithms.sync.MeanGradient):
    """Counts the numbers that are exchanged."""

    def __init__(self):
        self.numbers = 0

    def exchange_(self, g, t, transport):
        self.numbers += g.size
        super().exchange_(g, t, transport)


def exchanged_once(fleet):
    """Numbers exchanged in an update by the hook, by `exchange`, and by two optimisers."""
    from localavg.algorithms.base import Algorithm, Mean, Never

    found = []
    for make, explicit in ((lambda m: [sgd(m.parameters())], False), (lambda m: [sgd(m.parameters())], True),
                           (pair, False), (pair, True)):  # fmt: skip
        model = net()
        optimizers = make(model)
        algorithm = Algorithm(Never(), Mean(), Counted())
        averager = localavg.attach(model, fleet, algorithm, optimizers)
        backward(model, fleet.rank, 1)
        if explicit:
            averager.exchange()
        for optimizer in optimizers:
            optimizer.step()
        averager.step()
        found.append(averager.algorithm.exchange.numbers)
    return found, sum(64 * math.ceil(p.numel() / 64) for p in net().parameters())  # with zeros


def scaler(fleet, algorithm):
    """With a gradient scaler, one rank's gradient overflows in update 2: the weights, the scale."""
    model = net()
    optimizer = sgd(model.parameters())
    averager = localavg.attach(model, fleet, algorithm, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    seen = []
    for t in range(1, 5):
        optimizer.zero_grad()
        backward(model, fleet.rank, t, scaled=scaler.scale)
        if t == 2 and fleet.rank == fleet.ranks - 1:
            model[0].bias.grad[0] = float("inf")
        averager.exchange()
        scaler.step(optimizer)
        scaler.update()
        averager.step()
        seen.append((weights(model), scaler.get_scale()))
    averager.finish()
    return seen


def expanded(fleet):
    """Buffers that no average touches: expanded, and float64 that statistics="keep" leaves alone."""
    model = nn.Linear(D, 1)
    model.register_buffer("ids", (torch.arange(3) + fleet.rank).expand(4, -1))
    model.register_buffer("sums", torch.full((2,), 1.0 + fleet.rank, dtype=torch.float64))
    localavg.attach(model, fleet, localavg.kavg(), statistics="keep").finish()
    return model.ids.tolist(), model.sums.tolist(), str(model.sums.dtype)


# ------------------------------------------------------------------------------------ other mistakes


def wrong_arguments(fleet):
    model = nn.Linear(D, 1)
    both = [sgd(model.parameters()), sgd([model.bias])]
    few = [sgd([model.weight])]
    more = sgd([*model.parameters(), nn.Parameter(torch.zeros(3, 2))])
    lazy = nn.Sequential(nn.LazyLinear(2))
    attach, kavg = localavg.attach, localavg.kavg()
    return {
        "name": said(lambda: attach(model, fleet, "kavg")),
        "function": said(lambda: attach(model, fleet, localavg.kavg)),
        "communicator": said(lambda: attach(model, fleet.world, kavg)),
        "model": said(lambda: attach(model.parameters(), fleet, kavg)),
        "optimizer": said(lambda: attach(model, fleet, localavg.sync(), [0.1])),
        "twice": said(lambda: attach(model, fleet, localavg.sync(), both)),
        "uncovered": said(lambda: attach(model, fleet, localavg.sync(), few)),
        "foreign": said(lambda: attach(model, fleet, kavg, more)),
        "uncovered state": said(lambda: attach(model, fleet, kavg, few, state="average")),
        "lazy": said(lambda: attach(lazy, fleet, kavg)),
        "patience": said(lambda: attach(model, fleet, kavg, warn_after=0)),
        "limit": said(lambda: attach(model, fleet, kavg, hang_limit="5min")),
        "statistics": said(lambda: attach(model, fleet, kavg, statistics="no")),
    }


ARGUMENTS = {
    "name": r"`algorithm = 'kavg'`: must be made by a function, as localavg.kavg\(K=16\)",
    "function": "`algorithm = <function kavg .*must be made by a function",
    "communicator": r"`fleet = <mpi4py.*must be a fleet: localavg.Fleet\(communicator\)",
    "model": "`model = <generator .*must be a torch.nn.Module",
    "optimizer": "`optimizer = 0.1`: must be a torch optimizer or several",
    "twice": "bias is in two of the optimizers given",
    "uncovered": "bias is trainable and in none of the optimizers given at attach",
    "foreign": r"SGD trains a tensor \(3, 2\) \(group 0\), which is not in the model and would never",
    "uncovered state": "bias is trainable and in none of the optimizers given at attach",
    "lazy": "0.weight has no shape yet, because its module is lazy; run one batch",
    "patience": "`warn_after = 0`: must be a finite number above 0",
    "limit": "`hang_limit = '5min'`: must be a number of seconds",
    "statistics": "`statistics = no`: must be one of average, keep",
}


def other_states(fleet):
    """Loading the state of another algorithm or model, and what is left of the own state."""

    def made(algorithm, width=1):
        return localavg.attach(nn.Linear(D, width), fleet, algorithm)

    mine = made(localavg.mavg(K=2))
    mine.step()
    before = str(mine.state_dict())
    states = {
        "kavg": made(localavg.kavg()).state_dict(),
        "adpsgd-like": made(localavg.adalupa(tau0=3)).state_dict(),
        "shape": made(localavg.mavg(K=2), 2).state_dict(),
        "optimizer": sgd(mine.model.parameters()).state_dict(),
        "text": "averager.pt",
    }
    own = mine.state_dict()
    states["other ranks"] = own | {"P": own["P"] + 1}
    states["another rank"] = own | {"rank": own["rank"] + 1}
    found = {name: said(lambda s=s: mine.load_state_dict(s)) for name, s in states.items()}
    mine.load_state_dict({name: x for name, x in own.items() if name not in ("P", "rank")})
    mine.load_state_dict(made(localavg.mavg(K=4)).state_dict())  # another K is the user's business
    return found, before


LOADED = {
    "kavg": "the state is of Every . Mean . NoExchange, not of Every . Momentum . NoExchange",
    "adpsgd-like": "the state is of Linear . Mean",
    "shape": "the state is of a model with 10 numbers, not 5; build the same model",
    "optimizer": "this is no averager's state",
    "text": "this is no averager's state",
    "other ranks": r"the state is of a job of \d ranks, not \d: start as many as before",
    "another rank": r"the state is of rank \d, and this is rank \d: save a file on every rank",
}


def sparse(fleet):
    """An embedding's sparse gradients, exchanged by a step and by `exchange`."""
    model = nn.Embedding(5, 2, sparse=True)
    nn.init.zeros_(model.weight)
    optimizer = sgd(model.parameters(), 1.0)
    averager = localavg.attach(model, fleet, localavg.sync(), optimizer)
    for explicit in (False, True):
        model.zero_grad()
        model(torch.tensor([fleet.rank])).sum().backward()
        if explicit:
            averager.exchange()
        optimizer.step()
        averager.step()
    return model.weight[:, 0].tolist()


def shown(fleet):
    model = nn.Linear(D, 1)
    averager = localavg.attach(model, fleet, localavg.mavg(K=3))
    texts = [repr(averager)]
    for _ in range(4):
        averager.step()
        texts.append(repr(averager))
    return texts


def uneven_calls(fleet):
    """What is said where ranks make different calls, and the loop may go on after it."""
    last = fleet.rank == fleet.ranks - 1
    found = {}

    def loop(name, algorithm, steps, use=lambda averager: averager.finish()):
        model = net()
        averager = localavg.attach(model, fleet, algorithm, sgd(model.parameters()))

        def go():
            for t in range(1, steps + 1):
                model.zero_grad()
                backward(model, fleet.rank, t)
                averager.optimizers[0].step()
                averager.step()
            use(averager)

        found[name] = said(go)

    def evaluate(averager):
        if fleet.rank == 0:
            with averager.averaged():
                pass
        averager.finish()

    def count(averager):
        if last:
            averager.payload_bytes()
        averager.finish()

    loop("22, 26", localavg.kavg(K=4), 26 if last else 22)
    loop("22, 24", localavg.kavg(K=4), 24 if last else 22)
    loop("22, 23, sync", localavg.sync(), 23 if last else 22)
    loop("22, 23, no average between", localavg.kavg(K=50), 23 if last else 22)
    loop("another K", localavg.kavg(K=5 if last else 4), 26)
    loop("rank 0 evaluates", localavg.kavg(K=4), 8, evaluate)
    loop("the last rank counts", localavg.kavg(K=4), 8, count)

    def again(everyone):
        """Attach a model again, on all ranks or on some, and use the first averager after it."""
        model = net()
        first = localavg.attach(model, fleet, localavg.kavg(K=2))
        if everyone or not last:
            localavg.attach(model, fleet, localavg.kavg(K=2))
        first.step()
        first.step()

    def inside():
        averager = localavg.attach(net(), fleet, localavg.kavg(K=2))
        with averager.averaged():
            averager.step()

    def in_turn():
        one, other = (localavg.attach(net(), fleet, localavg.kavg(K=1)) for _ in range(2))
        for averager in (other, one) if last else (one, other):
            averager.step()

    found["attached twice"] = said(lambda: again(everyone=True))
    found["attached again by some"] = said(lambda: again(everyone=False))
    found["in averaged"] = said(inside)
    found["two averagers"] = said(in_turn)
    return found


UNEVEN = {
    "22, 26": r"in averager.finish\(\) after update 22, but rank \d is in the average after update 24; give every",
    "22, 24": r"in averager.finish\(\) after update 22, but rank \d is in the average after update 24; give every",
    "22, 23, sync": r"finish\(\) after update 22, but rank \d is in the exchange of the gradients of update 23; give",
    "22, 23, no average between": r"finish\(\) after update 22, but rank \d is in averager.finish\(\) after update 23; give",
    "another K": r"in the average after update 4, but rank \d is in the average after update 5; give every",
    "rank 0 evaluates": r"rank 0 is in averager.averaged\(\) after update 8, but .* in averager.finish\(\) .*not under `if rank == 0`$",
    "attached twice": "this model was attached again; use the averager of the last attach alone",
    "attached again by some": r"in localavg.attach.. of the same model again after update 0, but .*on every rank",
    "in averaged": r"averager.step\(\) inside averaged\(\)",
    "two averagers": "after update 1 of averager .*, but .* of averager .*; call the averagers in the same order",
    "the last rank counts": r"finish\(\) after update 8, but rank \d is in averager.payload_bytes\(\)",
}


def everything(world):
    fleet = localavg.Fleet(world)
    return {
        "faults": every_fault(fleet),
        "states": every_fault_of_a_state(fleet),
        "several": [several(fleet, explicit) for explicit in (False, True)],
        "adversaries": adversaries(fleet),
        "once": exchanged_once(fleet),
        "scaler": {name: scaler(fleet, make()) for name, make in EXCHANGING.items()},
        "expanded": expanded(fleet),
        "arguments": wrong_arguments(fleet),
        "loaded": other_states(fleet),
        "sparse": sparse(fleet),
        "shown": shown(fleet),
        "uneven": uneven_calls(fleet),
    }


@pytest.fixture(scope="module", params=RANKS)
def answers(request, once):
    return once(request.param, call, request.param, everything)


@pytest.mark.parametrize("name", EXCHANGING)
@pytest.mark.parametrize("make", FAULTS)
def test_an_update_exchanges_everything_or_says_what_not(answers, name, make):
    found = {answer["faults"][name, make.__name__] for answer in answers}
    assert len(found) == 1 and None not in found, found
    t, message = found.pop()
    assert t == FAULTS[make][0] and re.search(FAULTS[make][1], message), (t, message)
    assert "\n" not in message and "alone" not in message


@pytest.mark.parametrize("make", STATES)
def test_a_state_that_is_not_averaged_is_told_at_the_average(answers, make):
    found = {answer["states"][make.__name__] for answer in answers}
    assert len(found) == 1 and None not in found, found
    t, message = found.pop()
    assert t == 2 and re.search(FAULTS[make][1], message), (t, message)


def test_several_optimizers_exchange_at_their_steps_or_at_once(answers):
    for answer in answers:
        for got, wanted in answer["several"]:
            assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_each_optimizer_exchanges_what_its_step_takes(answers):
    for answer in answers:
        wanted, got = answer["adversaries"]
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_no_gradient_travels_twice(answers):
    for answer in answers:
        numbers, n = answer["once"]
        assert numbers == [n] * 4


@pytest.mark.parametrize("name", EXCHANGING)
def test_all_ranks_skip_the_step_of_a_scaler_alike(answers, name):
    runs = [answer["scaler"][name] for answer in answers]
    assert all(seen == runs[0] for seen in runs)
    scales, steps = [scale for _, scale in runs[0]], [w for w, _ in runs[0]]
    assert scales == [4.0, 2.0, 2.0, 2.0]
    assert steps[1] == steps[0] != steps[2] and all(abs(w) < 10 for w in steps[-1])


def test_buffers_that_no_average_touches_may_be_of_any_kind(answers):
    for answer in answers:
        assert answer["expanded"] == ([[0, 1, 2]] * 4, [1.0, 1.0], "torch.float64")


def test_sparse_gradients_are_exchanged(answers):
    P = len(answers)
    for answer in answers:
        assert answer["sparse"] == pytest.approx([-2 / P] * P + [0] * (5 - P))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_refused_by_name(answers, name):
    for answer in answers:
        assert re.search(ARGUMENTS[name], answer["arguments"][name] or ""), answer["arguments"][
            name
        ]


@pytest.mark.parametrize("name", LOADED)
def test_the_state_of_another_algorithm_or_model_is_refused(answers, name):
    for answer in answers:
        assert re.search(LOADED[name], answer["loaded"][0][name] or "nothing")


def test_an_averager_shows_where_it_is(answers):
    texts = answers[0]["shown"]
    row = "Averager(mavg(K=3, outer='momentum', outer_lr=1.0, mu=0.7), t={}, period={}, scope={})"
    assert texts == [
        row.format(*now)
        for now in ((0, 0, "NONE"), (1, 1, "NONE"), (2, 2, "NONE"), (3, 3, "WORLD"), (4, 1, "NONE"))
    ]


@pytest.mark.parametrize("name", UNEVEN)
def test_ranks_that_differ_say_where_each_of_them_is(answers, name):
    found = {answer["uneven"][name] for answer in answers}
    assert len(found) == 1, found
    assert re.search(UNEVEN[name], found.pop() or "nothing")


# ---------------------------------------------------------------------------- loops that end the job

SCRIPT = """\
import sys, time
import torch, localavg
from mpi4py import MPI
world = MPI.COMM_WORLD
last = world.rank == world.size - 1
torch.manual_seed(world.rank)
model = torch.nn.Linear(20, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=.1)
fleet = localavg.Fleet(world)
{attach}
def updates(n):
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        averager.step()
{loop}
"""
KAVG = "averager = localavg.attach(model, fleet, localavg.kavg(K=4){})"
ENDING = {  # the attach, the loop, what is said, status
    "uneven": (KAVG, "updates(26 if last else 22); averager.finish()", "averager.finish.. after update 22, but", 2),
    "early end": (KAVG, "if last: updates(6); sys.exit(0)\nupdates(16); averager.finish()",
                  "the end of its program after update 6, without averager.finish", 2),
    "no finish": (KAVG, "updates(22)\nif not last: averager.finish()",
                  "the end of its program after update 22, without averager.finish", 2),
    "rank 0 alone": (KAVG, "updates(8)\nif not last:\n    with averager.averaged(): pass\naverager.finish()",
                     "averager.averaged.. after update 8, but", 2),
    "raises": (KAVG, "updates(5)\nif last: raise RuntimeError('made to fail')\nupdates(11); averager.finish()",
               "RuntimeError: made to fail", 1),
    "raises before attach": ("if last: raise RuntimeError('made to fail')\n" + KAVG, "updates(4); averager.finish()",
                             "RuntimeError: made to fail", 1),
    "rank 0 attaches": ("if not last: " + KAVG.replace("{}", ", hang_limit=2"), "if last: sys.exit(0)",
                        "rank 0 has been waiting for . s in localavg.attach.. .t = 0.: the limit is 2 s", 1),
    "hangs": (KAVG.replace("{}", ", warn_after=0.5, hang_limit=2"), "updates(6)\nif last: time.sleep(60)\nupdates(10)",
              "rank 0 has been waiting for . s in the average after update 8 .t = 8.: the limit is 2 s", 1),
}  # fmt: skip


def ends(ranks, name, folder, **how):
    attach, loop, *_ = ENDING[name]
    script = folder / "loop.py"
    script.write_text(SCRIPT.format(attach=attach.replace("{}", ""), loop=loop))
    return run(ranks, script, program=("python",), timeout=60, again=0, **how)


SLOW = ("no finish", "rank 0 alone", "raises before attach", "rank 0 attaches")
CASES = [
    pytest.param(2, name, "openmpi", marks=[pytest.mark.long] if name in SLOW else [])
    for name in ENDING
] + [
    pytest.param(3, "uneven", "openmpi", marks=pytest.mark.long),
    pytest.param(3, "early end", "openmpi", marks=pytest.mark.long),
    (2, "early end", "mpich"),
    pytest.param(2, "uneven", "mpich", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("ranks", "name", "mpi"), CASES)
def test_a_job_that_would_hang_ends_with_one_line(ranks, name, mpi, tmp_path):
    """Under plain python, too, and not of its own accord: every launch has a limit."""
    done = ends(ranks, name, tmp_path, mpi=mpi)
    _, _, words, status = ENDING[name]
    assert re.search(words, done.stderr), done.stderr
    assert done.returncode == status or (mpi == "mpich" and done.returncode)
    lines = [line for line in done.stderr.splitlines() if line.startswith("localavg: ")]
    if status == 2:
        assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr


def test_who_waits_for_long_is_told_and_the_job_goes_on(tmp_path):
    script = tmp_path / "loop.py"
    attach = KAVG.replace("{}", ", warn_after=0.5")
    script.write_text(
        SCRIPT.format(
            attach=attach, loop="updates(7)\nif last: time.sleep(2)\nupdates(1); averager.finish()"
        )
    )
    done = run(2, script, program=("python",), timeout=60, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("localavg: ")]
    assert 2 <= len(lines) <= 4, done.stderr
    assert all(
        re.search(r"rank 0 has been waiting for \d s in the average after update 8 \(t = 8\)", x)
        for x in lines
    )


@pytest.mark.parametrize("saves", [True, False])
def test_ranks_that_all_end_alike_without_finish_end_well(saves, tmp_path):
    """A job that saves itself in mid-period and leaves the rest to another; else it is told."""
    script = tmp_path / "loop.py"
    loop = "updates(6)" + "; averager.state_dict()" * saves
    script.write_text(SCRIPT.format(attach=KAVG.replace("{}", ""), loop=loop))
    done = run(2, script, program=("python",), timeout=60, check=True)
    told = [line for line in done.stderr.splitlines() if "localavg: " in line]
    assert len(told) == (not saves), done.stderr
    assert saves or "ended after update 6 without averager.finish()" in told[0]


EQUAL = """\
if seeded: torch.manual_seed(0)
updates(8)
averager.finish()
"""


@pytest.mark.parametrize(("seeded", "lr"), [(True, 0.1), (False, 0.1), (True, 0.0)])
def test_learners_that_draw_the_same_batches_are_told_once(seeded, lr, tmp_path):
    """Not those that differ, nor those that were not yet updated."""
    script = tmp_path / "loop.py"
    loop = f"seeded = {seeded}\noptimizer.param_groups[0]['lr'] = {lr}\n{EQUAL}"
    script.write_text(SCRIPT.format(attach=KAVG.replace("{}", ""), loop=loop))
    done = run(2, script, program=("python",), timeout=60, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("localavg: ")]
    if not seeded or not lr:
        assert lines == []
        return
    assert len(lines) == 1 and "equal to the bit after update 4" in lines[0]
    assert "the same seed and sampler" in lines[0]
    assert "DistributedSampler(num_replicas=fleet.P, rank=fleet.rank)" in lines[0]


def two_optimizers(world):
    return several(localavg.Fleet(world), explicit=False)


def test_the_second_optimizer_exchanges_its_gradients_too():
    for got, wanted in call(2, two_optimizers):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def part_of_another(world):
    return told(localavg.Fleet(world), second_for_a_part, localavg.sync())


def test_a_new_optimizer_for_a_part_is_told():
    """It trains with gradients that were not yet exchanged, and the given one after it."""
    for found in call(2, part_of_another):
        assert found is not None and "a step of Adam trained the model" in found[1]
