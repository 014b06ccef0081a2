"""The host's memory from which a learner's message is sent, and into which its reply comes.

MPI sees the host's memory only. A learner on the host sends its message from where it is. That of a
learner on a GPU is copied to pinned memory first, and its reply is copied from pinned memory.
"""

from __future__ import annotations

import numpy as np

from localavg.interfaces import Array, Device
from localavg.parallel.aligned import host_zeros
from localavg.parallel.device import Cuda


class Mail:
    """The vectors of a learner whose message [d] lies on `device`.

    message, reply: [d] in the host's memory.
    """

    def __init__(self, message: Array, device: Device) -> None:
        self.there, self.message = message, message
        self.gpu = device if isinstance(device, Cuda) else None
        if self.gpu is not None:
            self.message = self.gpu.pinned(len(message))
        self.reply: np.ndarray = (
            host_zeros(message.shape) if self.gpu is None else self.gpu.pinned(len(message))
        )

    def fetch_(self) -> None:
        """Copy the message from the GPU, and wait until it is here."""
        if self.gpu is not None:
            stream = self.gpu.stream()
            self.gpu.copy(self.message, self.there, stream)
            stream.record().synchronize()

    def delivered(self, scratch: Array) -> Array:
        """Return the reply [d] where the learner computes; on a GPU, by a queued copy in `scratch`.

        A reply that is on its way to the GPU has arrived before the learner's next `fetch_` ends,
        and only then may MPI write a new one here.
        """
        if self.gpu is None:
            return self.reply
        self.gpu.copy(scratch, self.reply, self.gpu.stream())
        return scratch
