"""The Slurm templates under a real Slurm: a controller and two node daemons on this machine. Root;
`make test-root`.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import nvml
import psutil
import pytest
from mpi import ROOT, marked

from localavg.files import record

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons need root"),
    pytest.mark.skipif(
        not all(
            shutil.which(tool, path=PATH) for tool in ("slurmctld", "slurmd", "sbatch", "munged")
        ),
        reason="Slurm is not installed (make test-root installs slurm-wlm, munge and libpmix-dev)",
    ),
]
LIMIT_S = 600
TRAIN = (
    "kavg",
    "--K",
    "5",
    "--data",
    "epsilon-like:2000x500",
    "--batch-size",
    "64",
    "--lr",
    "0.5",
    "--save-weights",
)
STEPS = 150_000  # some 10 s
LONG = """
[sweep]
title = "long"
[laptop]
data = "epsilon-like:2000x500"
batch-size = 64
learners = 2
ranks = 2
steps = 100_000_000
[[runs]]
algorithm = "kavg"
"""
SMALL = LONG.replace("100_000_000", "40").replace(
    '"kavg"', '"kavg"\ngrid.K = [1, 2, 4]\n[[runs]]\nalgorithm = "sync"'
)


class Cluster:
    """The emulated one. jobs: what was submitted, all cancelled at the end."""

    def __init__(self, conf):
        mpi = {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_osc": "^ucx",
            "PMIX_MCA_gds": "hash",
            "PMIX_MCA_psec": "native",
        }  # the last two: less noise from the wheel's PMIx
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "OMPI_", "PMI"))
        }
        self.env = {**kept, **mpi, "SLURM_CONF": conf, "PATH": PATH, "PYTHON": sys.executable}

    def run(self, *words, check=True):
        done = subprocess.run(
            list(map(str, words)),
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *words):
        """The number of the job that sbatch WORDS made, one task a node unless told."""
        return self.run(
            "sbatch", "--parsable", "--partition=debug", "--ntasks-per-node=1", *words
        ).strip()

    def job(self, number):
        """What scontrol knows of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def lose(self, node):
        """Kill the daemon of a node and all that runs there."""
        pids = Path(self.env["SLURM_CONF"]).parent / f"slurmd.{node}.pid"
        os.kill(int(pids.read_text()), signal.SIGKILL)
        for process in marked(node, "SLURMD_NODENAME"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def until(self, met):
        until = time.monotonic() + LIMIT_S
        while not met() and time.monotonic() < until:
            time.sleep(0.2)
        assert met()

    def wait(self, number, done, seconds=LIMIT_S):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if done(found := self.job(number)):
                return found
            time.sleep(0.5)
        pytest.fail(f"job {number} after {seconds} s: {found}")


def over(job):
    return job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Up for all tests of this file, down after them."""
    env = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("slurm"))}
    words = [ROOT / "jobs/emulated/slurm"]
    up = subprocess.run(
        [*words, "up", "--nodes", "2"], env=env, capture_output=True, text=True, timeout=LIMIT_S
    )
    try:
        assert up.returncode == 0, up.stderr
        yield Cluster(up.stdout.strip().partition("SLURM_CONF=")[2])
    finally:
        subprocess.run([*words, "down"], env=env, timeout=LIMIT_S, check=True)
        left = [
            p.info
            for p in psutil.process_iter(["name", "cmdline", "status"])
            if p.info["name"].startswith("slurm")
        ]
        assert [p["cmdline"] for p in left if p["status"] != psutil.STATUS_ZOMBIE] == []


@pytest.fixture(scope="module")
def uninterrupted(cluster, tmp_path_factory):
    """The run file of TRAIN on two nodes, never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    number = cluster.submit(
        f"--output={folder}/log",
        ROOT / "jobs/slurm/train.sbatch",
        *TRAIN,
        "--steps",
        STEPS,
        "--out",
        folder / "a.h5",
    )
    job = cluster.wait(number, over)
    assert job["JobState"] == "COMPLETED", (folder / "log").read_text()
    return record.load(folder / "a.h5")


def test_the_train_template_runs_on_two_nodes_and_finishes(uninterrupted):
    assert uninterrupted.status == "finished" and uninterrupted.config["steps"] == STEPS
    origin = uninterrupted.provenance
    assert (origin["ranks"], origin["nodes"]) == (2, 2)
    assert (uninterrupted.averages.bytes_cross > 0).all()


def test_the_smoke_test_of_the_page_about_clusters(cluster, tmp_path):
    """A run that finishes, and one that stops by itself and is requeued."""
    page = (ROOT / "docs/cluster.md").read_text()
    finishes, stops = re.findall(r"^sbatch --time=5 (--\S+ .*) --out \S+$", page, re.M)
    out, log = tmp_path / "smoke.h5", tmp_path / "log"
    number = cluster.submit(f"--output={log}", *finishes.split(), "--out", out)
    assert cluster.wait(number, over)["JobState"] == "COMPLETED", log.read_text()
    assert record.load(out).status == "finished"
    words = stops.replace("--time-limit 1min", "--time-limit 15s").split()
    number = cluster.submit(f"--output={log}", *words, "--out", tmp_path / "stops.h5")
    cluster.wait(number, lambda job: job["Restarts"] == "1", 120)
    cluster.run("scancel", number)
    assert f"job {number} is requeued to resume" in log.read_text()


def test_data_is_copied_to_every_node_and_removed(cluster, tmp_path):
    rows = "".join(f"{'+1' if i % 3 else '-1'} 1:{i / 10} 2:{-i / 7}\n" for i in range(40))
    (tmp_path / "rows.txt").write_text(rows)
    prepare = "prepare", "libsvm", tmp_path / "rows.txt", "--out", tmp_path / "rows.h5"
    cluster.run(sys.executable, "-m", "localavg", *prepare)
    log, disk = tmp_path / "log", tmp_path / "disk"
    words = "kavg", "--data", "rows.h5", "--batch-size", "4", "--out", tmp_path / "a.h5"
    env = f"--export=ALL,STAGE={tmp_path / 'rows.h5'},LOCAL={disk}"
    number = cluster.submit(env, f"--output={log}", ROOT / "jobs/slurm/train.sbatch", *words)
    assert cluster.wait(number, over)["JobState"] == "COMPLETED", log.read_text()
    assert record.load(tmp_path / "a.h5").status == "finished"
    assert disk.exists() and list(disk.iterdir()) == []


def test_a_job_array_does_a_sweep_share_by_share_two_runs_at_once(cluster, tmp_path):
    """Runs of two ranks, of which a node takes four: each job does both runs of its share at once."""
    (tmp_path / "small.toml").write_text(SMALL)
    out = tmp_path / "runs"
    cluster.run(
        sys.executable,
        "-m",
        "localavg",
        "sweep",
        tmp_path / "small.toml",
        "--launcher",
        "slurm",
        "--jobs",
        2,
        "--out",
        out,
        "--submit",
        f"--wait --partition=debug --account=me --output={tmp_path}/log-%a",
    )
    logs = [(tmp_path / f"log-{k}").read_text() for k in (1, 2)]
    assert all("2 runs: 2 done" in log for log in logs), logs
    steps = "".join(path.read_text() for path in sorted(out.glob("*.log")))
    assert steps.count("--cpu-bind=cores --mem-bind=local") == steps.count("--exact") == 4
    runs = record.load_many(out)
    assert [run.path.stem for run in runs] == ["kavg-K1-s0", "kavg-K2-s0", "kavg-K4-s0", "sync-s0"]
    assert {run.status for run in runs} == {"finished"} and {
        run.provenance["ranks"] for run in runs
    } == {2}


def test_a_run_told_to_stop_is_requeued_and_goes_on_to_the_same_bits(
    cluster, uninterrupted, tmp_path
):
    """As the time limit does it: USR1 to the tasks of srun, the ranks; -K1 then ends the rank that
    is slower to leave.
    """
    out, log = tmp_path / "a.h5", tmp_path / "log"
    number = cluster.submit(
        f"--output={log}", ROOT / "jobs/slurm/train.sbatch", *TRAIN, "--steps", STEPS, "--out", out
    )
    cluster.until(lambda: log.exists() and re.search(r"^t [1-9]", log.read_text(), re.M))
    cluster.run("scancel", "--signal=USR1", number)
    cluster.wait(number, lambda job: job["Restarts"] == "1", 60)
    assert record.load(out).status == "interrupted" and record.load(out).weights is None
    job = cluster.wait(number, over)
    text = log.read_text()
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1", text
    assert f"job {number} is requeued to resume" in text and "resumes after step" in text
    run = record.load(out)
    assert run.status == "finished"
    np.testing.assert_array_equal(run.weights, uninterrupted.weights)
    assert run.train.t.tolist() == uninterrupted.train.t.tolist()


def test_a_lost_node_ends_mpirun_and_the_job_resumes_on_whole_nodes(
    cluster, uninterrupted, tmp_path
):
    """The lines for mpirun in the template; the daemons and the rank of the second node die."""
    template = (ROOT / "jobs/slurm/train.sbatch").read_text()
    lines = re.findall(r"^#   (.*)$", template, re.M)
    # both nodes are this host, whose other networks come and go
    start = f"{ROOT}/.venv/bin/mpirun --with-ft ulfm --mca btl_tcp_if_include 127.0.0.0/8 -n"
    mpirun = "\n".join(lines[-6:]).replace("mpirun -n", start)
    mpirun = mpirun.replace(":PE=$SLURM_CPUS_PER_TASK", "")  # which are only names here
    script, out, log = tmp_path / "train.sbatch", tmp_path / "a.h5", tmp_path / "log"
    head, _, tail = re.split(r"^(srun .*)$", template, flags=re.M)
    script.write_text(f"{head}{mpirun}{tail}".replace("\nstatus=$?\n", "\n", 1))
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "")  # the nodes are idle again
    how = "--on-failure", "continue", "--checkpoint-every", 5_000
    number = cluster.submit(
        "--no-kill", "--nodes=2", f"--output={log}", script, *TRAIN, "--steps", STEPS, *how, "--out", out
    )  # fmt: skip
    cluster.until(lambda: log.exists() and re.search(r"^t [1-9]", log.read_text(), re.M))
    cluster.lose("n2")
    cluster.wait(number, lambda job: job["Restarts"] == "1", 60)
    cluster.run("slurmd", "-N", "n2")
    job = cluster.wait(number, over)
    text = log.read_text()
    assert job["JobState"] == "COMPLETED", text
    assert f"job {number} is requeued to resume" in text and "resumes after step" in text
    np.testing.assert_allclose(record.load(out).weights, uninterrupted.weights, rtol=1e-5)


