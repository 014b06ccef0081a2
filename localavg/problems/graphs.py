"""The learners of one rank on one GPU: gradients replayed from CUDA graphs, in side streams.

A graph launches the hundreds of small kernels of a gradient at once, and kernels in different
streams run side by side, so that several learners on a GPU take little more time than their
arithmetic. Written against `torch.cuda` or a stand-in with its names; not yet run on a GPU.

Main is the stream that all other work runs in; each learner has a side stream. One rule keeps
memory safe: what main and a side stream both use is allocated in main, and main releases it, or
writes to it, only after it has waited for the side stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from localavg.errors import UserError
from localavg.problems.rows import Bound

WARM_UP = 3
"""eager gradients of a learner in its side stream

A capture must not contain what libraries set up at their first kernels.
"""
SIDES = 8
"""largest number of side streams

The kernels of more learners rarely run side by side, and every stream keeps the activations of a
learner.
"""


@dataclass(eq=False)
class Side:
    """A side stream and the memory of the graphs captured in it.

    The graphs share this memory, as they never run at the same time.
    """

    stream: torch.cuda.Stream
    pool: object
    """what `torch.cuda.graph_pool_handle` returned"""


@dataclass(eq=False)
class Capture:
    """The graph of one learner's gradient, and what it reads and writes in addition to its rows."""

    side: Side
    x: Tensor
    """[B, C, H, W]"""
    y: Tensor
    """[B]"""
    eager: int = WARM_UP
    """eager gradients that remain until the capture"""
    graph: torch.cuda.CUDAGraph | None = None
    loss: Tensor | None = None
    """loss of the last replay, in the pool of the side stream"""


class Graphs:
    """Gradients of L learners; the loop asks for each of them once in a step.

    A side stream waits for main as main is when the learner's gradient is asked for: after the last
    update and the learner's own batch, and not after the other learners, since main waits for the
    side streams only once the last of the L has begun. What follows in main, an exchange, the
    update, an average, then has all the gradients and need not know of side streams.

    draws: whether the network draws numbers (dropout). Graphs may read their seed from one place on
    the GPU, that of torch's generator, which a replay in another stream would overwrite. Such a
    network therefore has one side stream.
    """

    def __init__(self, L: int, draws: bool, cuda: ModuleType = torch.cuda) -> None:
        self.L, self.cuda = L, cuda
        count = 1 if draws else min(L, SIDES)
        self.sides = [Side(cuda.Stream(), cuda.graph_pool_handle()) for _ in range(count)]
        self._captures: dict[Bound, Capture] = {}
        self._begun: dict[Bound, Tensor] = {}  # those of this step, and their losses

    def gradient_(self, bound: Bound, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """Queue the gradient of a bound module, into its row.

        Return the loss, which may be read when the step is complete. x [B, C, H, W] and y [B] may
        be overwritten in main right after. A batch whose shape differs from the learner's first is
        computed eagerly in main. seed: of what the network draws. Raises UserError where the
        gradient cannot be captured.
        """
        if bound in self._begun:  # the last step was not complete
            self.join()
        if bound not in self._captures:
            side = self.sides[len(self._captures) % len(self.sides)]
            self._captures[bound] = Capture(side, torch.empty_like(x), torch.empty_like(y))
        capture = self._captures[bound]
        if seed is not None:  # a replay begins with the generator's seed, as an eager gradient does
            torch.manual_seed(seed)
        if x.shape == capture.x.shape:
            loss = self._at_side(capture, bound, x, y)
        else:
            loss = bound.gradient_(x, y)
        self._begun[bound] = loss
        if len(self._begun) == self.L:
            self.join()
        return loss

    def join(self) -> None:
        """Make main wait for all gradients that have begun."""
        main = self.cuda.current_stream()
        for side in self.sides:
            main.wait_stream(side.stream)
        self._begun.clear()

    def _at_side(self, capture: Capture, bound: Bound, x: Tensor, y: Tensor) -> Tensor:
        """Queue the gradient in the learner's side stream; return the loss."""
        stream, loss = capture.side.stream, torch.empty((), device=x.device)
        capture.x.copy_(x)
        capture.y.copy_(y)
        stream.wait_stream(self.cuda.current_stream())
        if not capture.eager and capture.graph is None:
            self._record(capture, bound)
        with self.cuda.stream(stream):
            if capture.graph is None or capture.loss is None:
                capture.eager -= 1
                loss.copy_(bound.gradient_(capture.x, capture.y))
            else:
                capture.graph.replay()
                loss.copy_(capture.loss)  # before another replay in this pool
        return loss

    def _record(self, capture: Capture, bound: Bound) -> None:
        """Capture the gradient of the batch in capture.x, capture.y; nothing is computed yet."""
        graph, side = self.cuda.CUDAGraph(), capture.side
        try:
            # thread_local: MPI and NCCL may call CUDA from threads of their own meanwhile
            with self.cuda.graph(
                graph, pool=side.pool, stream=side.stream, capture_error_mode="thread_local"
            ):
                capture.loss = bound.gradient_(capture.x, capture.y)
        except RuntimeError as e:
            cause = e.__context__ or e  # the end of a capture that failed raises once more
            why = str(cause).partition("\n")[0]
            raise UserError(
                f"`cuda_graphs`: the network's gradient cannot be captured ({why}); leave the "
                "option out"
            ) from e
        capture.graph = graph
