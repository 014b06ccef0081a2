"""Prepare ImageNet (ILSVRC2012) from its official tar archives as a file of packed pictures.

Nothing is unpacked: pictures are copied unchanged from the archive to the file, one at a time. A
preparation that is interrupted leaves no file, and the next one starts from the beginning.
"""

from __future__ import annotations

import io
import re
from pathlib import Path, PurePosixPath
from tarfile import TarFile, TarInfo
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from localavg.datasets import archives, progress
from localavg.datasets.image_writer import PictureWriter, write_pictures
from localavg.datasets.writer import Communicator, check_file, check_out, on_root
from localavg.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

COUNTS = {"train": 1_281_167, "test": 50_000}
"""pictures in the official archives; the validation set is the test split"""
SIDE = 224
MOST_BYTES = 64 << 20
"""largest size of a picture or of a part of the devkit: more is considered damage"""


class Devkit(NamedTuple):
    """The contents of the development kit."""

    wnids: list[str]
    """WordNet ids of the classes, sorted: class k is wnids[k]"""
    names: tuple[str, ...]
    """names of the classes, in the same order"""
    validation: list[int]
    """class of validation picture 1, 2, …"""


def prepare_imagenet(
    train: str | Path,
    val: str | Path,
    devkit: str | Path,
    out: str | Path,
    any_count: bool = False,
    name: str = "imagenet",
    comm: Communicator | None = None,
) -> None:
    """Write the prepared file `out` from the archives of ILSVRC2012.

    They are ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz.
    Classes are numbered in the order of their WordNet ids. Pictures keep the archives' order, which
    goes by classes for the training set. The file is as large as the archives. Rank 0 works.

    UserError, unless `any_count`, if there are not `COUNTS` pictures; always if pictures cannot be
    decoded, which are all listed, if a picture is not where its name belongs, if a label is not in
    the development kit, if an archive is damaged, or if `out` exists.
    """

    sources = {"train": str(train), "test": str(val)}

    def work() -> None:
        check_out(out)
        kit = _devkit(devkit)
        sizes = {split: _size(path) for split, path in sources.items()}
        source, wnids = ", ".join(Path(p).name for p in (train, val, devkit)), " ".join(kit.wnids)
        attributes = {"name": name, "source": source, "shuffled": False, "wnids": wnids}
        with (
            write_pictures(out, sizes, sources, kit.names, SIDE, attributes) as target,
            progress.bar(sum(sizes.values()), f"write {Path(out).name}") as bar,
        ):
            _copy_train(Path(train), kit, target, bar)
            _copy_validation(Path(val), kit, target, bar)
            target.finish()
            for split, path in sources.items():
                _check_count(path, len(target.labels[split]), split, any_count)

    on_root(comm, work)


def _size(path: str | Path) -> int:
    """Return the bytes of an archive; UserError unless it can be read."""
    with archives.reading(path):
        check_file(path)
        with open(path, "rb") as file:
            return file.seek(0, io.SEEK_END)


def _devkit(path: str | Path) -> Devkit:
    """Read the development kit; UserError unless it is whole."""
    import scipy.io

    found: dict[str, bytes] = {}
    for tar, member in archives.members(path):
        name = PurePosixPath(member.name).name
        if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
            found[name] = archives.content(path, tar, member, most_bytes=MOST_BYTES)
    if len(found) < 2:
        raise UserError(
            f"{path} lacks data/meta.mat or data/ILSVRC2012_validation_ground_truth.txt; "
            "give ILSVRC2012_devkit_t12.tar.gz"
        )
    try:
        file: Any = io.BytesIO(found["meta.mat"])  # scipy-stubs want a path
        meta = scipy.io.loadmat(file, squeeze_me=True)
        leaves = {
            int(s["ILSVRC2012_ID"]): (str(s["WNID"]), str(s["words"]))
            for s in np.atleast_1d(meta["synsets"])
            if int(s["num_children"]) == 0
        }
        ids = [int(line) for line in found["ILSVRC2012_validation_ground_truth.txt"].split()]
    except Exception as error:  # SciPy does not document what a damaged .mat raises
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); fetch it again"
        ) from error
    classes = sorted(leaves.values())
    number = {wnid: k for k, (wnid, _) in enumerate(classes)}
    if strange := sorted(set(ids) - set(leaves)):
        raise UserError(
            f"{path}: the ground truth has label {strange[0]}, which meta.mat has not; fetch it "
            "again"
        )
    return Devkit(
        [wnid for wnid, _ in classes],
        tuple(words for _, words in classes),
        [number[leaves[i][0]] for i in ids],
    )


def _copy_train(path: Path, kit: Devkit, target: PictureWriter, bar: tqdm) -> None:
    """Copy the pictures of one archive a class: n01440764.tar holds n01440764_*.JPEG."""
    number = {wnid: k for k, wnid in enumerate(kit.wnids)}
    seen: set[str] = set()
    for outer, group in archives.members(path):
        wnid, what = PurePosixPath(group.name).stem, f"{path}: {group.name}"
        if wnid not in number or not group.name.endswith(".tar"):
            raise UserError(
                f"{what} is not the archive of a class that the devkit names; give "
                "ILSVRC2012_img_train.tar"
            )
        if wnid in seen:
            raise UserError(f"{what} comes twice; fetch the archive again")
        seen.add(wnid)
        with archives.reading(what):
            packed = outer.extractfile(group)
        for inner, member in archives.members(what, packed):
            if not PurePosixPath(member.name).name.startswith(f"{wnid}_"):
                raise UserError(
                    f"{what}: {member.name} does not belong to class {wnid}; fetch the archive "
                    "again"
                )
            within = f"{group.name}/{member.name}"
            _copy(what, inner, member, target, ("train", within, number[wnid]), bar)


def _copy_validation(path: Path, kit: Devkit, target: PictureWriter, bar: tqdm) -> None:
    """Copy ILSVRC2012_val_00000001.JPEG …; the class of k is line k of the ground truth."""
    seen: set[int] = set()
    for tar, member in archives.members(path):
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", PurePosixPath(member.name).name)
        k = int(match[1]) if match else 0
        if not 1 <= k <= len(kit.validation) or k in seen:
            raise UserError(
                f"{path}: {member.name} is not one of ILSVRC2012_val_00000001.JPEG … "
                f"{len(kit.validation):08d}, each once; give ILSVRC2012_img_val.tar and the devkit "
                "that goes with it"
            )
        seen.add(k)
        _copy(path, tar, member, target, ("test", member.name, kit.validation[k - 1]), bar)


def _copy(
    path: str | Path,
    tar: TarFile,
    member: TarInfo,
    target: PictureWriter,
    place: tuple[str, str, int],
    bar: tqdm,
) -> None:
    """Append one picture of an archive; place: its split, name and class."""
    packed, (split, name, label) = archives.content(path, tar, member, MOST_BYTES), place
    target.add(split, packed, label, name)
    bar.update(member.size)


def _check_count(path: str | Path, n: int, split: str, any_count: bool) -> None:
    """Raise UserError if a split lacks pictures and that is not on purpose."""
    if n != COUNTS[split] and not any_count:
        raise UserError(
            f"{path} has {n} pictures, not the {COUNTS[split]} of ILSVRC2012; fetch it again, or "
            "add `any_count` if it is a part on purpose"
        )
