"""``localavg.train``: a run of the command line from Python, in a notebook, alone or under MPI."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import Field, fields, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localavg import algorithms
from localavg.algorithms.parameters import AUTO, Option, updates_or_auto
from localavg.cli import RANK, started
from localavg.cli.train import ALSO, kind_of, may_use_gpus, start
from localavg.config import TrainConfig
from localavg.errors import FAILED, FINISHED, GO_ON, SharedError, UserError, bad, whole
from localavg.files.reading import Run, load
from localavg.training import checks

if TYPE_CHECKING:
    from mpi4py import MPI

    from localavg.interfaces import Settings
    from localavg.parallel.probe import Probe
    from localavg.training.ending import Outcome

WARN_AFTER_S = 60.0  # how long a rank waits for the others to call `train` before it prints so
BTL = "OMPI_MCA_btl"  # Open MPI's choice of what carries messages
BETWEEN = ("auto", "cuda_aware")  # transports whose choice asks whether MPI takes GPU memory


def train(
    algorithm: str, *, out: str | os.PathLike[str] | None = None, world: Any = None, **settings: Any
) -> Run:
    """Train as ``localavg train ALGORITHM`` does, and return what is in the run file.

        run = localavg.train("kavg", K=16, learners=8, data="digits", model="mlp", epochs=5)

    settings: the options of the command line by their names, with _ for -; their units are those of
    the command line. None leaves a setting out. out: the run file; by default a new one in the
    system's temporary folder. world: an intracommunicator of mpi4py, COMM_WORLD by default.

    Collective: under mpirun every rank calls it with the same settings, and gets the Run; an
    exception that nobody catches ends the whole job from then on. Nothing
    is printed on stdout. No process is started; whether MPI takes the memory of GPUs is read from
    the cache of `localavg doctor`.

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
        config = checks.read(_read(given))
        settings = checks.all_settings(config)
    except UserError as e:
        error = str(e)
    with watched(world, "localavg.train, which every rank must call", WARN_AFTER_S, None):
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


def _read(given: Settings) -> dict[str, object]:
    """Return the settings as the command line would give them, those that are given."""
    algorithm = given["algorithm"]
    if not isinstance(algorithm, str):
        raise UserError(f'algorithm {algorithm!r}: give its name, as in localavg.train("kavg")')
    if algorithm not in algorithms.BOTH:
        raise algorithms.unknown(algorithm)
    earlier = {word.removeprefix("--"): name for name, words in ALSO.items() for word in words}
    found: dict[str, object] = {"algorithm": algorithm}
    for said, value in given.items():
        name = earlier.get(said, said)
        if name != "algorithm" and value is not None and value is not False:
            found[name] = _value(name, value, _known(algorithm).get(name))
    if not found.get("out") and (useless := {"resume", "checkpoint_every"} & found.keys()):
        raise UserError(f"`{min(useless)}` needs `out`: without it every run is in a new file")
    if found.get("on_failure") == "continue":
        raise UserError(
            "`on_failure = continue`: a program with lost ranks cannot go on after the run; use "
            "the command line, or leave it out"
        )
    return found


@cache
def _known(algorithm: str) -> dict[str, Field | Option]:
    """Return the settings that a run with this algorithm may have, and the options of others."""
    own = {name: x for a in algorithms.BOTH for name, x in algorithms.declared(a).items()}
    common = {f.name: f for f in fields(TrainConfig) if f.metadata["group"]}
    return {**own, **algorithms.declared(algorithm), **common}


def _value(name: str, value: Any, about: Field | Option | None) -> object:
    """Return a setting's value in its kind; UserError for another kind or an unknown setting."""
    if about is None and name != "nesterov":  # which `checks.read` translates
        like = get_close_matches(name, [*_known("kavg")], 1)
        hint = f"; did you mean `{like[0]}`?" if like else ""
        raise UserError(f"`{name}`: no setting of a run has this name{hint}")
    if isinstance(about, Field) and isinstance(about.default, tuple):
        if not isinstance(value, list | tuple) or not value:
            raise bad(name, repr(value), "must be a list of numbers, such as [80, 120]")
        return tuple(_number(name, x) for x in value)
    kind: Any = (
        bool if about is None else kind_of(about) if isinstance(about, Field) else about.kind
    )
    if kind is updates_or_auto and value == AUTO:
        return AUTO
    if kind in (int, updates_or_auto):
        whole(name, value)
        return int(value)
    if kind is float:
        return _number(name, value)
    if kind is bool:
        if value is not True:
            raise bad(name, repr(value), "must be True or False")
        return True
    return _text(name, value)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise bad(name, repr(value), "must be a number, such as 0.5")
    return float(value)


def _text(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(text, str) or not text:
        raise bad(name, repr(value), "must be a text that is not empty")
    return text


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
