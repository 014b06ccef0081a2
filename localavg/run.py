"""A training run from its settings: build the pieces, train, and leave a run file that says what happened."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from mpi4py import MPI

from localavg import algorithms, checkpoint, datasets, keeper, machine, models, optim, record, stepsizes
from localavg.config import TrainConfig, UserError, seconds
from localavg.datasets import Dataset, Split
from localavg.device import Cpu, choose_device, on_host, put_
from localavg.flat import Flat
from localavg.fleet import Fleet
from localavg.keeper import Interrupted, Keeper
from localavg.monitor import Diverged, Monitor
from localavg.problems import Problem
from localavg.sampling import SAMPLERS
from localavg.schedules import Scope
from localavg.train import train
from localavg.transport import choose
from localavg.transport.mpi import HostMPI

FINISHED, FAILED, AGAIN = 0, 1, 75  # exit status; 2 is a user's mistake; AGAIN: saved, the same command goes on

FREE = {  # settings that may differ between a run and its resumption; all others make its bits
    "resume", "checkpoint_every", "time_limit", "out", "transport", "ranks_per_node",
}


def run(c: TrainConfig, options: Mapping[str, Any], world: MPI.Intracomm, provenance: Mapping[str, Any] | None = None,
        aware: Any = None) -> int:
    """Train as `c` and the algorithm's own `options` say, on the ranks of `world`; returns the exit status on all of them.

    provenance: `provenance.provenance()`, made on rank 0 before MPI started. Rank 0 writes c.path. aware: on rank 0, doctor's
    Probe of MPI on device memory, where the device is cuda.
    Raises UserError on all ranks, before training starts, for anything that cannot be run.
    """
    fleet = Fleet(world, c.learners, c.ranks_per_node)
    algorithms.make(c.algorithm, options, T=c.steps or 10**9, epoch=1e6)  # a wrong option is told before data is read
    device = choose_device(c.device, fleet)
    model = machine.make(c) if c.simulate else None
    if c.algorithm == "sgd" and fleet.P > 1:
        raise UserError(f"sgd with {fleet.P} learners: sequential SGD has one; use sync, or --learners 1 on one rank")
    earlier = fleet.together(lambda: _earlier(c) if world.rank == 0 else None)
    if world.bcast(earlier and earlier.status) == "finished":
        if world.rank == 0:
            print(f"{c.path} is finished already", file=sys.stderr)
        return FINISHED
    data = load_data(c, fleet)
    problem = make_problem(c, data, fleet, device)
    sampler = SAMPLERS[c.sampling](problem.n, fleet.P, c.batch_size, c.seed)
    epoch = sampler.epoch
    T = c.steps or max(1, math.ceil(round((c.epochs or 1.0) * epoch, 9)))
    algorithm = algorithms.make(c.algorithm, options, T, epoch)
    optimizer = optim.make(c.optimizer, c.momentum, c.state)
    matrices = 2 + optimizer.averaged  # weights, gradients, state: [L, d] each
    transport = choose(c.transport, fleet, algorithm.S, nbytes=4 * matrices * fleet.L * problem.d, device=device,
                       aware=aware)
    flat = Flat(problem.shapes, fleet.L, problem.parameters, allocate=transport.zeros)
    feed = problem.feed(sampler, fleet.learners, T)
    if world.rank == 0:
        problem.initial_(flat.w[0])
    first = on_host(flat.w[0])
    world.Bcast(first)  # equal by broadcast, not by seeding alike
    put_(flat.w[0], first)
    flat.w[1:] = flat.w[0]
    algorithm.exchange.start(fleet.learners, c.seed)

    settings = {**_settings(c, options, fleet, data, problem, T), **(asdict(model) if model else {})}
    origin = {**(provenance or {}), **_where(fleet, transport)}
    begun, file = _open(c, fleet, settings, origin, earlier)

    def payload(scope: Scope) -> tuple[int, int]:
        """What this rank hands over in one exchange: gradients, or weights and the state that is averaged with them."""
        exchange = algorithm.exchange
        if exchange.gathers:
            return transport.gather_bytes(exchange.payload_bytes(flat.d_trained, fleet.L))
        if exchange.scope:
            return transport.payload_bytes(exchange.payload_bytes(flat.d_trained, fleet.L), scope)
        averaged = flat.d if c.statistics == "average" else flat.d_trained
        return transport.payload_bytes(4 * (averaged + optimizer.averaged * flat.d_trained), scope)

    if file is not None and model:
        exchange, averaged = algorithm.exchange, flat.d if c.statistics == "average" else flat.d_trained
        nbytes = 4 * (averaged + optimizer.averaged * flat.d_trained)  # of a learner
        nbytes = exchange.payload_bytes(flat.d_trained, 1) if exchange.scope else nbytes
        durations = machine.averages(model, fleet.P, nbytes, algorithm.S, exchange.gathers)
        machine.retime_(file, machine.Synchronous(model, fleet.P, c.seed, durations))
    monitor = Monitor(
        fleet, problem, transport, file, T=T, epoch=epoch, B=c.batch_size,
        log_every=min(T, c.log_every or max(1, T // 100)), eval_every=min(T, c.eval_every or max(1, T // 20)),
        payload=payload, variance=c.variance != "no" or algorithm.schedule.needs == "variance", V=c.variance == "steps",
        grad_norm=c.grad_norm, examples=c.eval_examples,
    )
    steps = int(c.checkpoint_every) if (c.checkpoint_every or "").isdigit() else None
    keep = Keeper(fleet, file, checkpoint.folder_of(c.path), every_steps=steps, resume=begun,
                  every_s=None if steps else seconds("checkpoint_every", c.checkpoint_every),
                  limit_s=seconds("time_limit", c.time_limit))

    def work() -> None:
        if file is not None and c.save_weights and not begun:
            file.save_weights("initial_weights", on_host(flat.w[0]))
        step_size = stepsizes.make(c, epoch)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is found by its losses, told once
            train(problem, flat, algorithm, optimizer, step_size, feed, transport, fleet.learners, T, monitor, keep,
                  statistics=c.statistics == "average")
        if file is not None and c.save_weights:
            file.save_weights("weights", on_host(flat.w[0]))

    try:
        with keep.listening():
            status, why = _recorded(work, file, monitor)
    except UserError as e:  # nothing can be written: perhaps only rank 0 knows
        print(f"localavg: {e}", file=sys.stderr, flush=True)
        if world.size > 1:
            world.Abort(FAILED)
        return FAILED
    finally:
        problem.close()
    if file is not None:
        modelled = "; times in the run file are modelled" if model else ""
        print(why or f"{c.algorithm}: {T} updates of {fleet.P} learners in {monitor.summary()}{modelled}", file=sys.stderr)
        print(c.path, flush=True)
        if status == FINISHED:
            checkpoint.remove(keep.folder)
    return status


def load_data(c: TrainConfig, fleet: Fleet) -> Dataset:
    """The data that the settings name. Collective. Raises UserError where it may not be sampled as they say."""
    data = datasets.load(c.data, fleet)
    if c.sampling == "block" and not data.shuffled and not c.force_block:
        raise UserError(f"--sampling block: the rows of {c.data} lie in their original order, so they are no fair sample; "
                        f"prepare it with --shuffle SEED, or add --force-block")
    return data


def make_problem(c: TrainConfig, data: Dataset, fleet: Fleet, device: Cpu | None = None) -> Problem:
    """The problem that the settings call for, on the host if no device is given.

    Raises UserError where data, --problem and --model do not go together, or torch cannot use the device.
    """
    if (c.problem or ("network" if c.model or data.kind != "features" else "logistic")) == "logistic":
        from localavg.problems.logistic import Logistic

        if device is None or device.name == "cpu":
            return Logistic(data, c.l2)
        splits = {name: s and Split(*map(device.xp.asarray, (s.x, s.y))) for name in ("train", "test")
                  for s in [getattr(data, name)]}
        return Logistic(replace(data, **splits), c.l2, device.xp)
    try:
        import torch
    except ImportError as e:
        raise UserError(f"--model {c.model}: networks need torch ({e}); pip install 'localavg[torch]'") from e
    from localavg.problems.network import Network

    if c.model is None:
        raise UserError(f"--data {c.data}: images need a network; add --model with one of {', '.join(models.MODELS)}")
    torch.set_num_threads(fleet.threads)
    if device is not None and device.name == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device cuda: torch {torch.__version__} sees no GPU; install torch with CUDA")
        torch.cuda.set_device(device.index)
    return Network(data, c.model, c.l2, c.seed, augment=not c.no_augment, precision=c.precision, calibrate=c.calibrate,
                   compiled=c.compile, device=c.device)


def _earlier(c: TrainConfig) -> record.Run | None:
    """The run file that is there already, to go on with. Raises UserError where it may not be touched."""
    folder, resume = checkpoint.folder_of(c.path), c.resume or int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0) > 0
    if not resume:
        record.refuse_existing(c.path)
    if os.path.exists(c.path) and os.path.getsize(c.path) == 0:  # killed as it was made
        os.unlink(c.path)
    if not os.path.exists(c.path):
        if folder.exists():
            raise UserError(f"{folder} has checkpoints but their run file {c.path} is gone; bring it back, or "
                            f"move the folder away")
        return None
    return record.load(c.path, weights=False)


def _open(c: TrainConfig, fleet: Fleet, settings: Mapping[str, Any], origin: Mapping[str, Any],
          earlier: record.Run | None) -> tuple[int, record.Record | None]:
    """t of the checkpoint to go on from, 0 for a new run, and the run file on rank 0. Collective."""

    def check() -> None:
        for name, value in settings.items() if earlier else ():
            was = earlier.config.get(name)
            if name not in FREE and was != record.stored(value):
                raise UserError(f"--resume: {c.path} was made with {name} = {was}, not {record.stored(value)}; give the same "
                                f"settings, or another --out")

    fleet.together(check)
    begun, folder = 0, checkpoint.folder_of(c.path)
    if fleet.world.bcast(earlier is not None):
        begun = keeper.latest(folder, fleet)

    def open_() -> record.Record | None:
        if fleet.rank:
            return None
        if begun:
            print(f"localavg: {c.path} goes on after step {begun}", file=sys.stderr)
            rows = checkpoint.read(folder, begun, 0, fleet.learners)[0]["record"]
            return record.Record.reopen(c.path, {name: int(n) for name, n in rows.items()}, origin)
        if earlier is not None:
            aside = next(name for k in range(1, 10**6) if not os.path.lexists(name := f"{c.path}.unfinished{k}"))
            print(f"localavg: {c.path} has no checkpoint: kept as {aside}, starting from the beginning", file=sys.stderr)
            os.rename(c.path, aside)
        return record.Record.create(c.path, settings, origin)

    return begun, fleet.together(open_)


def _recorded(work: Callable[[], None], file: record.Record | None, monitor: Monitor) -> tuple[int, str]:
    """Do `work` and let the run file say how it ended; returns the exit status and the reason if it did not finish."""

    def finish(status: str, **why: str) -> None:
        if file is not None:
            monitor.close()
            file.finish(status, **why)

    try:
        work()
    except Diverged as e:
        finish("failed", failure=str(e))
        return FAILED, str(e)
    except Interrupted as e:
        finish("interrupted", failure=str(e))
        return AGAIN, str(e)
    except BaseException as e:
        with suppress(UserError):  # what went wrong first is what counts
            finish("interrupted" if isinstance(e, KeyboardInterrupt) else "failed", failure=f"{type(e).__name__}: {e}")
        raise
    finish("finished")
    return FINISHED, ""


def _settings(c: TrainConfig, options: Mapping[str, Any], fleet: Fleet, data: Dataset, problem: Problem,
              T: int) -> dict[str, Any]:
    """/config: every setting as it took effect, flat."""
    where = os.path.abspath(c.data) if os.path.exists(c.data) else c.data  # so that it is found from anywhere
    return {**asdict(c), **algorithms.options(c.algorithm), **options, "data": where, "learners": fleet.P, "steps": T,
            "problem": type(problem).__name__.lower(), "rows": problem.n, "d": problem.d, "data_name": data.name,
            "test_rows": 0 if data.test is None else len(data.test.y)}


def _where(fleet: Fleet, transport: HostMPI) -> dict[str, Any]:
    """/provenance: the machine's side of it."""
    return {"mpi_library": MPI.Get_library_version().splitlines()[0].rstrip("\0 "), "hosts": sorted(set(fleet.hosts)),
            "ranks": fleet.ranks, "nodes": fleet.nodes, "learners_per_rank": fleet.L, "threads": fleet.threads,
            "transport": transport.name, "transport_why": transport.why}
