"""Means over ranks by an MPI that takes device memory: its blocking Allreduce, in place, and
nothing else of it.

Nonblocking, persistent and one-sided calls on device memory crash in Open MPI.
"""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from localavg.parallel.fleet import Group
from localavg.parallel.transport.mpi import CHUNK
from localavg.parallel.transport.on_device import OnDevice


class CudaAware(OnDevice):
    """The sum on the device goes to MPI by its address."""

    name = "cuda_aware"

    def _sum_over_ranks_(self, x: Any, group: Group) -> None:
        for i in range(0, len(x) if group.comm is not None else 0, CHUNK):
            self.device.settle()  # MPI does not know the stream that made x
            group.comm.Allreduce(MPI.IN_PLACE, x[i : i + CHUNK])
