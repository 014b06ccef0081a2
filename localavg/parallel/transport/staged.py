"""Means over ranks through pinned host memory, for an MPI that cannot take a GPU's memory.

The sum passes in pieces through two buffers: while MPI reduces one piece over the ranks, the next
piece is copied from the device and the previous one is copied back.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpi4py import MPI

from localavg.interfaces import Array
from localavg.parallel.device import Cuda, Event, Stream
from localavg.parallel.fleet import Fleet, Group
from localavg.parallel.transport.on_device import OnDevice

# Elements copied and reduced at a time: 4 MB, beyond which copies and Allreduce gain no speed.
PIECE = 1 << 20


class Staged(OnDevice):
    """Means by two pinned buffers of a piece each, and one stream of copies in each direction."""

    name = "staged"

    def __init__(
        self,
        fleet: Fleet,
        device: Cuda,
        clusters: Sequence[int] = (),
        why: str = "asked for",
        piece: int = PIECE,
    ) -> None:
        super().__init__(fleet, device, clusters, why)
        self.piece = piece
        self.buffers = [device.pinned(piece) for _ in range(2)] if fleet.ranks > 1 else []
        self.down = device.side_stream()  # copies from the device
        self.up = device.side_stream()  # copies to the device

    def _sum_over_ranks_(self, x: Array, group: Group) -> None:
        if group.comm is None:
            return
        pieces = [x[a : a + self.piece] for a in range(0, len(x), self.piece)]
        buffers = [self.buffers[k % 2][: len(piece)] for k, piece in enumerate(pieces)]
        main: Stream = self.device.stream()
        arrived: list[Event] = []  # piece k is in its buffer
        returned: list[Event] = []  # piece k is back on the device
        self.down.wait_event(main.record())  # the kernels that make x are queued in main

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
