"""Stands in for the module `cupy` where there is no GPU: arrays that refuse to be taken for
NumPy's, streams that keep count, and kernels whose CUDA text is compiled by the host's C++
compiler.

Kernels and copies happen only when somebody waits for their stream, the main one too, so that a
missing wait gives wrong numbers; `log` has what was queued and waited for, in order. A sum of
NCCL's sends its numbers when it is queued, after all that was queued before, and never ends where
a rank has died, until it is aborted. It says nothing about the speed or the faults of a GPU.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

log = []


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the stand-in device; `.x` is its memory, for tests only."""

    def __init__(self, x):
        self.x = x

    shape = property(lambda self: self.x.shape)
    ndim = property(lambda self: self.x.ndim)
    dtype = property(lambda self: self.x.dtype)
    size = property(lambda self: self.x.size)
    nbytes = property(lambda self: self.x.nbytes)
    flags = property(lambda self: self.x.flags)
    data = property(lambda self: SimpleNamespace(ptr=self.x.ctypes.data))
    __cuda_array_interface__ = property(lambda self: {**self.x.__array_interface__, "version": 3})

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **how):
        inputs = [*map(_inside, inputs)]
        call = getattr(ufunc, method)
        if out is None:  # zeros tell the shape and the type of the result
            empty = [np.zeros_like(x) if isinstance(x, np.ndarray) else x for x in inputs]
            with np.errstate(all="ignore"):
                out = (ndarray(np.array(call(*empty, **how))),)
        memory = tuple(map(_inside, out))
        now().queue(ufunc.__name__, lambda: call(*inputs, out=memory, **how))
        return out[0]

    def __len__(self):
        return len(self.x)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        return ndarray(self.x[(*keys, ...)])

    def __setitem__(self, key, value):
        value = _inside(value)
        now().queue("fill", lambda: self.x.__setitem__(key, value))

    def __float__(self):
        now().synchronize()
        return float(self.x)

    def reshape(self, *shape):
        return ndarray(self.x.reshape(*shape))

    def copy(self):
        return _later("copy", np.empty_like(self.x), self.x.copy)

    def sum(self, *args, **how):
        like = np.asarray(np.zeros_like(self.x).sum(*args, **how))
        return _later("sum", like, lambda: self.x.sum(*args, **how))

    def tolist(self):
        return self.get().tolist()

    def __int__(self):
        return int(float(self))

    def get(self, out=None):
        now().synchronize()
        if out is None:
            return self.x.copy()
        assert type(out) is np.ndarray and out.flags.c_contiguous
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        out[...] = self.x
        return out

    def set(self, value):
        assert type(value) is np.ndarray and value.dtype == self.dtype and value.shape == self.shape
        if not (self.x.flags.c_contiguous or self.x.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        now().run_all()
        self.x[...] = value


def _inside(value):
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a NumPy array among device arrays")
    return value.x if isinstance(value, ndarray) else value


def _later(what, memory, values):
    """An array in this memory, to which the values are written when the main stream comes to it."""
    now().queue(what, lambda: memory.__setitem__(..., values()))
    return ndarray(memory)


def zeros(shape, dtype=float):
    return ndarray(np.zeros(shape, dtype))


def asarray(x, dtype=None):
    return x if isinstance(x, ndarray) else ndarray(np.array(x, dtype))


# --------------------------------------------------------------------------------------------------


WAITS = object()  # returned by work that waits for other ranks
PAUSE_S = 1e-3


class Stream:
    """Work that is done when it is waited for; `dirty`: something is queued that nobody has waited
    for. lock: of the thread that works.
    """

    known = {}  # noqa: RUF012

    def __init__(self, non_blocking=True, name="side"):
        self.name, self.pending, self.done, self.dirty, self.ptr, self.lock = (
            name,
            deque(),
            0,
            False,
            1 + len(self.known),
            threading.RLock(),
        )
        self.known[self.ptr] = self

    @classmethod
    def from_external(cls, foreign):
        """The stream that another library calls its own."""
        version, ptr = foreign.__cuda_stream__()
        assert version == 0
        return cls.known[ptr]

    def __enter__(self):
        thread.current = [*here(), self]
        return self

    def __exit__(self, *_):
        assert here()[-1] is self
        thread.current = here()[:-1]

    def queue(self, what, work=lambda: None):
        main = threading.current_thread() is threading.main_thread()
        assert main or hasattr(thread, "device"), "a new thread is on GPU 0"
        log.append((self.name, what))
        self.pending.append(work)
        self.dirty = True

    def record(self):
        with self.lock:  # another thread may be in `run`
            return Event(self, self.done + len(self.pending))

    def wait_event(self, event):
        self.pending.append(event.reach)

    def run(self, until, once=False):
        """Do the work up to a place; `once`: up to what waits for other ranks or threads."""
        while self.done < until and not (self._step(until) and once):
            pass

    def _step(self, until):
        """Do the next work, if it is before a place. Return whether it waits."""
        if not self.lock.acquire(timeout=PAUSE_S):
            return True  # another thread does it
        waits = False
        try:
            if self.done < until:
                waits = self.pending[0]() is WAITS
        finally:
            if self.done < until and not waits:
                self.pending.popleft()
                self.done += 1
            self.lock.release()
        if waits:
            time.sleep(PAUSE_S)
        return waits

    def run_all(self):
        self.run(self.record().place)

    def synchronize(self):
        log.append((self.name, "synchronize"))
        self.run_all()
        self.dirty = False


class Event:
    """A place in a stream."""

    def __init__(self, stream, place):
        self.stream, self.place = stream, place

    @property
    def done(self):
        self.stream.run(self.place, once=True)
        return self.stream.done >= self.place

    def reach(self):
        self.stream.run(self.place)

    def synchronize(self):
        log.append((self.stream.name, "wait"))
        self.reach()


null = Stream(name="main")
thread = threading.local()  # each has streams and a GPU of its own


def here():
    """The streams whose contexts this thread is in."""
    return getattr(thread, "current", [null])


def now():
    """The stream in which this thread's work is queued."""
    return here()[-1]


def _copy(to, x, nbytes, kind, stream):
    assert kind == 4
    Stream.known[stream].queue(f"copy {nbytes}", lambda: ctypes.memmove(to, x, nbytes))


# --------------------------------------------------------------------------------------------------


ROOM = 1 << 26  # floats that a communicator can sum in all


def _unique_id():
    """A file that the ranks share, of zeros."""
    handle, path = tempfile.mkstemp(prefix="stand-in-")
    os.ftruncate(handle, 4 * ROOM)  # its pages are made when they are written
    os.close(handle)
    return path


class NcclCommunicator:
    """Sums over ranks by a file that they share: all have come, and then it has no name.

    No rank notices that another one has died. aborted: how many were, in this process.
    """

    aborted = 0

    def __init__(self, size, key, rank):
        self.size, self.rank, self.over = size, rank, False
        self.memory = np.memmap(key, np.float32, "r+")
        self.come = self.memory[: 2 * size].view(np.int64)  # [size] sums begun, and 1
        self.begun, self.at = 1, 2 * size
        self.come[rank] = 1
        while not self.come.all():
            time.sleep(PAUSE_S)
        if rank == 0:
            os.unlink(key)

    def allReduce(self, x, out, n, dtype, op, stream):
        assert x == out and (dtype, op) == (7, 0) and n < 2**31 - 1
        assert Stream.known[stream] is now()
        if self.over:
            raise RuntimeError("NCCL_ERROR_INVALID_ARGUMENT")
        now().run_all()
        x = np.ctypeslib.as_array(ctypes.cast(x, ctypes.POINTER(ctypes.c_float)), (n,))
        rows = self.memory[self.at : self.at + self.size * n].reshape(self.size, n)
        self.at += self.size * n
        self.begun += 1
        rows[self.rank] = x
        self.come[self.rank] = self.begun
        now().queue("allReduce", partial(self._sum, rows, x, self.begun))

    def _sum(self, rows, x, begun):
        if self.over:
            x[...] = np.nan
        elif self.come.min() < begun:
            return WAITS
        else:
            x[...] = rows[0]
            for row in rows[1:]:
                x += row
        return None

    def abort(self):
        self.over = True
        NcclCommunicator.aborted += 1

    def destroy(self):
        assert self.over or self.come.min() >= self.begun, "a sum is on its way"
        self.over = True


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it."""


class Used:
    """The device that was chosen."""

    index = None

    def __init__(self, index):
        self.number = index

    def use(self):
        Used.index = thread.device = self.number


gpus = [4]  # how many this machine has


def _count():
    if gpus[0] < 0:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return gpus[0]


cuda = SimpleNamespace(
    get_current_stream=lambda: now(),
    Stream=Stream,
    Device=Used,
    alloc_pinned_memory=lambda n: log.append(("pinned", n)) or (ctypes.c_char * n)(),
    runtime=SimpleNamespace(
        memcpyAsync=_copy,
        deviceGetPCIBusId=lambda i: f"0000:{i:02d}:00.0",
        getDeviceCount=_count,
        memGetInfo=lambda: (1 << 34, 1 << 36),
        CUDARuntimeError=CUDARuntimeError,
    ),
)
nccl = SimpleNamespace(
    available=True,
    get_unique_id=_unique_id,
    NcclCommunicator=NcclCommunicator,
    NCCL_FLOAT32=7,
    NCCL_SUM=0,
)
sys.modules[f"{__name__}.cuda.nccl"] = (
    nccl  # CuPy's is no attribute of cupy.cuda before it is imported by its full name
)
__version__ = "0"


# --------------------------------------------------------------------------------------------------

NUMBERS = {"T": "float", "float64": "double", "int32": "int"}
C = {"T": "float", "int64": "long long", "bool": "bool"}


COMPILER = ["g++", "-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC"]
COMPILED = Path(__file__).resolve().parents[2] / ".pytest_cache" / "kernels"  # by their texts


@cache
def _compiled(text):
    text = f"#include <cmath>\nusing std::sqrt, std::exp, std::expm1, std::log1p;\ntypedef float T;\nstruct float4 {{ T x, y, z, w; }};\n{text}"
    key = hashlib.sha256(" ".join([*COMPILER, platform.machine(), text]).encode()).hexdigest()
    library = COMPILED / f"{key}.so"
    if not library.exists():
        COMPILED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COMPILED) as folder:
            (Path(folder) / "k.cpp").write_text(text)
            made = Path(folder) / "k.so"
            subprocess.run([*COMPILER, "-o", made, Path(folder) / "k.cpp"], check=True)
            made.replace(library)  # other ranks may make it too
    return ctypes.CDLL(str(library)).kernel


compiled = set()  # what CuPy compiles or loads by itself: a kernel for each layout of its arrays


class ElementwiseKernel:
    """`body` for every element i of the arrays that are not raw; raw ones are indexed as rows one
    after the other.
    """

    def __init__(self, inputs, outputs, body, name):
        self.params = [p.split() for p in f"{inputs}, {outputs}".split(", ")]
        self.outputs, self.name = len(outputs.split(", ")), name
        args, inner = [], []
        for *kind, p in self.params:
            if kind[0] == "raw":
                args.append(f"T* {p}")
            elif kind[0] in NUMBERS:
                args += [f"{NUMBERS[kind[0]]}* {p}_at", f"long long {p}_step"]
                inner.append(f"{NUMBERS[kind[0]]}& {p} = {p}_at[i * {p}_step];")
            else:
                args.append(f"{C[kind[0]]} {p}")
        self.text = (
            f'extern "C" void kernel(long long size, {", ".join(args)}) '
            f"{{ for (long long i = 0; i < size; ++i) "
            f"{{ {' '.join(inner)} {body}; }} }}"
        )

    def __call__(self, *given, size=None):
        assert len(given) == len(self.params)
        shapes = [(len(x.shape), x.flags.c_contiguous) for x in given if isinstance(x, ndarray)]
        compiled.add((self.name, *shapes))
        now().queue(self.name, lambda: self.work(*given, size=size))

    def work(self, *given, size):
        args, back, kept = [], [], []
        for ((*kind, _), value), k in zip(
            zip(self.params, given, strict=True), range(len(given)), strict=True
        ):
            if isinstance(value, ndarray):
                flat = np.ascontiguousarray(value.x).ravel()
                if kind[0] != "raw":
                    assert size in (None, flat.size), "arrays that are not raw differ in size"
                    size = flat.size
                kept.append(flat)
                args.append(ctypes.c_void_p(flat.ctypes.data))
                args += [ctypes.c_longlong(1)] * (kind[0] in NUMBERS)
                back += [(value.x, flat)] * (k >= len(given) - self.outputs)
            elif kind == ["T"]:
                assert isinstance(value, np.float32)
                one = np.array([value])
                kept.append(one)
                args += [ctypes.c_void_p(one.ctypes.data), ctypes.c_longlong(0)]
            else:
                args.append({"int64": ctypes.c_longlong, "bool": ctypes.c_bool}[kind[0]](value))
        _compiled(self.text)(ctypes.c_longlong(size), *args)
        for x, flat in back:
            x[...] = flat.reshape(x.shape)


# ----------------------------------------------------------------------------------- what logistic

# ufuncs, which ask the arrays
expm1, logaddexp, negative, matmul, multiply = (
    np.expm1,
    np.logaddexp,
    np.negative,
    np.matmul,
    np.multiply,
)


def copyto(to, x):
    now().queue("copyto", lambda: to.x.__setitem__(..., x.x))


def dot(a, b, out):
    now().queue("dot", lambda: np.dot(a.x, b.x, out=out.x))
    return out


def empty(shape, dtype=float):
    return ndarray(np.full(shape, 99, dtype))


def take(a, indices, axis=None, out=None):
    now().queue("take", lambda: out.x.__setitem__(..., np.take(a.x, _inside(indices), axis=axis)))
    return out


def get_default_memory_pool():
    return SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)


def concatenate(arrays):
    like = np.concatenate([a.x for a in arrays])
    return _later("concatenate", like, lambda: np.concatenate([a.x for a in arrays]))
