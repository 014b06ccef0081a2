"""Loops of a user's own in which ranks kill themselves, one loop after the other.

    mpirun --with-ft ulfm -n 4 python -m mpi4py outliving.py REPLY [NAME]

NAME: of LOOPS. A loop after a loss has the ranks that live. The first living rank writes to REPLY,
in JSON, what each loop ended with.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

D, C, B = 6, 3, 8  # features, classes, mini-batch


class Loop(NamedTuple):
    """kills: as in `killing.py`. linear: whether gradients do not depend on the weights, which then
    show to rounding what arrived of all updates; with Adam, for which the gradient before a
    BatchNorm is noise. nodes: the ranks of each.
    """

    kills: str
    algorithm: str
    options: dict
    recovery_state: str
    optimizer: str
    log: bool = False
    linear: bool = False
    nodes: int | None = None


T = 40
LOOPS = {
    "equal": [
        # rank 3 of 4 dies in the average after 12; rank 0 of 3 between averages; of two one after
        Loop("mean@3:3", "kavg", {"K": 4}, "all", "momentum"),
        Loop("step@0:14", "mavg", {"K": 4, "mu": 0.5}, "policy", "momentum", log=True),
        Loop("step@1:9", "sync", {}, "policy", "adam"),
    ],
    "apart": [
        Loop("mix@3:6", "gossip", {"K": 2}, "all", "momentum"),  # after 12
        # in the mean that began after 12, with the merge of the one before
        Loop("travel@0:3", "kavg", {"K": 4, "delay": 4}, "all", "momentum", log=True),
    ],
    "gossip": [
        Loop("step@0:15", "gossip", {"K": 2}, "policy", "momentum", log=True),
        Loop("-mix@1:3", "gossip", {"K": 3, "graph": "exp"}, "all", "adam", False, True),
    ],
    "resting": [Loop("step@0:11", "kavg", {"K": 4, "participants": 2}, "all", "momentum")],
    "torus": [Loop("step@0:15", "gossip", {"K": 2, "graph": "torus"}, "policy", "momentum")],
    "delay": [
        Loop("-merge@1:2", "kavg", {"K": 5, "delay": 3}, "policy", "momentum"),
        Loop("depart@0:17", "kavg", {"K": 5, "delay": 5, "switch": 3}, "all", "adam", True, True),
    ],
    "fragments": [
        Loop("step@2:16", "kavg", {"K": 6, "fragments": 2}, "all", "momentum", log=True),
        Loop("merge@1:4", "kavg", {"K": 6, "fragments": 2, "delay": 2}, "policy", "momentum"),
    ],
    "wire": [
        # from two nodes to one
        Loop("step@1:14", "kavg", {"K": 5, "wire": "int8"}, "all", "momentum", True, True, 2),
    ],
    "wire of four": [  # two nodes, before and after it
        Loop("step@1:14", "kavg", {"K": 5, "wire": "lowrank:1"}, "all", "momentum", False, True, 2),
        Loop(
            "travel@0:3", "kavg", {"K": 4, "delay": 2, "wire": "bf16"}, "all", "adam", False, True, 2
        ),
    ],
}  # fmt: skip


def net():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C))


def batch(j, t):
    """Learner j's examples of update t: x [B, D], y [B]."""
    rng = np.random.default_rng([j, t])
    x = rng.normal(size=(B, D)) + 0.3 * j
    y = np.argmax(x[:, :C] + 0.5 * rng.normal(size=(B, C)), axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def gamma(t):
    return 0.1 / (1 + t // 10)


def optimizer_of(name, model):
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_of(loop, model, j, t):
    """Learner j's loss of update t."""
    if not loop.linear:
        x, y = batch(j, t)
        return cross_entropy(model(x), y)
    rng = np.random.default_rng([j, t])
    normal = [torch.tensor(rng.normal(size=p.shape), dtype=p.dtype) for p in model.parameters()]
    return sum((p * g).sum() for p, g in zip(model.parameters(), normal, strict=True))


def trained(loop, world, out):
    """Train on the ranks of `world`. Return the parameters, and where it went back to."""
    import localavg

    model, back = net(), []
    optimizer = optimizer_of(loop.optimizer, model)
    averager = localavg.attach(
        model,
        localavg.Fleet(world, ranks_per_node=loop.nodes),
        localavg.algorithms.ALGORITHMS[loop.algorithm](**loop.options),
        optimizer,
        log=out if loop.log else None,
        on_failure="continue",
        recovery_state=loop.recovery_state,
    )
    while True:
        try:
            while averager.t < T:
                t = averager.t + 1
                optimizer.zero_grad()
                loss = loss_of(loop, model, averager.fleet.rank, t)
                loss.backward()
                if averager.participates:
                    optimizer.step()
                averager.step(loss)
            averager.finish()
            return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(), back
        except localavg.Recovered as lost:
            back.append((lost.t, lost.lost, lost.fleet.P))


def main(reply, name="equal"):
    from dying import armed
    from mpi4py import MPI

    from localavg.parallel import survive

    answers = []
    for i, loop in enumerate(LOOPS[name]):
        world = survive.survivors[-1] if survive.survivors else MPI.COMM_WORLD
        with armed(loop.kills, world.rank):
            answers.append(trained(loop, world, Path(reply).with_name(f"{i}.h5")))
        if survive.survivors[-1].rank == 0:
            Path(reply).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
