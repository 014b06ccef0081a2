"""Archives of images to prepared files: the official formats in small, broken ones refused by name,
nothing left behind.
"""

import gzip
import hashlib
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import Fleet, packed, photo

from localavg.datasets import Augment, cifar10, image_writer, imagenet, load
from localavg.datasets.archives import content, members
from localavg.datasets.cifar10 import CLASSES, prepare_cifar10
from localavg.datasets.folder import prepare_folder
from localavg.datasets.imagenet import prepare_imagenet
from localavg.datasets.jpegs import decoded
from localavg.errors import UserError

pytest.importorskip("PIL.Image")

ROOT = Path(__file__).resolve().parents[2]
N = 12  # images a batch


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cifar10, "ROWS", N)
    monkeypatch.setattr(imagenet, "COUNTS", {"train": 7, "test": 5})


def tar(path, files, mode="w", links=()):
    """Write a tar archive of {name: bytes}."""
    with tarfile.open(path, mode) as archive:
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        for name, value in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return path


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(words, work, folder):
    """Check that `work` raises a UserError of one line that matches, and leaves no file behind."""
    before = left_in(folder)
    with pytest.raises(UserError, match=words) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert left_in(folder) == before


# CIFAR-10


BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def planes(seed=0):
    """{batch: (planes uint8 [N, 3072], labels [N])}."""
    random = np.random.default_rng(seed)
    return {
        batch: (random.integers(0, 256, (N, 3072), np.uint8), random.integers(0, 10, N))
        for batch in BATCHES
    }


def python2(data, labels):
    """The bytes of a batch as the official archive has them: Python 2's pickle, protocol 2, with
    numpy.core's names.
    """

    def text(value):
        return b"U" + bytes([len(value)]) + value

    numbers = b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    shape = b"".join(b"M" + struct.pack("<H", side) for side in data.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"\x87R(K\x01"
        + shape
        + dtype
        + b"\x89T"
        + struct.pack("<i", data.nbytes)
        + data.tobytes()
        + b"tb"
    )
    return (
        b"\x80\x02}("
        + text(b"batch_label")
        + text(b"training batch 1 of 5")
        + text(b"labels")
        + b"]"
        + numbers
        + text(b"data")
        + array
        + text(b"filenames")
        + b"]("
        + text(b"a.png") * len(labels)
        + b"eu."
    )


def python3(data, labels, **more):
    """The same, written by this Python and NumPy."""
    return pickle.dumps(
        {b"batch_label": b"x", b"labels": [int(label) for label in labels], b"data": data, **more},
        protocol=2,
    )


def binary(data, labels):
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], data], 1).tobytes()


def python_archive(
    folder, batches, write=python2, name="cifar-10-python.tar.gz", mode="w:gz", **more
):
    files = {f"cifar-10-batches-py/{batch}": write(*batches[batch]) for batch in batches}
    files |= {
        "cifar-10-batches-py/batches.meta": b"never read",
        "cifar-10-batches-py/readme.html": b"<html>",
        **more,
    }
    return tar(folder / name, files, mode, links=["cifar-10-batches-py/data_batch_7"])


def binary_archive(folder, batches, **more):
    files = {f"cifar-10-batches-bin/{batch}.bin": binary(*batches[batch]) for batch in batches}
    return tar(
        folder / "cifar-10-binary.tar.gz",
        {"cifar-10-batches-bin/batches.meta.txt": b"cat\n", **files, **more},
        "w:gz",
    )


MAKERS = {
    "python 2": python_archive,
    "python 3": lambda *a: python_archive(*a, write=python3),
    "plain tar": lambda *a: python_archive(*a, name="c.tar", mode="w"),
    "binary": binary_archive,
}


def images(batch):
    """Images [N, 32, 32, 3] of a batch, one pixel at a time."""
    data, _ = batch
    out = np.zeros((len(data), 32, 32, 3), np.uint8)
    for h in range(32):
        for w in range(32):
            for c in range(3):
                out[:, h, w, c] = data[:, 1024 * c + 32 * h + w]
    return out


