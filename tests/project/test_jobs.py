"""The batch templates: their directives, what they start, and shellcheck."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from mpi import ROOT

from localavg.__main__ import parser
from localavg.cli.train import given
from localavg.training import checks
from localavg.training.length import Length

JOBS = ROOT / "jobs"
SLURM = [JOBS / "slurm" / name for name in ("train.sbatch", "sweep.sbatch")]
JSRUN = [JOBS / "lsf" / name for name in ("train.jsrun", "sweep.jsrun")]
LSF = [*JSRUN, *(JOBS / "lsf" / name for name in ("train.lsf", "sweep.lsf"))]
IMAGENET = JOBS / "examples" / "imagenet.sbatch"
SCRIPTS = [
    *SLURM,
    IMAGENET,
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
        "--mem-per-cpu",
        "--time",
        "--output",
    } <= found.keys()
    assert "--gpus-per-task" not in found
    text = path.read_text()
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in text
    bound = "--distribution=block:block --cpu-bind=cores --mem-bind=local --kill-on-bad-exit=1"
    assert bound in commands(path)
    assert 'scontrol requeue "$SLURM_JOB_ID"' in commands(path)


@pytest.mark.parametrize("path", [*SLURM, *LSF], ids=name_of)
def test_modules_are_loaded_in_one_file(path):
    assert '. "${MODULES:-jobs/modules.sh}" || exit 2' in commands(path)
    assert "module load" not in path.read_text()


@pytest.mark.parametrize(
    ("library", "plugins", "chosen", "said"),
    [
        ("Open MPI v5.0.7", "none\n\tcray_shasta\n\tpmi2\n\tpmix\nspecific: pmix_v4", "", "pmix"),
        ("Open MPI v4.1.6", "none\n\tpmi2", "", "pmi2"),
        ("MPICH Version: 4.2", "none\n\tpmix\n\tpmi2", "", "pmi2"),
        ("MPI VERSION : CRAY MPICH", "none\n\tcray_shasta\n\tpmi2", "", "cray_shasta"),
        ("Open MPI v5.0.7", "none\n\tpmix_v4\n\tpmix", "pmix_v4", "pmix_v4"),
        ("Open MPI v5.0.7", "none", "", None),
    ],
)
def test_srun_starts_ranks_by_what_slurm_and_the_mpi_library_have(
    library, plugins, chosen, said, tmp_path
):
    for name, text in (("srun", f"MPI plugin types are...\n\t{plugins}"), ("python", library)):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "python": "python"}
    env |= {"SRUN_MPI": chosen} if chosen else {}
    line = f". {JOBS}/modules.sh && srun_mpi"
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, timeout=60)
    if said is None:
        assert (
            done.returncode == 2
            and "has none of pmix pmi2; start the ranks by mpirun" in done.stderr
        )
    else:
        assert (done.returncode, done.stdout.strip()) == (0, said)


@pytest.mark.parametrize("path", SLURM, ids=name_of)
def test_slurm_requeues_a_job_so_many_times_and_no_more(path, tmp_path):
    """On stand-ins: Slurm counts the restarts, and the run is interrupted each time."""
    for name, text in (
        ("python", "case $* in *mpi-lib*) echo Open MPI ;; *sweep*) exit 75 ;; esac"),
        ("srun", "case $* in *list*) echo pmix ;; *) exit 75 ;; esac"),
        ("scontrol", "echo scontrol $*"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHON": str(tmp_path / "python"),
        "MODULES": str(JOBS / "modules.sh"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "1",
        "REQUEUES": "3",
    }
    for restarts, status, said in (("2", 0, "scontrol requeue 7"), ("3", 75, "submit it again")):
        done = subprocess.run(
            ["bash", path, "kavg", "--out", "a.h5"],
            env={**env, "SLURM_RESTART_COUNT": restarts},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status and said in done.stdout + done.stderr


SRUN = """#!/bin/bash
case $* in *list*) echo pmix; exit ;; esac
echo "srun ${*//$'\\n'/ }" >>"$LOG"
while [[ $1 == --* ]]; do shift; done
case $* in bash*) for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit; done ;; esac
[[ $* == bash* ]] || ls "${LOCALAVG_DATA:-/nowhere}" >>"$LOG" 2>&1
"""


def submitted(path, folder, *words, **env):
    """A template's status and what it said, with a stand-in of srun: what it started is in `log`."""
    for name, text in (("srun", SRUN), ("python", "#!/bin/sh\necho Open MPI\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "jobs").symlink_to(JOBS)
    env = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "PYTHON": str(folder / "python"),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "LOG": str(folder / "log"),
        **env,
    }
    return subprocess.run(
        ["bash", path, *words], env=env, capture_output=True, text=True, timeout=60
    )


def test_data_is_on_the_nodes_while_the_run_lasts(tmp_path):
    """Two files, one of which is there already, and an old copy that is made again."""
    local = tmp_path / "disk" / "localavg-7"
    local.mkdir(parents=True)
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).write_text("new")
        (local / name).write_text("old")
    os.utime(local / "a.h5", (0, 0))
    os.utime(local / "b.h5", (2**31, 2**31))
    files = f"{tmp_path}/a.h5 {tmp_path}/b.h5"
    where = {"STAGE": files, "LOCAL": str(tmp_path / "disk")}
    done = submitted(SLURM[0], tmp_path, "kavg", "--out", "x.h5", **where)
    assert done.returncode == 0, done.stderr
    copied, run, *there, removed = (tmp_path / "log").read_text().splitlines()
    assert "--ntasks=2 --ntasks-per-node=1" in copied and " localavg train kavg" in run
    assert there == ["a.h5", "b.h5"] and removed.endswith(f" {local}") and not local.exists()