def test_the_time_limit_warns_a_sweep_which_is_saved_and_requeued(cluster, tmp_path):
    """A limit of 2 minutes, the warning 75 s ahead; Slurm looks twice a minute, so it comes after
    15 to 45 s.
    """
    (tmp_path / "long.toml").write_text(LONG)
    cluster.run(
        sys.executable,
        "-m",
        "localavg",
        "sweep",
        tmp_path / "long.toml",
        "--launcher",
        "slurm",
        "--out",
        tmp_path,
        "--submit",
        f"--partition=debug --account=me --time=2 --signal=B:USR1@75 --output={tmp_path}/log --job-name=limited",
    )
    number = cluster.run("squeue", "--noheader", "--name=limited", "--format=%A").split()[0]
    try:
        job = cluster.wait(number, lambda job: job["Restarts"] == "1", 170)
        assert job["JobState"] in ("PENDING", "RUNNING")
        text = (tmp_path / "log").read_text()
        assert "interrupted after" in text and f"job {number} is requeued to resume" in text
        cluster.wait(number, lambda job: job["JobState"] == "RUNNING", 170)
        until = time.monotonic() + 120
        while (
            "resumes after step" not in (tmp_path / "kavg-s0.log").read_text()
            and time.monotonic() < until
        ):
            time.sleep(0.5)
        assert "resumes after step" in (tmp_path / "kavg-s0.log").read_text()
    finally:
        cluster.run("scancel", number)


@pytest.mark.parametrize(
    "launch", ["srun --mpi=pmix", "mpirun -n 2 --map-by ppr:1:node"], ids=["srun", "mpirun"]
)
def test_device_memory_is_tried_between_two_nodes_of_the_job(launch, cluster, tmp_path):
    """By a job of its own within the job, whose GPUs' memory is the host's."""
    nvml.driver(tmp_path)
    (tmp_path / "torch.py").write_text(nvml.TORCH)
    env = {
        "FAKE_GPUS": "Fake GPU=GPU-7",
        "LD_LIBRARY_PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "PATH": f"{ROOT}/.venv/bin:{cluster.env['PATH']}",
    }
    words = " ".join([*(f"{name}={value!r}" for name, value in env.items()), launch])
    program = f"{sys.executable} -m mpi4py -m localavg doctor"
    log = tmp_path / "log"
    line = f"--wrap=export {words.removesuffix(launch)}; {launch} {program}"
    number = cluster.submit("--nodes=2", f"--output={log}", line)
    assert cluster.wait(number, over, 240)["JobState"] == "COMPLETED", log.read_text()
    assert "in place on two nodes, every number right" in log.read_text(), log.read_text()
