"""Local updates and periodic averaging in a user's own torch loop.

    fleet = localavg.Fleet(MPI.COMM_WORLD)
    averager = localavg.attach(model, fleet, localavg.mavg(K=16, mu=0.7))
    ...
    optimizer.step(); averager.step()        # in the loop; averager.finish() after it

The model's parameters and floating-point buffers become views into one flat row, on the CPU or on
the model's GPU, so an average copies no tensor. The modules and their optimiser do not change.
`jobs/examples/attach.py` is a complete program.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from localavg.algorithms.base import Algorithm
from localavg.attaching.asked import Asked
from localavg.attaching.averager import Averager
from localavg.attaching.checks import check, check_kinds
from localavg.attaching.meetings import check_alone, meet_again
from localavg.parallel.fleet import Fleet
from localavg.parallel.watchdog import watched

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer


def attach(
    model: Module,
    fleet: Fleet,
    algorithm: Algorithm,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    state: str | Mapping[str, str] = "keep",
    statistics: str = "average",
    master: bool = False,
    objective: Callable[[], float] | None = None,
    seed: int = 0,
    rows: int | None = None,
    log: str | None = None,
    config: Mapping[str, object] | None = None,
    warn_after: float = 300.0,
    hang_limit: float | None = None,
    on_failure: str = "end",
    recovery_state: str = "policy",
) -> Averager:
    """Average `model` over the fleet with `algorithm`, one learner per rank. Collective.

    All ranks start from the weights of rank 0. Parameters and floating-point buffers (BatchNorm's
    running statistics) are averaged; other buffers (num_batches_tracked) are not. From now on torch
    uses at most fleet.threads threads. To resume from a checkpoint, attach first, then load the
    model, the optimiser and the averager.

    The model lies on the CPU or on one CUDA GPU, such as GPU fleet.place of its host, which needs
    CuPy. Its parameters are moved now, with the strides that they have; from then on their
    addresses stay, for torch.compile and CUDA graphs. State of the optimiser moves at its first
    average. Work is queued in torch's stream of the moment. Gradient scalers, accumulation and
    clipping change nothing here.

    optimizer: one or several, needed in three cases. sync and qsgd exchange gradients at the start
    of its step, so clipping before the step clips each rank's own gradient, and a parameter without
    gradient counts as zero. adpsgd and adacomm take the lr of its first group as γ. `state` other
    than keep changes its state. In the first and last case every trainable parameter must be in one
    of them.
    state: what an average does to the optimiser's tensors that have the shape of their parameter:
    keep, average or reset, for all of them, or by moment: "m=reset,v=average", or a mapping. m and
    v are Adam's moments (exp_avg, exp_avg_sq); either is SGD's momentum; other tensors have the
    names that torch gives them; what is not named is kept. torch counts one step for m and v: it
    starts again if both are reset. m alone starts from zero without bias correction, and v alone
    is refused. statistics: average the floating-point buffers, or keep every learner's own.

    master: for parameters in bfloat16 or float16, which are averaged in float32 and rounded once.
    With False, an average starts from the parameters as they are. With True, the float32 mean is
    kept too: at the next average each learner adds to it what its parameters changed since then,
    these sums are averaged, and the parameters become the rounded mean. So averages and block
    momentum can move the model by less than a step of the smaller type. state_dict holds the mean.

    objective: returns F on this rank's data at the model's present weights, for
    adalupa(rule="loss"), which uses the mean over the ranks. seed: the seed of qsgd's rounding, and
    of the draws of participants. rows: the training examples of this rank, for `weights = rows`.

    With `participants`, `averager.participates` says whether this rank works in the present round.
    A rank that does not may skip its updates, but it makes the same calls of the averager; the next
    average discards whatever updates it makes. Its optimiser's state follows `state`.

    log: a new run file, as `localavg train` writes it. config: more settings for its /config, such
    as data, batch_size and rows (training examples); the last two give epochs and samples.
    warn_after: print where a rank waits for the others after this many seconds. hang_limit: end the
    job after this many seconds of waiting; never if it is None.

    on_failure: what happens when a rank dies: the job ends ("end"), or the living ranks go back to
    the last average of everyone, and the averager raises `localavg.Recovered` ("continue"). With
    `delay`, `fragments` and gossip each goes back to its own weights where all ranks met last:
    docs/torch.md has the list. That needs Open MPI 5 and mpirun --with-ft ulfm, and host memory.
    There is one learner on each living rank then, so P is smaller; K, the schedule and the seeds
    stay, and learners have new numbers. The row and the optimiser's state lie elsewhere then, so
    torch.compile and samplers must begin anew. A rank keeps two copies of its weights and buffers
    for that, and after a loss the row of before. recovery_state: what of the optimiser's state goes
    back with them: what `state` or exchanged gradients handle, while other state starts anew
    ("policy"), or all of it, two copies more ("all").

    Every rank must make the same calls at the same updates. Raises UserError on every rank where
    they differ, for several learners on a rank, for models that differ between ranks, lie on
    several devices or have other types than float32, bfloat16 and float16, and for an argument that
    is wrong, or needed and missing.
    """
    asked = Asked(
        model, fleet, copy.deepcopy(algorithm), _several(optimizer), state, statistics, master,
        objective, seed, log, config or {}, warn_after, hang_limit, rows, on_failure,
        recovery_state,
    )  # fmt: skip
    check_kinds(asked)
    with watched(fleet.world, "localavg.attach()", *asked.patience):
        meet_again(model)
        fleet.together(lambda: check(asked))
        fleet.together(lambda: check_alone(asked))
        return Averager(asked)


def _several(optimizer: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    """Return the optimisers that were given."""
    if optimizer is None:
        return ()
    return tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
