"""LIBSVM text to a prepared file: any packing, any number of ranks, mistakes named by line, nothing
left behind.
"""

import bz2
import gzip
import lzma
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi import call

from localavg.datasets import libsvm_text
from localavg.datasets.epsilon_like import prepare_epsilon_like
from localavg.datasets.libsvm import prepare_libsvm
from localavg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKED = {"": bytes, ".bz2": bz2.compress, ".xz": lzma.compress, ".gz": gzip.compress}
SMALL = b"""# made by hand
+1 1:0.5 3:-2e-1  # the first row
-1 2:1

   \t
-1
+1 1:-.25 2:3 4:7\r
# the end
-1 4:1e-3"""
SMALL_X = np.array(
    [[0.5, 0, -0.2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [-0.25, 3, 0, 7], [0, 0, 0, 1e-3]], np.float32
)
SMALL_Y = np.array([1, -1, -1, 1, -1], np.float32)


def put(folder, text, name="a.txt", suffix=""):
    path = folder / (name + suffix)
    path.write_bytes(PACKED[suffix](text))
    return path


def prepared(text, folder, **options):
    """Prepare `text` and return ({array: values}, attributes)."""
    out = folder / "out.h5"
    out.unlink(missing_ok=True)
    prepare_libsvm(put(folder, text), out, **options)
    return content(out)


def content(path):
    with h5py.File(path) as file:
        arrays = {f"{split}/{name}": file[split][name][:] for split in file for name in file[split]}
        return arrays, dict(file.attrs)


def text_of(x, y):
    """LIBSVM text of x [n, d], with all the digits a float32 has, and y [n]."""
    return b"".join(
        b"%d %s\n" % (label, b" ".join(b"%d:%.9g" % (k + 1, v) for k, v in enumerate(row) if v))
        for row, label in zip(x, y, strict=True)
    )


def some(n, d, seed=0, share=0.6):
    random = np.random.default_rng(seed)
    x = (random.standard_normal((n, d)) * (random.random((n, d)) < share)).astype(np.float32)
    x[:2, -1] = 1
    y = random.choice([-1, 1], n).astype(np.float32)
    y[:2] = -1, 1
    return x, y


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", PACKED)
def test_every_packing_gives_the_rows_of_the_text(tmp_path, suffix):
    prepare_libsvm(put(tmp_path, SMALL, "small.set", suffix), tmp_path / "out.h5")
    arrays, attributes = content(tmp_path / "out.h5")
    np.testing.assert_array_equal(arrays["train/x"], SMALL_X)
    np.testing.assert_array_equal(arrays["train/y"], SMALL_Y)
    assert (
        arrays["train/x"].dtype == arrays["train/y"].dtype == np.float32 and "test/x" not in arrays
    )
    assert attributes["name"] == "small" and attributes["source"] == "small.set" + suffix
    assert (attributes["schema"], attributes["kind"], bool(attributes["shuffled"])) == (
        1,
        "features",
        False,
    )
    assert "shuffle_seed" not in attributes and attributes["classes"].tolist() == [-1, 1]


def test_packing_is_told_by_the_content_not_by_the_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(bz2.compress(SMALL[:60] + b"\n") + bz2.compress(SMALL[61:]))
    prepare_libsvm(tmp_path / "a.txt", tmp_path / "out.h5")
    np.testing.assert_array_equal(content(tmp_path / "out.h5")[0]["train/x"][1:], SMALL_X[1:])


def test_rows_stand_uncompressed_in_one_piece(tmp_path):
    prepared(SMALL, tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        for name in ("train/x", "train/y"):
            assert (
                file[name].chunks is None
                and file[name].compression is None
                and file[name].id.get_offset()
            )


@pytest.mark.parametrize(
    ("labels", "classes"),
    [("1 0 0", [0, 1]), ("2 1 1", [1, 2]), ("-3 -7.5 -7.5", [-7.5, -3]), ("+1 -1 -1.0", [-1, 1])],
)
def test_the_smaller_label_becomes_minus_one(tmp_path, labels, classes):
    arrays, attributes = prepared(
        "\n".join(f"{label} 1:1" for label in labels.split()).encode(), tmp_path
    )
    assert arrays["train/y"].tolist() == [1, -1, -1] and attributes["classes"].tolist() == classes


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chunk=st.integers(1, 200), suffix=st.sampled_from(["", ".bz2"]), newline=st.booleans())
def test_where_the_chunks_are_cut_changes_nothing(tmp_path, monkeypatch, chunk, suffix, newline):
    monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", chunk)
    text = SMALL + (b"\n" if newline else b"")
    out = tmp_path / "out.h5"
    out.unlink(missing_ok=True)
    prepare_libsvm(put(tmp_path, text, suffix=suffix), out)
    arrays, _ = content(out)
    np.testing.assert_array_equal(arrays["train/x"], SMALL_X)
    np.testing.assert_array_equal(arrays["train/y"], SMALL_Y)


BROKEN = [
    ("1 1:0.5\n-1 0:3\n", 2, "'0:3': indices start at 1"),
    ("1 1:0.5\n\n# x\n-1 2:abc\n", 4, "abc"),
    ("1 1:0.5\n-1 2\n", 2, "'2' is not index:value"),
    ("1 1:0.5\n-1 x:2\n", 2, "'x:2' is not index:value"),
    ("yes 1:0.5\n-1 1:2\n", 1, "yes"),
    ("1 1:0.5\n-1 3:1 2:1\n", 2, "'2:1' comes after index 3"),
    ("1 1:0.5\n-1 3:1 3:1\n", 2, "'3:1' comes after index 3"),
    ("1 1:0.5\n-1 -3:1\n", 2, "'-3:1' is not index:value"),
    ("1 1:0.5\n-1 99999999999:1\n", 2, "too large"),
    ("1 1:0.5\n# nan\n-1 1:1 2:nan\n", 3, "feature 2 is nan"),
    ("1 1:0.5\n-1 1:-inf\n", 2, "feature 1 is -inf"),
    ("1 1:0.5\n-1 1:1e39\n", 2, "feature 1 is inf, not a finite float32"),
    ("1 1:0.5\nnan 1:1\n", 2, "label nan"),
    ("1 1:0.5 # a_b\n-1 1:1_0\n", 2, "'_'"),
    (
        "1 qid:3 1:0.5\n-1 +2:1\n-1 x:1\n",
        3,
        "'x:1' is not index:value",
    ),  # the parser takes the first two
]


@pytest.mark.parametrize("suffix", ["", ".xz"])
@pytest.mark.parametrize(("text", "line", "words"), BROKEN)
def test_a_broken_line_is_named_by_number_wherever_it_is(
    tmp_path, monkeypatch, text, line, words, suffix
):
    for before, chunk in ((0, 1 << 22), (0, 10), (200, 64), (200, 1 << 22)):
        monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", chunk)
        path = put(tmp_path, b"1 1:2\n-1 1:1 # c\n" * (before // 2) + text.encode(), suffix=suffix)
        with pytest.raises(UserError) as caught:
            prepare_libsvm(path, tmp_path / "out.h5")
        assert f"{path}, line {before + line}: " in str(caught.value) and words in str(caught.value)
        assert "label index:value" in str(caught.value) and "\n" not in str(caught.value)
        assert left_in(tmp_path) == [path.name]


def test_the_first_of_several_mistakes_is_the_one_named(tmp_path):
    with pytest.raises(UserError, match="line 2: "):
        prepared(b"1 1:1\n1 0:1\n1 1:1\n1 bad\n1 1:1\n1 0:1\n", tmp_path)


def test_a_file_without_line_ends_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(libsvm_text, "LONGEST_LINE_BYTES", 1 << 12)
    for suffix in ("", ".gz"):
        path = put(tmp_path, b"1 1:1\n-1 1:1\n" + b"1" * 20_000, suffix=suffix)
        with pytest.raises(UserError, match="line 3: longer than"):
            prepare_libsvm(path, tmp_path / "out.h5")


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".gz"])
def test_a_cut_or_damaged_archive_is_refused(tmp_path, suffix):
    whole = PACKED[suffix](text_of(*some(300, 20)))
    path = tmp_path / f"a{suffix}"
    for damaged in (whole[: len(whole) // 2], whole[:-3], whole[:100] + bytes(50) + whole[150:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged.*fetch it again"):
            prepare_libsvm(path, tmp_path / "out.h5")
        assert left_in(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no rows"),
        (b"# only\n\n# comments\n", "no rows"),
        (b"1\n-1\n", "no features"),
        (b"1 1:1\n1 1:2\n", r"one label only \(1\)"),
        (b"1 1:1\n2 1:2\n2 1:2\n3 1:1\n", r"more than two labels \(1, 2, 3, …\)"),
    ],
)
def test_a_file_that_is_no_two_class_set_is_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        prepared(text, tmp_path)
    assert left_in(tmp_path) == ["a.txt"]


def test_a_long_list_of_labels_is_shown_in_part(tmp_path):
    with pytest.raises(UserError, match=r"\(0, 1, 2, 3, 4, …\)"):
        prepared("".join(f"{label} 1:1\n" for label in range(1000)).encode(), tmp_path)


def test_a_missing_file_is_refused_before_the_other_is_read(tmp_path):
    path = put(tmp_path, b"not libsvm\n")
    for train, test in ((tmp_path / "none", path), (path, tmp_path / "none")):
        with pytest.raises(UserError, match="none: No such file"):
            prepare_libsvm(train, tmp_path / "out.h5", test=test)


def test_features_pads_and_limits(tmp_path):
    arrays, _ = prepared(SMALL, tmp_path, features=6)
    np.testing.assert_array_equal(arrays["train/x"], np.pad(SMALL_X, ((0, 0), (0, 2))))
    with pytest.raises(UserError, match=r"line 7: feature index 4 is beyond `features = 3`"):
        prepared(SMALL, tmp_path, features=3)
    with pytest.raises(UserError, match="`features = 0`"):
        prepared(SMALL, tmp_path, features=0)


def test_train_and_test_share_the_features_and_the_labels(tmp_path):
    narrow, wide = b"0 1:1\n1 2:1\n", b"1 5:2\n1 1:1\n1 2:2\n"
    for first, second in ((narrow, wide + b"0\n"), (wide + b"0\n", narrow)):
        test = put(tmp_path, second, "test.txt")
        arrays, attributes = prepared(first, tmp_path, test=test)
        assert arrays["train/x"].shape[1] == arrays["test/x"].shape[1] == 5
        assert attributes["source"] == "a.txt, test.txt" and attributes["classes"].tolist() == [
            0,
            1,
        ]
    arrays, _ = prepared(narrow, tmp_path, test=put(tmp_path, wide, "test.txt"))
    assert arrays["test/y"].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"test.txt has the label 2"):
        prepared(narrow, tmp_path, test=put(tmp_path, b"2 1:1\n", "test.txt"))


def test_shuffle_permutes_the_training_rows_as_documented(tmp_path, monkeypatch):
    monkeypatch.setattr("localavg.datasets.spool.SLAB_BYTES", 1000)
    (x, y), test = some(200, 9), some(60, 9, seed=1)
    path = put(tmp_path, text_of(*test), "test.txt")
    arrays, attributes = prepared(text_of(x, y), tmp_path, test=path, shuffle=5)
    order = np.random.default_rng(5).permutation(200)
    np.testing.assert_array_equal(arrays["train/x"], x[order])
    np.testing.assert_array_equal(arrays["train/y"], y[order])
    np.testing.assert_array_equal(arrays["test/x"], test[0])
    np.testing.assert_array_equal(arrays["test/y"], test[1])
    assert attributes["shuffled"] and attributes["shuffle_seed"] == 5
    with pytest.raises(UserError, match="`shuffle = -1`"):
        prepared(SMALL, tmp_path, shuffle=-1)


def test_an_existing_file_is_never_overwritten(tmp_path):
    path, out = put(tmp_path, SMALL), tmp_path / "out.h5"
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out.h5 exists and is never overwritten"):
        prepare_libsvm(path, out)
    assert out.read_bytes() == b"precious" and left_in(tmp_path) == ["a.txt", "out.h5"]
    with pytest.raises(UserError, match=r"folder.*does not exist"):
        prepare_libsvm(path, tmp_path / "none" / "out.h5")


def test_the_file_has_no_name_before_it_is_whole(tmp_path, monkeypatch):
    from localavg.datasets import spool

    def failing(self, features, order=None):
        yield 0, SMALL_X[:2]
        assert not (tmp_path / "out.h5").exists() and len(left_in(tmp_path)) == 2
        raise ZeroDivisionError

    monkeypatch.setattr(spool.Spool, "dense", failing)
    with pytest.raises(ZeroDivisionError):
        prepared(SMALL, tmp_path)
    assert left_in(tmp_path) == ["a.txt"]


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from localavg.datasets import libsvm, writer
write = writer.Writer.write
def slow(self, *rows):
    write(self, *rows)
    print("writing", flush=True)
    time.sleep(60)
writer.Writer.write = slow
libsvm.prepare_libsvm(sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path, number):
    path = put(tmp_path, SMALL)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(ROOT), str(path), str(tmp_path / "out.h5")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"writing\n"
        assert len(left_in(tmp_path)) == 2
        process.send_signal(number)
        assert process.wait(timeout=20) != 0
    finally:
        process.kill()
        process.communicate()
    assert left_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("megabytes", [0.1, 1.0, 3.0])
def test_a_full_disk_is_a_plain_error_that_leaves_nothing_behind(tmp_path, megabytes):
    x, y = some(1000, 500, share=0.3)  # 1.2 MB spooled, 2 MB prepared
    path = put(tmp_path, text_of(x, y))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), limit[1]))
    try:
        if megabytes == 3:
            prepare_libsvm(path, tmp_path / "out.h5")
        else:
            with pytest.raises(UserError, match="File too large"):
                prepare_libsvm(path, tmp_path / "out.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert left_in(tmp_path) == (["a.txt", "out.h5"] if megabytes == 3 else ["a.txt"])


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import h5py, sklearn.datasets, tqdm
from localavg.datasets.libsvm import prepare_libsvm
def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mb()
prepare_libsvm(sys.argv[2], sys.argv[3], shuffle=0)
print(peak_mb() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    d, n = 200_000, 200  # 160 MB dense, from 160 MB of text, mostly comments
    row = (
        b" ".join(b"%d:1" % k for k in range(1, d, 1000)) + b" %d:2 #" % d + b"x" * 800_000 + b"\n"
    )
    with open(tmp_path / "a.txt", "wb") as file:
        for i in range(n):
            file.write(b"%d " % (i % 2) + row)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEMORY,
            str(ROOT),
            str(tmp_path / "a.txt"),
            str(tmp_path / "out.h5"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert float(done.stdout) < 50
    os.remove(tmp_path / "out.h5")
    os.remove(tmp_path / "a.txt")


def test_a_pipe_sees_no_progress_bar_and_a_terminal_does(tmp_path):
    import fcntl
    import pty
    import termios

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom localavg.datasets.libsvm import "
        "prepare_libsvm\n"
        "prepare_libsvm(sys.argv[2], sys.argv[3])\n"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(put(tmp_path, SMALL))]
    done = subprocess.run(
        [*command, str(tmp_path / "1.h5")], capture_output=True, timeout=60, check=True
    )
    assert done.stderr == done.stdout == b""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    subprocess.run([*command, str(tmp_path / "2.h5")], stderr=theirs, timeout=60, check=True)
    assert b"a.txt" in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)


# Files of another kind


def tarred(text):
    import io
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return file.getvalue()


def zipped(text):
    import io
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", text)
    return file.getvalue()


OTHER = {  # what the file holds: (bytes, words of the message)
    "zip": (zipped(SMALL), "is a .zip archive, not LIBSVM text; unpack it with unzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "is a zstd archive.*unpack it with zstd -d"),
    "tar": (tarred(SMALL), "is a tar archive.*unpack it with tar -xf"),
    "tar.gz": (gzip.compress(tarred(SMALL)), "unpacks to a tar archive.*tar -xf"),
    "zip in xz": (lzma.compress(zipped(SMALL)), "unpacks to a .zip archive"),
    "UTF-16": (SMALL.decode().encode("utf-16"), "is UTF-16 text.*iconv -f UTF-16 -t UTF-8"),
    "UTF-16, big": (b"\xfe\xff" + SMALL.decode().encode("utf-16-be"), "is UTF-16 text"),
    "no mark": (SMALL.decode().encode("utf-16-le"), "is UTF-16 text"),
    "no mark, big": (SMALL.decode().encode("utf-16-be"), "is UTF-16 text"),
    "binary": (bytes(range(256)) * 3, "is binary data, not LIBSVM text"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file.*to train as `data`"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, kind):
    content, words = OTHER[kind]
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "good.txt").write_bytes(SMALL)
    for train, test in (("a.txt", None), ("good.txt", "a.txt")):  # before any is read
        with pytest.raises(UserError, match=f"a.txt {words}") as caught:
            prepare_libsvm(
                tmp_path / train, tmp_path / "out.h5", test=test and str(tmp_path / test)
            )
        assert "\n" not in str(caught.value) and left_in(tmp_path) == ["a.txt", "good.txt"]


def test_a_pipe_is_refused_before_anybody_reads_it(tmp_path):
    from localavg.datasets import archives, imagenet

    os.mkfifo(tmp_path / "pipe")
    for read in (
        lambda path: prepare_libsvm(path, tmp_path / "out.h5"),
        archives.md5,
        imagenet._size,
        lambda path: next(archives.members(path)),
    ):
        with pytest.raises(UserError, match=r"pipe is a pipe, which cannot be read twice; .*file"):
            read(tmp_path / "pipe")
    with pytest.raises(UserError, match="/dev/null is a device"):
        prepare_libsvm("/dev/null", tmp_path / "out.h5")


@pytest.mark.parametrize("suffix", PACKED)
def test_a_byte_order_mark_is_skipped(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", 9)
    prepare_libsvm(put(tmp_path, b"\xef\xbb\xbf" + SMALL, suffix=suffix), tmp_path / "out.h5")
    arrays, _ = content(tmp_path / "out.h5")
    np.testing.assert_array_equal(arrays["train/x"], SMALL_X)
    broken = put(tmp_path, b"\xef\xbb\xbf1 1:1\n-1 1:x\n", suffix=suffix)
    with pytest.raises(UserError, match=r"line 2: .*feature 1 is x"):
        prepare_libsvm(broken, tmp_path / "new.h5")
    middle = put(tmp_path, b"1 1:1\n\xef\xbb\xbf1 1:1\n", suffix=suffix)
    with pytest.raises(UserError, match="line 2: label"):
        prepare_libsvm(middle, tmp_path / "new.h5")


# Indices from 0


def test_zero_based_indices_give_the_same_rows(tmp_path):
    text = b"+1 0:0.5 2:-2e-1\n-1 1:1\n-1\n+1 0:-.25 1:3 3:7\n-1 3:1e-3\n"
    arrays, _ = prepared(text, tmp_path, zero_based=True)
    np.testing.assert_array_equal(arrays["train/x"], SMALL_X)
    arrays, _ = prepared(text, tmp_path, zero_based=True, features=6)
    np.testing.assert_array_equal(arrays["train/x"], np.pad(SMALL_X, ((0, 0), (0, 2))))
    with pytest.raises(UserError, match=r"line 4: feature index 3 is beyond `features = 3`"):
        prepared(text, tmp_path, zero_based=True, features=3)
    with pytest.raises(UserError, match=r"line 1: '0:0.5': .*add `zero_based`; .*from 1 and"):
        prepared(text, tmp_path)
    with pytest.raises(UserError, match=r"line 2: '1:2' comes after index 1; .*from 0 and"):
        prepared(b"1 0:1\n-1 1:1 1:2\n", tmp_path, zero_based=True)


# Rows that have no room when they are dense


@pytest.fixture
def sparse(tmp_path, monkeypatch):
    """40 rows of a million features, 160 MB when they are dense, in chunks of four rows."""
    monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", 40)
    return put(tmp_path, b"1 7:1\n-1 7:1 1000000:1\n" * 20)


def refused_at(path, out, **options):
    """How many rows had been read when the file was refused, and what was said."""
    with pytest.raises(UserError) as caught:
        prepare_libsvm(path, out, **options)
    said = str(caught.value)
    assert "\n" not in said and left_in(path.parent) == [path.name]
    return int(said.partition(" rows read so far")[0].rpartition("(")[2]), said


def test_rows_that_fill_the_disk_are_refused_as_soon_as_they_are_read(
    tmp_path, sparse, monkeypatch
):
    usage = type("Usage", (), {"free": 50_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    rows, said = refused_at(sparse, tmp_path / "out.h5", any_size=True)
    assert 12 < rows < 20 and "of 1000000 features" in said
    assert f"{tmp_path} has 50.0 MB free; make room" in said
    rows, _ = refused_at(sparse, tmp_path / "out.h5", features=2_000_000)
    assert 6 < rows < 13


def test_rows_that_no_node_can_hold_are_refused_unless_they_are_for_a_larger_one(
    tmp_path, sparse, monkeypatch
):
    from localavg.datasets import writer

    monkeypatch.setattr(writer, "node_room", lambda: 100_000_000)
    rows, said = refused_at(sparse, tmp_path / "out.h5")
    assert 24 < rows < 33 and "100.0 MB of memory or /dev/shm" in said and "`any_size`" in said
    half = put(tmp_path, b"1 7:1\n-1 7:1 1000000:1\n" * 10)
    assert half == sparse  # train and test together have no room
    both, _ = refused_at(half, tmp_path / "out.h5", test=half)
    assert 24 < both < 33
    prepare_libsvm(half, tmp_path / "out.h5", test=half, any_size=True)
    (tmp_path / "out.h5").unlink()
    monkeypatch.setattr(writer, "node_room", lambda: None)
    prepare_libsvm(half, tmp_path / "out.h5", test=half)


def test_the_room_of_a_node_is_its_memory_or_what_is_free_in_shared_memory(monkeypatch):
    import psutil

    from localavg.datasets import writer

    usage = type("Usage", (), {"free": 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert writer.node_room() == psutil.virtual_memory().total
    usage.free = 1 << 60
    assert writer.node_room() == (1 << 60 if os.path.isdir("/dev/shm") else writer.node_room())


# Several ranks


def work(world, folder, jobs):
    """Prepare a file in `folder` for each of the jobs (train, test, shuffle); return what was said
    of each.
    """
    libsvm_text.CHUNK_BYTES, said = 2000, []
    for number, (train, test, shuffle) in enumerate(jobs):
        try:
            prepare_libsvm(train, folder / f"{number}.h5", test=test, shuffle=shuffle, comm=world)
            said.append("done")
        except UserError as error:
            said.append(str(error))
    prepare_epsilon_like(folder / "like.h5", rows=300, features=5, comm=world)
    return said


def test_any_number_of_ranks_gives_the_same_bits_and_the_same_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", libsvm_text.CHUNK_BYTES)
    text, test = text_of(*some(400, 12)), text_of(*some(90, 15, seed=1))
    lines = text.split(b"\n")
    broken = b"\n".join([*lines[:150], b"1 0:1", *lines[150:300], b"bad", *lines[300:]])
    late = b"\n".join([*lines[:-1], b"1 1:nan"])
    three = b"\n".join([*lines[:200], b"5 1:1", *lines[200:]])
    whole, tested = put(tmp_path, text, "whole"), put(tmp_path, test, "tested")
    (tmp_path / "cut.bz2").write_bytes(bz2.compress(text)[:-20])
    jobs = {  # (train, test, shuffle): what is said
        (whole, tested, None): "done",
        (whole, tested, 3): "done",
        (put(tmp_path, text, "whole", ".bz2"), None, 3): "done",
        (put(tmp_path, SMALL, "few"), None, 1): "done",
        (put(tmp_path, broken, "broken"), None, None): "line 151: '0:1'",
        (put(tmp_path, broken, "broken", ".gz"), None, None): "line 151: '0:1'",
        (whole, tmp_path / "broken", None): "line 151: '0:1'",
        (put(tmp_path, late, "late"), None, None): "line 401: the value of feature 1 is nan",
        (put(tmp_path, three, "three"), None, None): "more than two labels",
        (put(tmp_path, b"", "empty"), None, None): "no rows",
        (tmp_path / "cut.bz2", None, None): "cut short",
        (tmp_path / "none", None, None): "No such file",
    }
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2, 3)}
    for folder in folders.values():
        folder.mkdir()
    alone = work(None, folders[1], list(jobs))
    assert [words in said for words, said in zip(jobs.values(), alone, strict=True)] == [
        True
    ] * len(jobs), alone
    for ranks in (2, 3):
        assert call(ranks, work, folders[ranks], list(jobs)) == [alone] * ranks
        assert (
            left_in(folders[ranks])
            == left_in(folders[1])
            == ["0.h5", "1.h5", "2.h5", "3.h5", "like.h5"]
        )
        for path in folders[1].iterdir():
            assert (folders[ranks] / path.name).read_bytes() == path.read_bytes()


def differ(world, folder):
    """Give rank 1 a shorter file, a longer one, then none; return what was said each time."""
    libsvm_text.CHUNK_BYTES, said = 100, []
    mine = folder / str(world.rank) / "a"
    mine.parent.mkdir()
    for rows in ((99, 9), (9, 99), (9, None)):
        mine.unlink(missing_ok=True)
        if rows[world.rank]:
            mine.write_text("1 1:1\n-1 1:1\n" * rows[world.rank])
        try:
            prepare_libsvm(mine, folder / "out.h5", comm=world)
        except UserError as error:
            said.append(str(error))
    return said


def test_ranks_that_do_not_see_the_same_file_stop_together(tmp_path):
    said, same = call(2, differ, tmp_path)
    assert same == said
    for words, line in zip(
        ["differs between ranks 0 and 1"] * 2 + ["No such file"], said, strict=True
    ):
        assert words in line


def test_without_a_communicator_mpi_is_not_touched(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom localavg.datasets.libsvm import "
        "prepare_libsvm\n"
        "prepare_libsvm(sys.argv[2], sys.argv[3])\nassert 'mpi4py' not in sys.modules\n"
    )
    subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(ROOT),
            str(put(tmp_path, SMALL)),
            str(tmp_path / "out.h5"),
        ],
        timeout=60,
        check=True,
    )


def test_one_process_prepares_where_no_mpi_can_be_loaded(tmp_path):
    """As on a machine that only fetches data, with mpi4py and no MPI library."""
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text(
        "raise RuntimeError('cannot load MPI library')"
    )
    words = f"-m localavg prepare epsilon-like --rows 40 --features 3 --out {tmp_path}/a.h5"
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run(
        [sys.executable, *words.split()], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["train/x"].shape == (40, 3)