def test_a_copy_is_whole_or_the_job_does_not_start(tmp_path):
    where = {"STAGE": f"{tmp_path}/nothing.h5", "LOCAL": str(tmp_path / "disk")}
    done = submitted(SLURM[0], tmp_path, "kavg", "--out", "x.h5", **where)
    assert done.returncode == 2 and "set LOCAL to a disk with room" in done.stderr
    assert " train " not in (tmp_path / "log").read_text()


def test_the_imagenet_job_starts_a_run_that_the_command_line_takes(tmp_path):
    """As it stands, and as the trial of its head; it asks for what the template asks for."""
    mine, template = directives(IMAGENET), directives(SLURM[0])
    assert mine.keys() == template.keys()
    differ = {name for name in mine if mine[name] != template[name]}
    assert differ == {"--job-name", "--time", "--nodes", "--signal"}
    trial = re.search(r"^#   sbatch --time=\S+ (\S+) (.*)$", IMAGENET.read_text(), re.M)
    assert trial[1] == "jobs/examples/imagenet.sbatch"
    (tmp_path / "imagenet.h5").write_text("")
    where = {"STAGE": str(tmp_path / "imagenet.h5"), "LOCAL": str(tmp_path)}
    for words, steps in (((), 56_302), (shlex.split(trial[2]), 19)):
        (tmp_path / str(steps)).mkdir()
        done = submitted(IMAGENET, tmp_path / str(steps), *words, **where)
        assert done.returncode == 0, done.stderr
        line = (tmp_path / str(steps) / "log").read_text().splitlines()[1]
        command = shlex.split(line.partition(" localavg ")[2])
        config = checks.read(given(parser().parse_args(command)))
        checked = Length.of(config, 16, 1_281_167 / (16 * config.batch_size))
        assert checked.T == steps and config.resume and config.data == "imagenet.h5"


def test_the_warning_goes_to_the_ranks_of_a_run_and_to_the_shell_of_a_sweep():
    train, sweep = map(directives, SLURM)
    assert train["--signal"] == "USR1@120" and train["--nodes"] == "2"
    assert sweep["--signal"] == "B:USR1@120" and "trap" in commands(SLURM[1]) and "--array" in sweep


@pytest.mark.parametrize("path", [*SLURM, *LSF], ids=name_of)
def test_a_template_starts_the_package(path):
    assert re.search(r'"\$python" -m (mpi4py -m )?localavg (train|sweep) "\$@"', commands(path))


def test_train_runs_through_mpi4py_so_that_a_failing_rank_ends_the_job():
    for path in (SLURM[0], JSRUN[0], LSF[2]):
        assert re.search(r'"\$python" -m mpi4py -m localavg train "\$@" --resume', commands(path))


@pytest.mark.parametrize("path", LSF, ids=name_of)
def test_lsfs_directives_and_its_launch_line(path):
    found = directives(path)
    assert {
        "-P": "PROJECT",
        "-q": "QUEUE",
        "-wa": "USR1",
        "-wt": "2",
        "-Q": "75",
    }.items() <= found.items()
    assert {"-W", "-o", "-J"} <= found.keys()
    if path not in JSRUN:
        assert "affinity[core(8)" in found["-R"] and "rusage[mem=" in found["-R"]
        assert "$(lsf_mpirun)" in commands(path) and "jsrun" not in commands(path)
        return
    assert "-nnodes" in found
    line = next(line for line in commands(path).splitlines() if "jsrun --" in line)
    assert '--smpiargs="-gpu"' in commands(path) and "--gpu_per_rs " in line
    assert "--rs_per_host 1" in line and "--bind packed:8" in line


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


@pytest.mark.parametrize("path", [SLURM[0], JSRUN[0], LSF[2]], ids=name_of)
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


def test_an_unknown_figure_lists_the_ids_before_anything_is_set_up():
    done = subprocess.run(
        ["make", "figure", "ID=kavg-fig9"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "ID=kavg-fig9: must be one of" in done.stderr
    ids = {path.stem for path in (JOBS / "sweeps").glob("*.toml")} | {"theory"}
    assert ids <= set(done.stderr.replace(".", " ").split()) and "pip" not in done.stdout


def test_a_sweep_without_digits_takes_its_own_data(tmp_path):
    """And so does `theory`, which has no runs. What `make paper` did as digits is not run again."""

    def scale(*words):
        done = subprocess.run(
            [JOBS / "local" / "scale", *words], cwd=tmp_path, capture_output=True, text=True
        )
        return done.stdout.strip(), "Fashion" in done.stderr or "fashion" in done.stderr

    assert scale("lupa-fig1") == scale("theory") == ("laptop", False)
    assert scale("kavg-fig1-2") == scale() == ("digits", True)
    (tmp_path / "runs" / "lupa-fig1-digits").mkdir(parents=True)
    assert scale("lupa-fig1") == ("digits", True)
