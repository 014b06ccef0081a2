"""Means over ranks by an MPI that takes device memory: only its blocking Allreduce in place.

Nonblocking, persistent and one-sided calls on device memory crash in Open MPI.
"""

from __future__ import annotations

from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel.fleet import Group
from localavg.parallel.transport.mpi import CHUNK
from localavg.parallel.transport.on_device import OnDevice


class CudaAware(OnDevice):
    """Means by an Allreduce that gets the address of the sum on the device."""

    name = "cuda_aware"

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        if group.comm is None:
            return
        for i in range(0, len(x), CHUNK):
            self.device.settle()  # MPI does not know the stream that made x
            group.comm.Allreduce(MPI.IN_PLACE, x[i : i + CHUNK])
