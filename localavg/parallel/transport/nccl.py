"""Means over ranks by NCCL, queued in the stream of the kernels, with no wait. One GPU a rank.

A run that outlives ranks does wait. NCCL does not notice that a rank has died: its sum stays on the
GPU for ever, and so does the host that waits for it. So the ranks meet over MPI before each sum,
and while the sum is on the GPU each rank asks MPI whether one has died; then it aborts the sum. The
meeting is a barrier, and not ULFM's agreement: a rank that has noticed a death elsewhere does not
come, and revokes the communicator; that ends a barrier, and not an agreement.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType

from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel import survive
from localavg.parallel.device import Cuda, Stream, address
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.patient import wait
from localavg.parallel.transport.mpi import CHUNK
from localavg.parallel.transport.on_device import OnDevice


class Ring:
    """One NCCL communicator of the ranks of `comm`, which can be revoked. Collective.

    The first rank makes the communicator's id and broadcasts it over MPI. Who revokes it ends the
    sums of this rank's GPU; their numbers mean nothing.
    """

    def __init__(self, nccl: ModuleType, comm: MPI.Comm) -> None:
        key = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
        self.ranks = nccl.NcclCommunicator(comm.size, key, comm.rank)
        self.kind = nccl.NCCL_FLOAT32, nccl.NCCL_SUM
        self.lengths: set[int] = set()  # NCCL connects the ranks at the first sum of some lengths
        self._revoked = False
        self._lock = threading.Lock()  # nobody frees it while another thread queues a sum

    def sum_(self, x: Array, stream: Stream) -> None:
        """Queue that x [n] is set to its sum over the ranks. Raises Lost if it was revoked."""
        with self._lock:
            self.check()
            for i in range(0, len(x), CHUNK):
                piece = x[i : i + CHUNK]
                start = address(piece)  # of what is sent and of what is received
                self.ranks.allReduce(start, start, len(piece), *self.kind, stream.ptr)
        self.lengths.add(len(x))

    def check(self) -> None:
        """Raise Lost if it was revoked."""
        if self._revoked:
            raise survive.Lost("a sum on GPUs was ended, because a rank died")

    def Is_revoked(self) -> bool:
        """Return whether this rank has revoked it."""
        return self._revoked

    def Revoke(self) -> None:
        """End the sums that wait on this rank's GPU."""
        with self._lock:
            if not self._revoked:
                self._revoked = True
                self.ranks.abort()

    def Free(self) -> None:
        """Free it. Collective."""
        self.ranks.destroy()


class Nccl(OnDevice):
    """Means by one NCCL communicator for each group that spans ranks.

    background: the transport of another thread. Two sums that are on a GPU at once may each wait
    for the other's end, if another rank's GPU began them in another order (NCCL's guide, "Using
    multiple NCCL communicators concurrently"). So all ranks wait for that in the background, until
    it has `landed`, before they begin another one.
    """

    name = "nccl"
    background: Nccl | None = None

    def __init__(
        self, fleet: Fleet, device: Cuda, clusters: Sequence[int] = (), why: str = "asked for"
    ) -> None:
        super().__init__(fleet, device, clusters, why)
        nccl = device.nccl
        assert nccl is not None, "ask `refusal` first"
        self.fleet = fleet
        self.landed = threading.Event()
        self.landed.set()
        self._of: dict[int, Ring] = {}  # id of an MPI communicator -> NCCL's
        for groups in self.groups.values():
            for comm in (group.comm for group in groups if group.comm is not None):
                with self._limited():
                    self._of[id(comm)] = ring = Ring(nccl, comm)
                if fleet.outlives:
                    fleet.made.append(ring)

    def again(self, fleet: Fleet) -> Nccl:
        self.background = made = type(self)(fleet, self.device, self.clusters, "in the background")
        return made

    def aside(self) -> AbstractContextManager[None]:
        self.landed = landed = threading.Event()
        return _landing(super().aside(), landed)

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        if group.comm is None:
            return
        if self.background is not None:
            self.background.landed.wait()
        ring, stream = self._of[id(group.comm)], self.device.stream()
        if not self.fleet.outlives:
            ring.sum_(x, stream)
            return
        group.comm.Barrier()  # raises where a rank has died
        with nullcontext() if len(x) in ring.lengths else self._limited():
            ring.sum_(x, stream)
        self._outlast(ring, stream)

    def _outlast(self, ring: Ring, stream: Stream) -> None:
        """Wait for the sum that is queued. Where a rank has died, end all sums and raise Lost."""
        end = stream.record()
        wait(lambda: end.done or survive.reported(self.world))
        if not end.done:
            with survive.limited(self.world, survive.RESUME):
                survive.revoke(self.fleet.made)
                end.synchronize()
        ring.check()

    def _limited(self) -> AbstractContextManager[object]:
        """Return a context that ends the job where NCCL waits for ever to connect the ranks."""
        if not self.fleet.outlives:
            return nullcontext()
        why = "NCCL did not connect the ranks"
        return survive.limited(self.world, survive.RESUME, survive.HEARD_S, why)


@contextmanager
def _landing(aside: AbstractContextManager[None], landed: threading.Event) -> Iterator[None]:
    """Set `landed` at the end of the context `aside`, whatever happened in it."""
    try:
        with aside:
            yield
    finally:
        landed.set()


def refusal(fleet: Fleet, device: Cuda) -> str:
    """Return why NCCL cannot be used here, "" if it can; the same on every rank. Collective."""
    if not all(fleet.world.allgather(device.nccl is not None)):
        return "CuPy here comes without NCCL"
    return _crowded(fleet.world.allgather(device.identity))


def _crowded(identities: Sequence[tuple[str, str]]) -> str:
    """Return which GPU several ranks share, "" if each rank has its own; identities [R]."""
    for (host, gpu), users in Counter(identities).items():
        if users > 1:
            return f"{users} ranks share GPU {gpu} of {host}, and NCCL takes one rank a GPU"
    return ""