@pytest.mark.parametrize("maker", MAKERS)
def test_both_versions_give_the_images_and_labels_of_the_batches(tmp_path, maker):
    batches = planes()
    archive = MAKERS[maker](tmp_path, batches)
    assert prepare_cifar10(archive, tmp_path / "c.h5") is False
    data = load(str(tmp_path / "c.h5"), Fleet())
    x = np.concatenate([images(batches[batch]) for batch in BATCHES[:5]])
    np.testing.assert_array_equal(data.train.x, x)
    np.testing.assert_array_equal(
        data.train.y, np.concatenate([batches[batch][1] for batch in BATCHES[:5]])
    )
    np.testing.assert_array_equal(data.test.x, images(batches["test_batch"]))
    np.testing.assert_array_equal(data.test.y, batches["test_batch"][1])
    assert data.train.x.dtype == np.uint8 and data.train.y.dtype == np.int64
    assert (data.name, data.kind, data.shuffled, data.shape) == (
        "cifar10",
        "images",
        False,
        (32, 32, 3),
    )
    assert data.classes == CLASSES and data.augment == Augment(pad=4, flip=True)
    np.testing.assert_allclose(data.mean, x.mean((0, 1, 2)))
    np.testing.assert_allclose(data.std, x.std((0, 1, 2)))
    with h5py.File(tmp_path / "c.h5") as file:
        assert (
            file.attrs["md5"] == hashlib.md5(archive.read_bytes()).hexdigest()
            and not file.attrs["official"]
        )
        assert file.attrs["source"] == archive.name and file["train/x"].chunks is None
    assert left_in(tmp_path) == sorted([archive.name, "c.h5"])


def test_the_official_archives_are_known_by_their_checksum(tmp_path, monkeypatch):
    assert cifar10.MD5 == {
        "python": "c58f30108f718f92721af3b95e74349a",
        "binary": "c32a1d4ab5d03f1284b67883e8d87530",
    }
    archive = binary_archive(tmp_path, planes())
    monkeypatch.setitem(cifar10.MD5, "binary", hashlib.md5(archive.read_bytes()).hexdigest())
    assert prepare_cifar10(archive, tmp_path / "c.h5") is True
    with h5py.File(tmp_path / "c.h5") as file:
        assert file.attrs["official"]


def test_shuffle_permutes_the_training_rows_and_says_so(tmp_path):
    archive = binary_archive(tmp_path, planes())
    prepare_cifar10(archive, tmp_path / "a.h5")
    prepare_cifar10(archive, tmp_path / "b.h5", shuffle=3, name="mine")
    a, b = (load(str(tmp_path / name), Fleet()) for name in ("a.h5", "b.h5"))
    order = np.random.default_rng(3).permutation(5 * N)
    np.testing.assert_array_equal(b.train.x, a.train.x[order])
    np.testing.assert_array_equal(b.train.y, a.train.y[order])
    np.testing.assert_array_equal(b.test.x, a.test.x)
    assert b.shuffled and not a.shuffled and b.name == "mine"
    with h5py.File(tmp_path / "b.h5") as file:
        assert file.attrs["shuffle_seed"] == 3


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class EvilEval:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('evil')",)


