"""The learners of one rank on one GPU: gradients replayed from CUDA graphs, in streams beside the
rank's own.

A graph launches the hundreds of small kernels of a gradient at once, and kernels in different
streams run side by side, so that several learners on a GPU take little more than their arithmetic.
Written against `torch.cuda` or a stand-in with its names; not yet run on a GPU.

Main is the stream that everything else runs in; the learners' are called lanes. One rule keeps
memory safe: what main and a lane both touch is allocated in main, and main lets go of it, or writes
to it, only after it has waited for the lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localavg.errors import UserError

# eager gradients of a learner in its lane: what libraries set up at their first kernels must not be
# captured
WARM_UP = 3
# the kernels of more learners find little room beside each other, and every lane keeps a learner's
# activations
LANES = 8


@dataclass(eq=False)
class Lane:
    """A stream and the memory of the graphs captured in it: they share it, as they never run at the
    same time.
    """

    stream: Any
    pool: Any


@dataclass(eq=False)
class Capture:
    """What the graph of one learner reads and writes beside its rows."""

    lane: Lane
    x: Tensor  # [B, C, H, W]
    y: Tensor  # [B]
    eager: int = WARM_UP  # gradients until it is captured
    graph: Any = None
    loss: Tensor | None = None  # of the last replay, in the lane's pool


class Graphs:
    """Gradients of L learners, every one of which is asked for once in a step, as `train.train`
    does.

    A lane waits for main as it is when its learner's gradient is asked for: after the update before
    and the learner's own batch, not after the other learners, since main waits for the lanes only
    once the last of the L has begun. What follows in main, an exchange, the update, an average,
    then has all the gradients without knowing of lanes.

    draws: the network draws numbers (dropout). Graphs may read their seed from one place on the
    GPU, torch's generator's, which a replay in another lane would overwrite: there is one lane
    then.
    """

    def __init__(self, L: int, draws: bool, cuda: Any = torch.cuda) -> None:
        self.L, self.cuda = L, cuda
        self.lanes = [
            Lane(cuda.Stream(), cuda.graph_pool_handle())
            for _ in range(1 if draws else min(L, LANES))
        ]
        self._learners: dict[Any, Capture] = {}  # by what they are bound to
        self._begun: dict[Any, Tensor] = {}  # in this step, and their losses

    def gradient_(self, bound: Any, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """The gradient of a `network.Bound`, into its row: queued. Returns the loss, to be read
        when the step is complete.

        x [B, C, H, W] and y [B] may be overwritten in main right after. A batch of another shape
        than the learner's first is done eagerly in main. seed: of what the network draws. Raises
        UserError where the gradient cannot be captured.
        """
        if bound in self._begun:  # the last step was not complete
            self.join()
        if bound not in self._learners:
            lane = self.lanes[len(self._learners) % len(self.lanes)]
            self._learners[bound] = Capture(lane, torch.empty_like(x), torch.empty_like(y))
        learner = self._learners[bound]
        if seed is not None:
            torch.manual_seed(
                seed
            )  # a replay begins with the generator's seed, as an eager gradient does
        self._begun[bound] = loss = (
            self._in_lane(learner, bound, x, y)
            if x.shape == learner.x.shape
            else bound.gradient_(x, y)
        )
        if len(self._begun) == self.L:
            self.join()
        return loss

    def join(self) -> None:
        """Have main wait for all gradients that were begun."""
        main = self.cuda.current_stream()
        for lane in self.lanes:
            main.wait_stream(lane.stream)
        self._begun.clear()

    def _in_lane(self, learner: Capture, bound: Any, x: Tensor, y: Tensor) -> Tensor:
        stream, loss = learner.lane.stream, torch.empty((), device=x.device)
        learner.x.copy_(x)
        learner.y.copy_(y)
        stream.wait_stream(self.cuda.current_stream())
        if not learner.eager and learner.graph is None:
            self._capture(learner, bound)
        with self.cuda.stream(stream):
            if learner.graph is None:
                learner.eager -= 1
                loss.copy_(bound.gradient_(learner.x, learner.y))
            else:
                learner.graph.replay()
                loss.copy_(learner.loss)  # before another replay in this pool
        return loss

    def _capture(self, learner: Capture, bound: Any) -> None:
        """Have the learner's graph compute the gradient of the batch in learner.x, learner.y;
        nothing is computed yet.
        """
        graph, lane = self.cuda.CUDAGraph(), learner.lane
        try:
            # thread_local: MPI and NCCL may call CUDA from threads of their own meanwhile
            with self.cuda.graph(
                graph, pool=lane.pool, stream=lane.stream, capture_error_mode="thread_local"
            ):
                learner.loss = bound.gradient_(learner.x, learner.y)
        except RuntimeError as e:
            why = str(e.__context__ or e).partition("\n")[
                0
            ]  # the end of a capture that failed raises once more
            raise UserError(
                f"`cuda_graphs`: the network's gradient cannot be captured ({why}); leave the "
                "option out"
            ) from e
        learner.graph = graph
