"""What the command line prints where it printed nothing or a traceback: a closed pipe, a library
that is missing, a misspelt option, a run that averages nothing, data that nobody named.
"""

import os
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
from mpi import ROOT, alone

import localavg
from localavg import algorithms
from localavg.__main__ import parser
from localavg.cli import DEPENDENCIES, missing
from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files.record import Record
from localavg.learner import sampling
from localavg.training import build, header, run

THEORY = "theory --F1-minus-Fstar 1 --L 1 --M 1 --gamma 0.1 --batch-size 4 --steps 1000"


def command(*words, python=(), **how):
    """`python -m localavg WORDS` outside any job, with bytes as output."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, **how}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *python, "-m", "localavg", *words]
    return subprocess.run(words, cwd=ROOT, env=env, check=False, **how)


# A pipe that nobody reads any more


@pytest.mark.parametrize("line", [THEORY, "--help", "train --help", "--version"])
@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_closed_pipe_is_no_traceback(line, both):
    ours, theirs = os.pipe()
    os.close(ours)  # nobody reads
    try:
        done = command(*line.split(), stdout=theirs, **({"stderr": theirs} if both else {}))
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (0, None if both else b"")


def test_a_mistake_into_a_closed_pipe_keeps_its_status():
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        assert command("fly", stderr=theirs).returncode == 2
    finally:
        os.close(theirs)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("line", [THEORY, "train --help", "status nowhere"])
def test_output_on_a_full_disk_is_one_line_and_no_success(line):
    with open("/dev/full", "wb") as full:
        done = command(*line.split(), stdout=full)
    status, told = (2, b"nowhere") if "status" in line else (1, b"output was lost (No space left")
    assert done.returncode == status and told in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("before", ["", "import localavg.parallel.fleet; "])
def test_ctrl_c_where_there_are_no_other_ranks_is_one_line(before):
    code = f"{before}import localavg.cli.status as s; s._found = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)"
    code += "; from localavg.__main__ import main; main(['status', '.'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (130, 1)


def test_output_without_a_stream_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m localavg --version >&- 2>&-", shell=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0


# Names that are not UTF-8


def test_a_name_that_is_not_utf_8_is_printed_in_its_own_bytes(tmp_path):
    out = os.fsencode(tmp_path) + b"/caf\xe9.h5"
    done = command("prepare", "epsilon-like", "--rows", "8", "--features", "2", "--out", out)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == out + b"\n"
    again = command("prepare", "epsilon-like", "--rows", "8", "--features", "2", "--out", out)
    assert again.returncode == 2 and rb"/caf\xe9.h5 exists" in again.stderr
    text = os.fsencode(tmp_path) + b"/\xe9.txt"
    with open(text, "wb") as file:
        file.write(b"1 1:1\n-1 1:2\n")
    done = command("prepare", "libsvm", text, "--out", tmp_path / "text.h5")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_status_shows_a_run_file_whose_name_is_not_utf_8(tmp_path):
    Record.create(f"{tmp_path}/caf\udce9.h5", {"steps": 4}, {}).finish("finished")
    done = command("status", tmp_path)
    assert done.returncode == 0 and b"caf\xe9" in done.stdout and b"Traceback" not in done.stderr


# Libraries that are missing


def test_without_its_libraries_it_says_which_and_how_to_install_them():
    done = command("status", "runs", python=["-S"])
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"") and said.count("\n") == 1
    assert said.startswith("localavg: this Python, ") and sys.executable in said
    assert "lacks h5py, mpi4py, numpy, " in said
    assert "-m pip install h5py mpi4py numpy pandas scikit-learn " in said


@pytest.mark.parametrize("module", DEPENDENCIES)
def test_only_what_is_missing_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        __import__(f"{module}.part")
    assert f"lacks {DEPENDENCIES[module]}, which localavg needs" in str(missing(caught.value))


def test_a_module_of_ones_own_that_is_missing_is_a_defect():
    assert (
        missing(ModuleNotFoundError("No module named 'localavg.none'", name="localavg.none"))
        is None
    )
    assert missing(ModuleNotFoundError("No module named 'torch'", name="torch")) is None


def test_a_missing_mpi4py_is_one_of_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    from localavg.cli import world

    with pytest.raises(ModuleNotFoundError) as caught:
        world()
    assert "pip install mpi4py" in str(missing(caught.value))


def test_the_list_of_libraries_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {line.partition(">")[0] for line in project["dependencies"]}
    assert set(DEPENDENCIES.values()) == named


# Options and the version


@pytest.mark.parametrize(
    ("line", "hint", "where"),
    [
        ("train kavg --leaners 3", "--learners", "train kavg"),
        ("train kavg --batch_size 3", "--batch-size", "train kavg"),
        ("train kavg --batchsize=3", "--batch-size", "train kavg"),
        ("train hieravg --k1 3", "--K1", "train hieravg"),
        ("train kavg --k 3", "--K", "train kavg"),
        ("train mavg --outter nesterov", "--outer", "train mavg"),
        ("train --leaners 3 kavg", "--learners", "train ALGORITHM"),
        ("prepare libsvm folder --zerobased --out b", "--zero-based", "prepare libsvm"),
        ("theory --gama 3", "--gamma", "theory"),
        ("train kavg --learning-rate 0.1", "--lr", "train kavg"),
        ("train kavg --period 4", "--K", "train kavg"),
        ("train oneshot --period 4", None, "train oneshot"),
        ("train kavg --zebra 2", None, "train kavg"),
        ("train kavg digits", None, "train kavg"),
    ],
)
def test_a_misspelt_option_names_the_nearest_and_where_they_all_are(line, hint, where):
    with pytest.raises(UserError) as caught:
        parser().parse_args(line.split())
    said = str(caught.value)
    assert said.startswith("unrecognized arguments: ")
    assert ("did you mean" in said) == (hint is not None)
    assert f"{f'; did you mean {hint}?' if hint else ''} (see localavg {where} --help)" in said


def test_the_nearest_option_is_one_of_the_algorithm():
    with pytest.raises(UserError) as caught:
        parser().parse_args(["train", "oneshot", "--outter", "adam"])
    assert "--outer" not in str(caught.value)


def test_a_bad_value_points_to_the_help_of_an_algorithm():
    with pytest.raises(UserError, match=r"see localavg train ALGORITHM --help\)$"):
        parser().parse_args(["train", "kavg", "--K", "many"])


def test_the_version_is_printed():
    assert command("--version").stdout.decode() == f"localavg {localavg.__version__}\n"


# Runs that average nothing, or once


def experiment(name, T, P, rank=0, **given):
    """The parts of an experiment that the notes look at."""
    return SimpleNamespace(
        config=TrainConfig(algorithm=name, options=given),
        fleet=SimpleNamespace(P=P, rank=rank),
        length=SimpleNamespace(T=T),
        algorithm=algorithms.make(name, given, T=T, epoch=T, step_size=lambda t: 0.1),
    )


def noted(*what, **more):
    notes = run._not_averaged(experiment(*what, **more))
    assert len(notes) <= 1 and "\n" not in str(notes)
    return "".join(notes)


@pytest.mark.parametrize("name", [name for name in algorithms.ALGORITHMS if name != "sgd"])
def test_one_learner_averages_nothing_which_is_printed(name):
    given = {"hieravg": {"S": 1}, "qsr": {"alpha": 0.2}, "postlocal": {"switch": 0.5}}.get(name, {})
    said = noted(name, 1000, 1, **given)
    assert said.startswith(f"{name} with 1 learner: nothing is averaged; ")
    assert "--learners" in said and "mpirun" in said
    assert "nothing is averaged" not in noted(name, 1000, 2, **given)


def test_sequential_sgd_is_meant_to_average_nothing():
    assert noted("sgd", 1000, 1) == ""


@pytest.mark.parametrize(
    ("name", "given", "with_"),
    [
        ("kavg", {"K": 41}, " with K = 41"),
        ("mavg", {"K": 64}, " with K = 64"),
        ("hieravg", {"K1": 4, "K2": 44, "S": 2}, " with K2 = 44"),
        ("hieravg", {"levels": "4:2,44:4"}, " with levels = 4:2,44:4"),
        ("adalupa", {"tau0": 41}, " with tau0 = 41"),
        ("adalupa", {"tau0": 41, "rule": "loss"}, " with tau0 = 41"),
        ("adacomm", {"tau0": 41}, " with tau0 = 41"),
        ("piecewise", {"pieces": "0:50"}, ""),
        ("qsr", {"alpha": 0.65}, " with alpha = 0.65"),
    ],
)
def test_a_period_longer_than_the_run_is_one_average_which_is_printed(name, given, with_):
    said = noted(name, 40, 4, **given)
    assert said.startswith(f"{name}{with_}: there is one average of all learners, after ")
    assert "40 updates; use a shorter period" in said
    assert run._notes(experiment(name, 40, 4, rank=1, **given)) == []
    assert noted(name, 100, 4, **given) == ""


@pytest.mark.parametrize("name", ["oneshot", "sync", "qsgd"])
def test_an_algorithm_without_a_period_has_none_that_is_too_long(name):
    assert noted(name, 40, 4) == ""


def test_a_period_as_long_as_the_run_is_what_was_asked_for():
    assert noted("kavg", 40, 4, K=40) == ""


def test_the_look_ahead_leaves_the_schedule_as_it_was():
    e = experiment("adpsgd", 40, 4, warmup=0.0)
    before = vars(e.algorithm.schedule).copy()
    run._too_long(e)
    assert vars(e.algorithm.schedule) == before


def test_a_run_of_one_learner_prints_it_once(tmp_path):
    words = "train kavg --data epsilon-like:64x8 --batch-size 4 --steps 8 --out run.h5"
    done = alone(*words.split(), cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.count("nothing is averaged") == 1
    assert "default data" not in done.stderr
    done = alone(*words.replace("run", "two").split(), "--learners", "2", cwd=tmp_path)
    assert done.stderr.count("with K = 16: there is one average of all learners") == 1


# Classes that nobody has


@pytest.mark.parametrize(("P", "C", "missing"), [(3, 1, 2), (3, 2, 0), (5, 1, 0)])
def test_classes_that_no_learner_has_are_counted(capsys, P, C, missing):
    y = np.repeat(np.arange(5), 20)
    sampler = sampling.make(f"labels:{C}", 100, P, 4, 1, y)
    config, rows = SimpleNamespace(sampling=f"labels:{C}"), []
    task = SimpleNamespace(sampler=sampler, config=config, length=SimpleNamespace(P=P))
    header.write_holdings(SimpleNamespace(append=lambda _, **row: rows.append(row)), task)
    held = {row["label"] for row in rows}
    assert len(held) == 5 - missing
    told = f"--sampling labels:{C} with {P} learners: nobody has rows of {missing} of the 5 classes"
    err = capsys.readouterr().err
    assert (told in err and err.count("\n") == 1) if missing else err == ""


# Data that nobody named


@pytest.mark.parametrize("rank", [0, 1])
def test_the_default_data_is_announced_before_it_is_made(capsys, monkeypatch, rank):
    def load(spec, fleet):
        said.append(capsys.readouterr().err)
        return SimpleNamespace(shuffled=True)

    said = []
    monkeypatch.setattr(build.datasets, "load", load)
    fleet = SimpleNamespace(rank=rank)
    build.load_data(TrainConfig(algorithm="kavg"), fleet)
    build.load_data(TrainConfig(algorithm="kavg", data="epsilon-like:8x2"), fleet)
    expected = (
        "localavg: makes the default data, epsilon-like, of 400000 rows to train on and 100000 to "
        "test, 4.0 GB a node; --data chooses other data\n"
    )
    assert said == [expected if rank == 0 else "", ""]
