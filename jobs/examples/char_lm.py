"""DiLoCo trains a small GPT: two learners that meet once in K = 50 updates.

The model is a decoder with causal attention in plain torch. It predicts the next character of the
Python reference, a text that comes with Python. Every rank is a learner with half of the text and
AdamW, and an average of everyone is a step of Nesterov momentum (DiLoCo Alg. 1). Rank 0 prints the
validation loss of the averaged model in bits a character.

Cost: about 90 s and 500 MB a rank on two cores; nothing is downloaded.

    jobs/local/mpirun -n 2 python jobs/examples/char_lm.py

It ends at 2.04 bits a character. --compare trains two more times, with the mean gradient of every
update (1.85 bits) and every rank alone (2.14), prints the three in one line, and takes three times
as long:

    jobs/local/mpirun -n 2 python jobs/examples/char_lm.py --compare
"""

from __future__ import annotations

import argparse
import math
from pydoc_data.topics import topics

import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import localavg
from localavg.algorithms.base import Algorithm

CONTEXT = 64  # characters that the model sees


class Block(nn.Module):
    """Attention to all earlier characters, then a layer on each of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, C / heads] each
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Characters [B, T] → the logits of the next ones [B, T, V]."""

    def __init__(self, V: int, width: int = 96, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(V, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, V, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


class Text:
    """The Python reference as numbers of characters: the last tenth is for validation."""

    def __init__(self) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))
        names = sorted(set(text))
        number = {c: i for i, c in enumerate(names)}
        numbers = torch.tensor([number[c] for c in text])
        self.V, cut = len(names), len(text) * 9 // 10
        self.train, self.validation = numbers[:cut], numbers[cut:]

    def batch(self, part: Tensor, B: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw B windows of a part of the text, and the same windows one character later."""
        starts = torch.randint(len(part) - CONTEXT, (B,), generator=random)
        windows = torch.stack([part[i : i + CONTEXT + 1] for i in starts])
        return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of a mini-batch, in nats a character."""
    return cross_entropy(model(x).flatten(0, 1), y.flatten())


@torch.no_grad()
def bits(model: nn.Module, text: Text) -> float:
    """Return the validation loss in bits a character, on the same windows every time."""
    random = torch.Generator().manual_seed(0)
    losses = [loss_of(model, *text.batch(text.validation, 64, random)) for _ in range(8)]
    return float(sum(losses)) / len(losses) / math.log(2)


def train(args: argparse.Namespace, text: Text, fleet: localavg.Fleet, how: Algorithm) -> float:
    """Train a new model, and return the validation loss of the average in bits a character."""
    torch.manual_seed(args.seed)
    model, rank = GPT(text.V), MPI.COMM_WORLD.rank
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    step_size = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.1, cycle_momentum=False
    )
    averager = localavg.attach(model, fleet, how, optimizer)
    mine = text.train.chunk(MPI.COMM_WORLD.size)[rank]  # a part of the text of its own
    random = torch.Generator().manual_seed(args.seed + rank)
    for t in range(1, args.steps + 1):
        optimizer.zero_grad()
        loss_of(model, *text.batch(mine, args.batch_size, random)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averager.step()
        step_size.step()
        if t % args.every == 0:
            with averager.averaged():
                found = bits(model, text)
            if MPI.COMM_WORLD.rank == 0:
                print(f"{how.name}  update {t:4}  {found:.3f} bits a character", flush=True)
    averager.finish()
    return bits(model, text)


def main(args: argparse.Namespace) -> None:
    """Train with DiLoCo, and compare it if asked to."""
    world, text = MPI.COMM_WORLD, Text()
    everyone, alone = localavg.Fleet(world), localavg.Fleet(MPI.COMM_SELF)
    found = {f"diloco (K = {args.K})": train(args, text, everyone, localavg.diloco(K=args.K))}
    if args.compare:
        found["sync"] = train(args, text, everyone, localavg.sync())
        found["no averages"] = train(args, text, alone, localavg.sgd())
    if world.rank == 0:
        print("bits a character: " + ", ".join(f"{name} {x:.3f}" for name, x in found.items()))


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name, default, about in (
        ("--K", 50, "average every K updates"),
        ("--steps", 1500, "number of updates"),
        ("--batch-size", 16, "windows of text in a rank's mini-batch"),
        ("--lr", 0.003, "largest step size of AdamW"),
        ("--seed", 0, "random seed"),
        ("--every", 250, "validate every so many updates"),
    ):
        add(name, type=type(default), default=default, help=f"{about} (default: %(default)s)")
    add("--compare", action="store_true", help="train with sync and without averages too")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(arguments())
