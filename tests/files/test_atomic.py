"""Files that are there whole or not at all."""

import os
import platform
import subprocess
import sys

import pytest

from localavg.files import atomic


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_alone(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic.replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".file.{platform.node()}.{pid}.part").touch()
    (tmp_path / f".file.{platform.node()}.elsewhere.{dead.pid}.part").touch()
    with atomic.replacing(tmp_path / "file") as part:
        part.touch()
    left = {
        f".file.{platform.node()}.{os.getppid()}.part",
        f".file.{platform.node()}.elsewhere.{dead.pid}.part",
    }
    assert set(os.listdir(tmp_path)) == left | {"file"}


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for name in ("part", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    atomic.commit(tmp_path / "part", tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["of part"]
