"""The batch templates: their directives, what they start, and shellcheck."""

import re
import shlex
import shutil
import subprocess

import pytest
from mpi import ROOT

JOBS = ROOT / "jobs"
SLURM = [JOBS / "slurm" / name for name in ("train.sbatch", "sweep.sbatch")]
LSF = [JOBS / "lsf" / name for name in ("train.lsf", "sweep.lsf")]
SCRIPTS = [
    *SLURM,
    *LSF,
    JOBS / "emulated" / "slurm",
    JOBS / "local" / "sweep",
    JOBS / "local" / "scale",
]


def name_of(path):
    return path.name


def directives(path):
    """{option: value} of the #SBATCH or #BSUB lines, which stand above the first command."""
    head = re.split(r"^[^#\n]", path.read_text(), maxsplit=1, flags=re.M)[0]
    words = [
        shlex.split(line)[1:] for line in head.splitlines() if re.match("#(SBATCH|BSUB) ", line)
    ]
    pairs = [w[0].split("=", 1) if "=" in w[0] else w for w in words]
    return {pair[0]: " ".join(pair[1:]) for pair in pairs}


def commands(path):
    """The script without comments, continued lines joined."""
    text = path.read_text().replace("\\\n", " ")
    return "\n".join(
        line.split(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#")
    )


@pytest.mark.parametrize("path", SLURM, ids=name_of)
def test_slurms_directives(path):
    found = directives(path)
    assert (found["--account"], found["--partition"], found["--open-mode"]) == (
        "ACCOUNT",
        "PARTITION",
        "append",
    )
    assert "--requeue" in found
    assert {
        "--ntasks-per-node",
        "--cpus-per-task",
        "--gpus-per-node",
        "--time",
        "--output",
    } <= found.keys()
    assert "--gpus-per-task" not in found
    text = path.read_text()
    assert (
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in text
        and "export CUPY_CACHE_DIR=" in text
    )
    assert "--mpi=pmix --kill-on-bad-exit=1" in commands(
        path
    ) and 'scontrol requeue "$SLURM_JOB_ID"' in commands(path)


def test_the_warning_goes_to_the_ranks_of_a_run_and_to_the_shell_of_a_sweep():
    train, sweep = map(directives, SLURM)
    assert train["--signal"] == "USR1@120" and train["--nodes"] == "2"
    assert sweep["--signal"] == "B:USR1@120" and "trap" in commands(SLURM[1]) and "--array" in sweep


@pytest.mark.parametrize("path", [*SLURM, *LSF], ids=name_of)
def test_a_template_starts_the_package(path):
    assert re.search(r'"\$python" -m (mpi4py -m )?localavg (train|sweep) "\$@"', commands(path))


def test_train_runs_through_mpi4py_so_that_a_failing_rank_ends_the_job():
    for path in (SLURM[0], LSF[0]):
        assert re.search(r'"\$python" -m mpi4py -m localavg train "\$@" --resume', commands(path))


@pytest.mark.parametrize("path", LSF, ids=name_of)
def test_lsfs_directives_and_its_jsrun_line(path):
    found = directives(path)
    assert {
        "-P": "PROJECT",
        "-q": "QUEUE",
        "-wa": "USR1",
        "-wt": "2",
        "-Q": "75",
    }.items() <= found.items()
    assert {"-W", "-nnodes", "-o", "-J"} <= found.keys()
    line = next(line for line in commands(path).splitlines() if "jsrun --" in line)
    assert '--smpiargs="-gpu"' in line and "--gpu_per_rs 4" in line and "--rs_per_host 1" in line


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_shellcheck_finds_nothing(path):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_script_parses(path):
    shell = "bash" if "bash" in path.read_text().partition("\n")[0] else "sh"
    assert subprocess.run([shell, "-n", path], timeout=60).returncode == 0


@pytest.mark.parametrize("path", [SLURM[0], LSF[0]], ids=name_of)
def test_a_training_template_asks_for_the_name_of_the_run_file(path, tmp_path):
    """It has to look how the run ended."""
    env = {
        "PATH": "/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "LS_SUBCWD": str(tmp_path),
        "TRAIN": "kavg",
    }
    done = subprocess.run(
        ["bash", path, "kavg"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "add --out FILE.h5" in done.stderr
