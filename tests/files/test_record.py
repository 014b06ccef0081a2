"""The run file: what is written is read back, and no crash, reader or full disk loses what was
flushed.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

import localavg
from localavg.errors import UserError
from localavg.files import atomic, provenance, record
from localavg.files.mirror import Mirror
from localavg.files.record import SCHEMA, TABLES, WORLD, NotARunFile, Record, load, load_many
from localavg.parallel.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]


def row(group: str, i: int) -> dict:
    """Row i of a table, another number or text in every column."""
    return {
        name: i % 100 if c[0] == "i1" else i * (k + 1) if c[0] in ("i8", "f8") else f"{i * (k + 1)}"
        for k, (name, c) in enumerate(SCHEMA[group].items())
    }


def python(code: str, *argv: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv], cwd=ROOT, text=True, stdout=subprocess.PIPE, **options
    )


class Clock:
    """A clock that only moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "run.h5"


def test_another_rank_goes_on_with_the_file(path):
    """From any point: rows are in the file, only in memory, or taken back; events stay."""
    for in_file, stay in ((2, 3), (3, 2), (0, 0), (4, 4)):
        path.unlink(missing_ok=True)
        fleet = Fleet(MPI.COMM_SELF)
        mirror = Mirror(fleet, Record.create(path, {}, {}))
        for i in range(4):
            mirror.append("train", **row("train", i))
            if i + 1 == in_file:
                mirror.append("events", **row("events", 7))
                mirror.flush(force=True)
        mirror.append("events", **row("events", 8))
        assert mirror.counts()["train"] == 4
        if stay == in_file:  # before it told the others that all rows are in the file
            mirror.file.flush(force=True)
        mirror.file = None  # that rank died
        mirror.back_to(fleet, {**mirror.counts(), "train": stay, "events": 0})
        mirror.take_over(path)
        assert mirror.counts()["train"] == stay
        mirror.append("train", **row("train", 9))
        mirror.finish("finished")
        run = load(path)
        assert run.train.t.tolist() == [*range(stay), 9] and run.status == "finished"
        assert run.events.lost.tolist() == ["21", "24"][in_file == 0 :]


def test_settings_of_before_are_read_under_their_names_of_now(path):
    before = {"schedule": "steps", "every": 50.0, "machine": None, "log_every": 7}
    Record.create(path, {"algorithm": "kavg", **before}, {}).finish("finished")
    assert load(path).config == {
        "algorithm": "kavg",
        "lr_schedule": "steps",
        "decay_every": 50.0,
        "timing_from": None,
        "log_every": 7,
    }


def test_what_is_written_is_read_back(path):
    config = {
        "algorithm": "kavg",
        "K": 16,
        "lr": 0.1,
        "nesterov": False,
        "out": None,
        "milestones": (80, 120),
    }
    file = Record.create(path, config, {"command": "localavg train", "hosts": ["a", "b"]})
    w = np.arange(7, dtype=np.float64)  # [d]
    file.save_weights("initial_weights", w)
    for group in SCHEMA:
        for i in (1, 2, 3):
            file.append(group, **row(group, i))
    assert load(path).status == "running"
    assert file.flush(force=True)
    for group in SCHEMA:
        file.append(group, **row(group, 4))
    file.save_weights("weights", 2 * w)
    file.finish("failed", failure="rank 1 raised")

    run = load(path)
    for group in SCHEMA:
        table = getattr(run, group)
        assert table.to_dict("records") == [row(group, i) for i in (1, 2, 3, 4)]
        numbers = {name: c[0] for name, c in SCHEMA[group].items() if c[0] in ("i1", "i8", "f8")}
        assert [table[name].dtype for name in numbers] == [np.dtype(x) for x in numbers.values()]
    assert run.config == {**config, "out": None, "milestones": [80, 120]}
    assert [type(run.config[key]) for key in ("K", "lr", "nesterov")] == [int, float, bool]
    assert run.provenance["hosts"] == ["a", "b"] and run.provenance["end"].endswith("+00:00")
    assert run.status == "failed" and run.attrs["failure"] == "rank 1 raised"
    assert run.weights.dtype == np.float32 and np.array_equal(run.weights, 2 * w)
    assert np.array_equal(run.initial_weights, w)
    assert load(path, weights=False).weights is None


