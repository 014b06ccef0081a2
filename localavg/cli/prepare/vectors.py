"""Sets of feature vectors: LIBSVM text, generated ones, and images as features."""

from __future__ import annotations

import argparse

from localavg.cli import Commands
from localavg.cli.prepare.options import add_name, add_out, add_shuffle, print_path, ranks


def add_libsvm(sets: Commands, name: str, what: str, features: int | None) -> None:
    """Declare `prepare NAME` of LIBSVM text, with so many features by default."""
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
    add_shuffle(s)
    add_name(s, name)
    add_out(s)
    s.set_defaults(call=_prepare_libsvm)


def add_epsilon_like(sets: Commands) -> None:
    """Declare `prepare epsilon-like`."""
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
    add_out(s)
    s.set_defaults(call=_prepare_epsilon_like)


def add_features(sets: Commands) -> None:
    """Declare `prepare features`."""
    s = sets.add_parser(
        "features",
        help="a set of images as feature vectors of two classes",
        description="Make feature vectors of two classes, for logistic regression, from a set of "
        "images: the pixels of an image, divided by their norm.",
    )
    s.add_argument("images", metavar="IMAGES", help="prepared set of images, or digits")
    s.add_argument(
        "--positive",
        required=True,
        metavar="CLASSES",
        help="label these classes +1, such as 0,2,4,6 or Coat,Bag, and all others -1",
    )
    s.add_argument(
        "--sort",
        action="store_true",
        help="put the training rows in the order of their classes, so that --sampling shard gives "
        "the learners different classes (default: keep their order)",
    )
    add_name(s, None, "that of the images, and the classes")
    add_out(s)
    s.set_defaults(call=_prepare_features)


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
        comm=ranks(),
    )
    return print_path(args.out)


def _prepare_epsilon_like(args: argparse.Namespace) -> int:
    from localavg.datasets.epsilon_like import prepare_epsilon_like

    prepare_epsilon_like(
        args.out, rows=args.rows, features=args.features, seed=args.seed, comm=ranks()
    )
    return print_path(args.out)


def _prepare_features(args: argparse.Namespace) -> int:
    from localavg.datasets.two_classes import prepare_features

    classes = [name.strip() for name in args.positive.split(",") if name.strip()]
    prepare_features(args.images, args.out, classes, sort=args.sort, name=args.name, comm=ranks())
    return print_path(args.out)
