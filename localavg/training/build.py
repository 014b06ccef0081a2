"""Build the pieces of a run from its settings.

Nothing here writes a file. One process can build the pieces more than once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from mpi4py import MPI

from localavg import algorithms, datasets
from localavg.algorithms.base import Algorithm
from localavg.algorithms.participants import Participants
from localavg.config import TrainConfig
from localavg.datasets import Dataset, epsilon_like
from localavg.errors import UserError
from localavg.interfaces import Array, Device, Engine, Feed, Problem, Transport
from localavg.learner import optim, sampling, stepsizes
from localavg.learner.flat import Flat
from localavg.learner.sampling import Sampler
from localavg.learner.stepsizes import StepSize
from localavg.parallel.device import Cpu, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose, in_background, in_code
from localavg.problems.engines import choose as engines
from localavg.problems.engines.loop import Loop
from localavg.simulate import timing
from localavg.simulate.timing import Timing
from localavg.training import where, wiring
from localavg.training.checks import own_options
from localavg.training.length import Length
from localavg.training.problem import make_problem
from localavg.training.replay import replayed
from localavg.training.resting import check_resting

if TYPE_CHECKING:
    from localavg.parallel.probe import Probe


class Chosen(NamedTuple):
    """What the program chose for a run, which keeps it when it is resumed; None: nothing yet."""

    device: str | None = None
    engine: str | None = None
    transport: str | None = None


NOTHING = Chosen()


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
    background: Transport | None
    """the transport of means that travel while the learners go on"""
    flat: Flat
    engine: Engine
    engine_why: str
    """why this engine was chosen"""


def build(
    c: TrainConfig, fleet: Fleet, aware: Probe | None = None, earlier: Chosen = NOTHING
) -> Experiment:
    """Build everything for a synchronous run of the fleet's learners. Collective.

    aware: the result of doctor's test of MPI on device memory, on rank 0. earlier: the choices of
    the run that is resumed. Raises UserError on all ranks for anything that cannot be run.
    """
    algorithms.check(c.algorithm, own_options(c, epoch=1e6), fleet.P)  # before data is read
    if c.algorithm == "sgd" and fleet.P > 1:
        raise UserError(
            f"sgd with {fleet.P} learners: sequential SGD has one; use sync, or `learners = 1` on "
            "one rank"
        )
    data = cache(lambda: load_data(c, fleet))  # read once
    device = where.choose(c, fleet, earlier.device, data)
    return assemble(load_task(c, fleet, fleet.P, device, data), aware, earlier)


def load_task(
    c: TrainConfig,
    fleet: Fleet,
    P: int,
    device: Device | None = None,
    load: Callable[[], Dataset] | None = None,
) -> Task:
    """Load the data and make the problem for P learners, on the host by default. Collective.

    load: what loads the data, if not `load_data`. The task's settings name its device, not auto.
    """
    device = device or Cpu()
    if c.device == where.AUTO:
        c = replace(c, device=device.name)
    modelled = fleet.together(lambda: timing.make(c) if c.simulate else None)
    data = load() if load else load_data(c, fleet)
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
    y = problem.data.train.y
    sampler = sampling.make(c.sampling, problem.n, P, c.batch_size, c.seed, y)
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


def assemble(
    task: Task, aware: Probe | None = None, earlier: Chosen = NOTHING, recovers: bool = False
) -> Experiment:
    """Add the algorithm and what it works on: rows, transport, engine. Collective.

    recovers: whether the run goes on without ranks that it had before.
    """
    c, fleet, problem, length = task.config, task.fleet, task.problem, task.length
    step_size = stepsizes.after_warm_up(c, length.epoch, task.step_size)
    options = own_options(c, length.epoch)
    algorithm = algorithms.make(c.algorithm, options, length.T, length.epoch, step_size=step_size)
    if c.replay:
        how = c, options, length.T, fleet.rank == 0
        algorithm = fleet.together(lambda: replayed(algorithm, *how))
    algorithm.average.lay_out(fleet.learners, fleet.P, c.seed)
    optimizer = optim.make(c.optimizer, c.momentum, c.state, c.weight_decay)
    # weights, gradients, state: [L, d] each; and what the average keeps, once for all
    rows = (
        2
        + optimizer.averaged
        + (algorithm.delay is not None)
        + (algorithm.average.kept + (algorithm.wire is not None)) / max(1, fleet.sharing)
    )
    transport = choose(
        c.transport,
        fleet,
        algorithm.clusters,
        int(4 * rows * problem.d),
        task.device,
        aware,
        n=problem.d,
        earlier=earlier.transport,
    )
    if algorithm.wire is not None:
        transport = in_code(transport, fleet, crossed=recovers)
    background = in_background(transport, fleet) if algorithm.delay else None
    shapes, parameters = problem.shapes, problem.parameters
    flat = fleet.together(lambda: Flat(shapes, fleet.L, parameters, transport.zeros, problem.align))
    covered = flat.d if c.statistics == "average" else flat.d_trained
    fleet.together(lambda: algorithm.average.cut(covered))
    start_equal_(problem, flat.w, fleet.world)
    wiring.use(algorithm, background or transport, fleet, flat, c.seed)
    participants = algorithm.participants
    participants.start(fleet.learners, fleet.P, c.seed, task.sampler.rows)
    check_resting(c, participants)
    chosen, why = _engine(task, flat, earlier.engine, participants)
    algorithm.exchange.start(fleet.learners, c.seed)
    state = fleet.L, flat.d_trained
    fleet.together(lambda: optimizer.start(state, transport.zeros, transport.ordinary))
    return Experiment(
        **vars(task),
        algorithm=algorithm,
        optimizer=optimizer,
        transport=transport,
        background=background,
        flat=flat,
        engine=chosen,
        engine_why=why,
    )


def _engine(
    task: Task, flat: Flat, earlier: str | None, participants: Participants
) -> tuple[Engine, str]:
    """Make the engine that the settings name, or that the resumed run had, and say why.

    participants: where some learners rest, it is loop. Collective.
    """
    c, fleet, problem, sampler = task.config, task.fleet, task.problem, task.sampler
    name, why = c.engine, "asked for"
    if name == engines.AUTO and participants.at_work is not None:
        name, why = Loop.name, "auto: the only one that leaves out learners that rest"
    elif name == engines.AUTO and earlier:
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
