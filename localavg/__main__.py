"""The command line: ``python -m localavg COMMAND``. It loads neither MPI nor HDF5 before a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from typing import Any, NoReturn, get_args, get_type_hints

from localavg.config import TrainConfig, UserError

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK", "SLURM_PROCID")


class Parser(argparse.ArgumentParser):
    """Errors are raised, so that one rank tells them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """All commands and their options."""
    top = Parser(prog="localavg", description="SGD with local updates and periodic averaging over MPI.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_prepare(commands)
    _add_bench(commands)
    return top


def _add_train(commands: Any) -> None:
    from localavg.algorithms import ALGORITHMS, options

    rows = [(name, make.__doc__.splitlines()[0]) for name, make in ALGORITHMS.items()]
    takes = {name: " ".join(f"--{o.replace('_', '-')}" for o in options(name)) for name in ALGORITHMS}
    table = "\n".join(f"  {name:<10} {doc}\n{'':13}{takes[name]}".rstrip() for name, doc in rows)
    p = commands.add_parser("train", help="train with one algorithm", formatter_class=argparse.RawDescriptionHelpFormatter,
                            description="Train with one algorithm, under mpirun or alone.", epilog=f"algorithms:\n{table}")
    p.set_defaults(call=_train)
    p.add_argument("algorithm", metavar="ALGORITHM", help="one of the algorithms below")
    groups: dict[str, Any] = {}
    hints = get_type_hints(TrainConfig)
    for f in fields(TrainConfig):
        if not (group := f.metadata["group"]):
            continue
        to = groups.setdefault(group, p.add_argument_group(group) if group not in groups else None)
        kind = next((t for t in (*get_args(hints[f.name]), hints[f.name]) if t in (int, float, str, bool)), str)
        how = {"action": "store_true"} if kind is bool else {"type": kind, "choices": f.metadata.get("choices")}
        if isinstance(f.default, tuple):
            how["nargs"] = "+"
        elif kind is not bool and not how["choices"]:
            how["metavar"] = f.metadata.get("metavar", "N" if kind is int else "X" if kind is float else "TEXT")
        default = f" (default: {f.default})" if kind is not bool and f.default not in (None, ()) else ""
        to.add_argument(_flag(f.name), default=argparse.SUPPRESS, dest=f.name,
                        help=f.metadata["help"].replace("%", "%%") + default, **how)
    own = p.add_argument_group("options of the algorithms")
    for option in dict.fromkeys(o for name in ALGORITHMS for o in options(name)):
        default = next(options(name)[option] for name in ALGORITHMS if option in options(name))
        flags = [_flag(option)] + (["--tau"] if option == "K" else [])
        how = {"action": "store_true"} if isinstance(default, bool) else {"type": type(default), "metavar": "X"}
        own.add_argument(*flags, dest=f"own {option}", default=argparse.SUPPRESS, **how)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_prepare(commands: Any) -> None:
    p = commands.add_parser("prepare", help="make one HDF5 file of a dataset")
    sets = p.add_subparsers(dest="set", required=True, metavar="SET")
    for name, what in (("epsilon", "the Epsilon set, from its LIBSVM files"), ("libsvm", "any two-class LIBSVM text")):
        s = sets.add_parser(name, help=what, description=f"Prepare {what}; under mpirun the ranks parse together.")
        s.add_argument("train", metavar="TRAIN", help="LIBSVM text, plain or .bz2, .xz, .gz")
        s.add_argument("--test", metavar="FILE", help="the test set")
        s.add_argument("--features", type=int, metavar="N", default=2000 if name == "epsilon" else None,
                       help="how many (default: the largest index)")
        s.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the training rows, so that --sampling block may be used")
        s.add_argument("--name", default=name, help="what run files will call it")
        s.add_argument("--out", required=True, metavar="FILE.h5")
        s.set_defaults(call=_prepare_libsvm)
    s = sets.add_parser("epsilon-like", help="generated data shaped like Epsilon")
    s.add_argument("--rows", type=int, default=400_000, help="training rows; a quarter as many test rows come on top")
    s.add_argument("--features", type=int, default=2000)
    s.add_argument("--seed", type=int, default=0)
    s.add_argument("--out", required=True, metavar="FILE.h5")
    s.set_defaults(call=_prepare_epsilon_like)


def _add_bench(commands: Any) -> None:
    p = commands.add_parser("bench", help="measure speed and memory against what the machine can do")
    sets = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, what, steps in (("train", "local updates of one learner against a bare loop and the floor of reading the data", 3000),
                              ("memory", "the memory of a training run against its data, under mpirun", 50)):
        s = sets.add_parser(name, help=what, description=f"Measure {what}.")
        s.add_argument("--data", default="epsilon-like:200000x2000" if name == "train" else "epsilon-like")
        s.add_argument("--steps", type=int, default=steps)
        s.add_argument("--json", metavar="FILE", help="write the rows there too")
        s.set_defaults(call=_bench)
        if name == "train":
            s.add_argument("--problem", choices=("logistic",), default="logistic")
            s.add_argument("--batch-size", type=int, default=128)
            s.add_argument("--repeats", type=int, default=7)


def _train(args: argparse.Namespace) -> int:
    given = vars(args)
    options = {key.removeprefix("own "): value for key, value in given.items() if key.startswith("own ")}
    names = {f.name for f in fields(TrainConfig)}
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in names}
    config = TrainConfig(**settings)
    from localavg.record import provenance

    origin = provenance() if _rank() == 0 else None  # runs git: before MPI starts
    from mpi4py import MPI

    from localavg.run import run

    return run(config, options, MPI.COMM_WORLD, origin)


def _prepare_libsvm(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    from localavg.datasets.libsvm import prepare_libsvm

    prepare_libsvm(args.train, args.out, test=args.test, features=args.features, shuffle=args.shuffle, name=args.name,
                   comm=MPI.COMM_WORLD)
    return _say(args.out)


def _prepare_epsilon_like(args: argparse.Namespace) -> int:
    from localavg.datasets.epsilon_like import prepare_epsilon_like

    if _rank() == 0:
        prepare_epsilon_like(args.out, rows=args.rows, features=args.features, seed=args.seed)
    return _say(args.out)


def _bench(args: argparse.Namespace) -> int:
    import json

    from mpi4py import MPI

    from localavg import bench

    if args.what == "train":
        from localavg.fleet import Fleet

        rows = bench.bench_train(Fleet(MPI.COMM_WORLD), args.data, args.batch_size, args.steps, args.repeats)
    else:
        rows = bench.bench_memory(MPI.COMM_WORLD, args.data, args.steps)
    if _rank() == 0:
        from tabulate import tabulate

        for row in rows:
            print(tabulate(row.items(), floatfmt=",.4g", intfmt=","))
        if args.json:
            with open(args.json, "w") as f:
                json.dump(rows, f, indent=1)
    return 0


def _say(path: str) -> int:
    if _rank() == 0:
        print(path)
    return 0


def _rank() -> int:
    """This process's rank, as the launcher's environment says: known without MPI."""
    return next((int(os.environ[name]) for name in RANK if os.environ.get(name, "").isdigit()), 0)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed, 2 a user's mistake (one line on rank 0)."""
    try:
        args = parser().parse_args(argv)
        status = args.call(args)
    except UserError as e:
        if _rank() == 0:
            print(f"localavg: {e}", file=sys.stderr, flush=True)
        status = 2
    _leave(status)


def _leave(status: int) -> NoReturn:
    """Exit together: MPI is finalised first, so that the launcher sees a status and not an abort."""
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    sys.exit(status)


if __name__ == "__main__":
    main()
