"""P learners over the MPI ranks, and the communicators between them.

Learners, not ranks, are the unit: `parallel.layout` says which ones a rank holds, the rows of its
weight matrix. The communicators: `world`; `node`, the ranks of this machine; and, for averages
within clusters of S learners, one for each cluster that spans ranks.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from localavg.errors import SharedError, UserError
from localavg.parallel.layout import Layout

T = TypeVar("T")

SHARED_MEMORY = "/dev/shm"

# environment variable with the number of ranks -> who sets it; the innermost launcher first
LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "MPICH's mpiexec or a PMI launcher",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "SLURM_STEP_NUM_TASKS": "srun",
    "SLURM_NTASKS": "Slurm",
}


@dataclass(frozen=True)
class Group:
    """Learners that average together: rows of this rank's matrix, the ranks that hold the others,
    and how many in all.
    """

    rows: slice
    comm: MPI.Comm | None  # None: all of them are here
    learners: int
    nodes: int  # nodes that the group's ranks lie on


class Fleet:
    """P learners laid over the ranks of `world`.

    `world` is any intracommunicator; nothing below reaches for COMM_WORLD. `ranks_per_node` splits
    each machine into artificial nodes of so many ranks, so that steps within and across nodes can
    be told apart on a laptop.

    layout: who holds which learners. learners: those of this rank, the rows of its matrices [L, n].
    L, their number, may differ by one between ranks.

    Raises UserError where P is below the number of ranks, or where the launcher started another
    number of ranks than `world` holds.
    """

    def __init__(
        self, world: MPI.Intracomm, P: int | None = None, ranks_per_node: int | None = None
    ) -> None:
        check_world_size(
            MPI.COMM_WORLD.size, os.environ
        )  # what was launched; `world` may be a part of it
        self.world = world
        self.rank, self.ranks = world.rank, world.size

        machine = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
        self.place = machine.rank  # among the ranks of this machine
        self.node = machine.Split(
            machine.rank // (ranks_per_node or machine.size), key=machine.rank
        )
        first = world.allgather(
            self.node.bcast(world.rank)
        )  # [R] the first rank on each rank's node
        node_of = tuple(sorted(set(first)).index(r) for r in first)  # [R]
        self.layout = layout = Layout(self.ranks if P is None else P, node_of)
        self.P, self.node_of, self.nodes = layout.P, layout.node_of, layout.nodes
        self.learners = layout.learners(self.rank)
        self.L = len(self.learners)
        self.hosts = world.allgather(MPI.Get_processor_name())  # [R]
        self.threads = threads_per_rank(machine)
        threadpool_limits(self.threads)
        self._groups: dict[int, list[Group]] = {}

    def groups(self, S: int) -> list[Group]:
        """This rank's part of the clusters of S consecutive learners; S = P is everyone. Collective
        at its first call.
        """
        if S not in self._groups:
            clusters = enumerate(self.layout.clusters(S))
            self._groups[S] = [
                self._group(c, cluster)
                for c, cluster in clusters
                if self.rank in self.layout.ranks_of(cluster)
            ]
        return self._groups[S]

    def _group(self, c: int, cluster: range) -> Group:
        layout, comm = self.layout, None
        members = layout.ranks_of(cluster)
        if len(members) > 1:
            # Only the members call. Clusters are made in order of c, so nobody waits in a ring.
            comm = self.world.Create_group(self.world.group.Incl(list(members)), tag=c)
        rows, nodes = layout.rows(self.rank, cluster), len(layout.by_node(members))
        return Group(rows, comm, len(cluster), nodes)

    def node_array(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array that all ranks of the node share, one copy a node; its contents are whatever
        they are. Collective.

        It lies in shared memory, or, where /dev/shm is too small, in a file in the temporary
        folder, which is then said. The file has no name by the time this returns, so nothing stays
        behind however the job ends. Raises UserError on every rank where neither has room.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        shared = self.node.size > 1 and nbytes > 0
        path = self.node.bcast(
            self.together(lambda: _shared_file(nbytes) if shared and self.node.rank == 0 else None)
        )
        try:
            array = self.together(
                lambda: (
                    np.memmap(path, dtype, "r+", shape=shape) if shared else np.empty(shape, dtype)
                )
            )
        finally:  # everyone has it, or nobody wants it
            if path is not None and self.node.rank == 0:
                os.unlink(path)
        return np.asarray(array)

    def shared_memory_room(self) -> float:
        """Bytes free in this node's shared memory; a rank that is alone on its node needs none, and
        has no bound.
        """
        if self.node.size == 1:
            return math.inf
        return float(shutil.disk_usage(SHARED_MEMORY).free) if os.path.isdir(SHARED_MEMORY) else 0.0

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; if it fails for the user or the system on any, all raise the
        first SharedError.
        """
        value, error = None, None
        try:
            value = work()
        except (UserError, OSError, MemoryError) as e:
            error = (
                str(e)
                if isinstance(e, UserError)
                else f"rank {self.rank}: {str(e) or type(e).__name__}"
            )
        for e in self.world.allgather(error):
            if e is not None:
                raise SharedError(e)
        return value  # type: ignore[return-value]


