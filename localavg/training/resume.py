"""The run file of one run: what may be done with an earlier one, how a new one begins, and what it
says at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mpi4py import MPI

from localavg.config import TrainConfig
from localavg.datasets import Dataset
from localavg.errors import FAILED, FINISHED, GO_ON, SharedError, UserError
from localavg.files import checkpoint, record
from localavg.files.checkpoint import Saved
from localavg.files.hdf5 import set_aside
from localavg.parallel.device import Cpu
from localavg.parallel.fleet import Fleet
from localavg.problems import Problem
from localavg.training import keeper
from localavg.training.checks import FREE, difference, every
from localavg.training.keeper import Interrupted
from localavg.training.monitor import Diverged


def earlier(c: TrainConfig) -> record.Run | None:
    """The run file that is there already, to go on with. Raises UserError where it may not be
    touched, or is another run's.
    """
    folder, resume = (
        checkpoint.folder_of(c.path),
        c.resume or int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0) > 0,
    )
    if not resume:
        record.refuse_existing(c.path)
    if os.path.exists(c.path) and os.path.getsize(c.path) == 0:  # killed as it was made
        os.unlink(c.path)
    if not os.path.exists(c.path):
        if folder.exists():
            raise UserError(
                f"{folder} has checkpoints but their run file {c.path} is gone; bring it back, or "
                f"move the folder away"
            )
        return None
    found = record.load(c.path, weights=False)
    if found.status == "finished" and (other := difference(every(c), found.config)):
        raise UserError(
            f"--resume: {c.path} is finished, but {other}; give the same settings, or another --out"
        )
    return found


def finished(found: record.Run | None, world: MPI.Intracomm) -> bool:
    """Whether the run that the writing rank found is finished, which is said there. Collective."""
    done = found is not None and found.status == "finished"
    if done:
        print(f"{found.path} is finished already", file=sys.stderr)
    return world.allreduce(done, MPI.LOR)


def opened(
    c: TrainConfig,
    fleet: Fleet,
    settings: Mapping[str, Any],
    origin: Mapping[str, Any],
    found: record.Run | None,
    writes: bool,
    checkpoints: bool = True,
) -> tuple[Saved | None, record.Record | None]:
    """The checkpoint to go on from, None for a new run, and the run file on the rank that writes.
    Collective.

    found: the earlier run there. checkpoints: runs of this kind make some; others start from the
    beginning.
    """

    def check() -> None:
        for name, value in settings.items() if found else ():
            was = found.config.get(name)
            if name not in FREE and was != record.stored(value):
                raise UserError(
                    f"--resume: {c.path} was made with {name} = {was}, not {record.stored(value)}; "
                    "give the same "
                    f"settings, or another --out"
                )

    fleet.together(check)
    saved = None
    if checkpoints and fleet.world.allreduce(found is not None, MPI.LOR):
        saved = keeper.latest(checkpoint.folder_of(c.path), fleet)

    def open_() -> record.Record | None:
        if not writes:
            return None
        if saved:
            print(f"localavg: {c.path} goes on after step {saved.t}", file=sys.stderr)
            rows = saved.state["record"]
            return record.Record.reopen(c.path, {name: int(n) for name, n in rows.items()}, origin)
        if found is not None:
            aside = set_aside(c.path, "unfinished")
            print(
                f"localavg: {c.path} has no checkpoint: kept as {aside}, starting from the "
                "beginning",
                file=sys.stderr,
            )
        return record.Record.create(c.path, settings, origin)

    return saved, fleet.together(open_)


def ended(
    work: Callable[[], None],
    file: record.Record | None,
    log: Any,
    problem: Problem,
    world: MPI.Intracomm,
) -> tuple[int, str]:
    """Do `work` and let the run file say how it ended; returns the exit status and the reason if it
    did not finish.

    log: what is closed before. An exception that is no way for a run to end ends the job.
    """

    def finish(status: str, **why: str) -> None:
        if file is not None:
            log.close()
            file.finish(status, **why)

    try:
        work()
        finish("finished")
    except Diverged as e:
        finish("failed", failure=str(e))
        return FAILED, str(e)
    except Interrupted as e:
        finish("interrupted", failure=str(e))
        return GO_ON, str(e)
    except BaseException as e:
        with suppress(UserError):  # what went wrong first is what counts
            finish(
                "interrupted" if isinstance(e, KeyboardInterrupt) else "failed",
                failure=f"{type(e).__name__}: {e}",
            )
        if not isinstance(e, UserError):
            raise
        if world.size > 1 and not isinstance(e, SharedError):  # perhaps only this rank knows
            print(f"localavg: {e}", file=sys.stderr, flush=True)
            world.Abort(FAILED)
        return FAILED, f"localavg: {e}"
    finally:
        problem.close()
    return FINISHED, ""


def settings(c: TrainConfig, P: int, data: Dataset, problem: Problem, T: int) -> dict[str, Any]:
    """/config: every setting as it took effect, flat."""
    where = (
        os.path.abspath(c.data) if os.path.exists(c.data) else c.data
    )  # so that it is found from anywhere
    return {
        **every(c),
        "data": where,
        "learners": P,
        "steps": T,
        "problem": type(problem).__name__.lower(),
        "rows": problem.n,
        "d": problem.d,
        "data_name": data.name,
        "test_rows": 0 if data.test is None else len(data.test.y),
    }


def where(fleet: Fleet, transport: Any) -> dict[str, Any]:
    """/provenance: the machine's side of it."""
    return {
        "mpi_library": MPI.Get_library_version().splitlines()[0].rstrip("\0 "),
        "hosts": sorted(set(fleet.hosts)),
        "ranks": fleet.ranks,
        "nodes": fleet.nodes,
        "learners_per_rank": fleet.layout.per_rank,
        "threads": fleet.threads,
        "transport": transport.name,
        "transport_why": transport.why,
    }


def gpus(fleet: Fleet, device: Cpu) -> dict[str, Any]:
    """/provenance: the host and PCI address of every rank's GPU, where there is one. Collective."""
    if device.name == "cpu":
        return {}
    return {"gpus": [" ".join(identity) for identity in fleet.world.allgather(device.identity)]}
