"""``localavg bench period``: K = auto against a sweep over K, in seconds to a training loss."""

from __future__ import annotations

import argparse
import io
import math
import os
import tempfile
from contextlib import redirect_stderr
from random import Random
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from localavg.cli import Commands, above_0, at_least_1
from localavg.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

    from localavg.cli.bench import Row

AUTO = "auto"


def add(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench period`."""
    s = whats.add_parser(
        "period",
        help="time K = auto against fixed K, in seconds to a training loss, under mpirun",
        description="Train kavg with every K and with K = auto, one learner a rank, where the "
        "learners do not share the classes evenly. Print the seconds until the training loss falls "
        "to --loss, medians over the seeds, and the periods that auto chose.",
    )
    s.add_argument(
        "--Ks",
        type=at_least_1,
        nargs="+",
        default=[1, 4, 16, 64, 256],
        metavar="N",
        help="the fixed periods, in updates (default: 1 4 16 64 256)",
    )
    s.add_argument("--data", default="digits", help="images to train on (default: %(default)s)")
    s.add_argument("--model", default="mlp", help="the network (default: %(default)s)")
    s.add_argument(
        "--sampling",
        default="dirichlet:0.3",
        help="how learners share the data, as in training (default: %(default)s)",
    )
    for name, default, what in (
        ("batch-size", 32, "examples in a mini-batch of a learner"),
        ("steps", 3000, "updates of a run"),
        ("eval-every", 20, "updates from one look at the training loss to the next"),
        ("seeds", 5, "runs of every K, with the seeds 0, 1, …"),
    ):
        text = f"{what} (default: %(default)s)"
        s.add_argument(f"--{name}", type=at_least_1, default=default, metavar="N", help=text)
    for name, value, what in (("lr", 0.1, "the step size"), ("loss", 0.1, "the loss to reach")):
        text = f"{what} (default: %(default)s)"
        s.add_argument(f"--{name}", type=above_0, default=value, metavar="X", help=text)
    s.add_argument(
        "--ranks-per-node",
        type=at_least_1,
        metavar="N",
        help="treat every N ranks of a host as one node (default: all ranks of a host)",
    )
    return s


def rows(args: argparse.Namespace, world: MPI.Intracomm) -> tuple[list[Row], list[str]]:
    """Return a row for every K, and a line for every run with K = auto: its periods. Collective."""
    if world.size < 2:
        raise UserError("bench period on one rank: one learner averages nothing; use mpirun -n 2")
    Ks = [*args.Ks, AUTO]
    took_s: dict[int | str, list[float]] = {K: [] for K in Ks}
    chosen: list[str] = []
    for seed in range(-1, args.seeds):  # the first turn warms up, and does not count
        for K in Random(seed).sample(Ks, len(Ks)):  # alike on all ranks
            seconds, periods = _train(args, world, K, max(seed, 0))
            if seed >= 0:
                took_s[K].append(seconds)
                chosen += [f"seed {seed}: {periods}"] if K == AUTO else []
    best = min((K for K in args.Ks), key=lambda K: median(took_s[K]))
    return [
        {
            "K": K,
            "seconds": median(took_s[K]),
            "least_s": min(took_s[K]),
            "most_s": max(took_s[K]),
            "seconds / best": median(took_s[K]) / median(took_s[best]),
        }
        for K in Ks
    ], chosen


def _train(
    args: argparse.Namespace, world: MPI.Intracomm, K: int | str, seed: int
) -> tuple[float, str]:
    """Train, and return the seconds to the loss and the periods, with t, on every rank."""
    from localavg.config import TrainConfig
    from localavg.files.record import load
    from localavg.training.run import run

    with tempfile.TemporaryDirectory() as folder:
        out = world.bcast(os.path.join(folder, "run.h5"))
        config = TrainConfig(
            algorithm="kavg",
            options={"K": K},
            data=args.data,
            model=args.model,
            sampling=args.sampling,
            batch_size=args.batch_size,
            lr=args.lr,
            steps=args.steps,
            eval_every=args.eval_every,
            ranks_per_node=args.ranks_per_node,
            seed=seed,
            device="cpu",
            out=out,
        )
        with redirect_stderr(io.StringIO()):  # the lines of progress of all those runs
            run(config, world)
        found = (math.inf, "")
        if world.rank == 0:
            made = load(out)
            wall_s, losses = (made.eval[name].to_numpy() for name in ("wall_s", "train_loss"))
            found = reached_s(wall_s, losses, args.loss), ""
            if K == AUTO:
                each = zip(made.periods["t"], made.periods["K"], strict=True)
                found = found[0], _changes([(int(t), int(k)) for t, k in each])
        return world.bcast(found)


def reached_s(wall_s: np.ndarray, losses: np.ndarray, loss: float) -> float:
    """Return when the loss first fell to `loss`, between two looks on a line; inf if never."""
    below = np.flatnonzero(losses <= loss)
    if not below.size:
        return math.inf
    i = int(below[0])
    if i == 0:
        return float(wall_s[0])
    part = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    return float(wall_s[i - 1] + part * (wall_s[i] - wall_s[i - 1]))


def _changes(periods: list[tuple[int, int]]) -> str:
    """Write the periods as `K from t`, where they change."""
    kept = [p for i, p in enumerate(periods) if i == 0 or p[1] != periods[i - 1][1]]
    return ", ".join(f"{K} from {t}" for t, K in kept) or "4 all along"
