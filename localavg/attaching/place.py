"""Where a model lies, and in which stream the work of an averager is queued."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

from localavg.errors import UserError
from localavg.interfaces import Device
from localavg.parallel.device import Cpu, choose_device
from localavg.parallel.fleet import Fleet

if TYPE_CHECKING:
    import torch

ON_HOST: AbstractContextManager[object] = nullcontext()


class Place:
    """The memory of a model: the host's, or that of one GPU.

    device: the same for the transport. where: the same for torch. cuda: torch.cuda, None on the
    host; tests set a stand-in.
    """

    def __init__(self, device: Device, where: torch.device, cuda: ModuleType | None = None) -> None:
        self.device, self.where, self.cuda = device, where, cuda

    def here(self) -> AbstractContextManager[object]:
        """Queue the work of CuPy in torch's present stream while the context lasts.

        An average then comes after the user's work that is queued already, and before the work that
        is queued later, and the host waits for neither. Raises UserError in the capture of a CUDA
        graph.
        """
        return ON_HOST if self.cuda is None else self._on_gpu(self.cuda)

    def _on_gpu(self, cuda: ModuleType) -> AbstractContextManager[object]:
        with ExitStack() as stack:
            stack.enter_context(cuda.device(self.where))  # whose streams the next lines mean
            if cuda.is_current_stream_capturing():
                raise UserError(
                    "attach: a call of the averager, or the optimizer's step of sync or qsgd, in "
                    "the capture of a CUDA graph; capture without it, and make it after each replay"
                )
            now = _Stream(cuda.current_stream().cuda_stream)
            stack.enter_context(self.device.xp.cuda.Stream.from_external(now))
            return stack.pop_all()
        raise AssertionError("an error has left the context")


class _Stream:
    """A stream of torch, as CuPy takes it."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the version of the protocol, and the stream's address."""
        return 0, self.address


def place_of(where: torch.device, fleet: Fleet) -> Place:
    """Return the place `where`, the same kind on every rank. Collective.

    Raises UserError on every rank where CuPy is missing and needed.
    """
    if where.type == "cpu":
        return Place(Cpu(), where)
    import torch

    with torch.cuda.device(where):  # the user's own device is the current one again after it
        return Place(choose_device("cuda", fleet, place=where.index), where, torch.cuda)
