"""Find the GPUs of this host by the driver's management library, NVML, which starts no CUDA.

A process must not start CUDA before MPI has started and it knows its device. NVML needs neither
torch nor CuPy, and no child process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeAlias

Gpus: TypeAlias = tuple[tuple[str, str], ...]  # (name, UUID) of each

NVML = "libnvidia-ml.so.1"
BYTES = 96  # of NVML's longest name or UUID


class NvmlError(Exception):
    """NVML cannot answer; the message is the reason."""


@cache
def find_gpus() -> tuple[Gpus, str]:
    """Return the GPUs that CUDA will show to this process, and the reason if there are none.

    They are in the order of PCI addresses, which is CUDA's own where all GPUs are alike, or in that
    of CUDA_VISIBLE_DEVICES.
    """
    try:
        ctypes.CDLL("libcuda.so.1")  # loads the driver's library and starts nothing
    except OSError:
        return (), "none: no NVIDIA driver (libcuda.so.1) on this host"
    if not any(map(importlib.util.find_spec, ("torch", "cupy"))):
        return (), "unknown: neither torch nor CuPy is installed"
    try:
        found = _everything()
    except (NvmlError, OSError) as e:
        return (), f"unknown: {NVML}: {e}"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = found if shown is None else visible(found, shown.split(","))
    if gpus:
        return gpus, ""
    return (), f"none: CUDA_VISIBLE_DEVICES={shown}" if found else "none: the driver has no GPU"


def visible(gpus: Gpus, words: Sequence[str]) -> Gpus:
    """Return those of a host's GPUs that CUDA_VISIBLE_DEVICES, split at its commas, leaves.

    A word is a number, the beginning of a UUID, or the UUID of a part of a GPU (MIG). As in CUDA,
    all from the first wrong word on is left out, and a GPU that stands there twice leaves none.
    """
    chosen: list[tuple[str, str]] = []
    for word in map(str.strip, words):
        if word.startswith("MIG-"):
            one = [("MIG device", word)]
        elif word.isdecimal():
            one = list(gpus[int(word) : int(word) + 1])
        else:
            one = [gpu for gpu in gpus if word and gpu[1].startswith(word)]
        if len(one) != 1:
            break
        chosen += one
    return tuple(chosen) if len(set(chosen)) == len(chosen) else ()


def _everything() -> Gpus:
    """Return all GPUs of this host. Raises OSError without NVML, and NvmlError if it fails."""
    nvml = ctypes.CDLL(NVML)
    with _started(nvml):
        n = ctypes.c_uint()
        _check(nvml, nvml.nvmlDeviceGetCount_v2(ctypes.byref(n)))
        return tuple(_one(nvml, i) for i in range(n.value))


def _one(nvml: ctypes.CDLL, i: int) -> tuple[str, str]:
    handle, name, uuid = ctypes.c_void_p(), *(ctypes.create_string_buffer(BYTES) for _ in range(2))
    _check(nvml, nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle)))
    _check(nvml, nvml.nvmlDeviceGetName(handle, name, BYTES))
    _check(nvml, nvml.nvmlDeviceGetUUID(handle, uuid, BYTES))
    return name.value.decode(errors="replace"), uuid.value.decode(errors="replace")


@contextmanager
def _started(nvml: ctypes.CDLL) -> Iterator[None]:
    _check(nvml, nvml.nvmlInit_v2())
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _check(nvml: ctypes.CDLL, status: int) -> None:
    if status:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        raise NvmlError(nvml.nvmlErrorString(status).decode(errors="replace"))
