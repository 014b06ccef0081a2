"""An algorithm of your own, a sweep over it, and a figure: a researcher's first hour in one file.

The question: must learners average after equal periods, or may they toss a coin? `coin` below
averages after every update with probability 1/K, and the coin is the same on all ranks. It is a
schedule of ten lines, and nothing in the package changes. It is compared with K-AVG, which averages
every K updates: eight learners with different digits, K = 4, 16 and 64, two seeds each.

Cost: about 30 s on two cores; nothing is downloaded.

    jobs/local/mpirun -n 2 python jobs/examples/own_algorithm.py --out runs/coin

It prints a table of the runs, and draws the loss at the end against the number of averages:
runs/coin/coin.png. In your own torch loop the same function works as localavg.attach(model, fleet,
coin(K=16)).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Unpack

import numpy as np
from mpi4py import MPI

import localavg
from localavg.algorithms.base import Algorithm, Schedule
from localavg.algorithms.common import Common, composed
from localavg.algorithms.parameters import algorithm
from localavg.scope import Scope


class Coin(Schedule):
    """Everyone averages after an update with probability 1/K."""

    def __init__(self, K: int, toss: int) -> None:
        self.K, self.toss = K, toss

    def after(self, t: int) -> Scope:
        """Return who averages after update t: a function of t alone, so that all ranks agree."""
        heads = np.random.default_rng([self.toss, t]).random() < 1 / self.K
        return Scope.WORLD if heads else Scope.NONE


@algorithm
def coin(
    K: Annotated[int, "mean number of local updates between two averages"] = 16,
    toss: Annotated[int, "seed of the coin"] = 0,
    **common: Unpack[Common],
) -> Algorithm:
    """Everyone averages after an update with probability 1/K, with the options common to all."""
    return composed(Coin(K, toss), **common)


def main(args: argparse.Namespace) -> None:
    """Train with both algorithms, print a table, and draw the figure. Collective."""
    runs = {
        (name, K, seed): localavg.train(
            how,
            K=K,
            seed=seed,
            learners=8,
            data="digits",
            model="mlp",
            sampling="dirichlet:0.3",
            batch_size=16,
            lr=0.1,
            steps=args.steps,
            eval_every=args.steps // 4,
            out=f"{args.out}/{name}-{K}-{seed}.h5",
        )
        for name, how in (("kavg", "kavg"), ("coin", coin))
        for K in args.K
        for seed in range(args.seeds)
    }
    if MPI.COMM_WORLD.rank == 0:
        table = localavg.compare(runs.values())
        print(table[["averages", "train_loss", "test_accuracy", "seconds"]].to_string())
        draw(runs, args)


def draw(runs: dict[tuple[str, int, int], localavg.Run], args: argparse.Namespace) -> None:
    """Draw the loss at the end against the number of averages: a dot a run, lines of means."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(layout="constrained")
    for name, color in (("kavg", "tab:blue"), ("coin", "tab:orange")):
        ends = np.array(
            [
                [(len(run.averages), run.eval.train_loss.iloc[-1]) for run in repeats]
                for repeats in ([runs[name, K, s] for s in range(args.seeds)] for K in args.K)
            ]
        )  # [periods, seeds, 2]
        axes.plot(*ends.reshape(-1, 2).T, ".", color=color)
        axes.plot(*ends.mean(axis=1).T, color=color, label=name)
    axes.set(xscale="log", xlabel="averages", ylabel=f"training loss after {args.steps} updates")
    axes.legend()
    figure.savefig(Path(args.out, "coin.png"), dpi=150)
    print(Path(args.out, "coin.png"))


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--K", type=int, nargs="+", default=[4, 16, 64], help="periods (default: %(default)s)")
    add("--seeds", type=int, default=2, help="seeds of each setting (default: %(default)s)")
    add("--steps", type=int, default=400, help="updates of a learner (default: %(default)s)")
    add("--out", default="runs/coin", help="folder to write (default: %(default)s)")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(arguments())
