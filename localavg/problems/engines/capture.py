"""The capture of a step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from localavg.errors import UserError
from localavg.problems.engines.memory import is_shortage

WARM_UP = 3
"""eager steps before the capture

A capture must not contain what libraries set up at their first kernels.
"""


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
        with cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError as e:
        cuda.set_stream(main)
        cause = e.__context__ or e  # the end of a capture that failed raises once more
        if is_shortage(cause):
            raise cause from None
        why = str(cause).partition("\n")[0]
        raise UserError(
            f"`engine = {engine}`: the network's gradient cannot be captured ({why}); use "
            "`engine = loop`"
        ) from e
    return graph