@pytest.mark.parametrize("kind", ["mkdir", "eval", "numpy", "codec"])
def test_a_pickle_that_could_run_code_is_refused_and_runs_none(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    batches = planes()
    evil = {
        "mkdir": Evil(str(tmp_path / "evil")),
        "eval": EvilEval(),
        "numpy": np.float64(3),
        "codec": None,
    }[kind]
    value = python3(*batches["data_batch_3"], extra=evil)
    if kind == "codec":
        value = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    archive = python_archive(tmp_path, batches, **{"cifar-10-batches-py/data_batch_3": value})
    name = {
        "mkdir": r"posix\.mkdir",
        "eval": r"__builtin__\.eval",
        "numpy": "numpy.*scalar",
        "codec": "rot13",
    }[kind]
    refused(
        rf"data_batch_3 is no batch.*{name}.*do not trust",
        lambda: prepare_cifar10(archive, tmp_path / "c.h5"),
        tmp_path,
    )


def spoilt(batch, **change):
    data, labels = batch
    return change.get("data", data), change.get("labels", labels)


@pytest.mark.parametrize("write", [python2, python3, binary])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [*range(10), 10, 0]}, "label 10 of image 10 is not 0 … 9"),
        (
            {"labels": [3] * 11, "data": np.zeros((11, 3072), np.uint8)},
            "has 11 images and 11 labels, not 12 of each",
        ),
    ],
)
def test_a_wrong_label_or_number_of_images_is_named_with_its_batch(tmp_path, write, change, words):
    batches = planes()
    make = binary_archive if write is binary else python_archive
    suffix = "bin/data_batch_2.bin" if write is binary else "py/data_batch_2"
    archive = make(
        tmp_path,
        batches,
        **{f"cifar-10-batches-{suffix}": write(*spoilt(batches["data_batch_2"], **change))},
    )
    refused(f"data_batch_2.*{words}", lambda: prepare_cifar10(archive, tmp_path / "c.h5"), tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (python3(np.zeros((N, 3072)), [1] * N), "not of bytes"),
        (python3(np.asfortranarray(np.ones((N, 3072), np.uint8)), [1] * N), "not of bytes by rows"),
        (python3(np.zeros((N, 3071), np.uint8), [1] * N), "not 12 of each|12 images"),
        (python3(np.zeros((N, 3072), np.uint8), [1] * (N - 1)), "12 images and 11 labels"),
        (pickle.dumps({b"data": 3, b"labels": [1]}, protocol=2), "cannot be read .*AttributeError"),
        (pickle.dumps({b"labels": [1.5] * N}, protocol=2), "no integer"),
        (pickle.dumps([1, 2], protocol=2), "cannot be read"),
        (b"", "cannot be read"),
        (b"\x80\x02}q", "cannot be read"),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused(tmp_path, value, words):
    archive = python_archive(tmp_path, planes(), **{"cifar-10-batches-py/test_batch": value})
    refused(f"test_batch.*({words})", lambda: prepare_cifar10(archive, tmp_path / "c.h5"), tmp_path)


def test_binary_records_must_be_whole(tmp_path):
    archive = binary_archive(
        tmp_path, planes(), **{"cifar-10-batches-bin/data_batch_4.bin": bytes(5000)}
    )
    refused(
        r"data_batch_4\.bin has 5000 bytes, no multiple of 3073",
        lambda: prepare_cifar10(archive, tmp_path / "c.h5"),
        tmp_path,
    )


@pytest.mark.parametrize("maker", [python_archive, binary_archive])
def test_missing_batches_are_named(tmp_path, maker):
    batches = planes()
    del batches["data_batch_2"], batches["test_batch"]
    archive = maker(tmp_path, batches)
    refused(
        r"lacks data_batch_2, test_batch; fetch",
        lambda: prepare_cifar10(archive, tmp_path / "c.h5"),
        tmp_path,
    )


@pytest.mark.parametrize("keep", [0, 9, 0.3, 0.7, 0.97, -4])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_cut_short_is_refused(tmp_path, keep, mode):
    archive = python_archive(tmp_path, planes(), mode=mode)
    whole = archive.read_bytes()
    if keep == -4 and mode == "w":
        whole = whole.rstrip(b"\0")[:-4]  # inside the last member
    archive.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refused(
        "cifar-10-python.tar.gz .*(damaged|lacks).*fetch",
        lambda: prepare_cifar10(archive, tmp_path / "c.h5"),
        tmp_path,
    )


def test_what_is_no_archive_or_not_there_is_told_apart(tmp_path):
    refused(
        "none.tar.gz: No such file",
        lambda: prepare_cifar10(tmp_path / "none.tar.gz", tmp_path / "c.h5"),
        tmp_path,
    )
    (tmp_path / "page.html").write_text("<html>not found</html>" * 100)
    refused(
        "no tar archive",
        lambda: prepare_cifar10(tmp_path / "page.html", tmp_path / "c.h5"),
        tmp_path,
    )
    refused("Is a directory", lambda: prepare_cifar10(tmp_path, tmp_path / "c.h5"), tmp_path)
    archive = binary_archive(tmp_path, planes())
    refused("folder of `out", lambda: prepare_cifar10(archive, tmp_path / "no" / "c.h5"), tmp_path)
    refused(
        "`shuffle = -1`", lambda: prepare_cifar10(archive, tmp_path / "c.h5", shuffle=-1), tmp_path
    )
    (tmp_path / "c.h5").write_text("mine")
    refused("never overwritten", lambda: prepare_cifar10(archive, tmp_path / "c.h5"), tmp_path)
    assert (tmp_path / "c.h5").read_text() == "mine"


def test_a_spoilt_header_between_members_is_no_silent_end(tmp_path):
    archive = tar(tmp_path / "a.tar", {"one": b"1" * 100, "two": b"2" * 100})
    whole = bytearray(archive.read_bytes())
    whole[1024 + 5] ^= 1  # in the second header
    archive.write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.tar is damaged.*byte 1024"):
        list(members(archive))
    archive.write_bytes(whole[: 1024 + 300])
    with pytest.raises(UserError, match=r"a\.tar is damaged"):
        list(members(archive))
    archive.write_bytes(whole[:1024])  # ends after a member, without the two empty blocks: allowed
    assert [member.name for _, member in members(archive)] == ["one"]


# ImageNet


WNIDS = [
    "n02000003",
    "n01000001",
    "n03000002",
]  # in the order of their ids, 1 2 3, as in the devkit: not sorted
WORDS = {"n02000003": "heron, wader", "n01000001": "tench", "n03000002": "drum"}
IN_CLASS = {"n01000001": 3, "n02000003": 2, "n03000002": 2}
TRUTH = [3, 1, 1, 2, 3]  # ids


def meta(wnids=WNIDS):
    import scipy.io

    rows = [
        (k + 1, wnid, WORDS.get(wnid, "?"), "gloss", 0, [], 0, 100) for k, wnid in enumerate(wnids)
    ]
    rows.append((len(wnids) + 1, "n00000009", "animal, inner node", "gloss", 2, [1, 2], 3, 0))
    names = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.array(
        [tuple(row) for row in rows], dtype=[(name, object) for name in names]
    ).reshape(-1, 1)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets})
    return file.getvalue()


