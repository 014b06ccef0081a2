"""Means over ranks by an MPI that takes device memory: only its blocking Allreduce in place.

Nonblocking, persistent and one-sided calls on device memory crash in Open MPI. So a mean in the
background goes through pinned host memory: a thread that is blocked in an Allreduce would keep a
core busy, and with two ranks on a GPU the way through host memory was the faster one.
"""

from __future__ import annotations

from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.mpi import CHUNK
from localavg.parallel.transport.on_device import OnDevice
from localavg.parallel.transport.staged import Staged


class CudaAware(OnDevice):
    """Means by an Allreduce that gets the address of the sum on the device."""

    name = "cuda_aware"

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        if group.comm is None:
            return
        for i in range(0, len(x), CHUNK):
            self.device.settle()  # MPI does not know the stream that made x
            group.comm.Allreduce(MPI.IN_PLACE, x[i : i + CHUNK])

    def again(self, fleet: Fleet) -> Staged:
        return Staged(fleet, self.device, self.clusters, "in the background")
