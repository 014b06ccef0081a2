"""Where the learners compute: the host, or one GPU a rank, and what the rest needs to know of its
memory and its stream.

`Cuda` is written against an array module `xp`, CuPy or a stand-in with its names. Kernels and
copies are queued in a stream; `settle` waits for all of it. Nothing here runs before MPI has
started and the node is known.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from localavg.errors import UserError

if TYPE_CHECKING:
    from localavg.parallel.fleet import Fleet

Array = Any  # numpy or CuPy
SETTINGS = {  # read when CUDA starts
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # streams that need not wait for each other
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same bits twice
}
DEFAULT = 4  # cudaMemcpyDefault: the direction follows from the addresses


class Cpu:
    """The host's memory and NumPy: nothing to wait for and nothing to copy."""

    name, index, xp = "cpu", None, np

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros, float32."""
        return np.zeros(shape, np.float32)

    def settle(self) -> None:
        """Wait for what was queued."""


class Cuda(Cpu):
    """GPU `index` of this machine, by the array module `xp`; `host_name` tells machines apart."""

    name = "cuda"

    def __init__(self, xp: Any, index: int, host_name: str) -> None:
        self.xp, self.index = xp, index
        self.identity = host_name, xp.cuda.runtime.deviceGetPCIBusId(index)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return self.xp.zeros(shape, np.float32)

    def stream(self) -> Any:
        """The stream that kernels are queued in."""
        return self.xp.cuda.get_current_stream()

    def settle(self) -> None:
        self.stream().synchronize()

    def holding(self, x: np.ndarray) -> Array:
        """A copy of host values here, straight from where they lie."""
        held = self.xp.empty(x.shape, x.dtype)
        put_(held, x)
        return held

    @property
    def nccl(self) -> Any:
        """CuPy's bindings of NCCL, None where it comes without; `import cupy` leaves them out."""
        with suppress(ImportError):
            found = import_module(f"{self.xp.__name__}.cuda.nccl")
            return found if found.available else None

    def side_stream(self) -> Any:
        """A stream beside that one, for copies."""
        return self.xp.cuda.Stream(non_blocking=True)

    def pinned(self, n: int) -> np.ndarray:
        """n floats of host memory that a GPU copies from and to by itself."""
        return np.frombuffer(self.xp.cuda.alloc_pinned_memory(4 * n), np.float32, n)

    def copy(self, to: Array, x: Array, stream: Any) -> None:
        """Queue a copy of contiguous x into `to` in a stream, from a GPU to pinned memory or
        back.
        """
        self.xp.cuda.runtime.memcpyAsync(address(to), address(x), x.nbytes, DEFAULT, stream.ptr)


def address(x: Array) -> int:
    """Where an array begins, on the host or on a GPU."""
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr


def on_host(x: Array) -> Any:
    """A number or an array as NumPy knows it: a copy of what is on a GPU, anything else as it
    is.
    """
    return x.get() if hasattr(x, "__cuda_array_interface__") else x


def put_(to: Array, x: Any) -> None:
    """Copy host values x into an array `to`, wherever it is."""
    if isinstance(to, np.ndarray):
        to[...] = x
    elif to.flags.c_contiguous:
        to.set(np.ascontiguousarray(x, to.dtype))
    else:  # some columns of a matrix
        for row, values in zip(to, x, strict=True):
            put_(row, values)


def numbers(values: Sequence[Any]) -> np.ndarray:
    """Scalars, of the host or of a GPU, as float64 [n]; those of a GPU come in one copy."""
    there = [k for k, x in enumerate(values) if hasattr(x, "__cuda_array_interface__")]
    if not there:
        return np.array(values, np.float64)
    module = sys.modules[type(values[there[0]]).__module__.partition(".")[0]]  # cupy or torch
    everything = np.array(
        [math.nan if hasattr(x, "__cuda_array_interface__") else x for x in values], np.float64
    )
    everything[there] = module.stack([values[k] for k in there]).tolist()
    return everything


def driver() -> None:
    """Load the NVIDIA driver's library, which starts nothing. OSError where there is none."""
    ctypes.CDLL("libcuda.so.1")


def choose_device(
    name: str,
    fleet: Fleet,
    load: Callable[[str], Any] = import_module,
    driver: Callable[[], None] = driver,
) -> Cpu:
    """The device `name` for this rank, cuda's by its place on the machine; later allocations of
    CuPy go there. Collective.

    Raises UserError on every rank where one has no driver, no CuPy or no GPU.
    """
    if name == "cpu":
        return Cpu()
    host = fleet.hosts[fleet.rank]

    def take() -> Cuda:
        try:
            driver()
        except OSError as e:
            raise UserError(
                f"--device cuda: {host} has no NVIDIA driver (libcuda.so.1); use --device cpu"
            ) from e
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            xp = load("cupy")
        except ImportError as e:
            raise UserError(
                f"--device cuda: CuPy cannot be loaded on {host} ({e}); pip install "
                "'localavg[cuda]'"
            ) from e
        try:
            count = xp.cuda.runtime.getDeviceCount()
        except xp.cuda.runtime.CUDARuntimeError as e:
            raise UserError(
                f"--device cuda: {host} has no GPU that CuPy can use ({e}); use --device cpu"
            ) from e
        if not count:
            raise UserError(
                f"--device cuda: {host} has no GPU that this rank may see (CUDA_VISIBLE_DEVICES); "
                "use --device cpu"
            )
        index = fleet.place % count
        xp.cuda.Device(index).use()
        try:
            float(xp.zeros(1, np.float32)[0] + 1)
        except (
            ImportError,
            OSError,
            RuntimeError,
        ) as e:  # its libraries are looked for at the first kernel
            why = str(e).strip().partition("\n")[0]
            raise UserError(
                f"--device cuda: CuPy {xp.__version__} cannot compute on {host} ({why}); install "
                "the CuPy of this "
                f"machine's CUDA with its libraries, such as cupy-cuda13x[ctk]"
            ) from e
        return Cuda(xp, index, host)

    return fleet.together(take)
