"""Where learners compute: on the host, or on one GPU a rank.

`Cpu` and `Cuda` implement `interfaces.Device`. `Cuda` is written against an array module `xp`:
CuPy, or a stand-in with the same names. Kernels and copies are queued in a stream; `settle` waits
until all of them are done. Nothing here runs before MPI has started and the rank's node is known.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from localavg.errors import UserError, pip_install
from localavg.interfaces import Array, Device
from localavg.parallel.aligned import address, host_zeros

if TYPE_CHECKING:
    from localavg.parallel.fleet import Fleet

X = TypeVar("X")

SETTINGS = {  # read when CUDA starts
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # streams that need not wait for each other
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same bits in every run
}
DEFAULT = 4  # cudaMemcpyDefault: the direction follows from the addresses


class Event(Protocol):
    """The part of CuPy's events that is needed here. done: whether the work before it is."""

    done: bool

    def synchronize(self) -> None:
        """Wait until the work before it is done."""


class Stream(Protocol):
    """The part of CuPy's streams that is needed here."""

    ptr: int

    def __enter__(self) -> Stream:
        """Queue this thread's work here while the context lasts."""

    def __exit__(self, *error: object) -> None:
        """Queue it where it was queued before."""

    def record(self) -> Event:
        """Return the event that the work queued so far is done."""

    def wait_event(self, event: Event) -> None:
        """Let later work wait for an event."""

    def synchronize(self) -> None:
        """Wait until all queued work is done."""


class Cpu(Device):
    """The host's memory and NumPy: no work is queued and nothing is copied."""

    name: str = "cpu"
    index: int | None = None
    xp: ModuleType = np

    def __init__(self, why: str = "asked for") -> None:
        self.why = why

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Make an array of zeros, float32."""
        return host_zeros(shape)

    def settle(self) -> None:
        """Return at once: the host has no queue."""


class Cuda(Device):
    """GPU `index` of this host, by the array module `xp`; `host_name` is the host's.

    identity: the host and the GPU's PCI bus id, which no other GPU of the job has.
    """

    name: str = "cuda"

    def __init__(self, xp: ModuleType, index: int, host_name: str) -> None:
        self.why = "asked for"
        self.xp: ModuleType = xp
        self.index: int | None = index
        self.identity: tuple[str, str] = (host_name, xp.cuda.runtime.deviceGetPCIBusId(index))

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Make an array of zeros on the GPU, float32. UserError if there is no memory for it."""
        try:
            return self.xp.zeros(shape, np.float32)
        except MemoryError as e:  # CuPy's is one
            raise UserError(
                f"`device = cuda`: {4 * math.prod(shape) / 1e9:.2g} GB more do not fit in the "
                "GPU's memory; use fewer `learners` per GPU"
            ) from e

    def settle(self) -> None:
        """Wait until all queued kernels and copies are done."""
        self.stream().synchronize()

    def give_back(self) -> None:
        """Give the memory of arrays that are gone back to the GPU, for torch and other ranks."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def stream(self) -> Stream:
        """Return the stream that kernels are queued in."""
        return self.xp.cuda.get_current_stream()

    def side_stream(self) -> Stream:
        """Make a second stream, for copies and for means in the background."""
        return self.xp.cuda.Stream(non_blocking=True)

    def behind(self, side: Stream) -> AbstractContextManager[None]:
        """Return a context for another thread, whose work is queued in `side` while it lasts.

        That work comes after all that is queued here now.
        """
        return self._queued(side, self.stream().record())

    @contextmanager
    def _queued(self, side: Stream, after: Event) -> Iterator[None]:
        self.xp.cuda.Device(self.index).use()  # a new thread is on GPU 0
        with side:
            side.wait_event(after)
            yield

    def holding(self, x: Array) -> Array:
        """Return x if it lies on the GPU, else a copy there, made without a second host copy."""
        if _on_gpu(x):
            return x
        held = self.xp.empty(x.shape, x.dtype)
        put_(held, x)
        return held

    def pinned(self, n: int) -> np.ndarray:
        """Make n floats of host memory that the GPU copies from and to by itself."""
        return pinned(self.xp, (n,), np.float32)

    def copy(self, to: Array, x: Array, stream: Stream) -> None:
        """Queue a copy of contiguous x into `to`, from the GPU to pinned memory or back."""
        queue_copy(self.xp, to, x, stream)

    @property
    def nccl(self) -> ModuleType | None:
        """CuPy's module of NCCL, which `import cupy` does not load; None where it is missing."""
        with suppress(ImportError):
            found = import_module(f"{self.xp.__name__}.cuda.nccl")
            return found if found.available else None
        return None


def _on_gpu(x: object) -> bool:
    """Tell whether x lies on a GPU: an array of CuPy's or a CUDA tensor of torch's."""
    return hasattr(x, "__cuda_array_interface__")