def test_every_column_has_a_unit_and_a_description_and_can_grow(path):
    file = Record.create(path, {}, {})
    for group in SCHEMA:
        file.append(group, **row(group, 1))
    file.finish("finished")
    with h5py.File(path) as f:
        assert f.attrs["schema"] == record.SCHEMA_VERSION
        for group, columns in SCHEMA.items():
            assert set(f[group]) == set(columns)
            for column in f[group].values():
                assert column.attrs["unit"] and column.attrs["description"]
                assert column.maxshape == (None,) and column.chunks
                assert (
                    column.attrs["unit"] == "s"
                    if column.name.endswith(("_s", "/seconds"))
                    else True
                )
        assert "1 = cluster, 2 = world" in f["averages/scope"].attrs["description"]


def test_tables_that_were_never_written_are_empty_and_float_columns_left_out_are_nan(path):
    file = Record.create(path, {}, {})
    file.append("eval", t=3, train_loss=0.5)
    file.finish("finished")
    run = load(path)
    assert run.eval.t.tolist() == [3] and run.eval.train_loss.tolist() == [0.5]
    assert run.eval.drop(columns=["t", "train_loss"]).isna().all(axis=None)
    assert len(run.staleness) == 0 and list(run.staleness) == list(SCHEMA["staleness"])
    assert run.weights is None


@pytest.mark.parametrize("wrong", [{"t": 1, "los": 0.1}, {"train_loss": 0.1}])
def test_a_wrong_column_is_refused_when_it_is_appended(path, wrong):
    file = Record.create(path, {}, {})
    with pytest.raises(ValueError, match="/eval: unknown columns"):
        file.append("eval", **wrong)


def test_wrong_ends_and_wrong_weights_are_refused(path):
    file = Record.create(path, {}, {})
    with pytest.raises(ValueError, match="done"):
        file.finish("done")
    for name, w in (("bias", np.zeros(3)), ("weights", np.zeros((2, 3)))):
        with pytest.raises(ValueError, match="vector"):
            file.save_weights(name, w)


def test_a_run_file_is_never_overwritten(path, monkeypatch):
    Record.create(path, {"seed": 1}, {}).finish("finished")
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"run\.h5 exists; run files are never overwritten: .*another name"
    ):
        Record.create(path, {"seed": 2}, {})
    monkeypatch.setattr(
        os.path, "lexists", lambda path: False
    )  # another creator came between look and make
    with pytest.raises(UserError, match=r"run\.h5"):
        Record.create(path, {"seed": 2}, {})
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run.h5", tmp_path / "file" / "deeper" / "run.h5"):
        with pytest.raises(
            UserError, match=r"cannot write in the folder .*file.* give another folder"
        ):
            Record.create(path, {}, {})


def test_flushes_are_at_least_two_seconds_and_three_hundred_times_their_cost_apart(
    path, monkeypatch
):
    clock, cost, commit = Clock(), 0.0, atomic.commit

    def slow(*args):
        commit(*args)
        clock.now += cost

    monkeypatch.setattr(atomic, "commit", slow)
    file = Record.create(path, {}, {}, clock=clock)

    def due_after(wait):
        last = clock.now
        file.append("staleness", **row("staleness", 1))
        clock.now = last + 0.99 * wait
        early = file.flush()
        clock.now = last + 1.001 * wait
        return file.flush() and not early

    assert due_after(2.0)
    cost = 0.5
    assert due_after(2.0)  # its own cost counts from the next on
    cost = 0.0
    assert due_after(150.0)
    assert due_after(2.0)
    file.save_weights("weights", np.zeros(10_000_000))
    assert due_after(path.stat().st_size / record.REWRITE_BYTES_PER_S)  # 10 s for 40 MB
    assert not file.flush() and not file.flush(force=True)  # nothing to write
    assert len(load(path).staleness) == 5


