"""A training run from its settings: build the pieces, train, and leave a run file that says what
happened.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg import algorithms, datasets, models
from localavg.config import TrainConfig, seconds
from localavg.datasets import Dataset, Split
from localavg.errors import FINISHED, UserError
from localavg.files import checkpoint, record
from localavg.learner import optim, stepsizes
from localavg.learner.flat import Flat
from localavg.learner.sampling import SAMPLERS
from localavg.parallel.device import Cpu, choose_device, on_host, put_
from localavg.parallel.fleet import Fleet
from localavg.parallel.transport import choose
from localavg.problems import Problem
from localavg.simulate import clock, timing
from localavg.training import resume
from localavg.training.evaluate import Evaluator, by_learner
from localavg.training.keeper import Keeper
from localavg.training.length import Length
from localavg.training.loop import train
from localavg.training.monitor import Monitor
from localavg.training.payload import Payload


def run(
    c: TrainConfig,
    world: MPI.Intracomm,
    provenance: Mapping[str, Any] | None = None,
    aware: Any = None,
) -> int:
    """Train as `c` says, on the ranks of `world`; returns the exit
    status on all of them.

    provenance: `provenance.provenance()`, made on rank 0 before MPI started. Rank 0 writes c.path.
    aware: on rank 0, doctor's Probe of MPI on device memory, where the device is cuda. Raises
    UserError on all ranks, before training starts, for anything that cannot be run.
    """
    fleet = Fleet(world, c.learners, c.ranks_per_node)
    algorithms.make(
        c.algorithm, c.options, T=10**9, epoch=1e6
    )  # a wrong option is told before data is read
    device = choose_device(c.device, fleet)
    model = fleet.together(lambda: timing.make(c) if c.simulate else None)
    if c.algorithm == "sgd" and fleet.P > 1:
        raise UserError(
            f"sgd with {fleet.P} learners: sequential SGD has one; use sync, or --learners 1 on "
            "one rank"
        )
    earlier = fleet.together(lambda: resume.earlier(c) if world.rank == 0 else None)
    if resume.finished(earlier, world):
        return FINISHED
    data = load_data(c, fleet)
    problem = fleet.together(lambda: make_problem(c, data, fleet, device))
    sampler = SAMPLERS[c.sampling](problem.n, fleet.P, c.batch_size, c.seed)
    length = Length.of(c, fleet.P, sampler.epoch)
    T, epoch = length.T, length.epoch
    algorithm = algorithms.make(c.algorithm, c.options, T, epoch)
    if (start := algorithm.schedule.steered_after) >= T and world.rank == 0:
        print(
            f"localavg: {c.algorithm}'s warm-up and sampling take {start} updates of {T}: its "
            "period is never steered; train "
            f"for longer, or lower --warmup and --Ks",
            file=sys.stderr,
        )
    optimizer = optim.make(c.optimizer, c.momentum, c.state)
    matrices = 2 + optimizer.averaged  # weights, gradients, state: [L, d] each
    transport = choose(c.transport, fleet, algorithm.S, 4 * matrices * problem.d, device, aware)
    flat = Flat(problem.shapes, fleet.L, problem.parameters, allocate=transport.zeros)
    feed = problem.feed(sampler, fleet.learners, T)
    if world.rank == 0:
        problem.initial_(flat.w[0])
    first = on_host(flat.w[0])
    world.Bcast(first)  # equal by broadcast, not by seeding alike
    put_(flat.w[0], first)
    flat.w[1:] = flat.w[0]
    algorithm.exchange.start(fleet.learners, c.seed)

    settings = {**resume.settings(c, fleet.P, data, problem, T), **(asdict(model) if model else {})}
    origin = {**(provenance or {}), **resume.where(fleet, transport), **resume.gpus(fleet, device)}
    saved, file = resume.opened(
        c, fleet, settings, origin, earlier, world.rank == 0, checkpoints=not model
    )

    payload = Payload(algorithm, transport, flat, optimizer, c.statistics == "average")
    rows: record.Record | clock.Modelled | None = file
    if file is not None and model:
        durations = clock.averages(
            model, fleet.P, payload.nbytes(1), algorithm.S, algorithm.exchange.gathers
        )
        rows = clock.Modelled(file, clock.Synchronous(model, fleet.P, c.seed, durations))
    evaluator = Evaluator(
        problem, world, by_learner(fleet), examples=c.eval_examples, grad_norm=c.grad_norm
    )
    monitor = Monitor(
        fleet,
        transport,
        evaluator,
        rows,
        length,
        payload,
        variance=c.variance != "no",
        V=c.variance == "steps",
    )
    steps = int(c.checkpoint_every) if (c.checkpoint_every or "").isdecimal() else None
    keep = Keeper(
        fleet,
        file,
        checkpoint.folder_of(c.path),
        every_steps=steps,
        saved=saved,
        every_s=None if steps else seconds("checkpoint_every", c.checkpoint_every),
        limit_s=seconds("time_limit", c.time_limit),
    )

    def work() -> None:
        if file is not None and c.save_weights and not saved:
            file.save_weights("initial_weights", on_host(flat.w[0]))
        step_size = stepsizes.make(c, epoch)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # divergence is found by its losses, told once
            train(
                problem,
                flat,
                algorithm,
                optimizer,
                step_size,
                feed,
                transport,
                fleet.learners,
                T,
                monitor,
                keep,
                statistics=c.statistics == "average",
            )
        if file is not None and c.save_weights:
            file.save_weights("weights", on_host(flat.w[0]))

    with nullcontext() if model else keep.listening():
        status, why = resume.ended(work, file, monitor, problem, world)
    if file is not None:
        modelled = "; times in the run file are modelled" if model else ""
        print(
            why
            or f"{c.algorithm}: {T} updates of {fleet.P} learners in {monitor.summary()}{modelled}",
            file=sys.stderr,
        )
        print(c.path, flush=True)
        if status == FINISHED:
            checkpoint.remove(keep.folder)
    return status


def load_data(c: TrainConfig, fleet: Fleet) -> Dataset:
    """The data that the settings name. Collective. Raises UserError where it may not be sampled as
    they say.
    """
    data = datasets.load(c.data, fleet)
    if c.sampling == "block" and not data.shuffled and not c.force_block:
        raise UserError(
            f"--sampling block: the rows of {c.data} lie in their original order, so they are no "
            "fair sample; "
            f"prepare it with --shuffle SEED, or add --force-block"
        )
    return data


def make_problem(c: TrainConfig, data: Dataset, fleet: Fleet, device: Cpu | None = None) -> Problem:
    """The problem that the settings call for, on the host if no device is given.

    Raises UserError where data, --problem and --model do not go together, or torch cannot use the
    device.
    """
    if (
        c.problem or ("network" if c.model or data.kind != "features" else "logistic")
    ) == "logistic":
        from localavg.problems.logistic import Logistic

        if c.cuda_graphs:
            raise UserError(
                f"--cuda-graphs: --data {c.data} calls for logistic regression, which has no "
                "graphs; leave it out"
            )
        if device is None or device.name == "cpu":
            return Logistic(data, c.l2)
        splits = {
            name: s and Split(*map(device.holding, (s.x, s.y)))
            for name in ("train", "test")
            for s in [getattr(data, name)]
        }
        return Logistic(replace(data, **splits), c.l2, device.xp)
    try:
        from localavg.problems.network import Network, set_up_torch
    except ImportError as e:
        raise UserError(
            f"--model {c.model}: networks need torch ({e}); pip install 'localavg[torch]'"
        ) from e
    if c.model is None:
        raise UserError(
            f"--data {c.data}: images need a network; add --model with one of "
            f"{', '.join(models.MODELS)}"
        )
    set_up_torch(fleet.threads, device or Cpu(), c.precision)
    return Network(
        data,
        c.model,
        c.l2,
        c.seed,
        augment=not c.no_augment,
        precision=c.precision,
        calibrate=c.calibrate,
        compiled=c.compile,
        cuda_graphs=c.cuda_graphs,
        device=c.device,
    )
