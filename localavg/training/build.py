"""Build the pieces of a run from its settings.

Nothing here writes a file. One process can build the pieces more than once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpi4py import MPI

from localavg import algorithms, datasets, models
from localavg.algorithms.base import Algorithm
from localavg.config import TrainConfig
from localavg.datasets import Dataset, Split, epsilon_like
from localavg.errors import UserError
from localavg.interfaces import Array, Device, Engine, Feed, Problem, Transport
from localavg.learner import optim, stepsizes
from localavg.learner.flat import Flat
from localavg.learner.sampling import SAMPLERS, Sampler
from localavg.learner.stepsizes import StepSize
from localavg.parallel.device import Cpu, Cuda, choose_device, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
from localavg.problems.engines import choose as engines
from localavg.simulate import timing
from localavg.simulate.timing import Timing
from localavg.training.length import Length

if TYPE_CHECKING:
    from localavg.parallel.probe import Probe
    from localavg.problems.logistic import Logistic
    from localavg.problems.network import Network


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained, on which data and for how long, for any algorithm."""

    config: TrainConfig
    fleet: Fleet
    device: Device
    problem: Problem
    sampler: Sampler
    length: Length
    step_size: StepSize
    timing: Timing | None
    """the modelled machine, where time is simulated"""


@dataclass(frozen=True, eq=False)
class Experiment(Task):
    """The pieces of a synchronous run. The rows of all learners are equal at the start."""

    algorithm: Algorithm
    optimizer: optim.Optimizer
    transport: Transport
    flat: Flat
    engine: Engine
    engine_why: str
    """why this engine was chosen"""


def build(
    c: TrainConfig, fleet: Fleet, aware: Probe | None = None, engine: str | None = None
) -> Experiment:
    """Build everything for a synchronous run of the fleet's learners. Collective.

    aware: the result of doctor's test of MPI on device memory, on rank 0 if the device is cuda.
    engine: the engine of the run that is resumed, which keeps it. Raises UserError on all ranks for
    anything that cannot be run.
    """
    algorithms.check(c.algorithm, c.options)  # before data is read
    if c.algorithm == "sgd" and fleet.P > 1:
        raise UserError(
            f"sgd with {fleet.P} learners: sequential SGD has one; use sync, or `learners = 1` on "
            "one rank"
        )
    return assemble(load_task(c, fleet, fleet.P, choose_device(c.device, fleet)), aware, engine)


def load_task(c: TrainConfig, fleet: Fleet, P: int, device: Device | None = None) -> Task:
    """Load the data and make the problem for P learners, on the host by default. Collective."""
    modelled = fleet.together(lambda: timing.make(c) if c.simulate else None)
    device = device or Cpu()
    data = load_data(c, fleet)
    problem = fleet.together(lambda: make_problem(c, data, fleet, device))
    return task_of(c, fleet, P, device, problem, modelled)


def task_of(
    c: TrainConfig,
    fleet: Fleet,
    P: int,
    device: Device,
    problem: Problem,
    modelled: Timing | None = None,
) -> Task:
    """Make the task of P learners on a problem that has been made already."""
    sampler = SAMPLERS[c.sampling](problem.n, P, c.batch_size, c.seed)
    length = Length.of(c, P, sampler.epoch)
    return Task(
        config=c,
        fleet=fleet,
        device=device,
        problem=problem,
        sampler=sampler,
        length=length,
        step_size=stepsizes.make(c, length.epoch),
        timing=modelled,
    )


def assemble(task: Task, aware: Probe | None = None, engine: str | None = None) -> Experiment:
    """Add the algorithm and what it works on: rows, transport, engine. Collective."""
    c, fleet, problem, length = task.config, task.fleet, task.problem, task.length
    algorithm = algorithms.make(c.algorithm, c.options, length.T, length.epoch)
    optimizer = optim.make(c.optimizer, c.momentum, c.state, c.weight_decay)
    # weights, gradients, state: [L, d] each; and what the average keeps, once for all
    rows = 2 + optimizer.averaged + algorithm.average.kept / max(1, fleet.sharing)
    nbytes = int(4 * rows * problem.d)
    transport = choose(c.transport, fleet, algorithm.S, nbytes, task.device, aware)
    shapes, parameters = problem.shapes, problem.parameters
    flat = fleet.together(lambda: Flat(shapes, fleet.L, parameters, transport.zeros, problem.align))
    start_equal_(problem, flat.w, fleet.world)
    chosen, why = _engine(task, flat, engine)
    algorithm.exchange.start(fleet.learners, c.seed)
    state = fleet.L, flat.d_trained
    fleet.together(lambda: optimizer.start(state, transport.zeros, transport.ordinary))
    return Experiment(
        **vars(task),
        algorithm=algorithm,
        optimizer=optimizer,
        transport=transport,
        flat=flat,
        engine=chosen,
        engine_why=why,
    )


