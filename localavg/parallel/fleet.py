"""P learners over the MPI ranks, and the communicators between them.

Learners, not ranks, are the unit: `parallel.layout` says which learners a rank holds, which are the
rows of its weight matrix. The communicators are `world`; `node`, the ranks of this node; and, for
averages within clusters of S learners, one for each cluster that spans ranks.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from localavg.errors import SharedError, UserError, amount
from localavg.parallel.abort import abort_on_exception
from localavg.parallel.aligned import host_zeros
from localavg.parallel.layout import Layout
from localavg.parallel.patient import Patient
from localavg.parallel.survive import Revocable

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
    """Learners that average together."""

    rows: slice
    """the rows of this rank's matrix that belong to learners of the group"""
    comm: MPI.Comm | None
    """the ranks that hold the group's learners; None if this rank holds all of them"""
    learners: int
    """number of learners in the group"""
    nodes: int
    """number of nodes with ranks of the group"""


class Fleet:
    """P learners laid over the ranks of `world`.

    world: any intracommunicator. P: learners, one for each rank if not given. ranks_per_node: treat
    every N ranks of a host as one node, so that averages within and between nodes differ on a
    laptop too. outlives: whether the run goes on without ranks that die.

    layout: which rank holds which learners. learners: those of this rank, the rows of its matrices
    [L, n]. Their number L may differ by one between ranks. made: the list to which this fleet adds
    `world` and all communicators that it makes.

    With several ranks, an exception that nobody catches ends the whole job from now on.

    Raises UserError where P is below the number of ranks, or where the launcher started another
    number of ranks than MPI sees.
    """

    def __init__(
        self,
        world: MPI.Intracomm,
        P: int | None = None,
        ranks_per_node: int | None = None,
        made: list[Revocable] | None = None,
        outlives: bool = False,
    ) -> None:
        check_world_size(MPI.COMM_WORLD.size, os.environ)  # `world` may be a part of it
        self.world, self.ranks_per_node, self.outlives = world, ranks_per_node, outlives
        self.rank, self.ranks = world.rank, world.size
        self.made: list[Revocable] = [] if made is None else made
        self.made.append(world)
        if world.size > 1:
            abort_on_exception(world)

        host = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
        self.made.append(host)
        self.place = host.rank  # among the ranks of this host
        self.node = host.Split(host.rank // (ranks_per_node or host.size), key=host.rank)
        self.made.append(self.node)
        first = world.allgather(self.node.bcast(world.rank))  # [R] first rank on each rank's node
        node_of = tuple(sorted(set(first)).index(r) for r in first)  # [R]
        self.layout = layout = Layout(self.ranks if P is None else P, node_of)
        self.P, self.node_of, self.nodes = layout.P, layout.node_of, layout.nodes
        self.learners = layout.learners(self.rank)
        self.L = len(self.learners)
        # the learners of this host in memory that a node shares, those of artificial nodes too
        self.sharing = sum(host.allgather(self.L if self.node.size > 1 else 0))
        self.hosts = world.allgather(MPI.Get_processor_name())  # [R]
        self.threads = threads_per_rank(host)
        threadpool_limits(self.threads)
        self._groups: dict[int, list[Group]] = {}

    def again(self) -> Fleet:
        """Return the same fleet with communicators of its own, for another thread. Collective.

        `made` of both is one list.
        """
        world = Patient(self.world.Dup())
        return Fleet(world, self.P, self.ranks_per_node, self.made, self.outlives)

    def everyone(self) -> MPI.Intracomm:
        """Make a communicator of all ranks, for messages that nobody may mistake. Collective."""
        self.made.append(made := self.world.Dup())
        return made

    def free(self) -> None:
        """Free all communicators that were made for this fleet, which is used no more. Collective.

        MPI libraries have room for a few thousand, which many runs in one process use up.
        """
        for comm in self.made[1:]:
            comm.Free()
        del self.made[1:]

    def communicator(self, ranks: Sequence[int]) -> MPI.Intracomm:
        """Make a communicator of these ranks, which waits as `world` does. Collective over them."""
        made = self.world.Create_group(self.world.group.Incl(list(ranks)), tag=ranks[0])
        self.made.append(made)
        return Patient(made) if isinstance(self.world, Patient) else made

    def groups(self, S: int) -> list[Group]:
        """Return this rank's groups for clusters of S consecutive learners; S = P is everyone.

        Collective at its first call.
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
            comm = self.communicator(members)
        rows, nodes = layout.rows(self.rank, cluster), len(layout.by_node(members))
        return Group(rows, comm, len(cluster), nodes)

    def node_array(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike = np.float32,
        what: str = "the rows of its learners",
        instead: str = "use one rank a node",
    ) -> np.ndarray:
        """Allocate an array that all ranks of the node share. Collective.

        what: the purpose, for the error where there is no room. instead: what needs less.

        It lies in shared memory or, where /dev/shm is too small, in a file in the temporary folder,
        with a line on stderr. The file has no name when this returns, so nothing stays behind,
        however the job ends. Raises UserError on every rank where neither place has room.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        shared = self.node.size > 1 and nbytes > 0
        path = self.node.bcast(
            self.together(
                lambda: (
                    _shared_file(nbytes, what, instead) if shared and self.node.rank == 0 else None
                )
            )
        )

        def allocate() -> np.ndarray:
            return np.memmap(path, dtype, "r+", shape=shape) if shared else host_zeros(shape, dtype)

        try:
            array = self.together(allocate)
        finally:  # every rank has it, or none needs it
            if path is not None and self.node.rank == 0:
                os.unlink(path)
        return np.asarray(array)

    def least(self, value: float) -> float:
        """Return the smallest value over the ranks. Collective."""
        return float(min(self.world.allgather(value)))

    def shared_memory_room(self) -> float:
        """Return the free bytes of this node's shared memory; inf for a rank alone on its node."""
        if self.node.size == 1:
            return math.inf
        return float(shutil.disk_usage(SHARED_MEMORY).free) if os.path.isdir(SHARED_MEMORY) else 0.0

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank and return its value.

        If it raises UserError, OSError or MemoryError on any rank, all ranks raise SharedError with
        the first rank's message. Collective.
        """
        done: list[T] = []
        error = None
        try:
            done.append(work())
        except (UserError, OSError, MemoryError) as e:
            known = isinstance(e, UserError)
            error = str(e) if known else f"rank {self.rank}: {str(e) or type(e).__name__}"
        for message in self.world.allgather(error):
            if message is not None:
                raise SharedError(message)
        return done[0]


def _shared_file(nbytes: int, what: str, instead: str) -> str:
    """Make a file of nbytes in shared memory, else in the temporary folder; return its path."""
    places = [SHARED_MEMORY, tempfile.gettempdir()]
    for place in places:
        if path := _reserved(nbytes, place):
            if place != places[0]:
                print(
                    f"localavg: {amount(nbytes)} do not fit in {places[0]}; this node shares "
                    f"a file in {place} instead",
                    file=sys.stderr,
                )
            return path
    raise UserError(
        f"{amount(nbytes)} a node for {what}: neither {' nor '.join(places)} has room; enlarge "
        f"/dev/shm (mount -o remount,size=…), set TMPDIR, or {instead}"
    )


def _reserved(nbytes: int, folder: str) -> str:
    """Make a file of nbytes whose pages are reserved; return its path, or "" if there is no room.

    A page that tmpfs cannot give later is a SIGBUS and not an error, and another job may take the
    room between a check and the first use.
    """
    if not os.path.isdir(folder):
        return ""
    handle, path = tempfile.mkstemp(prefix="localavg-", dir=folder)
    try:
        os.posix_fallocate(handle, 0, nbytes)
    except OSError:
        os.unlink(path)
        return ""
    finally:
        os.close(handle)
    return path


def check_world_size(size: int, environ: Mapping[str, str]) -> None:
    """Raise UserError where the launcher started another number of ranks than MPI sees.

    srun without PMIx, for example, starts N processes of one rank each.
    """
    for variable, launcher in LAUNCHERS.items():
        if (value := environ.get(variable, "")).isdigit():
            if int(value) != size:
                raise UserError(
                    f"{launcher} started {value} ranks ({variable}) but MPI sees {size}: launcher "
                    "and MPI library do not belong together; use srun --mpi=pmix, or the mpirun of "
                    "the MPI that mpi4py loads (python -m mpi4py --mpi-library), or unset "
                    f"{variable} if one rank is meant"
                )
            return


def threads_per_rank(host: MPI.Comm) -> int:
    """Return how many threads this rank may use. Collective over the ranks of the host.

    OMP_NUM_THREADS if it is set; else this rank's share of the cores that it is bound to; 1 where
    it is not bound.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    known = hasattr(os, "sched_getaffinity")
    cores = frozenset(os.sched_getaffinity(0)) if known else frozenset({0})
    sharing = sum(not cores.isdisjoint(other) for other in host.allgather(cores))
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    bound = len(cores) < (os.cpu_count() or 1)
    return max(1, len(cores) // sharing) if bound else 1
