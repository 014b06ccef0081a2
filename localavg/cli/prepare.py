"""``localavg prepare SET``: one HDF5 file of a dataset."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from localavg.cli import rank, world


def add(commands: Any) -> None:
    p = commands.add_parser("prepare", help="make one HDF5 file of a dataset")
    sets = p.add_subparsers(dest="set", required=True, metavar="SET")
    for name, what in (
        ("epsilon", "the Epsilon set, from its LIBSVM files"),
        ("libsvm", "any two-class LIBSVM text"),
    ):
        s = sets.add_parser(
            name, help=what, description=f"Prepare {what}; under mpirun the ranks parse together."
        )
        s.add_argument("train", metavar="TRAIN", help="LIBSVM text, plain or .bz2, .xz, .gz")
        s.add_argument("--test", metavar="FILE", help="the test set")
        s.add_argument(
            "--features",
            type=int,
            metavar="N",
            default=2000 if name == "epsilon" else None,
            help="how many (default: the largest index)",
        )
        s.add_argument(
            "--shuffle",
            type=int,
            metavar="SEED",
            help="shuffle the training rows, as --sampling block needs",
        )
        s.add_argument("--name", default=name, help="what run files will call it")
        s.add_argument("--out", required=True, metavar="FILE.h5")
        s.set_defaults(call=_prepare_libsvm)
    s = sets.add_parser("epsilon-like", help="generated data shaped like Epsilon")
    s.add_argument(
        "--rows",
        type=int,
        default=400_000,
        help="training rows; a quarter as many test rows come on top",
    )
    s.add_argument("--features", type=int, default=2000)
    s.add_argument("--seed", type=int, default=0)
    s.add_argument("--out", required=True, metavar="FILE.h5")
    s.set_defaults(call=_prepare_epsilon_like)
    s = sets.add_parser(
        "cifar10",
        help="CIFAR-10, from its archive",
        description="Prepare CIFAR-10 from its official archive.",
    )
    s.add_argument(
        "archive", metavar="ARCHIVE", help="cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
    )
    _add_common(s, "cifar10", shuffle=True)
    s.set_defaults(call=_prepare_cifar10)
    s = sets.add_parser(
        "imagenet",
        help="ImageNet (ILSVRC2012), from its archives",
        description="Prepare ImageNet from its official archives, which are not unpacked.",
    )
    s.add_argument("--train", required=True, metavar="FILE", help="ILSVRC2012_img_train.tar")
    s.add_argument("--val", required=True, metavar="FILE", help="ILSVRC2012_img_val.tar")
    s.add_argument("--devkit", required=True, metavar="FILE", help="ILSVRC2012_devkit_t12.tar.gz")
    s.add_argument(
        "--any-count",
        action="store_true",
        help="take archives with another number of pictures than the official",
    )
    _add_common(s, "imagenet")
    s.set_defaults(call=_prepare_imagenet)
    s = sets.add_parser(
        "folder",
        help="any folder of pictures",
        description="Prepare a folder with one subfolder a class.",
    )
    s.add_argument("train", metavar="DIR", help="the folder to learn from")
    s.add_argument("--test", metavar="DIR", help="the test set, with the same classes")
    s.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="side of what a network sees (default: 224)",
    )
    _add_common(s, None, shuffle=True)
    s.set_defaults(call=_prepare_folder)


def _add_common(s: Any, name: str | None, shuffle: bool = False) -> None:
    """The options that the sets of images share."""
    if shuffle:
        s.add_argument(
            "--shuffle",
            type=int,
            metavar="SEED",
            help="shuffle the training rows, as --sampling block needs",
        )
    s.add_argument(
        "--name",
        default=name,
        help=f"what run files will call it (default: {name or 'that of DIR'})",
    )
    s.add_argument("--out", required=True, metavar="FILE.h5")


def _prepare_libsvm(args: argparse.Namespace) -> int:
    from localavg.datasets.libsvm import prepare_libsvm

    prepare_libsvm(
        args.train,
        args.out,
        test=args.test,
        features=args.features,
        shuffle=args.shuffle,
        name=args.name,
        comm=world(),
    )
    return _say(args.out)


def _prepare_epsilon_like(args: argparse.Namespace) -> int:
    from localavg.datasets.epsilon_like import prepare_epsilon_like

    prepare_epsilon_like(
        args.out, rows=args.rows, features=args.features, seed=args.seed, comm=world()
    )
    return _say(args.out)


def _prepare_cifar10(args: argparse.Namespace) -> int:
    from localavg.datasets.cifar10 import prepare_cifar10

    official = prepare_cifar10(
        args.archive, args.out, shuffle=args.shuffle, name=args.name, comm=world()
    )
    if rank() == 0:
        print(
            f"localavg: {args.archive} {'is' if official else 'is not'} one of the official "
            "archives, by its MD5 checksum"
            f"{'' if official else '; its images and labels are complete'}",
            file=sys.stderr,
        )
    return _say(args.out)


def _prepare_imagenet(args: argparse.Namespace) -> int:
    from localavg.datasets.imagenet import prepare_imagenet

    prepare_imagenet(
        args.train,
        args.val,
        args.devkit,
        args.out,
        any_count=args.any_count,
        name=args.name,
        comm=world(),
    )
    return _say(args.out)


def _prepare_folder(args: argparse.Namespace) -> int:
    from localavg.datasets.folder import prepare_folder

    prepare_folder(
        args.train,
        args.out,
        test=args.test,
        size=args.size,
        shuffle=args.shuffle,
        name=args.name,
        comm=world(),
    )
    return _say(args.out)


def _say(path: str) -> int:
    if rank() == 0:
        print(path)
    return 0