def pinned(xp: ModuleType, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Make host memory, of any values, that the GPU copies from and to by itself."""
    n, dtype = math.prod(shape), np.dtype(dtype)
    return np.frombuffer(xp.cuda.alloc_pinned_memory(n * dtype.itemsize), dtype, n).reshape(shape)


def queue_copy(xp: ModuleType, to: Array, x: Array, stream: Stream) -> None:
    """Queue a copy of contiguous x into `to`, from the GPU to pinned memory or back."""
    xp.cuda.runtime.memcpyAsync(address(to), address(x), x.nbytes, DEFAULT, stream.ptr)


def on_host(x: X) -> X:
    """Return a NumPy copy of an array that lies on a GPU, and anything else as it is."""
    return x.get() if _on_gpu(x) else x  # type: ignore[attr-defined]  # CuPy has no types


def fetch_(to: np.ndarray, x: Array) -> None:
    """Copy an array of the host or of a GPU into the host's memory `to`, which is contiguous."""
    if _on_gpu(x):
        x.get(out=to)  # type: ignore[attr-defined]  # CuPy has no types
    else:
        to[...] = x


def put_(to: Array, x: np.ndarray) -> None:
    """Copy the host's values x into an array `to` on the host or on a GPU."""
    if isinstance(to, np.ndarray):
        to[...] = x
    elif to.flags.c_contiguous:
        to.set(np.ascontiguousarray(x, to.dtype))
    else:  # some columns of a matrix
        for row, values in zip(to, x, strict=True):
            put_(row, values)


def numbers(values: Sequence[float | Array]) -> np.ndarray:
    """Convert scalars, and vectors of a GPU, to a float64 array [n] in their order.

    What lies on a GPU is copied at once.
    """
    there = [x.reshape(-1) for x in values if _on_gpu(x)]  # type: ignore[union-attr]
    if not there:
        return np.array(values, np.float64)
    module = sys.modules[type(there[0]).__module__.partition(".")[0]]  # cupy or torch
    copied = iter(module.concatenate(there).tolist())
    lengths = iter(map(len, there))
    everything: list[float] = []
    for x in values:
        everything += islice(copied, next(lengths)) if _on_gpu(x) else [float(x)]
    return np.array(everything, np.float64)


def driver() -> None:
    """Load the NVIDIA driver's library, which starts nothing. Raises OSError if it is missing."""
    ctypes.CDLL("libcuda.so.1")


def choose_device(
    name: str,
    fleet: Fleet,
    load: Callable[[str], ModuleType] = import_module,
    driver: Callable[[], None] = driver,
    place: int | None = None,
) -> Device:
    """Return the device `name` (cpu or cuda) for this rank, perhaps not for others. Collective.

    A rank takes the GPU of its place on the host, or of another `place`; later allocations of CuPy
    are made on it. Raises UserError on every rank if one rank has no driver, no CuPy or no GPU.
    """
    host, place = fleet.hosts[fleet.rank], fleet.place if place is None else place
    return fleet.together(lambda: Cpu() if name == "cpu" else _take_gpu(host, place, load, driver))


def _take_gpu(
    host: str, place: int, load: Callable[[str], ModuleType], driver: Callable[[], None]
) -> Cuda:
    """Make GPU `place` mod their number the current one, and try it; UserError if it fails."""
    try:
        driver()
    except OSError as e:
        raise UserError(
            f"`device = cuda`: {host} has no NVIDIA driver (libcuda.so.1); use `device = cpu`"
        ) from e
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        xp = load("cupy")
    except ImportError as e:
        raise UserError(
            f"`device = cuda`: CuPy cannot be loaded on {host} ({e}); "
            f"{pip_install('cupy-cuda13x[ctk]')}, or cupy-cuda12x[ctk] beside a torch for CUDA 12"
        ) from e
    try:
        count = xp.cuda.runtime.getDeviceCount()
    except xp.cuda.runtime.CUDARuntimeError as e:
        raise UserError(
            f"`device = cuda`: {host} has no GPU that CuPy can use ({e}); use `device = cpu`"
        ) from e
    if not count:
        raise UserError(
            f"`device = cuda`: {host} has no GPU that this rank may see (CUDA_VISIBLE_DEVICES); "
            "use `device = cpu`"
        )
    index = place % count
    xp.cuda.Device(index).use()
    _try_kernel(xp, host)
    return Cuda(xp, index, host)


def _try_kernel(xp: ModuleType, host: str) -> None:
    """Compute on the current GPU for the first time; UserError if it fails."""
    try:
        float(xp.zeros(1, np.float32)[0] + 1)  # the first kernel: CuPy loads CUDA's libraries here
    except (ImportError, OSError, RuntimeError) as e:
        why = str(e).strip().partition("\n")[0]
        raise UserError(
            f"`device = cuda`: CuPy {xp.__version__} cannot compute on {host} ({why}); install the "
            "CuPy of this host's CUDA with its libraries, such as cupy-cuda13x[ctk]"
        ) from e
