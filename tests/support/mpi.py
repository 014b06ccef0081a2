"""Launches under MPI for the tests, each with a hard time limit.

A launch costs over a second whatever it does, so `train_all` runs many command lines, and `call` a
function of a test file, in the processes of one launch (both through `drive.py`).
"""

import contextlib
import inspect
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from drive import command_lines

from localavg.files import record

if TYPE_CHECKING:
    import psutil

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
MARK = "LOCALAVG_TEST_LAUNCH"  # environment variable by which all processes of a launch are known
NO_LAUNCH = "LOCALAVG_TEST_NO_LAUNCH"  # environment variable of pytest --no-launch
# Open MPI's launcher on a machine that stands still for a while: nothing ran
STALLED = "listener thread failed to start"
LAUNCHERS = (
    "OMPI_",
    "PMI",
    "PRTE",
    "JSM_",
    "LSB_",
    "SLURM_",
)  # what a job's environment variables begin with
# of a launch, unless told: none takes a minute on a quiet machine, so it holds where others work
# too
LIMIT_S = 600
SHOWN = 4000  # characters of output in a message


def run(
    ranks: int,
    *argv: str | os.PathLike,
    timeout: float = LIMIT_S,
    mpi: str = "openmpi",
    env: Mapping[str, str | None] | None = None,
    check: bool = False,
    again: int = 2,
    root: Path = ROOT,
    program: Sequence[str] = ("python", "-m", "mpi4py"),
    ft: bool = False,
) -> subprocess.CompletedProcess:
    """`mpirun -n ranks python -m mpi4py *argv` from the top of the checkout `root`, or another
    `program` with these arguments; mpi is openmpi, mpich or path, the mpirun on PATH.

    env: variables to set, or with None to remove. A launch that outlasts `timeout` seconds is
    killed, all its processes, and fails the test; with `check`, so does one that ends with another
    status than 0. again: how often to launch again where the launcher itself gave up. ft: whether
    the job goes on when a rank dies.
    """
    need(mpi)
    launcher = ["jobs/local/mpirun", *(["--with-ft", "ulfm"] if ft else [])]
    words = [*launcher, "-n", str(ranks), *program, *map(os.fspath, argv)]
    mark = uuid.uuid4().hex
    paths = [
        str(root),
        str(SUPPORT.parent),
        str(SUPPORT),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        **(env or {}),
        "MPI": mpi,
        MARK: mark,
    }
    variables = {name: value for name, value in variables.items() if value is not None}
    process = subprocess.Popen(
        words,
        cwd=root,
        env=variables,
        text=True,
        errors="replace",
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(mark)
        out, err = process.communicate(timeout=30)
        pytest.fail(
            f"still running after {timeout} s, killed: {shlex.join(words)}{_tail(out, err)}"
        )
    except BaseException:
        kill(mark)
        raise
    if STALLED in err and again:
        return run(
            ranks,
            *argv,
            timeout=timeout,
            mpi=mpi,
            env=env,
            check=check,
            again=again - 1,
            root=root,
            program=program,
            ft=ft,
        )
    if check and process.returncode:
        pytest.fail(f"status {process.returncode}: {shlex.join(words)}{_tail(out, err)}")
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def alone(
    *words: object, cwd: str | os.PathLike = ROOT, timeout: float = LIMIT_S, **env: str
) -> subprocess.CompletedProcess:
    """`python -m localavg WORDS` in a folder, as one process outside any job."""
    if words and words[0] in ("train", "bench", "doctor"):  # they start MPI
        need("openmpi")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return subprocess.run(
        [sys.executable, "-m", "localavg", *map(str, words)],
        cwd=cwd,
        env={**kept, **env},
        text=True,
        timeout=timeout,
        capture_output=True,
    )


def kill(mark: str) -> None:
    """End every process of the launch with this mark: ranks leave its group, with MPICH its
    session.

    The launcher is asked first, because it then removes the shared memory of its ranks.
    """
    import psutil  # here, so that tests of GPUs can be had without it

    found = marked(mark)
    pids = {process.pid for process in found}
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:
                process.terminate()
    psutil.wait_procs(found, timeout=5)
    while found := marked(mark):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=5)


def marked(mark: str, name: str = MARK) -> "list[psutil.Process]":
    """The living processes in whose environment `name` is `mark`."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == mark:
                found.append(process)
    return found


def need(mpi: str) -> None:
    """Skip the test where nothing may be launched, or this MPI library is not set up."""
    if NO_LAUNCH in os.environ:
        pytest.skip("launches MPI, which --no-launch leaves out")
    if mpi == "mpich" and not (ROOT / ".mpich").exists():
        pytest.skip("MPICH is not set up: make .mpich")


def train(folder: Path, ranks: int, line: str, **how: Any) -> record.Run:
    """What `localavg train LINE` on `ranks` ranks leaves in its run file, a new one in `folder`."""
    out = folder / f"{uuid.uuid4().hex}.h5"
    run(
        ranks, "-m", "localavg", "train", *shlex.split(line), "--out", out, **{"check": True, **how}
    )
    return record.load(out)


def train_all(folder: Path, ranks: int, lines: Mapping[str, str], **how: Any) -> "Runs":
    """`localavg train LINE` for every one of `lines` by name, in one launch."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    words = [
        ["train", *shlex.split(line), "--out", str(folder / f"{name}.h5")]
        for name, line in lines.items()
    ]
    return Runs(folder, _drive(ranks, command_lines, (words,), **how)[1])


class Runs:
    """The run files of one launch by name. A run that left none, or did not finish, fails the test
    that asks for it.
    """

    def __init__(self, folder: Path, done: subprocess.CompletedProcess) -> None:
        self.folder, self.done, self._found = folder, done, {}

    def __getitem__(self, name: str) -> record.Run:
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def _load(self, name: str) -> record.Run:
        try:
            found = record.load(self.folder / f"{name}.h5")
        except record.UserError as e:
            pytest.fail(f"{name}: {e}{_tail(self.done.stdout, self.done.stderr)}")
        if found.status != "finished":
            why = f"{name} is {found.status}: {found.attrs.get('failure')}"
            pytest.fail(why + _tail(self.done.stdout, self.done.stderr))
        return found


def call(ranks: int, function: Callable, *args: Any, **how: Any) -> list[Any]:
    """What function(world, *args), at the top of a test file, returns on every rank, in the order
    of the ranks.
    """
    answers, done = _drive(ranks, function, args, **how)
    if answers is None:
        pytest.fail(f"status {done.returncode}, no answer{_tail(done.stdout, done.stderr)}")
    return answers


def _drive(
    ranks: int, function: Callable, args: tuple, **how: Any
) -> tuple[list | None, subprocess.CompletedProcess]:
    home = Path(inspect.getfile(function)).parent
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder, "request"), Path(folder, "reply")
        request.write_bytes(pickle.dumps((function.__module__, function.__name__, args)))
        done = run(ranks, SUPPORT / "drive.py", home, request, reply, **how)
        return pickle.loads(reply.read_bytes()) if reply.exists() else None, done


def _tail(out: str, err: str) -> str:
    return f"\n--- stdout\n{out[-SHOWN:]}\n--- stderr\n{err[-SHOWN:]}"
