"""``localavg.train``: a run of the command line from Python, in a notebook, alone or under MPI."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localavg.cli import RANK, started
from localavg.cli.given import read
from localavg.cli.train import may_use_gpus, start
from localavg.config import TrainConfig
from localavg.errors import FAILED, FINISHED, GO_ON, SharedError, UserError
from localavg.files.reading import Run, load
from localavg.training import checks

if TYPE_CHECKING:
    from mpi4py import MPI

    from localavg.algorithms.base import Algorithm
    from localavg.interfaces import Settings
    from localavg.parallel.probe import Probe
    from localavg.training.ending import Outcome

WARN_AFTER_S = 60.0  # how long a rank waits for the others to call `train` before it prints so
LIMIT_S = 600.0  # how long it waits before it ends the job
BTL = "OMPI_MCA_btl"  # Open MPI's choice of what carries messages
BETWEEN = ("auto", "cuda_aware")  # transports whose choice asks whether MPI takes GPU memory


def train(
    algorithm: str | Callable[..., Algorithm],
    *,
    out: str | os.PathLike[str] | None = None,
    world: Any = None,
    **settings: Any,
) -> Run:
    """Train as ``localavg train ALGORITHM`` does, and return what is in the run file.

        run = localavg.train("kavg", K=16, learners=8, data="digits", model="mlp", epochs=5)

    algorithm: its name, or a function of your own that makes one, as the functions of the table do:
    `jobs/examples/own_algorithm.py`. Its parameters are settings too, and its name is that of the
    algorithm in the run file.
    settings: the options of the command line by their names, with _ for -; their units are those of
    the command line. None leaves a setting out. out: the run file; by default a new one in the
    system's temporary folder. world: an intracommunicator of mpi4py, COMM_WORLD by default.

    Collective: under mpirun every rank calls it with the same settings, and gets the Run; an
    exception that nobody catches ends the whole job from then on, and so does a rank that has
    waited for 10 minutes for another one to call it. Nothing is printed on stdout. No process is
    started; whether MPI takes the memory of GPUs is read from the cache of `localavg doctor`.

    A run that diverges is returned with the status "failed", one that meets its `time_limit` with
    "interrupted"; a line on stderr says so. After Ctrl-C the run is saved, and KeyboardInterrupt
    is raised; after SIGTERM, SIGUSR1 or SIGUSR2 it is saved, and SystemExit ends the program with
    status 75. Raises UserError, on every rank, for what the command line refuses.
    """
    here = _world() if world is None else world
    if here.size > 1:
        from localavg.parallel.abort import abort_on_exception

        abort_on_exception(here)  # as `Fleet` does
    config = _agreed({"algorithm": algorithm, "out": out, **settings}, here)
    with _restored(config.names_network):
        outcome = _run(config, here)
        gc.collect()  # the pieces of a run refer to each other, and hold shared memory
        return _ended(config, outcome, here)


def _world() -> MPI.Intracomm:
    """Start MPI, if it has not started, and return COMM_WORLD.

    The variable is for Open MPI, which otherwise leaves a file in /dev/shm at every start without a
    launcher. It is set for the start only, since programs of the notebook would inherit it.
    """
    if BTL in os.environ or any(name in os.environ for name in RANK):
        return started()
    os.environ[BTL] = "self"
    try:
        return started()
    finally:
        del os.environ[BTL]


def _agreed(given: Settings, world: MPI.Intracomm) -> TrainConfig:
    """Return the settings of the run. Raise one error on all ranks where a rank's are wrong.

    Without `out` they name a new file in the temporary folder of the first rank. Collective.
    """
    from localavg.parallel.watchdog import watched

    error, settings, config = None, {}, None
    try:
        config = checks.read(read(given))
        settings = checks.all_settings(config)
    except UserError as e:
        error = str(e)
    with watched(world, "localavg.train, which every rank must call", WARN_AFTER_S, LIMIT_S):
        told = world.allgather((error, settings))
    first = told[0][1]
    for rank, (message, theirs) in enumerate(told):
        if message is not None:
            raise SharedError(message)
        for name, value in theirs.items():
            if value != first.get(name):
                raise SharedError(
                    f"localavg.train: `{name} = {value}` on rank {rank} and "
                    f"`{name} = {first.get(name)}` on rank 0; give all ranks the same settings"
                )
    assert config is not None
    if config.out is None:
        place = tempfile.mkdtemp(prefix="localavg-") if world.rank == 0 else None
        config = replace(config, out=str(Path(world.bcast(place), f"{config.algorithm}.h5")))
    return config


def _run(config: TrainConfig, world: MPI.Intracomm) -> Outcome:
    """Run, with what is known beforehand on the first rank. Collective."""
    from localavg.files.provenance import provenance

    aware: Probe | None = None
    if world.rank == 0 and world.size > 1 and config.transport in BETWEEN and may_use_gpus(config):
        from localavg.parallel import probe

        aware = probe.known()
    return start(config, world, provenance() if world.rank == 0 else None, aware, age_s=0.0)


def _ended(config: TrainConfig, outcome: Outcome, world: MPI.Intracomm) -> Run:
    """Return the Run on every rank, read by the one that wrote it; raise what ended it. Collective.

    A run that was finished before has no such rank: the first one reads it.
    """
    texts = world.allgather(outcome.text)
    writer = next((rank for rank, text in enumerate(texts) if text), 0)
    why = texts[writer]
    if outcome.status == FAILED and why.startswith("localavg: "):
        raise SharedError(why.removeprefix("localavg: "))
    read: tuple[Run | None, str] = None, ""
    if world.rank == writer:
        if outcome.status != FINISHED:
            print(f"localavg: {why}", file=sys.stderr, flush=True)
        try:
            read = load(config.path), ""
        except UserError as e:
            read = None, str(e)
    run, error = world.bcast(read, writer)
    if run is None:
        raise SharedError(error)
    by = run.attrs.get("stopped_by", "") if outcome.status == GO_ON else ""
    if by == "SIGINT":
        raise KeyboardInterrupt
    if by.startswith("SIG"):
        raise SystemExit(GO_ON)
    return run


@contextmanager
def _restored(network: bool) -> Iterator[None]:
    """Give the process back its numbers of threads, and torch its modes, after a run.

    network: load torch before, since its modes are not known otherwise.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if network:
        with suppress(ImportError):  # the run says that it is missing
            import_module("torch")
    torch = sys.modules.get("torch")
    with threadpool_limits(limits=None):
        if torch is None:
            yield
            return
        threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
        kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        filled = torch.utils.deterministic.fill_uninitialized_memory
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(mode)
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
            torch.utils.deterministic.fill_uninitialized_memory = filled
