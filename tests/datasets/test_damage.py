"""Pictures that cannot be used are all named by `prepare`, and none is changed in silence: deep
grey, cut files, hidden files, names that are not UTF-8.
"""

import io
import os

import h5py
import numpy as np
import pytest
from samples import Fleet, packed, photo

from localavg.datasets import jpegs, load
from localavg.datasets.damage import MAGIC, Checker
from localavg.datasets.folder import prepare_folder
from localavg.errors import UserError, shown

Image = pytest.importorskip("PIL.Image")


def saved(image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def photos(path, names, content=None):
    """A folder of pictures {class/file: bytes}, the same picture unless told."""
    for name in names:
        place = os.path.join(os.fsencode(path), os.fsencode(name))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write((content or {}).get(name, packed(photo(40, 40))))
    return path


def refusal(work):
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Grey of 16 and 32 bits


def test_grey_of_16_bits_keeps_256_levels():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    found = jpegs.decoded(saved(Image.fromarray(ramp)), (28, 28))  # the centre, not resized
    np.testing.assert_array_equal(found, np.repeat(ramp[2:30, 2:30, None] >> 8, 3, axis=2))


def test_grey_of_16_bits_is_scaled_as_colour_of_16_bits_is():
    """A PNG of 16 bits a colour, of which Pillow keeps the upper 8, written by hand."""
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    values = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8)
    colours = np.repeat(values[..., None], 3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    colour = jpegs.decoded(MAGIC[1] + parts, (7, 7))
    grey = jpegs.decoded(saved(Image.fromarray(values.astype(np.uint16))), (7, 7))
    np.testing.assert_array_equal(grey, colour)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_every_mode_of_deep_grey_is_scaled(mode):
    values = np.array([[0, 255], [256, 65535]])
    image = Image.new(mode, (2, 2))
    for (row, column), value in np.ndenumerate(values):
        image.putpixel((column, row), int(value))
    assert np.asarray(jpegs.in_colour(image))[..., 1].tolist() == [[0, 0], [1, 255]]


@pytest.mark.parametrize(("mode", "value"), [("I", 65536), ("I", -1), ("F", 0.5)])
def test_values_beyond_16_bits_are_refused_and_never_clipped(mode, value):
    with pytest.raises(ValueError, match=rf"mode {mode}.*16 bits"):
        jpegs.in_colour(Image.new(mode, (2, 2), value))


def test_a_palette_with_transparency_keeps_its_colours_without_a_warning(recwarn):
    image = Image.fromarray(photo(8, 8)).convert("P")
    opaque = jpegs.decoded(saved(image), (7, 7))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(jpegs.decoded(file.getvalue(), (7, 7)), opaque)
    assert not recwarn.list


# What cannot be decoded


def test_every_picture_that_cannot_be_used_is_named_in_one_error(tmp_path):
    whole = packed(photo(64, 64))
    spoilt = bytearray(packed(photo(64, 64), format="PNG"))
    spoilt[len(spoilt) // 2] ^= 255
    content = {
        "cat/1.jpg": whole[:600],
        "dog/1.jpg": b"",
        "dog/2.png": bytes(spoilt),
        "dog/3.jpg": b"<html>",
        "dog/4.jpg": b"\xff\xd8\xff nothing",
    }
    train = photos(tmp_path / "train", ["cat/0.jpg", "dog/0.jpg", *content], content)
    test = photos(tmp_path / "test", ["cat/9.jpg"], {"cat/9.jpg": whole[:-2]})
    said = refusal(lambda: prepare_folder(train, tmp_path / "f.h5", test=test, size=24))
    assert said.startswith("6 of 8 pictures cannot be used: ")
    for name, why in (
        ("train/cat/1.jpg", "Truncated"),
        ("train/dog/1.jpg", "empty"),
        ("train/dog/2.png", ""),
        ("train/dog/3.jpg", "it begins with b'<htm'"),
        ("train/dog/4.jpg", ""),
        ("test/cat/9.jpg", "image file is truncated"),
    ):
        assert f"{tmp_path}/{name} ({why}" in said
    assert "0x" not in said and "0.jpg" not in said and "replace or remove" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_of_very_many_the_first_20_and_the_number_are_given(monkeypatch):
    with Checker() as checker:
        for k in range(50):
            checker.add(f"{k}.jpg", b"" if k % 2 else packed(photo(20, 20)))
        said = refusal(checker.finish)
    assert said.startswith("25 of 50 pictures cannot be used: 1.jpg (empty), 3.jpg (empty), ")
    assert "39.jpg (empty) and 5 more; " in said and "41.jpg" not in said


def test_no_more_than_a_picture_a_thread_is_held(monkeypatch):
    monkeypatch.setattr(jpegs, "default_threads", lambda: 3)
    with Checker() as checker:
        for k in range(20):
            checker.add(str(k), packed(photo(20, 20)))
            assert len(checker._flight) <= 3
        checker.finish()
        assert checker.count == 20 and not checker.damaged


def test_prepare_asks_for_pillow_before_it_works(tmp_path, monkeypatch):
    train = photos(tmp_path / "train", ["cat/0.jpg", "dog/0.jpg"])
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert "pip install pillow" in refusal(lambda: prepare_folder(train, tmp_path / "f.h5"))


def test_a_picture_that_cannot_be_read_is_named_and_not_the_output(tmp_path, monkeypatch):
    train = photos(tmp_path / "train", ["cat/0.jpg", "dog/0.jpg"])

    def read(path):
        raise PermissionError(13, "Permission denied")  # which root would not meet

    monkeypatch.setattr(type(train), "read_bytes", read)
    said = refusal(lambda: prepare_folder(train, tmp_path / "f.h5"))
    assert said.startswith(f"{train}/cat/0.jpg cannot be read (Permission denied)")


def test_one_class_is_nothing_to_learn(tmp_path):
    train = photos(tmp_path / "photos", ["cat/1.jpg", "cat/2.jpg"])
    said = refusal(lambda: prepare_folder(train, tmp_path / "f.h5"))
    assert said.startswith(f"{train} has one class only (cat)")


@pytest.mark.parametrize("size", [0, 65_501, 10**30])
def test_a_size_that_no_picture_has_is_refused(size, tmp_path):
    train = photos(tmp_path / "photos", ["cat/1.jpg", "dog/2.jpg"])
    said = refusal(lambda: prepare_folder(train, tmp_path / "f.h5", size=size))
    assert f"`size = {size}` must be from 1 to 65500 pixels" in said


# Names in the file


@pytest.fixture
def prepared(tmp_path):
    train = photos(tmp_path / "photos", ["cat/a b.jpg", "cat/b.jpg", "dog/c.jpg"])
    prepare_folder(train, tmp_path / "f.h5", size=24, shuffle=1)
    return str(tmp_path / "f.h5")


def spoil(path, i):
    """Spoil picture i of a prepared file."""
    with h5py.File(path, "r+") as file:
        start, stop = file["train/offsets"][i : i + 2]
        file["train/bytes"][start + 20 : stop] = 0


def test_a_later_error_says_which_picture(prepared):
    order = np.random.default_rng(1).permutation(3)
    name = ["cat/a b.jpg", "cat/b.jpg", "dog/c.jpg"][order[1]]
    spoil(prepared, 1)
    train = load(prepared, Fleet()).train.x
    said = refusal(lambda: train.decode(1, (8, 8)))
    assert f"picture 1 ({name}) of /train cannot be decoded" in said
    with open(prepared, "r+b") as file:
        file.truncate(train._first + 10)
    assert "is cut short: picture 1 of /train" in refusal(lambda: train.packed(1))  # no names left


def test_a_file_of_before_has_no_names_and_is_read(prepared):
    with h5py.File(prepared, "r+") as file:
        assert sorted(file["train/names"][:]) == [b"cat/a b.jpg", b"cat/b.jpg", b"dog/c.jpg"]
        del file["train/names"]
    assert len(load(prepared, Fleet()).train.x.decode(1, (8, 8))) == 8
    spoil(prepared, 1)
    train = load(prepared, Fleet()).train.x
    assert "picture 1 of /train cannot" in refusal(lambda: train.decode(1, (8, 8)))


# Files that are passed over


def test_hidden_files_are_skipped_as_hidden_folders_are_and_all_are_counted(tmp_path):
    macos = bytes([0, 5, 22, 7]) + bytes(60)
    names = ["cat/1.jpg", "cat/._1.jpg", ".git/2.jpg", "cat/notes.txt", "cat/more/3.jpg", "top.png"]
    names += ["dog/1.jpg"]
    train = photos(tmp_path / "photos", names, {"cat/._1.jpg": macos})
    (train / "cat" / "gone.jpg").symlink_to("nowhere")
    said = prepare_folder(train, tmp_path / "f.h5")
    assert said.startswith("passed over 2 hidden and 4 other files and folders that are no .jpg")
    assert f"{train}/top.png, {train}/cat/gone.jpg, {train}/cat/more, …" in said
    assert len(load(str(tmp_path / "f.h5"), Fleet()).train.x) == 2
    assert prepare_folder(photos(tmp_path / "b", ["x/1.jpg", "y/1.jpg"]), tmp_path / "b.h5") == ""


def test_a_class_with_hidden_files_only_is_empty(tmp_path):
    train = photos(tmp_path / "photos", ["cat/1.jpg", "dog/._1.jpg"])
    assert "dog has no .jpg" in refusal(lambda: prepare_folder(train, tmp_path / "f.h5"))


# Names that are not UTF-8


@pytest.fixture
def latin(tmp_path):
    """A folder whose own name, a class and a file have a byte of Latin-1."""
    try:
        return photos(tmp_path / "\udce9", ["caf\udce9/\udce9.jpg", "tea/1.jpg"])
    except OSError:
        pytest.skip("this file system takes no such names")


def test_names_that_are_not_utf_8_are_taken_and_shown_with_escapes(tmp_path, latin):
    assert prepare_folder(latin, tmp_path / "f\udce9.h5") == ""
    os.rename(tmp_path / "f\udce9.h5", tmp_path / "f.h5")
    data = load(str(tmp_path / "f.h5"), Fleet())
    assert data.classes == ("caf\\xe9", "tea") and data.name == "\\xe9"
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["train/names"][:].tolist() == [b"caf\\xe9/\\xe9.jpg", b"tea/1.jpg"]
        assert file.attrs["source"] == f"{tmp_path}/\\xe9"


def test_an_error_names_a_file_that_is_not_utf_8(tmp_path, latin):
    photos(latin, ["caf\udce9/\udce9.jpg"], {"caf\udce9/\udce9.jpg": b""})
    said = refusal(lambda: prepare_folder(latin, tmp_path / "f.h5"))
    assert f"{tmp_path}/\\xe9/caf\\xe9/\\xe9.jpg (empty)" in said


def test_a_line_break_in_a_name_does_not_break_the_line_of_an_error(tmp_path):
    names = ["cat/1.jpg", "dog/1\n2\x1b[31m.jpg"]
    train = photos(tmp_path / "photos", names, {names[1]: b""})
    said = refusal(lambda: prepare_folder(train, tmp_path / "f.h5"))
    assert r"dog/1\n2\x1b[31m.jpg (empty)" in said


def test_text_that_is_utf_8_is_shown_as_it_is():
    assert shown("crêpes-日本") == "crêpes-日本"
