"""Sets in MNIST's format: what is read, and the mistakes that are refused by the file's name."""

import gzip
import hashlib
import struct
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi import ROOT
from mpi4py import MPI

from localavg import datasets
from localavg.datasets import where
from localavg.datasets.dataset import Augment
from localavg.datasets.mnist import FASHION, prepare_mnist
from localavg.datasets.two_classes import prepare_features
from localavg.errors import UserError
from localavg.parallel.fleet import Fleet

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def packed(values, kind=8):
    """An array in the format of the official files."""
    head = struct.pack(f">HBB{values.ndim}i", 0, kind, values.ndim, *values.shape)
    return head + values.tobytes()


def arrays(seed=0):
    """Images and labels of 3 classes, 30 to train on and 7 to test on, 5 x 4 pixels."""
    random, found = np.random.default_rng(seed), {}
    for split, n in (("train", 30), ("test", 7)):
        found[split, "images"] = random.integers(0, 256, (n, 5, 4), np.uint8)
        found[split, "labels"] = np.resize(np.arange(3, dtype=np.uint8), n)
    return found


@pytest.fixture
def put(tmp_path):
    """Write the files of a set into a folder; `other` replaces the bytes of some of them."""

    def write(found=None, gz=True, names=NAMES, **other):
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        for role, values in (found or arrays()).items():
            content = other.get("_".join(role), packed(values))
            content = gzip.compress(content) if gz else content
            (folder / (names[role] + ".gz" * gz)).write_bytes(content)
        return folder

    return write


def read(path, split):
    with h5py.File(path) as file:
        return file[f"{split}/x"][()], file[f"{split}/y"][()]


@pytest.mark.parametrize("gz", [True, False])
def test_images_and_labels_are_those_of_the_files(put, tmp_path, gz):
    out, found = tmp_path / "out.h5", arrays()
    said = prepare_mnist([put(gz=gz)], out)
    assert said.rows == {"train": 30, "test": 7} and said.known == "" and said.empty == ()
    for split in ("train", "test"):
        x, y = read(out, split)
        assert np.array_equal(x[..., 0], found[split, "images"]) and x.shape[3] == 1
        assert np.array_equal(y, found[split, "labels"]) and y.dtype == np.int64
    data = datasets.load(out, Fleet(MPI.COMM_SELF))
    assert (data.shape, data.classes, data.augment) == ((5, 4, 1), ("0", "1", "2"), Augment())
    pixels = found["train", "images"].astype(float)
    np.testing.assert_allclose((data.mean[0], data.std[0]), (pixels.mean(), pixels.std()))


def test_files_are_known_by_their_names_in_any_order(put, tmp_path):
    names = {role: f"emnist-balanced-{'-'.join(role)}-idx-ubyte" for role in NAMES}
    files = sorted(put(names=names).iterdir(), reverse=True)
    prepare_mnist(files, tmp_path / "all.h5", augment=Augment(pad=2, flip=True))
    data = datasets.load(tmp_path / "all.h5", Fleet(MPI.COMM_SELF))
    assert len(data.test.y) == 7 and data.augment == Augment(pad=2, flip=True)
    prepare_mnist([f for f in files if "train" in f.name], tmp_path / "train.h5")
    assert datasets.load(tmp_path / "train.h5", Fleet(MPI.COMM_SELF)).test is None


def test_a_plain_file_and_its_packed_copy_are_one(put, tmp_path):
    put(gz=True)
    prepare_mnist([put(gz=False)], tmp_path / "out.h5")
    assert len(read(tmp_path / "out.h5", "train")[1]) == 30


def test_rows_are_shuffled_and_transposed_as_told(put, tmp_path):
    found = arrays()
    prepare_mnist([put()], tmp_path / "out.h5", transpose=True, shuffle=3)
    order = np.random.default_rng(3).permutation(30)
    x, y = read(tmp_path / "out.h5", "train")
    assert np.array_equal(x[..., 0], found["train", "images"][order].transpose(0, 2, 1))
    assert np.array_equal(y, found["train", "labels"][order])
    assert np.array_equal(
        read(tmp_path / "out.h5", "test")[0][..., 0], found["test", "images"].transpose(0, 2, 1)
    )