def _engine(task: Task, flat: Flat, earlier: str | None) -> tuple[Engine, str]:
    """Make the engine that the settings name, or that the resumed run had, and say why.

    Collective.
    """
    c, fleet, problem, sampler = task.config, task.fleet, task.problem, task.sampler
    name, why = c.engine, "asked for"
    if name == engines.AUTO and earlier:
        name, why = earlier, "that of the run that is resumed"

    def feed(T: int) -> Feed:
        return problem.feed(sampler, fleet.learners, T)

    if name == engines.AUTO:
        name, why = engines.fastest(problem, feed, flat.w, flat.d_trained, task.device, fleet)
    made = fleet.together(lambda: engines.make(name, problem, feed(task.length.T), fleet.learners))
    return made, why


def start_equal_(problem: Problem, w: Array, world: MPI.Intracomm) -> None:
    """Set all rows of w [L, d] to the starting point of rank 0. Collective.

    Rank 0 broadcasts its starting point. No rank relies on the other ranks' random draws.
    """
    if world.rank == 0:
        problem.initial_(w[0])
    first = on_host(w[0])
    world.Bcast(first)
    put_(w[0], first)
    w[1:] = w[0]


def load_data(c: TrainConfig, fleet: Fleet) -> Dataset:
    """Load the data that the settings name. Collective.

    Raises UserError if the settings ask for a sampling that the data does not allow.
    """
    if c.data == TrainConfig.data and fleet.rank == 0:
        sizes = epsilon_like.sizes(epsilon_like.ROWS)
        nbytes = sum(sizes.values()) * epsilon_like.FEATURES * 4
        print(
            f"localavg: makes the default data, {c.data}, of {sizes['train']} rows to train on and "
            f"{sizes['test']} to test, {nbytes / 1e9:.1f} GB a node; --data chooses other data",
            file=sys.stderr,
            flush=True,
        )
    data = datasets.load(c.data, fleet)
    if c.sampling == "block" and not data.shuffled and not c.force_block:
        raise UserError(
            f"`sampling = block`: the rows of {c.data} are in their original order, so a "
            "block is no fair sample; prepare the file with `shuffle`, or add `force_block`"
        )
    return data


def make_problem(
    c: TrainConfig, data: Dataset, fleet: Fleet, device: Device | None = None
) -> Problem:
    """Make the problem that the settings ask for, on the host if no device is given.

    Raises UserError if data, `problem` and `model` do not fit together, if torch cannot use the
    device, or if the problem does not have the engine.
    """
    called_for = "network" if c.model or data.kind != "features" else "logistic"
    problem: Problem
    if (c.problem or called_for) == "logistic":
        problem = _logistic(c, data, device or Cpu())
    else:
        problem = _network(c, data, fleet, device or Cpu())
    engines.check(c.engine, problem)
    return problem


def _logistic(c: TrainConfig, data: Dataset, device: Device) -> Logistic:
    from localavg.problems.logistic import Logistic

    replace(c, problem="logistic")  # which refuses settings that mean nothing to it
    if not isinstance(device, Cuda):
        return Logistic(data, c.l2)
    train = Split(device.holding(data.train.x), device.holding(data.train.y))
    test = data.test and Split(device.holding(data.test.x), device.holding(data.test.y))
    return Logistic(replace(data, train=train, test=test), c.l2, device.xp)


def _network(c: TrainConfig, data: Dataset, fleet: Fleet, device: Device) -> Network:
    try:
        from localavg.problems.network import Network, set_up_torch
    except ImportError as e:
        raise UserError(
            f"`model = {c.model}`: networks need torch ({e}); pip install 'localavg[torch]'"
        ) from e
    if c.model is None and data.kind != "features":
        raise UserError(
            f"`data = {c.data}`: images need a network; add `model` with one of "
            f"{', '.join(models.MODELS)}"
        )
    set_up_torch(fleet.threads, device, c.precision)
    return Network(
        data,
        c.model or "",
        c.l2,
        c.seed,
        augment=not c.no_augment,
        precision=c.precision,
        calibrate=c.calibrate,
        compiled=c.compile,
        device=c.device,
    )