def test_a_flush_that_fails_leaves_the_file_and_keeps_the_rows(path, monkeypatch):
    file = Record.create(path, {}, {})
    file.append("staleness", **row("staleness", 0))
    file.flush(force=True)
    before = path.read_bytes()
    file.append("staleness", **row("staleness", 1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"run\.h5: cannot write .*No space left on device.*free space"
        ):
            file.flush(force=True)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["run.h5"]
    file.finish("finished")
    assert load(path).staleness.t.tolist() == [0, 1]


def test_a_full_disk_ends_in_one_line_and_a_readable_file(path):
    code = """
import resource, sys
import localavg
from localavg.errors import UserError
from localavg.files.record import Record
file = Record.create(sys.argv[1], {}, {})
file.append("staleness", t=0, learner=0, staleness=0)
file.flush(force=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for i in range(1, 9000):
    file.append("staleness", t=i, learner=0, staleness=0)
try:
    file.flush(force=True)
except UserError as error:
    print(error)
"""
    child = python(code, str(path), stderr=subprocess.PIPE)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and err == ""
    assert str(path) in out and "File too large" in out and out.count("\n") == 1
    assert load(path).staleness.t.tolist() == [0]


def test_a_vanished_folder_is_a_clear_error(path):
    file = Record.create(path, {}, {})
    shutil.rmtree(path.parent)
    with pytest.raises(UserError, match=r"run\.h5: cannot write this run file \(No such file"):
        file.finish("finished")


def test_kill_9_at_any_moment_leaves_all_flushed_rows(tmp_path):
    code = """
import sys
from localavg.files.record import Record
file = Record.create(sys.argv[1], {}, {})
print("started", flush=True)
for i in range(10**9):
    for k in range(7):
        file.append("staleness", t=7 * i + k, learner=k, staleness=i, wall_s=i + k)
    file.flush(force=True)
    print(i, flush=True)
"""
    draw = random.Random(0)
    kills = [(python(code, str(tmp_path / f"{k}.h5")), draw.uniform(0.0, 0.15)) for k in range(10)]
    for child, wait in kills:
        assert child.stdout.readline() == "started\n"
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=30) == -signal.SIGKILL
    for k, (child, _) in enumerate(kills):
        flushes = len(child.stdout.read().split("\n")) - 1
        child.stdout.close()
        run = load(tmp_path / f"{k}.h5")
        n = len(run.staleness)
        assert run.status == "died" and n in (7 * flushes, 7 * flushes + 7)
        i, k7 = np.divmod(np.arange(n), 7)
        expected = {"t": 7 * i + k7, "learner": k7, "staleness": i, "wall_s": i + k7}
        assert all(np.array_equal(run.staleness[name], values) for name, values in expected.items())
    assert sum(len(load(path).staleness) > 0 for path in tmp_path.glob("*.h5")) >= 5


