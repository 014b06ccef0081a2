"""The options of ``localavg bench``."""

from __future__ import annotations

import argparse

from localavg.algorithms.gossip import COMPLETE, NAMES
from localavg.algorithms.outer import RULES
from localavg.cli import Commands, at_least_1


def add_train(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench train`."""
    s = whats.add_parser(
        "train",
        help="time local updates against the best loop by hand and the floor",
        description="Time local updates against the fastest of the loops that one would write by "
        "hand for the same learners, and against the floor: of logistic regression, or with "
        "--model of a network on random images of its size.",
    )
    s.add_argument(
        "--problem",
        choices=("logistic", "network"),
        help="train this problem (default: network with --model, else logistic)",
    )
    _add_network(s)
    s.add_argument(
        "--data",
        default="epsilon-like:200000x2000",
        help="data of logistic regression (default: %(default)s)",
    )
    s.add_argument(
        "--batch-size",
        type=at_least_1,
        metavar="N",
        help="B, examples in a mini-batch (default: 128; for networks 64)",
    )
    s.add_argument(
        "--steps",
        type=at_least_1,
        metavar="N",
        help="time N local updates (default: 21875, on a GPU 100; for networks 10)",
    )
    _add_repeats(s, 7)
    return s


def _add_network(s: argparse.ArgumentParser) -> None:
    s.add_argument(
        "--model", metavar="NAME", help="train this network (default: logistic regression)"
    )
    s.add_argument(
        "--side",
        type=at_least_1,
        metavar="PIXELS",
        help="height and width of the network's images (default: those it was made for)",
    )
    s.add_argument(
        "--precision",
        choices=("float32", "tf32", "bf16"),
        default="float32",
        help="arithmetic of the network; weights stay float32; tf32 needs a GPU "
        "(default: %(default)s)",
    )
    s.add_argument(
        "--deterministic",
        choices=("yes", "no"),
        default="yes",
        help="whether ours takes kernels of the GPU that repeat their bits (default: %(default)s)",
    )
    add_device(s, "train")
    s.add_argument(
        "--learners",
        type=at_least_1,
        default=1,
        metavar="N",
        help="train N learners, ours and by hand (default: %(default)s)",
    )
    s.add_argument(
        "--engine",
        choices=("auto", "loop", "graph", "batch"),
        default="auto",
        help="compute the gradients of the learners by this engine, as in training (default: "
        "%(default)s)",
    )


def add_start(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench start`."""
    s = whats.add_parser(
        "start",
        help="time the start of a small run, step by step, from the shell to the first update",
    )
    s.add_argument("--data", default="digits", help="train on these data (default: %(default)s)")
    s.add_argument(
        "--model",
        metavar="NAME",
        help="train this network (default: nin on digits, else logistic regression)",
    )
    s.add_argument(
        "--learners",
        type=at_least_1,
        default=4,
        metavar="N",
        help="train N learners (default: %(default)s)",
    )
    s.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="train on this device, as in training (default: %(default)s)",
    )
    _add_repeats(s, 5)
    return s


def add_memory(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench memory`."""
    s = whats.add_parser(
        "memory", help="measure the memory of a training run against its data, under mpirun"
    )
    s.add_argument(
        "--data", default="epsilon-like", help="train on these data (default: %(default)s)"
    )
    s.add_argument(
        "--steps",
        type=at_least_1,
        default=50,
        metavar="N",
        help="train for N local updates (default: %(default)s)",
    )
    return s


def add_average(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench average`."""
    s = whats.add_parser(
        "average",
        help="time one average against Allreduce, torch's averager and the floor, under mpirun",
    )
    s.add_argument(
        "--sizes",
        nargs="+",
        metavar="N|MODEL",
        help="floats in a row; or networks, whose parameters and statistics a row holds; or "
        "cifar10, all networks for its images (default: 2 000 … 25.6 million)",
    )
    s.add_argument(
        "--learners", type=at_least_1, metavar="N", help="average N rows (default: one a rank)"
    )
    s.add_argument(
        "--ranks-per-node",
        type=at_least_1,
        metavar="N",
        help="treat every N ranks of a host as one node (default: all ranks of a host)",
    )
    s.add_argument(
        "--transport",
        choices=("auto", "shared", "mpi", "cuda_aware", "staged", "nccl"),
        default="auto",
        help="average by this transport (default: %(default)s, as in training)",
    )
    s.add_argument(
        "--outer",
        choices=tuple(RULES),
        help="also time an average with a step of this outer optimiser, and print the time of the "
        "step divided by that of its bytes at the mean's rate (default: only the mean)",
    )
    s.add_argument(
        "--graph",
        choices=tuple(name for name in NAMES if name != COMPLETE),
        help="also time a gossip on this graph, and print its time divided by that of its "
        "neighbours' rows over the link (default: only the mean)",
    )
    s.add_argument(
        "--wire",
        metavar="CODE",
        help="also time an average that crosses nodes in this code: bf16, int8 or lowrank:R, and "
        "print how many times fewer bytes and less time it takes (default: only the mean)",
    )
    s.add_argument(
        "--on-failure",
        choices=("end", "continue"),
        default="end",
        help="continue: also time an average with the copy from which ranks go on when others die; "
        "it needs mpirun --with-ft ulfm (default: %(default)s, only the mean)",
    )
    add_device(s, "average rows")
    _add_repeats(s, 11)
    s.add_argument(
        "--out",
        metavar="FILE.h5",
        help="also write the rows as HDF5, for analysis/bench_average.py (default: only print)",
    )
    return s


def add_checkpoint(whats: Commands) -> argparse.ArgumentParser:
    """Declare `bench checkpoint`."""
    s = whats.add_parser(
        "checkpoint", help="time a checkpoint with momentum against plain writing, under mpirun"
    )
    s.add_argument(
        "--folder",
        default=".",
        metavar="DIR",
        help="write in this folder, on the disk to be measured (default: the current folder)",
    )
    s.add_argument(
        "--floats",
        type=at_least_1,
        metavar="N",
        help="floats in the weights of a learner (default: ResNet-18's)",
    )
    s.add_argument(
        "--learners",
        type=at_least_1,
        default=8,
        metavar="N",
        help="save the state of N learners (default: %(default)s)",
    )
    _add_repeats(s, 5)
    return s


def add_device(s: argparse.ArgumentParser, what: str) -> None:
    """Declare --device, where to do `what`."""
    s.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help=f"{what} on this device (default: %(default)s)",
    )


def _add_repeats(s: argparse.ArgumentParser, default: int) -> None:
    s.add_argument(
        "--repeats",
        type=at_least_1,
        default=default,
        metavar="N",
        help="print medians of N turns (default: %(default)s)",
    )
