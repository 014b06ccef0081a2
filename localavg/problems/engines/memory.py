"""The memory that gradients of several learners at once take, and how many of them fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from localavg.errors import UserError

if TYPE_CHECKING:  # logistic regression needs no torch
    from torch import Tensor

CACHE_BYTES = 36 << 20
"""what the learners of a chunk keep on a CPU: of more, little is in a cache when it is needed"""
PART = 0.8
"""largest part of the free memory that a chunk takes"""
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
LIMITS = (
    ("memory.max", "memory.current", "memory.stat", ""),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_",
    ),
)
"""a group's limit, what it uses, how, and what names of that begin with, in versions 2 and 1"""


def kept_bytes(compute: Callable[[], object], known: list[Tensor]) -> int:
    """Return the bytes that autograd keeps while `compute` runs, without those of known tensors."""
    import torch

    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, or another tensor could have the address of one

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        compute()
    for x in known:
        sizes.pop(x.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def free_bytes(device: str) -> int:
    """Return the memory that this process may still take, on the host or on its GPU by torch."""
    if device != "cuda":
        return host_free_bytes()
    import torch

    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + unused


def array_free_bytes(xp: ModuleType) -> int:
    """Return the memory that this process may still take on its GPU by CuPy."""
    return xp.cuda.runtime.memGetInfo()[0] + xp.get_default_memory_pool().free_bytes()


def host_free_bytes() -> int:
    """Return the memory that this process may still take on the host."""
    free = [1 << 62]
    if MEMINFO.exists():
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        free += [1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"]
    for limit, used, stat, prefix in LIMITS:
        if (CGROUP / limit).exists() and (most := (CGROUP / limit).read_text().strip()) != "max":
            cached = _cached_bytes(CGROUP / stat, prefix)
            free.append(int(most) - int((CGROUP / used).read_text()) + cached)
    return max(0, min(free))


def _cached_bytes(stat: Path, prefix: str) -> int:
    """Return the memory of a control group that holds copies of files.

    The system counts it as used, and gives it to whoever asks for memory.
    """
    if not stat.exists():
        return 0
    numbers = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(numbers.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))


def chunk(L: int, each: int, free: int, device: str, B: int) -> int:
    """Return how many of L learners to compute at once, if each keeps so many bytes.

    On a CPU as many as a cache holds, on a GPU all of them; fewer where memory is short. Raises
    UserError if not even one fits. B: the batch size, for its message.
    """
    if each > PART * free:
        raise too_large(each, free, B)
    wished = CACHE_BYTES // max(1, each) if device == "cpu" else L
    return equal_chunks(L, min(wished, int(PART * free / max(1, each))))


def equal_chunks(L: int, most: int) -> int:
    """Return the size of about equal chunks of L learners, with at most so many of them in each."""
    most = max(1, min(L, most))
    return -(-L // -(-L // most))


def too_large(each: int, free: int, B: int) -> UserError:
    """Make the error of one learner's gradient that does not fit into the free bytes."""
    most = int(B * PART * free / each)
    return UserError(
        f"`engine = batch`: one learner's gradient takes about {each / 1e9:.2g} GB of memory, and "
        f"{free / 1e9:.2g} GB are free; "
        + (f"use `batch_size = {most}`" if most else "use a smaller model")
    )


def is_shortage(e: BaseException) -> bool:
    """Return whether an error is that memory is used up."""
    # torch's error of a GPU has this name; torch need not be installed
    named = type(e).__name__ == "OutOfMemoryError"
    return named or isinstance(e, MemoryError) or "allocate memory" in str(e)


@contextmanager
def explained(engine: str, instead: str) -> Iterator[None]:
    """Raise the error that memory is used up as UserError, with what to use instead."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not is_shortage(e):
            raise
        raise UserError(f"`engine = {engine}`: memory is used up; use {instead}") from e


def used_up(L: int, each: int, device: str, B: int) -> UserError:
    """Make the error of gradients of L learners, `each` bytes each, for which no memory is left."""
    return shortage(L, each, free_bytes(device), B)


def shortage(L: int, each: int, free: int, B: int) -> UserError:
    """Make the same error where `free` bytes are left."""
    most = max(1, min(B // 2, int(B * PART * free / max(1, L * each))))
    return UserError(
        f"`engine = batch`: memory is used up. The gradients of {L} learners at once take about "
        f"{L * each / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free; use `batch_size = {most}`, or "
        "`engine = loop`"
    )