def test_a_flush_killed_before_its_rename_is_as_if_it_never_was(path, monkeypatch):
    file = Record.create(path, {}, {})
    before = path.read_bytes()
    file.append("staleness", **row("staleness", 0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        file.flush(force=True)
    assert path.read_bytes() == before
    file.finish("interrupted")
    assert len(load(path).staleness) == 1 and os.listdir(path.parent) == ["run.h5"]


def test_a_reader_that_locks_the_file_stops_nobody(path):
    file = Record.create(path, {}, {})
    code = "import h5py, sys; f = h5py.File(sys.argv[1], locking=True); print('open', flush=True); sys.stdin.read()"
    reader = python(code, str(path), stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "open\n"
    file.append("staleness", **row("staleness", 0))
    file.finish("finished")
    assert len(load(path).staleness) == 1
    reader.communicate(timeout=30)


def test_a_table_is_cut_to_its_shortest_column(path):
    file = Record.create(path, {}, {})
    for i in range(5):
        file.append("train", **row("train", i))
    file.finish("finished")
    with h5py.File(path, "r+") as f:
        f["train/loss"].resize((3,))
    assert load(path).train.t.tolist() == [0, 1, 2]


def test_what_is_no_run_file_is_told_in_one_line(tmp_path):
    whole = tmp_path / "whole.h5"
    Record.create(whole, {"text": "x" * 10_000}, {}).finish("finished")
    image = whole.read_bytes()
    for size in (4, 100, len(image) // 2, len(image) - 1):
        (tmp_path / "cut.h5").write_bytes(image[:size])
        with pytest.raises(UserError, match=r"cut\.h5: cannot read") as caught:
            load(tmp_path / "cut.h5")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"none\.h5.*No such file"):
        load(tmp_path / "none.h5")
    with h5py.File(tmp_path / "data.h5", "w") as f:
        f.attrs["schema"] = 1
    with pytest.raises(NotARunFile, match=r"data\.h5"):
        load(tmp_path / "data.h5")
    with h5py.File(whole, "r+") as f:
        f.attrs["schema"] = 99
    with pytest.raises(UserError, match="schema 99"):
        load(whole)


def test_load_many_finds_the_run_files_and_skips_other_hdf5(tmp_path):
    with pytest.raises(UserError, match="no run files"):
        load_many(tmp_path)
    for name in ("b/2.h5", "a.h5", "b/1.h5"):
        Record.create(tmp_path / name, {}, {}).finish("finished")
    with h5py.File(tmp_path / "data.h5", "w") as f:
        f["x"] = [1.0]
    (tmp_path / "about-to-start.h5").touch()
    (tmp_path / "a.h5.partial").write_bytes(b"half")
    names = ["a.h5", "b/1.h5", "b/2.h5"]
    assert [str(run.path.relative_to(tmp_path)) for run in load_many(tmp_path)] == names
    assert [
        str(run.path.relative_to(tmp_path))
        for run in load_many([tmp_path / "b", tmp_path / "a.h5"])
    ] == names
    with pytest.raises(NotARunFile):
        load_many([tmp_path / "data.h5"])
    with pytest.raises(UserError, match="nowhere"):
        load_many(tmp_path / "nowhere")
    (tmp_path / "b" / "3.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"3\.h5: cannot read"):
        load_many(tmp_path)


@pytest.mark.parametrize(
    ("config", "first", "top"),
    [
        ({"algorithm": "kavg", "K": 4}, WORLD, 1),
        ({"algorithm": "hieravg", "S": 2}, 1, 2),
        ({"algorithm": "hieravg", "S": 1}, WORLD, 1),
        ({}, 1, 2),
    ],
)
def test_a_column_that_an_earlier_version_did_not_write_is_filled_up(path, config, first, top):
    """By what it was then, and `wait_s` with NaN, in a file that is read and in one that is
    resumed.
    """
    file = Record.create(path, config, {})
    for t, scope in ((1, first), (2, WORLD), (3, WORLD)):
        file.append("averages", **row("averages", t) | {"scope": scope})
    file.finish("interrupted")
    with h5py.File(path, "r+") as earlier:
        for name in ("level", "begun", "wait_s"):
            del earlier[f"averages/{name}"]
    found = load(path).averages
    assert found.level.tolist() == [1, top, top] and found.wait_s.isna().all()
    assert found.begun.tolist() == found.t.tolist()
    again = Record.reopen(path, {**dict.fromkeys(TABLES, 0), "averages": 2}, {})
    last = row("averages", 4) | {"scope": WORLD, "level": top, "begun": 3, "wait_s": 0.5}
    again.append("averages", **last)
    again.finish("finished")
    found = load(path).averages
    assert found.t.tolist() == [row("averages", t)["t"] for t in (1, 2, 4)]
    assert found.level.tolist() == [1, top, top]
    assert found.begun.tolist() == [*found.t[:2], 3]
    assert found.wait_s.tolist()[2] == 0.5 and found.wait_s.isna().tolist() == [True, True, False]


def test_scope_tells_world_from_cluster(path):
    assert WORLD == 2 and record.CLUSTER == 1
    file = Record.create(path, {}, {})
    for scope in (1, 2, 2):
        file.append("averages", **row("averages", 1) | {"scope": scope})
    file.finish("finished")
    assert (load(path).averages.scope == WORLD).tolist() == [False, True, True]


def test_provenance_without_a_checkout_says_nothing_of_a_commit(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "localavg" / "files" / "record.py"))
    origin = provenance.provenance(["localavg", "train", "--out", "a b"])
    assert origin["command"] == "localavg train --out 'a b'"
    assert origin["git_commit"] is None and origin["git_dirty"] is None
    assert (
        origin["numpy"] == np.__version__
        and origin["python"]
        and origin["cpu"]
        and origin["platform"]
    )
    assert origin["start"].endswith("+00:00")
    assert capfd.readouterr() == ("", "")
    Record.create(tmp_path / "run.h5", {}, origin)
    assert load(tmp_path / "run.h5").provenance["git_commit"] is None


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a package, and git(*words) in it."""
    place = tmp_path / "checkout"
    (place / "localavg" / "files").mkdir(parents=True)
    for i in range(20):  # alike, so that git packs some as changes of others
        (place / "localavg" / "files" / f"a{i}.py").write_text("line\n" * 2000 + f"{i}\n")
    (place / ".gitignore").write_text("*.pyc\n")

    def git(*words, at=place):
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=0"]
        command = ["git", "-C", at, *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    return place, git


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_provenance_knows_the_commit_and_whether_the_package_was_changed(
    checkout, tmp_path, monkeypatch
):
    place, git = checkout

    def found(at=place):
        monkeypatch.setattr(provenance, "__file__", str(at / "localavg" / "files" / "a0.py"))
        with monkeypatch.context() as m:
            m.setenv("PATH", "")  # no program is asked
            origin = provenance.provenance()
        return origin["git_commit"], origin["git_dirty"]

    assert found() == (None, None)  # no commit yet
    git("add", ".")
    git("commit", "-m", "all")
    loose = git("rev-parse", "HEAD")
    assert found() == (loose, False)
    git("gc")  # objects and references in packs
    assert found() == (loose, False)
    git("commit", "--allow-empty", "-m", "more")
    git("worktree", "add", tmp_path / "other", "HEAD~1")
    assert found(tmp_path / "other") == (loose, False)
    newest = git("rev-parse", "HEAD")
    (place / "notes").write_text("not the package")
    (place / "localavg" / "a.pyc").write_text("no code")
    assert found() == (newest, False)
    (place / "localavg" / "new.py").write_text("")
    assert found() == (newest, True)
    (place / "localavg" / "new.py").unlink()
    (place / "localavg" / "files" / "a3.py").write_text("changed")
    assert found() == (newest, True)
    git("add", ".")  # what is staged is not committed
    assert found() == (newest, True)
    git("gc", "--prune=now")
    shutil.rmtree(place / ".git" / "objects" / "pack")
    assert found() == (newest, None)  # what cannot be known is not guessed


def test_the_module_needs_no_pandas_torch_or_mpi_to_write(path):
    code = "import sys, localavg.files.provenance as r; r.provenance(); print({'pandas', 'torch', 'mpi4py'} & set(sys.modules))"
    child = python(code)
    assert child.communicate(timeout=60)[0] == "set()\n"


# A file that is open elsewhere in this process, as in a notebook


WAYS = [(mode, locking) for mode in ("r", "r+", "a") for locking in (None, False, "best-effort")]


@pytest.mark.parametrize(("mode", "locking"), [*WAYS, ("r+", True)])
def test_a_file_that_is_open_elsewhere_is_read(path, mode, locking):
    file = Record.create(path, {"K": 4}, {})
    file.append("train", **row("train", 1))
    file.finish("finished")
    with h5py.File(path, mode, locking=locking) as other:
        if mode != "r":
            other.attrs["status"] = "failed"  # not yet on disk
        run = load(path)
        assert run.config["K"] == 4 and len(run.train) == 1
        assert run.status == ("finished" if mode == "r" else "failed")
        assert other["train/t"][:].tolist() == run.train.t.tolist()  # still open


def test_a_prepared_file_that_is_open_elsewhere_is_read(tmp_path):
    from localavg.datasets.prepared import opened

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1.0]
        file.flush()
        with opened(tmp_path / "a.h5") as again:
            assert again["x"][:].tolist() == [1.0]


def test_a_file_that_cannot_be_opened_twice_is_said_to_be_open_and_not_damaged(path, monkeypatch):
    Record.create(path, {}, {}).finish("finished")

    def refuse(*args, **options):
        raise OSError("Unable to synchronously open file (file locking flag values don't match)")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(
        UserError, match=r"is open elsewhere in this process .*; close it there"
    ) as e:
        load(path)
    assert "damaged" not in str(e.value) and "\n" not in str(e.value)


# A run in a notebook


def test_a_run_is_printed_in_three_lines(path):
    config = {"algorithm": "kavg", "K": 4, "learners": 2, "model": None, "lr": 0.1, "steps": 400}
    file = Record.create(path, config, {"command": "x" * 1000})
    for i in range(1, 400):
        file.append("train", **row("train", i) | {"wall_s": i / 100})
    file.append("eval", t=398, train_loss=0.25, test_accuracy=0.9)
    file.finish("failed", failure="rank 1 raised")
    assert repr(load(path)).splitlines() == [
        "kavg: K=4, learners=2, lr=0.1",
        "  failed: 399 of 400 updates, 3.99 s, after update 398 train_loss 0.25, "
        "test_accuracy 0.9 (rank 1 raised)",
        f"  in {path}",
    ]


def test_a_run_that_recorded_nothing_is_printed_too(path):
    Record.create(path, {}, {})
    what, end, where = repr(load(path)).splitlines()
    assert (what, end) == ("no algorithm: no settings", "  running: 0 updates")
    assert where.startswith(f"  in {path}, written by a process on ") and where.endswith("s ago")


def test_a_run_whose_process_is_gone_died_and_one_that_cannot_be_seen_is_left(path, monkeypatch):
    code = f"from localavg.files.record import Record; Record.create({str(path)!r}, {{}}, {{}})"
    assert python(code).wait(60) == 0
    assert load(path).status == "died" and load(path).attrs["status"] == "running"
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert load(path).status == "running" and "s ago" in repr(load(path))


# Several runs


def test_runs_are_compared_in_a_table(tmp_path):
    for name, config in {"a": {"K": 4}, "b": {"K": None, "K1": 2, "lr": 0.2}}.items():
        settings = {"algorithm": "kavg", "learners": 2, "lr": 0.1, "seed": 0, **config}
        file = Record.create(tmp_path / name / "run.h5", settings, {})
        for t in (4, 8):
            size = {"bytes_node": 100, "bytes_cross": 10, "seconds": 0.5}
            file.append("averages", **row("averages", t) | size)
        file.append("eval", t=8, wall_s=3.0, train_loss=0.25, test_accuracy=0.9)
        file.finish("finished")
    found = localavg.compare([load(tmp_path / "a" / "run.h5"), tmp_path / "b"])
    assert list(found.index) == [str(tmp_path / name / "run.h5") for name in "ab"]
    assert list(found)[:6] == ["algorithm", "K", "K1", "learners", "lr", "status"]  # seed is alike
    assert found.K.iloc[0] == 4 and found.K.isna().iloc[1] and found.lr.tolist() == [0.1, 0.2]
    last = found.iloc[1]
    assert (last.updates, last.averages, last.bytes, last.average_s) == (8, 2, 220, 1.0)
    assert (last.train_loss, last.test_accuracy, last.seconds) == (0.25, 0.9, 3.0)
    assert np.isnan(last.test_loss)
    with pytest.raises(UserError, match="no runs"):
        localavg.compare([])


def test_a_run_draws_its_loss_and_periods(path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    file = Record.create(path, {"algorithm": "kavg"}, {})
    for t in (0, 4, 8):
        file.append("eval", t=t, wall_s=t / 2, train_loss=1 / (1 + t))
    file.append("averages", **row("averages", 4) | {"t": 4, "period": 4})
    file.finish("finished")
    loss, seconds, periods = load(path).plot()
    assert loss.lines[0].get_xdata().tolist() == [0, 4, 8]
    assert seconds.lines[0].get_xdata().tolist() == [0, 2, 4]
    assert periods.lines[0].get_ydata().tolist() == [4]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib.*pip install matplotlib"):
        load(path).plot()
