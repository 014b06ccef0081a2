"""Stands in for torch.cuda where there is no GPU: streams, events and graphs whose work is done at
once, by the CPU, and which keep what every operation touches and after what.

`Gpu.races` counts the pairs of operations that a GPU may do in either order, and the host memory
that was written to before its copy to the GPU was done. It says nothing about the speed or the
faults of a GPU.
"""

import contextlib
import threading

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

VIEWS = {
    "view",
    "t",
    "transpose",
    "permute",
    "expand",
    "detach",
    "alias",
    "as_strided",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "unbind",
    "_unsafe_view",
}  # which touch no memory
SPACE = 100  # ticks of an operation in a replay, which is logged as some operations


class Stream:
    """What was queued here, as a clock: how many operations of every stream come before whatever is
    queued next.
    """

    capture = None  # the capture that is going on

    def __init__(self, name="side"):
        self.name, self.clock = name, {self: 0}

    def wait_stream(self, other):
        self.wait_event(Event().record(other))

    def wait_event(self, event):
        if Stream.capture:
            Stream.capture.wait(self, event.stream)
        self._after(event.clock)

    def _after(self, clock):
        for stream, ticks in clock.items():
            self.clock[stream] = max(ticks, self.clock.get(stream, 0))


class Event:
    """A place in a stream."""

    gpu = None  # the one in use

    def record(self, stream):
        self.stream, self.clock = stream, dict(stream.clock)
        return self

    def synchronize(self):
        Event.gpu.copied(self.clock)


class CUDAGraph:
    """The operations between the ends of a capture; their tensors stay where they are."""

    def replay(self):
        self.replays += 1
        self.gpu.replay(self)


class Capture:
    """The streams that a capture has forked into, and their clocks, which begin at zero."""

    def __init__(self, graph, stream):
        self.graph, self.origin, self.before, self.clocks = graph, stream, {}, {}
        self._fork(stream)

    def wait(self, stream, other):
        """`stream` is about to wait for `other`: a fork or a join if one of them is captured."""
        if other in self.clocks and stream not in self.clocks:
            self._fork(stream)
        elif stream in self.clocks and other not in self.clocks:
            raise RuntimeError("dependency created on uncaptured work in another stream")

    def _fork(self, stream):
        self.clocks[stream] = stream.clock
        stream.clock = {stream: 0}

    def end(self):
        """Give the streams back as they were; RuntimeError if one was not joined."""
        joined = self.origin.clock
        ends = {stream: stream.clock[stream] for stream in self.clocks}
        for stream, clock in self.clocks.items():
            stream.clock = clock
        if any(joined.get(stream, 0) < ticks for stream, ticks in ends.items()):
            raise RuntimeError("capturing stream has unjoined work")
        self.graph.ends = ends


