"""A training run from its settings: build the pieces, train, and leave a run file that says what happened."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg import algorithms, datasets, optim, record, stepsizes
from localavg.config import TrainConfig, UserError
from localavg.datasets import Dataset
from localavg.flat import Flat
from localavg.fleet import Fleet
from localavg.monitor import Diverged, Monitor
from localavg.problems.logistic import Logistic
from localavg.sampling import SAMPLERS
from localavg.schedules import Scope
from localavg.train import train
from localavg.transport import choose
from localavg.transport.mpi import HostMPI

FINISHED, FAILED = 0, 1  # exit status; 2 is a user's mistake


def run(c: TrainConfig, options: Mapping[str, Any], world: MPI.Intracomm, provenance: Mapping[str, Any] | None = None) -> int:
    """Train as `c` and the algorithm's own `options` say, on the ranks of `world`; returns the exit status on all of them.

    provenance: `record.provenance()`, made on rank 0 before MPI started. Rank 0 writes c.path.
    Raises UserError on all ranks, before training starts, for anything that cannot be run.
    """
    fleet = Fleet(world, c.learners, c.ranks_per_node)
    algorithms.make(c.algorithm, options, T=c.steps or 10**9, epoch=1e6)  # a wrong option is told before data is read
    if c.algorithm == "sgd" and fleet.P > 1:
        raise UserError(f"sgd with {fleet.P} learners: sequential SGD has one; use sync, or --learners 1 on one rank")
    fleet.together(lambda: record.refuse_existing(c.path) if world.rank == 0 else None)
    data = datasets.load(c.data, fleet)
    if c.sampling == "block" and not data.shuffled and not c.force_block:
        raise UserError(f"--sampling block: the rows of {c.data} lie in their original order, so they are no fair sample; "
                        f"prepare it with --shuffle SEED, or add --force-block")
    problem = Logistic(data, c.l2)
    sampler = SAMPLERS[c.sampling](problem.n, fleet.P, c.batch_size, c.seed)
    epoch = sampler.epoch
    T = c.steps or max(1, math.ceil(round((c.epochs or 1.0) * epoch, 9)))
    algorithm = algorithms.make(c.algorithm, options, T, epoch)
    optimizer = optim.make(c.optimizer, c.momentum, c.state)
    matrices = 2 + optimizer.averaged  # weights, gradients, state: [L, d] each
    transport = choose(c.transport, fleet, algorithm.S, nbytes=4 * matrices * fleet.L * problem.d)
    flat = Flat(problem.shapes, fleet.L, allocate=transport.zeros)
    problem.initial_(flat.w[0])
    world.Bcast(flat.w[0])  # equal by broadcast, not by seeding alike
    flat.w[1:] = flat.w[0]
    algorithm.exchange.start(fleet.learners, c.seed)

    settings = _settings(c, options, fleet, data, problem, T)
    origin = {**(provenance or {}), **_where(fleet, transport)}
    file = fleet.together(lambda: record.Record.create(c.path, settings, origin) if world.rank == 0 else None)

    def payload(scope: Scope) -> tuple[int, int]:
        """What this rank hands over in one exchange: gradients, or weights and the state that is averaged with them."""
        exchange = algorithm.exchange
        if exchange.gathers:
            return transport.gather_bytes(exchange.payload_bytes(flat.d_trained, fleet.L))
        if exchange.scope:
            return transport.payload_bytes(exchange.payload_bytes(flat.d_trained, fleet.L), scope)
        return transport.payload_bytes(4 * (flat.d + optimizer.averaged * flat.d_trained), scope)

    monitor = Monitor(
        fleet, problem, transport, file, T=T, epoch=epoch, B=c.batch_size,
        log_every=min(T, c.log_every or max(1, T // 100)), eval_every=min(T, c.eval_every or max(1, T // 20)),
        payload=payload, variance=c.variance != "no" or algorithm.schedule.needs == "variance", V=c.variance == "steps",
        grad_norm=c.grad_norm,
    )

    def work() -> None:
        if file is not None and c.save_weights:
            file.save_weights("initial_weights", flat.w[0])
        step_size = stepsizes.make(c, epoch)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is found by its losses and told once
            train(problem, flat, algorithm, optimizer, step_size, sampler, transport, fleet.learners, T, monitor)
        if file is not None and c.save_weights:
            file.save_weights("weights", flat.w[0])

    try:
        failure = _recorded(work, file, monitor)
    except UserError as e:  # the run file cannot be written: only rank 0 knows
        print(f"localavg: {e}", file=sys.stderr, flush=True)
        if world.size > 1:
            world.Abort(FAILED)
        return FAILED
    if file is not None:
        print(failure or f"{c.algorithm}: {T} updates of {fleet.P} learners in {monitor.summary()}", file=sys.stderr)
        print(c.path, flush=True)
    return FAILED if failure else FINISHED


def _recorded(work: Callable[[], None], file: record.Record | None, monitor: Monitor) -> str | None:
    """Do `work` and let the run file say how it ended; returns the reason if it diverged."""

    def finish(status: str, **why: str) -> None:
        if file is not None:
            monitor.close()
            file.finish(status, **why)

    try:
        work()
    except Diverged as e:
        finish("failed", failure=str(e))
        return str(e)
    except BaseException as e:
        with suppress(UserError):  # what went wrong first is what counts
            finish("interrupted" if isinstance(e, KeyboardInterrupt) else "failed", failure=f"{type(e).__name__}: {e}")
        raise
    finish("finished")
    return None


def _settings(c: TrainConfig, options: Mapping[str, Any], fleet: Fleet, data: Dataset, problem: Any, T: int) -> dict[str, Any]:
    """/config: every setting as it took effect, flat."""
    where = os.path.abspath(c.data) if os.path.exists(c.data) else c.data  # so that it is found from anywhere
    return {**asdict(c), **algorithms.options(c.algorithm), **options, "data": where, "learners": fleet.P, "steps": T,
            "rows": problem.n, "d": problem.d, "data_name": data.name,
            "test_rows": 0 if data.test is None else len(data.test.y)}


def _where(fleet: Fleet, transport: HostMPI) -> dict[str, Any]:
    """/provenance: the machine's side of it."""
    return {"mpi_library": MPI.Get_library_version().splitlines()[0].rstrip("\0 "), "hosts": sorted(set(fleet.hosts)),
            "ranks": fleet.ranks, "nodes": fleet.nodes, "learners_per_rank": fleet.L, "threads": fleet.threads,
            "transport": transport.name, "transport_why": transport.why}
