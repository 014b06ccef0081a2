"""What is prepared for a machine with a GPU, on one without: `jobs/local/gpu-check`, and that the
tests on a GPU are no part of `make test` and say why they are skipped.
"""

import os
import re
import shutil
import subprocess
import sys
from ctypes.util import find_library

import pytest
from mpi import ROOT

SCRIPT = ROOT / "jobs" / "local" / "gpu-check"
SCRIPTS = SCRIPT, ROOT / "jobs" / "local" / "gpu-wheels", ROOT / "jobs" / "local" / "mpirun"
PARTS = [
    "doctor-1",
    "doctor-2",
    "test",
    "resnet18-1",
    "resnet18-8",
    "nin-1",
    "nin-32",
    "resnet8-32",
    "logistic-128",
    "rows-8",
    "ranks-2-staged",
    "ranks-2-cuda_aware",
    "ranks-2-auto",
    "wire-2",
    "delay-2",
    "start",
    "memcheck",
    "nin-1-any",
    "nin-32-any",
]
# In the place of Python: a GPU is found, doctor fails, benchmarks leave rows.
STAND_IN = f"""#!/bin/sh
if [ "$1" = - ]; then
    script=$(cat)
    case $script in *libcuda*) exit 0 ;; esac
    shift
    exec {sys.executable} -c "$script" "$@"
fi
case $* in
    *doctor*) echo 'no good'; exit 3 ;;
    *average*)
        echo 'localavg: --transport cuda_aware: MPI on device memory: status 139; use'; exit 2 ;;
    *train*) for file; do :; done; echo '[{{"ours_samples_per_s": RATE, "best_samples_per_s": 1000,
        "engine": "graph", "best": "vmap"}}]' > "$file" ;;
    *pytest*) echo '96 skipped in 2 s' ;;
esac
"""


def check(*options, **env):
    return subprocess.run(
        [SCRIPT, *options], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_without_a_gpu_it_says_so_in_one_line():
    if find_library("cuda"):
        pytest.skip("this machine has a GPU's driver")
    done = check()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu-check: no GPU here (libcuda.so.1 finds none)\n"


def test_a_dry_run_prints_every_part_with_its_time_limit_and_leaves_nothing(tmp_path):
    done = check("--dry-run", "--mpi", "/opt/x", OUT=str(tmp_path / "out"))
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    lines = [line for line in done.stdout.splitlines() if line.startswith("timeout ")]
    assert [line.rpartition("# ")[2] for line in lines] == PARTS
    assert all(re.match(r"timeout -k 5 \d+ ", line) for line in lines)
    assert "OPAL_PREFIX=/opt/x" in done.stdout and "$" not in "".join(lines)


def test_the_benchmarks_it_runs_have_options_that_exist():
    from localavg.__main__ import parser

    done = check("--dry-run")
    for line in done.stdout.splitlines():
        if " -m localavg " in line:
            words = line.partition(" -m localavg ")[2].partition("  # ")[0].split()
            assert parser().parse_args(words).command == words[0]


def test_parts_are_picked_and_mistakes_are_one_line():
    done = check("--dry-run", "--parts", "test,start")
    assert done.stdout.count("timeout -k") == 2
    for options, words in (
        (["--parts", "speed"], "--parts speed: must be some of doctor-1"),
        (["--mpi", "/nowhere"], "--mpi /nowhere: has no bin/mpirun"),
        (["--wheels", "/nowhere"], "--wheels /nowhere: is no folder"),
        (["--fast"], "unknown option --fast"),
        (["--mpi"], "--mpi needs a value"),
    ):
        done = check(*options)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("parts", "rate", "status"), [("test,nin-1", 950, 0), ("doctor-1,nin-1,memcheck", 400, 1)]
)
def test_later_parts_run_though_one_failed_and_the_table_says_all(tmp_path, parts, rate, status):
    python = tmp_path / "python"
    python.write_text(STAND_IN.replace("RATE", str(rate)))
    python.chmod(0o755)
    out = tmp_path / "out"
    done = check("--parts", parts, PYTHON=str(python), OUT=str(out), PATH="/usr/bin:/bin")
    assert done.returncode == status, done.stdout + done.stderr
    table = (out / "table.txt").read_text()
    assert table in done.stdout
    rows = {line.split()[0]: re.split(r"  +", line) for line in table.splitlines()}
    reached = "reached" if rate >= 900 else "not reached"
    assert rows["nin-1"][1] == "ok"
    assert rows["nin-1"][3:] == [
        f"{rate}/s", "1,000/s", f"{rate / 1000:.2f}", "0.95", reached, "engine graph, best vmap"
    ]  # fmt: skip
    if "test" in rows:
        assert rows["test"][1] == "skipped: see test.txt"
    else:
        assert (
            rows["doctor-1"][1] == "failed (3)" and "no good" in (out / "doctor-1.txt").read_text()
        )
        assert rows["memcheck"][1] == "skipped: no compute-sanitizer"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_shellcheck_finds_nothing(path):
    shell = "bash" if "bash" in path.read_text().partition("\n")[0] else "sh"
    assert subprocess.run([shell, "-n", path], timeout=60).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


# -------------------------------------------------------------------------------- the tests on a GPU


def collected(marks):
    words = (
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        marks,
        "tests/gpu",
    )
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_tests_on_a_gpu_are_no_part_of_make_test():
    makefile = (ROOT / "Makefile").read_text()
    marks = re.search(r"^TESTS := .*-m '(.*)'", makefile, re.M)[1]
    assert "not gpu" in marks
    assert re.search(r"\b0 selected|no tests collected", collected(marks).stdout)
    others = re.findall(r"-m '?((?:long|root)[\w ]*)'?$", makefile, re.M)
    assert len(others) == 2 and all("not gpu" in marks for marks in others)


def test_where_there_is_no_gpu_each_is_skipped_with_the_reason():
    words = "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"
    if find_library("cuda"):
        pytest.skip("this machine has a GPU's driver")
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and re.search(r"^\d+ skipped in", done.stdout, re.M), done.stdout
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", done.stdout, re.M)
    assert reasons and all(
        re.search("cannot be imported|sees no GPU|no mpirun|cannot compute", why) for why in reasons
    )