def devkit(folder, truth=TRUTH, **files):
    files = {
        "ILSVRC2012_devkit_t12/readme.txt": b"hello",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{k}\n" for k in truth
        ).encode(),
        **files,
    }
    return tar(
        folder / "devkit.tar.gz",
        {name: value for name, value in files.items() if value is not None},
        "w:gz",
    )


def picture(k):
    """Picture k: a PNG and a CMYK and a grey JPEG are among them."""
    image = photo(30 + k, 40 - k, seed=k)
    return {
        1: lambda: packed(image, format="PNG"),
        2: lambda: packed(image, "CMYK"),
        3: lambda: packed(image, "L"),
    }.get(k, lambda: packed(image))()


def inner(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, value in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return file.getvalue()


def train_files():
    """{wnid: {name: picture}}, in an order of the archive that is not that of the classes."""
    numbers = iter(range(7))
    return {
        wnid: {f"{wnid}_{10 + i}.JPEG": picture(next(numbers)) for i in range(n)}
        for wnid, n in reversed(IN_CLASS.items())
    }


def train_tar(folder, files=None, **more):
    files = train_files() if files is None else files
    return tar(
        folder / "train.tar",
        {f"{wnid}.tar": inner(pictures) for wnid, pictures in files.items()} | more,
    )


def val_tar(folder, numbers=(2, 1, 3, 5, 4), **more):
    return tar(
        folder / "val.tar",
        {f"ILSVRC2012_val_{k:08d}.JPEG": picture(20 + k) for k in numbers} | more,
    )


def prepare(folder, **options):
    options = {
        "train": folder / "train.tar",
        "val": folder / "val.tar",
        "devkit": folder / "devkit.tar.gz",
        "out": folder / "i.h5",
    } | options
    for name, make in (("train", train_tar), ("val", val_tar), ("devkit", devkit)):
        if not options[name].exists():
            make(folder)
    prepare_imagenet(**options)


def test_imagenet_keeps_every_picture_as_it_was_with_its_class(tmp_path):
    prepare(tmp_path)
    data = load(str(tmp_path / "i.h5"), Fleet())
    expected = [
        (picture, sorted(WNIDS).index(wnid))
        for wnid, files in train_files().items()
        for picture in files.values()
    ]
    assert [
        (data.train.x.packed(i), int(data.train.y[i])) for i in range(len(data.train.x))
    ] == expected
    classes = [sorted(WNIDS).index(WNIDS[TRUTH[k - 1] - 1]) for k in (2, 1, 3, 5, 4)]
    assert [data.test.x.packed(i) for i in range(5)] == [picture(20 + k) for k in (2, 1, 3, 5, 4)]
    assert (
        data.test.y.tolist() == classes and data.test.y.dtype == np.int64 and len(data.test.x) == 5
    )
    assert (data.name, data.kind, data.shuffled, data.shape) == (
        "imagenet",
        "jpeg",
        False,
        (224, 224, 3),
    )
    assert data.classes == ("tench", "heron, wader", "drum") and data.augment == Augment(
        flip=True, resized=True
    )
    np.testing.assert_allclose(data.mean, [255 * m for m in (0.485, 0.456, 0.406)])
    np.testing.assert_allclose(data.std, [255 * s for s in (0.229, 0.224, 0.225)])
    np.testing.assert_array_equal(data.train.x.decode(1, (30, 20)), decoded(picture(1), (30, 20)))
    with h5py.File(tmp_path / "i.h5") as file:
        assert (
            file["train/offsets"][-1]
            == sum(len(picture) for picture, _ in expected)
            < len(file["train/bytes"])
        )
        assert file["train/bytes"].chunks is None and file.attrs["wnids"].split() == sorted(WNIDS)
    assert left_in(tmp_path) == ["devkit.tar.gz", "i.h5", "train.tar", "val.tar"]


def test_every_rank_of_a_node_shares_places_and_labels(tmp_path):
    prepare(tmp_path)
    shared = []
    for rank in range(3):

        class OfThree(Fleet):
            def node_array(self, shape, dtype, **words):
                self.asked += 1
                if self.asked > len(self.shared):
                    self.shared.append(np.full(shape, -1, dtype))
                return self.shared[self.asked - 1]

        data = load(str(tmp_path / "i.h5"), OfThree(rank, 3, shared))
    alone = load(str(tmp_path / "i.h5"), Fleet())
    np.testing.assert_array_equal(data.train.y, alone.train.y)
    assert [data.train.x.packed(i) for i in range(7)] == [alone.train.x.packed(i) for i in range(7)]


def test_another_number_of_pictures_must_be_meant(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "COUNTS", {"train": 8, "test": 5})
    train_tar(tmp_path), val_tar(tmp_path), devkit(tmp_path)
    refused(
        "train.tar has 7 pictures, not the 8 of ILSVRC2012.*`any_count`",
        lambda: prepare(tmp_path),
        tmp_path,
    )
    monkeypatch.setattr(imagenet, "COUNTS", {"train": 7, "test": 6})
    refused("val.tar has 5 pictures, not the 6", lambda: prepare(tmp_path), tmp_path)
    prepare(tmp_path, any_count=True)
    assert len(load(str(tmp_path / "i.h5"), Fleet()).train.x) == 7


def test_the_official_counts():
    code = "from localavg.datasets import cifar10, imagenet; print(imagenet.COUNTS, cifar10.ROWS)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "{'train': 1281167, 'test': 50000} 10000\n"


FIRST = "n03000002_10.JPEG"
BROKEN = {
    "no picture": (
        {"train": {"n03000002": {FIRST: b"<html>"}}},
        rf"1 of 11 pictures .*train.tar/n03000002.tar/{FIRST} \(it begins with b'<htm'",
    ),
    "empty picture": (
        {"val": {"ILSVRC2012_val_00000003.JPEG": b""}},
        r"1 of 12 pictures .*00000003\.JPEG \(empty\)",
    ),
    "of another class": (
        {"train": {"n03000002": {"n01000001_1.JPEG": picture(0)}}},
        "does not belong to class n03000002",
    ),
    "unknown class": (
        {"train": {"n09999999": {"n09999999_1.JPEG": picture(0)}}},
        "n09999999.tar is not the archive",
    ),
    "an inner node": (
        {"train": {"n00000009": {"n00000009_1.JPEG": picture(0)}}},
        "n00000009.tar is not the archive",
    ),
    "picture outside": (
        {"outer": {"n01000001.JPEG": picture(0)}},
        "n01000001.JPEG is not the archive of a class",
    ),
    "no inner archive": (
        {"outer": {"n01000001.tar": b"what?" * 200}},
        "train.tar: n01000001.tar is damaged",
    ),
    "cut inner archive": (
        {"outer": {"n01000001.tar": inner(train_files()["n01000001"])[:2000]}},
        "n01000001.tar is damaged",
    ),
    "unknown number": (
        {"val": {"ILSVRC2012_val_00000006.JPEG": picture(0)}},
        "00000006.JPEG is not one of .*00000005",
    ),
    "number 0": (
        {"val": {"ILSVRC2012_val_00000000.JPEG": picture(0)}},
        "00000000.JPEG is not one of",
    ),
    "strange name": ({"val": {"README.txt": b"x"}}, "README.txt is not one of"),
    "strange label": ({"truth": [3, 1, 1, 2, 4]}, "label 4, which meta.mat has not"),
    "word for a label": ({"truth": [3, 1, 1, 2, "x"]}, "devkit.tar.gz cannot be read .*ValueError"),
    "no meta": ({"meta": None}, "lacks data/meta.mat"),
    "bad meta": ({"meta": b"MATLAB" * 100}, "devkit.tar.gz cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_part_of_imagenet_is_named(tmp_path, case):
    change, words = BROKEN[case]
    train_tar(tmp_path, train_files() | change.get("train", {}), **change.get("outer", {}))
    val_tar(tmp_path, **change.get("val", {}))
    devkit(
        tmp_path,
        change.get("truth", TRUTH),
        **({"ILSVRC2012_devkit_t12/data/meta.mat": change["meta"]} if "meta" in change else {}),
    )
    refused(words, lambda: prepare(tmp_path), tmp_path)


def test_a_class_or_a_validation_picture_that_comes_twice_is_refused(tmp_path):
    devkit(tmp_path), val_tar(tmp_path)
    with tarfile.open(train_tar(tmp_path), "a") as archive:
        again = inner({"n01000001_1.JPEG": picture(0)})
        member = tarfile.TarInfo("n01000001.tar")
        member.size = len(again)
        archive.addfile(member, io.BytesIO(again))
    refused("n01000001.tar comes twice", lambda: prepare(tmp_path), tmp_path)
    train_tar(tmp_path)
    with tarfile.open(tmp_path / "val.tar", "a") as archive:
        member = tarfile.TarInfo("val/ILSVRC2012_val_00000002.JPEG")
        member.size = len(picture(0))
        archive.addfile(member, io.BytesIO(picture(0)))
    refused("00000002.JPEG is not one of.*each once", lambda: prepare(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["train.tar", "val.tar", "devkit.tar.gz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_an_official_archive_cut_short_is_refused(tmp_path, name, share):
    train_tar(tmp_path), val_tar(tmp_path), devkit(tmp_path)
    whole = (tmp_path / name).read_bytes()
    whole = whole if name.endswith("gz") else whole.rstrip(b"\0")
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    refused(
        rf"{name}.*(damaged|lacks|cannot be read|has \d pictures)",
        lambda: prepare(tmp_path),
        tmp_path,
    )


def test_a_missing_archive_is_named_before_any_is_copied(tmp_path):
    train_tar(tmp_path), devkit(tmp_path)
    refused(
        "absent.tar: No such file",
        lambda: prepare_imagenet(
            tmp_path / "train.tar",
            tmp_path / "absent.tar",
            tmp_path / "devkit.tar.gz",
            tmp_path / "i.h5",
        ),
        tmp_path,
    )
    refused(
        "absent.tar: No such file",
        lambda: prepare_imagenet(
            tmp_path / "train.tar",
            tmp_path / "train.tar",
            tmp_path / "absent.tar",
            tmp_path / "i.h5",
        ),
        tmp_path,
    )


def test_only_one_picture_at_a_time_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "COUNTS", {"train": 60, "test": 5})
    big = picture(0) + bytes(1 << 20)  # what follows a picture's end does not matter
    train_tar(tmp_path, {"n01000001": {f"n01000001_{k}.JPEG": big for k in range(60)}})
    val_tar(tmp_path), devkit(tmp_path)
    tracemalloc.start()
    prepare(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6 < os.path.getsize(tmp_path / "i.h5") / 5
    tracemalloc.start()
    data = load(str(tmp_path / "i.h5"), Fleet())
    data.train.x.decode(59, (8, 8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6


def test_the_members_that_went_by_are_forgotten(tmp_path):
    archive = tar(tmp_path / "a.tar", {f"{k}": b"x" for k in range(50)})
    assert max(len(opened.members) for opened, _ in members(archive)) <= 1
    with pytest.raises(UserError, match="more than 3 cannot be right"):
        for opened, member in members(tar(tmp_path / "b.tar", {"a": b"1234"})):
            content(tmp_path / "b.tar", opened, member, most_bytes=3)


def test_unused_room_takes_no_disk(tmp_path):
    train_tar(tmp_path), val_tar(tmp_path), devkit(tmp_path)
    with open(tmp_path / "train.tar", "ab") as file:
        file.truncate(64 << 20)  # padding at the end of the archive
    prepare(tmp_path)
    found = os.stat(tmp_path / "i.h5")
    assert found.st_size > 60 << 20 and found.st_blocks * 512 < 8 << 20
    assert load(str(tmp_path / "i.h5"), Fleet()).train.x.packed(6) == picture(6)


# Folders


def folder_of(path, classes, first=0, suffix=".jpg"):
    for name, n in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(n):
            (path / name / f"{i:02d}{suffix}").write_bytes(picture(first + i))
    return path


def test_a_folder_has_its_subfolders_as_classes(tmp_path):
    train = folder_of(tmp_path / "photos", {"b cat": 4, "a dog": 2})
    test = folder_of(tmp_path / "test", {"b cat": 1}, first=8, suffix=".PNG")
    (train / "a dog" / "notes.txt").write_text("not a picture")
    (train / ".hidden").mkdir()
    prepare_folder(train, tmp_path / "f.h5", test=test, size=64)
    data = load(str(tmp_path / "f.h5"), Fleet())
    assert (
        data.classes == ("a dog", "b cat")
        and data.name == "photos"
        and data.shape == (64, 64, 3)
        and not data.shuffled
    )
    assert data.train.y.tolist() == [0, 0, 1, 1, 1, 1] and data.test.y.tolist() == [1]
    assert [data.train.x.packed(i) for i in range(6)] == [picture(k) for k in (0, 1, 0, 1, 2, 3)]
    assert data.test.x.packed(0) == picture(8)
    prepare_folder(train, tmp_path / "g.h5", shuffle=2, name="mine")
    other, order = load(str(tmp_path / "g.h5"), Fleet()), np.random.default_rng(2).permutation(6)
    assert [other.train.x.packed(i) for i in range(6)] == [data.train.x.packed(k) for k in order]
    assert (
        other.train.y.tolist() == data.train.y[order].tolist()
        and other.shuffled
        and other.test is None
    )
    assert other.name == "mine"


def test_a_wrong_folder_is_named(tmp_path):
    out = tmp_path / "f.h5"
    train = folder_of(tmp_path / "photos", {"cat": 2, "dog": 1})
    refused("none is no folder", lambda: prepare_folder(tmp_path / "none", out), tmp_path)
    refused("cat has no subfolders", lambda: prepare_folder(train / "cat", out), tmp_path)
    test = folder_of(tmp_path / "test", {"cow": 1})
    refused(
        r"test/cow is a class that .*photos has not",
        lambda: prepare_folder(train, out, test=test),
        tmp_path,
    )
    (train / "empty").mkdir()
    refused(
        r"empty has no \.jpg, \.jpeg, \.png files", lambda: prepare_folder(train, out), tmp_path
    )
    (train / "empty" / "a.jpeg").write_bytes(b"GIF89a")
    refused(
        r"1 of 4 pictures .*photos/empty/a\.jpeg \(it begins with b'GIF8', not as JPEG or PNG\)",
        lambda: prepare_folder(train, out),
        tmp_path,
    )
    refused("`size = 0`", lambda: prepare_folder(train, out, size=0), tmp_path)
    refused("`shuffle = -2`", lambda: prepare_folder(train, out, shuffle=-2), tmp_path)
    nothing = folder_of(tmp_path / "nothing", {})
    nothing.mkdir()
    (train / "empty" / "a.jpeg").write_bytes(picture(0))
    refused("no pictures for /test", lambda: prepare_folder(train, out, test=nothing), tmp_path)


# The file


@pytest.fixture
def images_file(tmp_path):
    prepare_cifar10(binary_archive(tmp_path, planes()), tmp_path / "c.h5")
    return str(tmp_path / "c.h5")


@pytest.fixture
def pictures_file(tmp_path):
    prepare_folder(folder_of(tmp_path / "photos", {"cat": 2, "dog": 1}), tmp_path / "f.h5")
    return str(tmp_path / "f.h5")


def replaced(name, value):
    def change(file):
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


def attribute(name, value):
    def change(file):
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value

    return change


def at(name, index, value):
    def change(file):
        file[name][index] = value

    return change


SPOILT = [
    ("images", at("train/y", 7, 10), r"label 10 in row 7 of /train/y is not 0 … 9"),
    ("images", at("test/y", 0, -1), r"label -1 in row 0 of /test/y"),
    ("images", replaced("train/x", np.zeros((5, 32, 32, 3))), "/train/x is float64 .*not uint8"),
    ("images", replaced("train/y", np.zeros(60, np.float32)), "/train/y is float32"),
    ("images", replaced("train/y", None), "/train/y is missing"),
    ("images", replaced("train/y", np.zeros(59, np.int64)), r"\(60, 32, 32, 3\) and y \(59,\)"),
    ("images", replaced("train", None), "holds no /train"),
    ("images", replaced("classes", None), "lacks a good attribute"),
    ("images", attribute("mean", None), "lacks a good attribute"),
    ("images", attribute("mean", [1.0, 2.0]), "do not go together"),
    ("images", attribute("std", [1.0, 0.0, 1.0]), "do not go together"),
    ("images", attribute("std", [1.0, np.nan, 1.0]), "do not go together"),
    ("images", attribute("shape", [32, 32]), "lacks a good attribute"),
    ("images", attribute("shape", [28, 28, 3]), r"of images \(28, 28, 3\)"),
    ("images", attribute("schema", 7), "schema 7"),
    ("images", attribute("kind", "sounds"), "'sounds'; this version reads features, images, jpeg"),
    ("jpeg", at("train/offsets", 3, 1 << 40), "reach beyond"),
    ("jpeg", at("train/offsets", 0, -1), "reach beyond"),
    ("jpeg", at("train/offsets", 1, 1 << 30), "picture 1 of /train has no bytes"),
    ("jpeg", replaced("train/offsets", np.zeros(3, np.int64)), "3 offsets and 3 labels"),
    ("jpeg", replaced("train/bytes", None), "/train/bytes is missing"),
    ("jpeg", at("train/y", 0, 2), "label 2 in row 0 of /train/y is not 0 … 1"),
    ("jpeg", attribute("shape", [224, 224, 1]), "do not go together|three colours"),
]


@pytest.mark.parametrize("k", range(len(SPOILT)))
def test_a_spoilt_file_is_refused_with_the_value_and_the_rule(request, k):
    kind, change, words = SPOILT[k]
    path = request.getfixturevalue({"images": "images_file", "jpeg": "pictures_file"}[kind])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=words) as caught:
        load(path, Fleet())
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_mean_and_deviation_are_exact_and_a_constant_channel_harms_nobody():
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)
    x[..., 1] = 9
    mean, std = image_writer.moments(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)))
    np.testing.assert_allclose(std, [x[..., 0].std(), 1, x[..., 2].std()])


def test_a_full_disk_is_told_before_and_while_it_is_written(tmp_path, monkeypatch):
    archive = binary_archive(tmp_path, planes())
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    refused(
        "needs .* MB and .* MB free; make room",
        lambda: prepare_cifar10(archive, tmp_path / "c.h5"),
        tmp_path,
    )
    monkeypatch.undo()
    monkeypatch.setattr(cifar10, "ROWS", N)
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    refused(
        r"cannot be written \(No space left on device\)",
        lambda: prepare_cifar10(archive, tmp_path / "c.h5"),
        tmp_path,
    )


# The command


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
from localavg.datasets import imagenet, image_writer
imagenet.COUNTS.update(train=7, test=5)
add = image_writer.PictureWriter.add
def slowly(self, *args):
    add(self, *args)
    if sys.argv[1] == "slow" and len(self.labels["train"]) == 3:
        print("three", flush=True)
        time.sleep(60)
image_writer.PictureWriter.add = slowly
from localavg.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_file_of_that_name_and_the_next_one_starts_again(
    tmp_path, how
):
    train_tar(tmp_path), val_tar(tmp_path), devkit(tmp_path)
    before = left_in(tmp_path)
    words = [
        "prepare",
        "imagenet",
        "--train",
        "train.tar",
        "--val",
        "val.tar",
        "--devkit",
        "devkit.tar.gz",
        "--out",
        "i.h5",
    ]
    command = [sys.executable, "-c", SLOW]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "slow", *words],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "three\n"
        process.send_signal(how)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0 and not (tmp_path / "i.h5").exists()
    assert len(left_in(tmp_path)) == len(before) + (how == signal.SIGKILL)
    if how != signal.SIGTERM:
        done = subprocess.run(
            [*command, "fast", *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and done.stdout == "i.h5\n", done.stderr
        assert left_in(tmp_path) == sorted([*before, "i.h5"])
        assert len(load(str(tmp_path / "i.h5"), Fleet()).train.x) == 7


def command(*words, **how):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; from localavg.datasets import cifar10; cifar10.ROWS = {N}\n"
            "from localavg.__main__ import main; sys.exit(main(sys.argv[1:]))",
            "prepare",
            *map(str, words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **how,
    )


def test_the_command_says_whether_the_archive_is_an_official_one(tmp_path):
    archive = binary_archive(tmp_path, planes())
    done = command("cifar10", archive, "--shuffle", "1", "--out", tmp_path / "c.h5")
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'c.h5'}\n"
    assert (
        "is not one of the official archives, by its MD5 checksum; its images and labels are "
        "complete" in done.stderr
    )
    assert load(str(tmp_path / "c.h5"), Fleet()).shuffled
    done = command("cifar10", archive, "--out", tmp_path / "c.h5")
    assert done.returncode == 2 and "never overwritten" in done.stderr and done.stdout == ""


def test_the_command_prepares_a_folder(tmp_path):
    folder = folder_of(tmp_path / "photos", {"cat": 2, "dog": 1})
    done = command("folder", folder, "--size", "32", "--name", "cats", "--out", tmp_path / "f.h5")
    assert done.returncode == 0, done.stderr
    data = load(str(tmp_path / "f.h5"), Fleet())
    assert data.name == "cats" and data.shape == (32, 32, 3)


def test_gzip_is_told_by_content(tmp_path):
    archive = python_archive(tmp_path, planes(), name="named.wrong", mode="w")
    (tmp_path / "b.tar").write_bytes(gzip.compress(archive.read_bytes()))
    assert prepare_cifar10(tmp_path / "b.tar", tmp_path / "c.h5") is False
