"""What the loops of `outliving.py` must end with: written from the definitions, with learners in one
process that are dropped where their ranks died.
"""

from dataclasses import dataclass

import outliving
import torch
from outliving import loss_of, net, optimizer_of
from torch.nn.utils import vector_to_parameters

CUT = 4  # of net(): the parameters in the first one of two fragments


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@dataclass
class Flight:
    """A mean on its way: after which update it began, of which numbers, and of what copies."""

    t: int
    part: slice
    copies: torch.Tensor


def parts(loop, model, t):
    """Of which numbers everyone takes the mean after update t."""
    o = loop.options
    t, K = t - o.get("switch", 0), o.get("K", 1)
    if loop.algorithm in ("sync", "gossip") or t <= 0:
        return []
    if o.get("fragments", 1) == 1:
        return [slice(None)] * (t % K == 0)
    sizes = [p.numel() for p in model.parameters()]
    cut = sum(sizes[:CUT])
    return [part for part, at in ((slice(cut), K // 2), (slice(cut, None), 0)) if t % K == at]


def mixed(rows, graph):
    """The rows after a gossip of all of them."""
    P = len(rows)
    steps = (-1, 1) if graph == "ring" else [-(1 << i) for i in range(8) if 1 << i < P]
    near = [{(j + s) % P for s in steps} - {j} for j in range(P)]
    return torch.stack([(rows[j] + sum(rows[i] for i in near[j])) / (1 + len(near[j]))
                        for j in range(P)])  # fmt: skip


def exchange(loop, nets, t):
    """Take the mean of the gradients, where the algorithm does."""
    if loop.algorithm == "sync" or t <= loop.options.get("switch", 0):
        for same in zip(*(each.parameters() for each in nets), strict=True):
            mean = sum(p.grad for p in same) / len(nets)
            for p in same:
                p.grad = mean.clone()


def oracle(loop, P, back):
    """The parameters after T updates of P learners, fewer after each loss.

    back: for each loss the update that was gone back to, who died, and how many were left.
    """
    o, lost = loop.options, {t: (gone, left) for t, gone, left in back}
    nets = [net() for _ in range(P)]
    optimizers = [optimizer_of(loop.optimizer, each) for each in nets]
    w = vector(nets[0])
    v, flight = torch.zeros_like(w), None  # of M-AVG; a mean on its way
    for t in range(1, outliving.T + 1):
        for j, (each, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            optimizer.zero_grad()
            loss_of(loop, each, j, t).backward()
        exchange(loop, nets, t)
        for optimizer in optimizers:
            optimizer.step()
        rows, due = torch.stack([vector(each) for each in nets]), parts(loop, nets[0], t)
        if loop.algorithm == "gossip" and t % o["K"] == 0:
            rows = mixed(rows, o.get("graph", "ring"))
        if flight is not None and t == flight.t + o["delay"]:
            part, copies = flight.part, flight.copies
            rows[:, part] += copies.mean(0) - copies
            flight = None
        for part in due if "delay" not in o else ():
            v[part] = o.get("mu", 0.0) * v[part] + rows[:, part].mean(0) - w[part]
            w[part] += v[part]
            rows[:, part] = w[part]
        if t in lost:
            gone, left = lost[t]
            live = [j for j in range(len(nets)) if j not in gone]
            nets, rows = [nets[j] for j in live], rows[live]
            optimizers = [optimizers[j] for j in live]
            assert len(nets) == left
            if loop.recovery_state == "policy" and loop.algorithm != "sync":
                optimizers = [optimizer_of(loop.optimizer, each) for each in nets]
        for part in due if "delay" in o else ():
            flight = Flight(t, part, rows[:, part].clone())
        for each, row in zip(nets, rows, strict=True):
            vector_to_parameters(row.clone(), each.parameters())
    return rows.mean(0)
