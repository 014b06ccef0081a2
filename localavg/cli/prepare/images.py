"""Sets of images, from their archives, files or a folder."""

from __future__ import annotations

import argparse
import sys

from localavg.cli import Commands, rank
from localavg.cli.prepare.options import add_name, add_out, add_shuffle, print_path, ranks


def add_cifar10(sets: Commands) -> None:
    """Declare `prepare cifar10`."""
    s = sets.add_parser(
        "cifar10",
        help="CIFAR-10, from its archive",
        description="Prepare CIFAR-10 from its official archive.",
    )
    s.add_argument(
        "archive", metavar="ARCHIVE", help="cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
    )
    add_shuffle(s)
    add_name(s, "cifar10")
    add_out(s)
    s.set_defaults(call=_prepare_cifar10)


def add_mnist(sets: Commands) -> None:
    """Declare `prepare mnist`."""
    s = sets.add_parser(
        "mnist",
        help="MNIST, Fashion-MNIST, KMNIST or EMNIST, from their IDX files",
        description="Prepare MNIST, or a set in its format (IDX), from its files, plain or .gz. "
        "Their names say what they hold: train, t10k or test; images or labels.",
    )
    s.add_argument(
        "files",
        nargs="+",
        metavar="DIR|FILE",
        help="a folder with the files, or the files: images and labels to train on, and perhaps "
        "to test on",
    )
    s.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="resize the images to this height and width (default: keep their size)",
    )
    s.add_argument(
        "--transpose",
        action="store_true",
        help="swap rows and columns of the images, as EMNIST needs it (default: off)",
    )
    s.add_argument(
        "--pad",
        type=int,
        default=0,
        metavar="PIXELS",
        help="train on crops at a random place of images with so many zeros on every side "
        "(default: %(default)s)",
    )
    s.add_argument(
        "--flip",
        action="store_true",
        help="train on images that are flipped left to right with probability 1/2 (default: off)",
    )
    add_shuffle(s)
    add_name(s, "mnist")
    add_out(s)
    s.set_defaults(call=_prepare_mnist)


def add_imagenet(sets: Commands) -> None:
    """Declare `prepare imagenet`."""
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
    add_name(s, "imagenet")
    add_out(s)
    s.set_defaults(call=_prepare_imagenet)


def add_folder(sets: Commands) -> None:
    """Declare `prepare folder`."""
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
    add_shuffle(s)
    add_name(s, None)
    add_out(s)
    s.set_defaults(call=_prepare_folder)


def _prepare_cifar10(args: argparse.Namespace) -> int:
    from localavg.datasets.cifar10 import prepare_cifar10

    official = prepare_cifar10(
        args.archive, args.out, shuffle=args.shuffle, name=args.name, comm=ranks()
    )
    if rank() == 0:
        found = "is" if official else "is not"
        more = "" if official else "; its images and labels are complete"
        print(
            f"localavg: {args.archive} {found} one of the official archives, by its MD5 checksum"
            f"{more}",
            file=sys.stderr,
        )
    return print_path(args.out)


def _prepare_mnist(args: argparse.Namespace) -> int:
    from localavg.datasets.dataset import Augment
    from localavg.datasets.mnist import prepare_mnist

    found = prepare_mnist(
        args.files,
        args.out,
        size=args.size,
        transpose=args.transpose,
        augment=Augment(pad=args.pad, flip=args.flip),
        shuffle=args.shuffle,
        name=args.name,
        comm=ranks(),
    )
    if rank() == 0:
        counts = " and ".join(f"{n} to {split} on" for split, n in found.rows.items())
        official = f"; these are the files of {found.known}" if found.known else ""
        size = " x ".join(map(str, found.shape))
        print(f"localavg: images of {size} pixels, {counts}{official}", file=sys.stderr)
        if found.empty:
            some = ", ".join(found.empty[:5]) + ", …" * (len(found.empty) > 5)
            print(
                f"localavg: {len(found.empty)} classes have no image to train on: {some}",
                file=sys.stderr,
            )
    return print_path(args.out)


def _prepare_imagenet(args: argparse.Namespace) -> int:
    from localavg.datasets.imagenet import prepare_imagenet

    prepare_imagenet(
        args.train,
        args.val,
        args.devkit,
        args.out,
        any_count=args.any_count,
        name=args.name,
        comm=ranks(),
    )
    return print_path(args.out)


def _prepare_folder(args: argparse.Namespace) -> int:
    from localavg.datasets.folder import prepare_folder

    passed_over = prepare_folder(
        args.train,
        args.out,
        test=args.test,
        size=args.size,
        shuffle=args.shuffle,
        name=args.name,
        comm=ranks(),
    )
    if passed_over and rank() == 0:
        print(f"localavg: {passed_over}", file=sys.stderr)
    return print_path(args.out)