def _shared_file(nbytes: int) -> str:
    """A new file of nbytes in shared memory, else in the temporary folder; its pages are made where
    they are first touched.
    """
    places = [SHARED_MEMORY, tempfile.gettempdir()]
    for place in places:
        # Asked before: a page that tmpfs then cannot give is a SIGBUS, not an error.
        if os.path.isdir(place) and shutil.disk_usage(place).free > nbytes:
            handle, path = tempfile.mkstemp(prefix="localavg-", dir=place)
            os.ftruncate(handle, nbytes)
            os.close(handle)
            if place != places[0]:
                print(
                    f"localavg: {nbytes / 1e9:.2f} GB do not fit in {places[0]}; this node shares "
                    f"a file in {place} instead",
                    file=sys.stderr,
                )
            return path
    raise UserError(
        f"{nbytes / 1e9:.2f} GB for the node's one copy of the data: neither "
        f"{' nor '.join(places)} has room; "
        f"enlarge /dev/shm (mount -o remount,size=…), set TMPDIR, or use one rank a node"
    )


def check_world_size(size: int, environ: Mapping[str, str]) -> None:
    """Fail at once where the launcher started another number of ranks than MPI sees (srun without
    PMIx: N singletons).
    """
    for variable, launcher in LAUNCHERS.items():
        if (value := environ.get(variable, "")).isdigit():
            if int(value) != size:
                raise UserError(
                    f"{launcher} started {value} ranks ({variable}) but MPI sees {size}: launcher "
                    "and MPI library do not "
                    "belong together; use srun --mpi=pmix, or the mpirun of the MPI that mpi4py "
                    "loads "
                    f"(python -m mpi4py --mpi-library), or unset {variable} if one rank is meant"
                )
            return


def threads_per_rank(machine: MPI.Intracomm) -> int:
    """Threads a rank may use: OMP_NUM_THREADS if set; else the cores it is bound to, shared fairly;
    1 where it is not bound.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    cores = (
        frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset({0})
    )
    sharing = sum(not cores.isdisjoint(other) for other in machine.allgather(cores))
    if told.isdigit() and int(told) > 0:
        return int(told)
    bound = len(cores) < (os.cpu_count() or 1)
    return max(1, len(cores) // sharing) if bound else 1


def abort_on_exception(world: MPI.Intracomm) -> None:
    """From now on an exception that nobody catches, in any thread, ends the whole job with status
    1.
    """

    def hook(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        sys.stderr.write(f"rank {world.rank} failed; ending the job\n")
        traceback.print_exception(kind, value, trace)
        sys.stderr.flush()
        world.Abort(1)

    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