def test_images_that_shrink_are_averaged(put, tmp_path):
    found = arrays()
    halves = np.repeat([0, 200], 4).astype(np.uint8)  # left half black, right half grey
    found["train", "images"] = np.tile(halves, (30, 8, 1))
    found["test", "images"] = np.full((7, 8, 8), 90, np.uint8)
    prepare_mnist([put(found)], tmp_path / "out.h5", size=4)
    x, _ = read(tmp_path / "out.h5", "train")
    assert x.shape == (30, 4, 4, 1)
    assert x[0, :, 0].max() == 0 and x[0, :, 3].min() == 200
    assert abs(int(x[0].mean()) - 100) <= 1
    assert (read(tmp_path / "out.h5", "test")[0] == 90).all()


def test_classes_without_an_image_are_told(put, tmp_path):
    found = arrays()
    for split in ("train", "test"):
        found[split, "labels"] = found[split, "labels"] + np.uint8(1)  # as EMNIST's letters
    said = prepare_mnist([put(found)], tmp_path / "out.h5")
    assert said.empty == ("0",)


WHOLE = arrays()
IMAGES, LABELS = (WHOLE["train", kind] for kind in ("images", "labels"))
HIGH = np.where(np.arange(7) == 4, 3, WHOLE["test", "labels"]).astype(np.uint8)
WRONG = {
    "cut short": ({"train_images": packed(IMAGES)[:-1]}, "train-images.*is damaged: 30 x 5 x 4"),
    "too long": (
        {"train_labels": packed(LABELS) + b"\0"},
        "train-labels.*30 labels are 30 bytes, ",
    ),
    "no header": ({"train_images": b"\0\0\x08\x03\0\0"}, r"train-images.*dimensions \(\)"),
    "empty": ({"test_labels": b""}, "t10k-labels.*is no IDX file: it begins with nothing"),
    "text": ({"test_labels": b"<html>"}, "t10k-labels.*begins with 3c 68 74 6d, not with 00 00 08"),
    "floats": (
        {"train_images": packed(IMAGES, 13)},
        "train-images.*holds float32 values, not bytes",
    ),
    "labels as images": ({"train_images": packed(LABELS)}, r"train-images.*holds labels \(1 "),
    "images as labels": ({"test_labels": packed(IMAGES)}, r"t10k-labels.*holds images \(3 "),
    "no image": ({"train_images": packed(IMAGES[:0])}, r"dimensions \(0, 5, 4\)"),
    "negative size": (
        {"train_images": struct.pack(">HBB3i", 0, 8, 3, 30, -5, -4)},
        r"dimensions \(30, -5, -4\)",
    ),
    "other counts": ({"train_labels": packed(LABELS[:-1])}, "has 30 images and .* 29 labels"),
    "other size": (
        {"test_images": packed(WHOLE["test", "images"][:, :4])},
        "t10k-images.*images of 4 x 4 pixels, and those to train on have 5 x 4",
    ),
    "a class to test on alone": ({"test_labels": packed(HIGH)}, "label 3 of image 4 is not 0 … 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_by_its_name(put, tmp_path, case):
    other, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        prepare_mnist([put(**other)], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_labels_of_one_class_and_images_without_room_are_refused(put, tmp_path):
    with pytest.raises(UserError, match=r"train-labels.*all labels are 7"):
        prepare_mnist([put(train_labels=packed(np.full(30, 7, np.uint8)))], tmp_path / "out.h5")
    with pytest.raises(UserError, match=r"`size = 10000000`: 37 images of that size take"):
        prepare_mnist([put()], tmp_path / "out.h5", size=10**7)


def test_a_link_that_leads_nowhere_is_named(put, tmp_path):
    folder = put()
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    (folder / "train-labels-idx1-ubyte").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte: .*[Nn]o such file"):
        prepare_mnist([folder], tmp_path / "out.h5")


def test_a_damaged_compression_is_refused_by_the_files_name(put, tmp_path):
    folder = put()
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged or cut short"):
        prepare_mnist([folder], tmp_path / "out.h5")


def test_missing_and_doubtful_files_are_refused(put, tmp_path):
    folder, out = put(), tmp_path / "out.h5"
    with pytest.raises(UserError, match=r"no-such: there is no such file"):
        prepare_mnist([tmp_path / "no-such"], out)
    (tmp_path / "mine").write_bytes(b"")
    with pytest.raises(UserError, match=r"mine: its name does not say what it holds"):
        prepare_mnist([tmp_path / "mine", folder / "train-labels-idx1-ubyte.gz"], out)
    with pytest.raises(UserError, match=r"train-labels.*No such file"):
        prepare_mnist([folder / "train-images-idx3-ubyte.gz", tmp_path / "train-labels"], out)
    (folder / "emnist-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match="both hold the images to train on"):
        prepare_mnist([folder], out)
    (folder / "emnist-train-images-idx3-ubyte").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match="has no file of the labels to test on, such as t10k-labels"
    ):
        prepare_mnist([folder], out)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no file of the images to train on"):
        prepare_mnist([folder], out)


@pytest.mark.parametrize(("size", "shuffle"), [(0, None), (None, -1)])
def test_numbers_out_of_range_are_refused(put, tmp_path, size, shuffle):
    with pytest.raises(UserError, match=r"`(size|shuffle) = "):
        prepare_mnist([put()], tmp_path / "out.h5", size=size, shuffle=shuffle)


# ------------------------------------------------------------------------------------ two classes


@pytest.fixture
def images(put, tmp_path):
    found = arrays()
    found["train", "images"][4] = 0
    prepare_mnist([put(found)], tmp_path / "images.h5", shuffle=1, name="mine")
    return tmp_path / "images.h5"


@pytest.mark.parametrize("sort", [False, True])
def test_features_are_pixels_of_norm_1_and_the_classes_asked_for_are_positive(
    images, tmp_path, sort
):
    prepare_features(images, tmp_path / "out.h5", ["0", "2"], sort=sort)
    for split in ("train", "test"):
        x, y = read(images, split)
        if sort and split == "train":
            x, y = (np.concatenate([a[y == c] for c in range(3)]) for a in (x, y))
        rows = x.reshape(len(x), -1).astype(float)
        norms = np.linalg.norm(rows, axis=1)
        features, labels = read(tmp_path / "out.h5", split)
        np.testing.assert_allclose(features * norms[:, None], rows, rtol=1e-6, atol=1e-4)
        lit = norms > 0
        np.testing.assert_allclose(np.linalg.norm(features[lit], axis=1), 1, rtol=1e-6)
        assert lit.all() == (split == "test") and not features[~lit].any()
        assert np.array_equal(labels, np.where(y == 1, -1, 1))
    data = datasets.load(tmp_path / "out.h5", Fleet(MPI.COMM_SELF))
    assert data.kind == "features" and data.classes == (-1.0, 1.0) and data.shuffled is not sort
    assert data.name == "mine: 0+2"


def test_features_of_the_digits_need_no_file(tmp_path):
    prepare_features("digits", tmp_path / "out.h5", list("02468"), sort=True)
    for split in ("train", "test"):
        whole = getattr(datasets.load("digits", Fleet(MPI.COMM_SELF)), split)
        order = np.argsort(whole.y, kind="stable") if split == "train" else slice(None)
        rows, digit = whole.x[order].reshape(len(whole.y), 64).astype(float), whole.y[order]
        features, labels = read(tmp_path / "out.h5", split)
        np.testing.assert_allclose(features * np.linalg.norm(rows, axis=1)[:, None], rows, 1e-5)
        assert np.array_equal(labels, np.where(digit % 2, -1, 1))


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (["3"], "has no class 3; it has 0, 1, 2"),
        (["cat"], "has no class cat"),
        (["-1"], "has no class -1"),
        (["0", "1", "2", "2"], "not all"),
        (["0", "1" * 5000], "has no class 111"),
        ([], "must name some"),
    ],
)
def test_classes_that_do_not_exist_or_leave_none_are_refused(images, tmp_path, positive, message):
    with pytest.raises(UserError, match=message):
        prepare_features(images, tmp_path / "out.h5", positive)


@pytest.mark.parametrize("missing", ["name", "classes", "train"])
def test_features_of_a_file_that_lacks_a_part_are_refused(images, tmp_path, missing):
    with h5py.File(images, "r+") as file:
        del (file.attrs if missing == "name" else file)[missing]
    with pytest.raises(UserError, match="prepare it again"):
        prepare_features(images, tmp_path / "out.h5", ["1"])


def test_features_of_features_are_refused(images, tmp_path):
    prepare_features(images, tmp_path / "out.h5", ["1"])
    with pytest.raises(UserError, match="is of kind features, not images"):
        prepare_features(tmp_path / "out.h5", tmp_path / "more.h5", ["1"])


# ----------------------------------------------------------------------------------- the real set


def test_a_set_is_found_where_make_puts_it(put, tmp_path, monkeypatch):
    """By its name in the current folder, below data/ there, and below data/ in the checkout; a
    node's own copy comes before all of them.
    """
    monkeypatch.delenv("LOCALAVG_DATA", raising=False)
    monkeypatch.setattr(where, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make fashion-mnist"):
        datasets.load("fashion-mnist", Fleet(MPI.COMM_SELF))
    for file in ("checkout/data/fashion-mnist/fashion-mnist.h5", "data/clothes/clothes.h5"):
        (tmp_path / file).parent.mkdir(parents=True)
        prepare_mnist([put()], tmp_path / file)
    for spec in ("fashion-mnist", "fashion-mnist.h5", "clothes.h5"):
        assert len(datasets.load(spec, Fleet(MPI.COMM_SELF)).train.y) == 30 == where.rows(spec)
    prepare_mnist([put()], tmp_path / "clothes.h5")
    monkeypatch.setenv("LOCALAVG_DATA", str(tmp_path / "disk"))
    assert where.found("clothes.h5") == Path("clothes.h5")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "clothes.h5").hardlink_to(tmp_path / "clothes.h5")
    assert where.found("clothes.h5") == tmp_path / "disk" / "clothes.h5"
    for spec in ("shoes.h5", "data/clothes.h5", "./clothes/clothes.h5"):
        with pytest.raises(UserError, match=f"{spec}: no such file"):
            datasets.load(spec, Fleet(MPI.COMM_SELF))
    with pytest.raises(UserError, match="one size"):
        datasets.load("fashion-mnist:9", Fleet(MPI.COMM_SELF))


@pytest.mark.long
def test_the_real_files_are_read(tmp_path):
    fetched = subprocess.run(
        [ROOT / "jobs/local/fashion-mnist", tmp_path / "idx"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(fetched.stderr.strip())
    said = prepare_mnist([tmp_path / "idx"], tmp_path / "out.h5", name="fashion-mnist")
    assert said == ("Fashion-MNIST", {"train": 60_000, "test": 10_000}, (28, 28), ())
    x, y = read(tmp_path / "out.h5", "train")
    assert np.bincount(y).tolist() == [6000] * 10
    raw = gzip.decompress((tmp_path / "idx/train-images-idx3-ubyte.gz").read_bytes())
    assert hashlib.md5(x.tobytes()).digest() == hashlib.md5(raw[16:]).digest()
    assert datasets.load(tmp_path / "out.h5", Fleet(MPI.COMM_SELF)).classes == FASHION
