"""An ordinary torch loop that goes on when ranks die, with DataLoader and DistributedSampler.

Every rank is a learner with its part of 1797 hand-written digits, and K-AVG (kavg Alg. 1) averages
their models every K = 16 updates. End a rank by kill -9 while it runs: the others go back to the
last average, deal out what is left of the epoch among themselves, and go on.

Cost: about 15 s and 400 MB a rank on two cores; nothing is downloaded. It needs Open MPI 5.

    jobs/local/mpirun --with-ft ulfm -n 3 python jobs/examples/survive.py
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import localavg
from localavg.attaching.averager import Averager

TRAINING = 1440  # digits; the others are for the test


@dataclass
class Stretch:
    """A part of an epoch on a number of ranks, which begins after update t.

    rows: the digits that the epoch has not used yet, in their order.
    """

    t: int
    epoch: int
    rows: Tensor
    fleet: localavg.Fleet
    batch_size: int

    def loader(self, data: TensorDataset) -> DataLoader:
        """Return the mini-batches of this rank."""
        rows, P, j = Subset(data, self.rows.tolist()), self.fleet.P, self.fleet.rank
        sampler = DistributedSampler(rows, num_replicas=P, rank=j, shuffle=False, drop_last=True)
        return DataLoader(rows, self.batch_size, sampler=sampler, drop_last=True)

    def following(self, t: int) -> Stretch:
        """Return the next epoch, which begins after update t."""
        order = torch.Generator().manual_seed(self.epoch + 1)  # the same on all ranks
        rows = torch.randperm(TRAINING, generator=order)
        return Stretch(t, self.epoch + 1, rows, self.fleet, self.batch_size)

    def rest(self, lost: localavg.Recovered) -> Stretch:
        """Return what is left after update lost.t, for the ranks that live."""
        used = (lost.t - self.t) * self.fleet.P * self.batch_size
        return Stretch(lost.t, self.epoch, self.rows[used:], lost.fleet, self.batch_size)


def train(args: argparse.Namespace) -> None:
    """Train the network, and print the averaged model's accuracy after every fifth epoch."""
    fleet = localavg.Fleet(MPI.COMM_WORLD)
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16 - 0.3, dtype=torch.float32), torch.tensor(y)
    data = TensorDataset(x[:TRAINING], y[:TRAINING])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    averager = localavg.attach(
        model, fleet, localavg.kavg(K=16), optimizer, on_failure="continue", log=args.out
    )

    stretches = [Stretch(0, 0, torch.empty(0), fleet, args.batch_size).following(0)]
    while True:
        try:
            while stretches[-1].epoch <= args.epochs:
                for batch, labels in stretches[-1].loader(data):
                    optimizer.zero_grad()
                    loss = cross_entropy(model(batch), labels)
                    loss.backward()
                    optimizer.step()
                    averager.step(loss)
                report(averager, stretches[-1].epoch, x[TRAINING:], y[TRAINING:])
                stretches.append(stretches[-1].following(averager.t))
            averager.finish()  # now every rank holds the averaged model
            return
        except localavg.Recovered as lost:
            while stretches[-1].t > lost.t:
                stretches.pop()
            stretches.append(stretches[-1].rest(lost))


@torch.no_grad()
def report(averager: Averager, epoch: int, x: Tensor, y: Tensor) -> None:
    """Print the averaged model's accuracy on the test's digits after every fifth epoch."""
    if epoch % 5:
        return
    with averager.averaged():
        accuracy = (averager.model(x).argmax(1) == y).float().mean().item()
    fleet = averager.fleet
    if fleet.rank == 0:
        print(f"epoch {epoch:3}  {fleet.P} learners  test accuracy {accuracy:.2%}", flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=30, help="train for this many epochs (default: 30)")
    add("--batch-size", type=int, default=16, help="digits in a rank's mini-batch (default: 16)")
    add("--lr", type=float, default=0.05, help="step size (default: 0.05)")
    add("--out", metavar="FILE.h5", help="write a run file (default: none)")
    return parser.parse_args()


if __name__ == "__main__":
    train(arguments())
