"""``localavg prepare SET``: write one HDF5 file of a dataset."""

from __future__ import annotations

import argparse
import sys

from localavg.cli import Commands, rank, world


def add(commands: Commands) -> None:
    """Declare the command and one subcommand for each kind of dataset."""
    p = commands.add_parser("prepare", help="write one HDF5 file of a dataset")
    sets = p.add_subparsers(dest="set", required=True, metavar="SET")
    _add_libsvm(sets, "epsilon", "the Epsilon set, from its LIBSVM files", features=2000)
    _add_libsvm(sets, "libsvm", "any LIBSVM text of two classes", features=None)
    _add_epsilon_like(sets)
    _add_cifar10(sets)
    _add_imagenet(sets)
    _add_folder(sets)


def _add_libsvm(sets: Commands, name: str, what: str, features: int | None) -> None:
    s = sets.add_parser(
        name, help=what, description=f"Prepare {what}. Under mpirun the ranks parse it together."
    )
    s.add_argument(
        "train", metavar="TRAIN", help="LIBSVM text of the training set, plain or .bz2, .xz, .gz"
    )
    s.add_argument(
        "--test",
        metavar="FILE",
        help="also read the test set from this file (default: no test set)",
    )
    default = features or "the largest index in the files"
    s.add_argument(
        "--features",
        type=int,
        metavar="N",
        default=features,
        help=f"write N features in every row (default: {default})",
    )
    s.add_argument(
        "--zero-based",
        action="store_true",
        help="read indices that start at 0 (default: they start at 1)",
    )
    s.add_argument(
        "--any-size",
        action="store_true",
        help="accept rows that need more memory than this machine has, for a larger machine "
        "(default: refuse)",
    )
    _add_shuffle(s)
    _add_name(s, name)
    _add_out(s)
    s.set_defaults(call=_prepare_libsvm)


def _add_epsilon_like(sets: Commands) -> None:
    s = sets.add_parser(
        "epsilon-like",
        help="generated data of Epsilon's shape",
        description="Generate data of Epsilon's shape.",
    )
    s.add_argument(
        "--rows",
        type=int,
        metavar="N",
        default=400_000,
        help="make N training rows, and N/4 test rows in addition (default: %(default)s)",
    )
    s.add_argument(
        "--features",
        type=int,
        metavar="N",
        default=2000,
        help="make N features in every row (default: %(default)s)",
    )
    s.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="draw the data with this random seed (default: %(default)s)",
    )
    _add_out(s)
    s.set_defaults(call=_prepare_epsilon_like)


def _add_cifar10(sets: Commands) -> None:
    s = sets.add_parser(
        "cifar10",
        help="CIFAR-10, from its archive",
        description="Prepare CIFAR-10 from its official archive.",
    )
    s.add_argument(
        "archive", metavar="ARCHIVE", help="cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
    )
    _add_shuffle(s)
    _add_name(s, "cifar10")
    _add_out(s)
    s.set_defaults(call=_prepare_cifar10)


def _add_imagenet(sets: Commands) -> None:
    s = sets.add_parser(
        "imagenet",
        help="ImageNet (ILSVRC2012), from its archives",
        description="Prepare ImageNet from its official archives, which are not unpacked.",
    )
    for option, archive in (
        ("train", "ILSVRC2012_img_train.tar"),
        ("val", "ILSVRC2012_img_val.tar"),
        ("devkit", "ILSVRC2012_devkit_t12.tar.gz"),
    ):
        s.add_argument(
            f"--{option}", required=True, metavar="FILE", help=f"read {archive} from this path"
        )
    s.add_argument(
        "--any-count",
        action="store_true",
        help="accept archives whose number of images is not the official one (default: refuse)",
    )
    _add_name(s, "imagenet")
    _add_out(s)
    s.set_defaults(call=_prepare_imagenet)


def _add_folder(sets: Commands) -> None:
    s = sets.add_parser(
        "folder",
        help="any folder of images",
        description="Prepare a folder of images with one subfolder a class. The orientation that a "
        "camera writes into a picture is not applied, and transparency is dropped.",
    )
    s.add_argument("train", metavar="DIR", help="folder of the training set")
    s.add_argument(
        "--test",
        metavar="DIR",
        help="also read the test set, with the same classes, from this folder (default: no test "
        "set)",
    )
    s.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="let the network see images of this height and width (default: %(default)s)",
    )
    _add_shuffle(s)
    _add_name(s, None)
    _add_out(s)
    s.set_defaults(call=_prepare_folder)


def _add_shuffle(s: argparse.ArgumentParser) -> None:
    s.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="shuffle the training rows with this random seed, as --sampling block needs "
        "(default: keep their order)",
    )


def _add_name(s: argparse.ArgumentParser, name: str | None) -> None:
    s.add_argument(
        "--name",
        default=name,
        help=f"call the dataset this in run files (default: {name or 'the name of DIR'})",
    )


def _add_out(s: argparse.ArgumentParser) -> None:
    s.add_argument("--out", required=True, metavar="FILE.h5", help="write the dataset here")


def _prepare_libsvm(args: argparse.Namespace) -> int:
    from localavg.datasets.libsvm import prepare_libsvm

    prepare_libsvm(
        args.train,
        args.out,
        test=args.test,
        features=args.features,
        shuffle=args.shuffle,
        name=args.name,
        zero_based=args.zero_based,
        any_size=args.any_size,
        comm=world(),
    )
    return _print_path(args.out)


def _prepare_epsilon_like(args: argparse.Namespace) -> int:
    from localavg.datasets.epsilon_like import prepare_epsilon_like

    prepare_epsilon_like(
        args.out, rows=args.rows, features=args.features, seed=args.seed, comm=world()
    )
    return _print_path(args.out)


def _prepare_cifar10(args: argparse.Namespace) -> int:
    from localavg.datasets.cifar10 import prepare_cifar10

    official = prepare_cifar10(
        args.archive, args.out, shuffle=args.shuffle, name=args.name, comm=world()
    )
    if rank() == 0:
        found = "is" if official else "is not"
        more = "" if official else "; its images and labels are complete"
        print(
            f"localavg: {args.archive} {found} one of the official archives, by its MD5 checksum"
            f"{more}",
            file=sys.stderr,
        )
    return _print_path(args.out)


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
    return _print_path(args.out)


def _prepare_folder(args: argparse.Namespace) -> int:
    from localavg.datasets.folder import prepare_folder

    passed_over = prepare_folder(
        args.train,
        args.out,
        test=args.test,
        size=args.size,
        shuffle=args.shuffle,
        name=args.name,
        comm=world(),
    )
    if passed_over and rank() == 0:
        print(f"localavg: {passed_over}", file=sys.stderr)
    return _print_path(args.out)


def _print_path(path: str) -> int:
    """Print the path on rank 0; return the exit status of success."""
    if rank() == 0:
        print(path)
    return 0
