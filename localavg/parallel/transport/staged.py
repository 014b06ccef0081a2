"""Means over ranks by way of pinned host memory, for an MPI that knows nothing of GPUs.

The sum goes in pieces through two buffers: while the host reduces one piece over the ranks, the
next is copied from the device and the last one back to it.
"""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from localavg.parallel.device import Cuda
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.on_device import OnDevice

PIECE = (
    1 << 20
)  # elements copied and reduced at a time: 4 MB, beyond which copies and Allreduce gain no speed


class Staged(OnDevice):
    """Two pinned buffers of a piece, and a stream for the copies in each direction."""

    name = "staged"

    def __init__(
        self,
        fleet: Fleet,
        device: Cuda,
        S: int | None = None,
        why: str = "asked for",
        piece: int = PIECE,
    ) -> None:
        super().__init__(fleet, device, S, why)
        self.piece = piece
        self.buffers = [device.pinned(piece) for _ in range(2)] if fleet.ranks > 1 else []
        self.down, self.up = (
            device.side_stream(),
            device.side_stream(),
        )  # from the device, to the device

    def _sum_over_ranks_(self, x: Any, group: Group) -> None:
        if group.comm is None:
            return
        pieces = [x[a : a + self.piece] for a in range(0, len(x), self.piece)]
        buffers = [self.buffers[k % 2][: len(piece)] for k, piece in enumerate(pieces)]
        main, arrived, returned = self.device.stream(), [], []
        self.down.wait_event(main.record())  # what made x is queued there

        def fetch(k: int) -> None:
            if k >= 2:
                self.down.wait_event(returned[k - 2])  # the buffer is free
            self.device.copy(buffers[k], pieces[k], self.down)
            arrived.append(self.down.record())

        fetch(0)
        for k in range(len(pieces)):
            if k + 1 < len(pieces):
                fetch(k + 1)
            arrived[k].synchronize()
            group.comm.Allreduce(MPI.IN_PLACE, buffers[k])
            self.device.copy(pieces[k], buffers[k], self.up)
            returned.append(self.up.record())
        main.wait_event(returned[-1])
