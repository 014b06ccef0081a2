"""`bench average`: its file holds the rows that it prints, and its sizes are those of the
networks.
"""

import json
import math
import sys

import h5py
import mpi
import pytest
import torch

from localavg import models
from localavg.cli.bench import average
from localavg.errors import UserError
from localavg.files import record

COLUMNS = [
    "elements",
    "ranks",
    "nodes",
    "learners",
    "transport",
    "ours_s",
    "allreduce_s",
    "torch_s",
    "floor_s",
    "outer_s",
    "gossip_s",
    "gossip_floor_s",
    "wire_s",
    "wire_bytes",
    "plain_bytes",
    "kept_s",
]


def bench(ranks, *words, **how):
    return mpi.run(ranks, "-m", "localavg", "bench", "average", *words, **how)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with what two ranks wrote as a.h5 and a.json, and the launch."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    where = "--out", folder / "a.h5", "--json", folder / "a.json"
    done = bench(
        2, "--sizes", "2000", "resnet8", "--learners", "4", "--repeats", "2", "--outer", "adam",
        "--graph", "exp", "--ranks-per-node", "1", "--wire", "int8", "--on-failure", "continue",
        *where, check=True, ft=True,
    )  # fmt: skip
    return folder, done


def test_the_file_holds_the_rows_of_json(files):
    folder, done = files
    rows = json.loads((folder / "a.json").read_text())
    found = record.load(folder / "a.h5", bench="average")
    assert "step / its bytes" in done.stdout and "gossip / its floor" in done.stdout
    assert "bytes / wire's" in done.stdout and "kept / ours" in done.stdout
    assert all(3.5 * row["wire_bytes"] < row["plain_bytes"] == 8 * row["elements"] for row in rows)
    assert list(found.rows) == COLUMNS and found.rows.to_dict("records") == rows
    assert [row["elements"] for row in rows] == average.floats(["2000", "resnet8"])
    assert all((row["ranks"], row["nodes"], row["learners"]) == (2, 2, 4) for row in rows)
    assert (found.rows[[name for name in COLUMNS if name.endswith("_s")]] > 0).all(axis=None)
    assert (
        found.status == "finished" and found.config["repeats"] == 2 and "transport" in done.stdout
    )
    origin = found.provenance
    assert (
        "bench average" in origin["command"]
        and origin["mpi4py"]
        and "Open MPI" in origin["mpi_library"]
    )
    assert (
        len(origin["hosts"]) == 1
        and origin["ranks"] == 2
        and origin["learners_per_rank"] == 2
        and origin["end"]
    )


def test_every_column_has_a_unit_and_a_description(files):
    with h5py.File(files[0] / "a.h5") as f:
        assert set(f["average"]) == set(COLUMNS)
        for name, column in f["average"].items():
            assert column.ndim == 1 and column.attrs["description"]
            assert (column.attrs["unit"] == "s") == name.endswith("_s")


def test_training_and_benchmarks_are_not_taken_for_each_other(files, tmp_path):
    folder, _ = files
    (tmp_path / "a.h5").write_bytes((folder / "a.h5").read_bytes())
    record.Record.create(tmp_path / "run.h5", {"algorithm": "kavg"}, {}).finish("finished")
    assert [run.path.name for run in record.load_many(tmp_path)] == ["run.h5"]
    assert [run.path.name for run in record.load_many(tmp_path, bench="average")] == ["a.h5"]
    with pytest.raises(record.NotARunFile, match="a training run wrote"):
        record.load(tmp_path / "a.h5")
    with pytest.raises(record.NotARunFile, match=r"bench average --out FILE\.h5 wrote"):
        record.load(tmp_path / "run.h5", bench="average")


def test_an_existing_file_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "old.h5").write_text("mine")
    done = bench(2, "--sizes", "2000", "--repeats", "1000000000", "--out", tmp_path / "old.h5")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("localavg: ")]
    assert "old.h5 exists" in line and "never overwritten" in line and "another name" in line
    assert (tmp_path / "old.h5").read_text() == "mine"


def test_a_wrong_size_is_one_line(tmp_path):
    done = bench(2, "--sizes", "2000", "resnet19", "--out", tmp_path / "new.h5")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert (
        "--sizes resnet19" in done.stderr
        and "resnet18, " in done.stderr
        and not (tmp_path / "new.h5").exists()
    )


def test_every_network_has_its_size():
    for name, model in models.MODELS.items():
        side, classes = model.side, 1000 if model.side == 224 else 10
        with torch.device("meta"):
            module = models.make(name, (side, side, 1 if side == 8 else 3), classes)
        tensors = [*module.parameters(), *module.buffers()]
        row = sum(64 * math.ceil(x.numel() / 64) for x in tensors if x.is_floating_point())
        assert average.floats([name]) == [row], name  # each begins at a multiple of 64 floats
    assert average.floats(["7", "resnet18"]) == [7, 11_173_962 + 54 + 9_600]


def test_cifar10_is_every_network_for_its_images():
    names = [name for name, model in models.MODELS.items() if model.side == 32]
    assert {"nin", "resnet18", "dpn92"} <= {*names} and not {"mlp", "resnet50"} & {*names}
    assert average.floats(["3", "cifar10"]) == [3, *average.floats(names)]


@pytest.mark.parametrize("size", ["0", "-3", "2e6", "", "resnet"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(
        UserError, match=f"--sizes {size}: must be .* from 1 on, cifar10 .* or one of mlp, "
    ):
        average.floats(["5", size])


def test_without_torch_networks_have_no_size_and_numbers_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert average.floats(["5"]) == [5]
    with pytest.raises(UserError, match=r"--sizes mlp: .*needs torch .*-m pip install torch"):
        average.floats(["mlp"])
