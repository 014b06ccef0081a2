"""A whole torch program around local updates: 1797 hand-written digits on two ranks.

It shows what a program of your own has in addition to the three lines that localavg needs: a
DistributedSampler, AdamW with a step size that falls along a cosine, BatchNorm, dropout, clipping,
validation of the averaged model by all ranks together, a checkpoint after every epoch, a run file,
and a resumed run that ends with the bits of a run that was never stopped.

Cost: about 15 s and 400 MB a rank on two cores; nothing is downloaded.

    jobs/local/mpirun -n 2 python jobs/examples/torch_digits.py --out runs/digits

Stop it with Ctrl-C, or let it stop by itself with --stop-after 5. With --resume it goes on:

    jobs/local/mpirun -n 2 python jobs/examples/torch_digits.py --out runs/digits --resume

The folder has the averaged model (model.pt), every rank's checkpoints of the last two epochs, and a
run file for each start (run-1.h5, …), which `localavg plot` draws.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import localavg

TRAINING = 1437  # digits; the other 360 are for validation


class Training:
    """Everything that has a state. Between averages the state differs from rank to rank."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.fleet = localavg.Fleet(MPI.COMM_WORLD)  # localavg, line 1 of 3
        torch.manual_seed(args.seed + self.fleet.rank)  # each rank has a dropout of its own
        train, self.validation = digits()
        # drop_last, twice: all ranks get the same number of mini-batches
        P, rank = self.fleet.P, self.fleet.rank
        self.sampler = DistributedSampler(train, P, rank, seed=args.seed, drop_last=True)
        self.loader = DataLoader(train, args.batch_size, sampler=self.sampler, drop_last=True)
        T = args.epochs * len(self.loader)  # updates
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), args.lr, weight_decay=0.01)
        self.step_size = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T)
        self.averager = localavg.attach(  # localavg, line 2 of 3: all start from rank 0's weights
            self.model,
            self.fleet,
            localavg.kavg(K=args.K),
            self.optimizer,
            log=self.run_file(),
            config={**vars(args), "data": "digits", "rows": len(train), "steps": T},
        )
        self.parts = {  # attach first, then load; the scheduler after the optimizer
            "model": self.model,
            "optimizer": self.optimizer,
            "step_size": self.step_size,
            "averager": self.averager,
        }

    def run_file(self) -> str:
        """Return the name of a new run file."""
        number = 1 + len(list(self.out.glob("run-*.h5")))
        return str(self.out / f"run-{self.fleet.world.bcast(number)}.h5")

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of this rank's checkpoint."""
        return self.out / f"epoch-{epoch}-rank-{self.fleet.rank}.pt"

    def save(self, epoch: int) -> None:
        """Save this rank after an epoch, and remove its checkpoint of the epoch before the last."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state["random"] = torch.get_rng_state()
        path = self.checkpoint(epoch)
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)  # it is there as a whole, or not at all
        self.checkpoint(epoch - 2).unlink(missing_ok=True)

    def resume(self) -> int:
        """Load the last epoch that every rank has saved, and return its number, 0 if none is."""
        mine = self.out.glob(f"epoch-*-rank-{self.fleet.rank}.pt")
        numbers = self.fleet.world.allgather({int(path.name.split("-")[1]) for path in mine})
        epoch = max(set.intersection(*numbers), default=0)
        if not epoch and any(numbers):  # more ranks than before, or some files are lost
            sys.exit(f"{self.out}: no epoch that all {self.fleet.ranks} ranks have saved")
        if epoch:
            state = torch.load(self.checkpoint(epoch), weights_only=False)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"])
        return epoch


def train(args: argparse.Namespace) -> None:
    """Train the network, and validate the averaged model after every epoch."""
    run = Training(args)
    begin = run.resume() if args.resume else 0
    for epoch in range(begin + 1, min(args.epochs, args.stop_after) + 1):
        run.sampler.set_epoch(epoch)  # a new order, the same on all ranks
        for x, y in run.loader:
            run.optimizer.zero_grad()
            loss = cross_entropy(run.model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)  # this rank's gradient
            run.optimizer.step()
            run.averager.step(loss)  # localavg, line 3 of 3
            run.step_size.step()
        validate(run, epoch)
        run.save(epoch)
    if args.stop_after < args.epochs:
        return  # with status 0: a job script starts it again with --resume
    run.averager.finish()  # now every rank holds the averaged model
    if run.fleet.rank == 0:
        torch.save(run.model.state_dict(), run.out / "model.pt")


@torch.no_grad()
def validate(run: Training, epoch: int) -> None:
    """Write the averaged model's loss and accuracy to the run file; each rank computes a part."""
    run.model.eval()
    x, y = (part[run.fleet.rank :: run.fleet.P] for part in run.validation)
    with run.averager.averaged():
        z = run.model(x)  # [n, 10]
    run.model.train()
    loss, right = cross_entropy(z, y, reduction="sum").item(), (z.argmax(1) == y).sum().item()
    losses, rights, counts = zip(*run.fleet.world.allgather((loss, right, len(y))), strict=True)
    loss, accuracy = sum(losses) / sum(counts), sum(rights) / sum(counts)
    run.averager.evaluated(epoch=epoch, test_loss=loss, test_accuracy=accuracy)
    if run.fleet.rank == 0:
        print(f"epoch {epoch:3}  loss {loss:.4f}  accuracy {accuracy:.2%}", flush=True)


def digits() -> tuple[TensorDataset, tuple[torch.Tensor, torch.Tensor]]:
    """Load images [n, 1, 8, 8] and labels [n]: for training, and for validation."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16 - 0.3, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return TensorDataset(x[:TRAINING], y[:TRAINING]), (x[TRAINING:], y[TRAINING:])


def network() -> nn.Module:
    """Make a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 2 * 2, 10),
    )  # fmt: skip


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    for name, default, about in (
        ("--K", 8, "average every K updates"),
        ("--epochs", 20, "train for this many epochs"),
        ("--batch-size", 16, "digits in a rank's mini-batch"),
        ("--lr", 0.003, "step size at the start"),
        ("--seed", 0, "random seed"),
        ("--stop-after", 10**6, "stop after this epoch, as a time limit would"),
    ):
        add(name, type=type(default), default=default, help=f"{about} (default: %(default)s)")
    add("--out", default="runs/digits", help="folder to write (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    return parser.parse_args(words)


if __name__ == "__main__":
    train(arguments())
