"""A step of an engine as one CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from localavg.errors import UserError
from localavg.problems.engines.memory import is_shortage

WARM_UP = 3
"""eager steps before the capture

A capture must not contain what libraries set up at their first kernels.
"""


class Replayed:
    """A step that is queued eagerly at first, and as one CUDA graph afterwards.

    engine: its name, for errors. step: queues the work in the current stream, and in others that it
    forks and joins. cuda: torch.cuda or a stand-in. The work before a call comes before the step,
    and the work after it comes after; the step itself runs in one stream from the first call on, in
    which the graph is captured.
    """

    def __init__(self, engine: str, step: Callable[[], None], cuda: ModuleType) -> None:
        self.engine, self.step, self.cuda = engine, step, cuda
        self._stream = cuda.Stream()
        self.begin()

    def begin(self) -> None:
        """Forget the graph, because the step has other memory now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager = WARM_UP  # steps that remain until the capture

    def __call__(self) -> None:
        """Queue the step. Raises UserError if it cannot be captured."""
        if self._graph is None and not self._eager:
            self._graph = captured(self.engine, self.step, self.cuda, self._stream)
        if self._graph is not None:
            self._graph.replay()
            return
        main = self.cuda.current_stream()
        self._stream.wait_stream(main)
        with self.cuda.stream(self._stream):
            self.step()
        main.wait_stream(self._stream)
        self._eager -= 1


def captured(
    engine: str, step: Callable[[], None], cuda: ModuleType, stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    """Capture a step that begins in `stream`; nothing is computed yet.

    cuda: torch.cuda or a stand-in. Raises UserError, which names the engine, if it cannot be
    captured.
    """
    graph, main = cuda.CUDAGraph(), cuda.current_stream()
    try:
        # thread_local: MPI, NCCL and a feed's thread may call CUDA meanwhile
        with _no_garbage(), cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError as e:
        cuda.set_stream(main)
        _leave_capture(cuda)
        cause = e.__context__ or e  # the end of a capture that failed raises once more
        if is_shortage(cause):
            raise cause from None
        why = str(cause).partition("\n")[0]
        raise UserError(
            f"`engine = {engine}`: the network's gradient cannot be captured ({why}); use "
            "`engine = loop`"
        ) from e
    return graph


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Keep Python from freeing what is garbage by now in the middle of a capture.

    Memory that CUDA frees then, an earlier engine's, makes the capture invalid.
    """
    running = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _leave_capture(cuda: ModuleType) -> None:
    """Let the GPU's random numbers be drawn again after a capture that failed.

    torch leaves their generators waiting for the end of the capture, and every later dropout fails.
    """
    for generator in getattr(cuda, "default_generators", ()):
        fresh = torch.Generator(generator.device)
        fresh.set_state(generator.get_state())
        generator.graphsafe_set_state(fresh)