class Gpu(TorchDispatchMode):
    """Stands in for torch.cuda while it is the mode: every operation is logged with its stream; a
    capture does not compute.
    """

    Stream, CUDAGraph, Event = Stream, CUDAGraph, Event

    def __init__(self):
        super().__init__()
        self.now = Stream("main")
        self.log, self.kept, self.graphs = [], [], []
        self._copies, self._lock = [], threading.Lock()
        self.sent, self.overwritten = (
            0,
            0,
        )  # copies that the host need not wait for, and spoilt ones
        Event.gpu, Stream.capture = self, None

    def current_stream(self):
        return self.now

    def set_stream(self, stream):
        self.now = stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert Stream.capture is None and capture_error_mode == "thread_local"
        graph.gpu, graph.operations, graph.replays = self, [], 0
        self.graphs.append(graph)
        Stream.capture, random = Capture(graph, stream), torch.get_rng_state()
        try:
            with self.stream(stream):
                yield
        finally:
            capture, Stream.capture = Stream.capture, None
            torch.set_rng_state(random)
            with _disable_current_modes(), torch.no_grad():
                for x, value in capture.before.values():
                    x.copy_(value)
            capture.end()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.partition("::")[2]
        written = changed(function, name, args, kwargs)
        captured = Stream.capture if Stream.capture and self.now in Stream.capture.clocks else None
        if captured:
            if name == "_local_scalar_dense":
                raise RuntimeError("operation not permitted when stream is capturing")
            for x in written:
                captured.before.setdefault(x.data_ptr(), (x, x.clone()))
        result = function(*args, **kwargs)
        made, inside = tensors(result), [x for a in (*args, *kwargs.values()) for x in tensors(a)]
        self.kept += [
            x.untyped_storage() for x in (*made, *inside)
        ]  # so that no address means two things
        new = [x for x in made if not any(x is y for y in inside)]
        if captured:
            self.now.clock[self.now] += 1
            captured.graph.operations.append(
                (function, args, kwargs, made, self.now, dict(self.now.clock))
            )
        elif name not in VIEWS and not name.startswith(("empty", "new_empty")):
            self.touch(inside, written + new)
            if name == "copy_" and (kwargs.get("non_blocking") or args[2:] == (True,)):
                self.sent += 1
                with self._lock:
                    self._copies.append(
                        (args[1], args[1].clone(), self.now, self.now.clock[self.now])
                    )
        return result

    def replay(self, graph):
        """Do the operations of a graph, in streams of its own that begin here and end here."""
        main, start = self.now, dict(self.now.clock)
        lanes = {stream: Stream("lane") for stream in graph.ends}
        with torch.no_grad():
            for function, args, kwargs, outputs, stream, clock in graph.operations:
                lane = self.now = lanes[stream]
                lane.clock = start | {lanes[s]: SPACE * ticks for s, ticks in clock.items()}
                lane.clock[lane] -= SPACE - 1
                new = tensors(function(*args, **kwargs))
                for old, value in zip(outputs, new, strict=True):
                    if old.data_ptr() != value.data_ptr():
                        old.copy_(value)
        self.now = main
        main._after({lane: SPACE * graph.ends[stream] for stream, lane in lanes.items()})

    def touch(self, read, written):
        """Log an operation in the current stream."""
        stream = self.now
        stream.clock[stream] += 1
        for x, writes in [(x, False) for x in read] + [(x, True) for x in written]:
            if x.numel() and x.device.type == "cpu":
                extent = x.element_size() * (
                    1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
                )
                self.log.append(
                    (x.data_ptr(), x.data_ptr() + extent, writes, stream, dict(stream.clock))
                )

    def copied(self, clock=None):
        """The host knows that this was done (None: all): what was copied until then may change."""
        with self._lock:
            left = []
            for x, value, stream, tick in self._copies:
                if clock is None or clock.get(stream, 0) >= tick:
                    with _disable_current_modes():
                        self.overwritten += not torch.equal(x, value)
                else:
                    left.append((x, value, stream, tick))
            self._copies = left

    def races(self):
        """How many pairs of operations in two streams touch the same bytes, one of them writing, in
        no order; and how many copies from the host found other numbers than when they were queued.
        """
        self.copied()
        lo, hi, writes, streams, clocks = zip(*self.log, strict=True)
        lo, hi, writes = np.array(lo), np.array(hi), np.array(writes)
        numbers = {stream: number for number, stream in enumerate(dict.fromkeys(streams))}
        own = np.array([numbers[stream] for stream in streams])
        ticks = np.array([clock[s] for s, clock in zip(streams, clocks, strict=True)])
        found = self.overwritten
        for k, (a, b, w, _, clock) in enumerate(self.log):
            reached = np.array([clock.get(stream, 0) for stream in numbers])
            unordered = ticks[:k] > reached[own[:k]]
            found += (unordered & (lo[:k] < b) & (hi[:k] > a) & (writes[:k] | w)).sum()
        return found


def tensors(x):
    if isinstance(x, torch.Tensor):
        return [x]
    return [y for z in x for y in tensors(z)] if isinstance(x, tuple | list) else []


def changed(function, name, args, kwargs):
    """The tensors that an operation writes to in place."""
    formal = function._schema.arguments
    found = [
        kwargs.get(f.name, args[i] if i < len(args) else None)
        for i, f in enumerate(formal)
        if f.alias_info is not None and f.alias_info.is_write
    ]
    if "batch_norm" in name and "backward" not in name:  # whose schema does not say so
        found += args[3:5]
    return [x for x in found if isinstance(x, torch.Tensor)]
