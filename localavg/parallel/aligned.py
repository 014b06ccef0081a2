"""Addresses: where a network's tensors may begin, and memory of the host that begins there."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from localavg.interfaces import Array

ALIGN = 64
"""floats between the places in a row where a network's tensors may begin: 256 bytes

cuDNN and vectorised kernels fault at addresses that are not multiples of 16 bytes, tensor cores are
fastest at multiples of 128, and CUDA's own allocations begin at multiples of 256.
"""


def host_zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """Make zeros in the host's memory that begin at a multiple of 4 ALIGN bytes."""
    nbytes, dtype = 4 * ALIGN, np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + nbytes, np.uint8)
    first = -memory.ctypes.data % nbytes
    return memory[first : first + size].view(dtype).reshape(shape)


def address(x: Array) -> int:
    """Return the address of an array's first element, on the host or on a GPU."""
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr
