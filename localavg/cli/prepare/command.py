"""``localavg prepare SET``: write one HDF5 file of a dataset."""

from __future__ import annotations

from localavg.cli import Commands
from localavg.cli.prepare import images, vectors


def add(commands: Commands) -> None:
    """Declare the command and one subcommand for each kind of dataset."""
    p = commands.add_parser("prepare", help="write one HDF5 file of a dataset")
    sets = p.add_subparsers(dest="set", required=True, metavar="SET")
    vectors.add_libsvm(sets, "epsilon", "the Epsilon set, from its LIBSVM files", features=2000)
    vectors.add_libsvm(sets, "libsvm", "any LIBSVM text of two classes", features=None)
    vectors.add_epsilon_like(sets)
    vectors.add_features(sets)
    images.add_cifar10(sets)
    images.add_mnist(sets)
    images.add_imagenet(sets)
    images.add_folder(sets)
