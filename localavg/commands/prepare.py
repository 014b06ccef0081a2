"""``localavg prepare SET``: one HDF5 file of a dataset."""

from __future__ import annotations

import argparse
from typing import Any

from localavg.commands import rank, world


def add(commands: Any) -> None:
    p = commands.add_parser("prepare", help="make one HDF5 file of a dataset")
    sets = p.add_subparsers(dest="set", required=True, metavar="SET")
    for name, what in (("epsilon", "the Epsilon set, from its LIBSVM files"), ("libsvm", "any two-class LIBSVM text")):
        s = sets.add_parser(name, help=what, description=f"Prepare {what}; under mpirun the ranks parse together.")
        s.add_argument("train", metavar="TRAIN", help="LIBSVM text, plain or .bz2, .xz, .gz")
        s.add_argument("--test", metavar="FILE", help="the test set")
        s.add_argument("--features", type=int, metavar="N", default=2000 if name == "epsilon" else None,
                       help="how many (default: the largest index)")
        s.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the training rows, as --sampling block needs")
        s.add_argument("--name", default=name, help="what run files will call it")
        s.add_argument("--out", required=True, metavar="FILE.h5")
        s.set_defaults(call=_prepare_libsvm)
    s = sets.add_parser("epsilon-like", help="generated data shaped like Epsilon")
    s.add_argument("--rows", type=int, default=400_000, help="training rows; a quarter as many test rows come on top")
    s.add_argument("--features", type=int, default=2000)
    s.add_argument("--seed", type=int, default=0)
    s.add_argument("--out", required=True, metavar="FILE.h5")
    s.set_defaults(call=_prepare_epsilon_like)


def _prepare_libsvm(args: argparse.Namespace) -> int:
    from localavg.datasets.libsvm import prepare_libsvm

    prepare_libsvm(args.train, args.out, test=args.test, features=args.features, shuffle=args.shuffle, name=args.name,
                   comm=world())
    return _say(args.out)


def _prepare_epsilon_like(args: argparse.Namespace) -> int:
    from localavg.datasets.epsilon_like import prepare_epsilon_like

    prepare_epsilon_like(args.out, rows=args.rows, features=args.features, seed=args.seed, comm=world())
    return _say(args.out)


def _say(path: str) -> int:
    if rank() == 0:
        print(path)
    return 0
