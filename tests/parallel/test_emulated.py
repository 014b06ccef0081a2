"""Emulated hosts: real node and cross-node communicators on one machine. Root; `make test-root`."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from functools import cache

import numpy as np
import psutil
import pytest
from mpi import ROOT

from localavg.files import record

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not (shutil.which("ip") and shutil.which("tc")), reason="iproute2 (ip, tc) is not installed"
    ),
]
LIMIT_S = 600
TRAIN = (
    "train",
    "kavg",
    "--K",
    "3",
    "--data",
    "epsilon-like:400x50",
    "--sampling",
    "shard",
    "--batch-size",
    "10",
    "--lr",
    "2",
    "--save-weights",
    "--steps",
    "40",
)


def emulated(*words, **how):
    """jobs/emulated/run WORDS."""
    words = [ROOT / "jobs/emulated/run", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, **how)


def left_behind():
    """Network namespaces, links, host files and processes of emulated hosts."""
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split()
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    return (
        [x for x in [*names, *os.listdir("/etc/netns")] if x.startswith("lah")]
        + [line for line in links.splitlines() if ": la" in line]
        + [
            p.info["cmdline"]
            for p in psutil.process_iter(["cmdline"])
            if "plm_ssh_agent" in (p.info["cmdline"] or ())
        ]
    )


@pytest.fixture(autouse=True)
def nothing_stays():
    """No test leaves a namespace, a link or a file."""
    os.makedirs("/etc/netns", exist_ok=True)
    assert left_behind() == []
    yield
    assert left_behind() == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Final weights of the same learners on one process, by P."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def weights(P):
        out = folder / f"{P}.h5"
        subprocess.run(
            [
                ROOT / ".venv/bin/python",
                "-m",
                "localavg",
                *TRAIN,
                "--learners",
                str(P),
                "--out",
                out,
            ],
            check=True,
            capture_output=True,
            timeout=LIMIT_S,
        )
        return record.load(out).weights

    return weights


@pytest.mark.parametrize("ranks", [(2, 2), (2, 2, 1), (1, 3)])
def test_learners_on_several_hosts_train_as_on_one(ranks, alone, tmp_path):
    """Unequal hosts too, in full-duplex lanes between them; what crossed the network is
    recorded.
    """
    P, out = sum(ranks), tmp_path / "run.h5"
    done = emulated(
        "--ranks", ",".join(map(str, ranks)), "--rate", "1gbit", "--", *TRAIN, "--out", out
    )
    assert done.returncode == 0, done.stderr
    run = record.load(out)
    assert run.provenance["nodes"] == len(ranks) and run.provenance["transport"] == "shared"
    assert (
        run.averages.bytes_cross == 4 * 50 * len(ranks)
    ).all()  # every host sends its sum of d floats
    np.testing.assert_allclose(run.weights, alone(P), rtol=1e-5, atol=1e-7)


def test_no_average_is_faster_than_its_link(tmp_path):
    """Short messages with pauses between them, fewer bytes than a large bucket lets through."""
    d, out = 8192, tmp_path / "run.h5"
    words = ["sync", "--data", f"epsilon-like:50x{d}", "--batch-size", 10, "--steps", 7]
    words += ["--log-every", 1, "--out", out]
    done = emulated("--hosts", 2, "--rate", "100mbit", "--", "train", *words)
    assert done.returncode == 0, done.stderr
    rounds_s = record.load(out).train[["communicate_s", "wait_s"]].sum(axis=1).diff()
    assert rounds_s.min() > 0.8 * 32 * d / 100e6, rounds_s


def test_gossip_between_hosts_sends_the_rows_of_neighbours_alone(tmp_path):
    """In a ring of two hosts with two learners each, every row has a neighbour on the other host."""
    words = ["gossip", *TRAIN[4:]]  # without --K 3
    done = emulated("--ranks", "2,2", "--", "train", *words, "--out", tmp_path / "hosts.h5")
    assert done.returncode == 0, done.stderr
    alone = [ROOT / ".venv/bin/python", "-m", "localavg", "train", *words, "--learners", "4"]
    subprocess.run([*alone, "--out", tmp_path / "one.h5"], check=True, timeout=LIMIT_S)
    runs = {name: record.load(tmp_path / f"{name}.h5") for name in ("hosts", "one")}
    assert runs["hosts"].provenance["nodes"] == 2
    assert runs["hosts"].averages.bytes_cross.tolist() == [4 * 4 * 50] * 39 + [4 * 50 * 2]
    assert runs["hosts"].train.loss.equals(runs["one"].train.loss)  # to the bit, until T
    np.testing.assert_allclose(runs["hosts"].weights, runs["one"].weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lost", [1, 2])  # the host of rank 0, and another one
def test_the_run_goes_on_without_a_host_that_is_cut_off(lost, tmp_path):
    """Its link goes down, and its ranks and its daemon die, so that nobody hears of it."""
    out, K, steps = tmp_path / "run.h5", 500, 40_000
    long = [*map(str, (*TRAIN[:3], K, *TRAIN[4:-1], steps))]
    words = ["--ranks", "2,2", "--with-ft", "--", *long, "--on-failure", "continue", "--out", out]
    process = begun(words, out, tmp_path / "said")
    try:
        cut_off(process.pid, lost)
        wait_for(lambda: process.poll() is not None or record.load(out).status != "running")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    run = record.load(out)
    assert run.status == "finished", (tmp_path / "said").read_text()
    (event,) = run.events.to_dict("records")
    print(event)
    first = 2 * (lost - 1)
    assert event["lost"] == f"rank {first} on h{lost}, rank {first + 1} on h{lost}"
    rounds_s = run.train.wall_s.iloc[-1] / (steps / K)
    assert event["repeated"] <= 2 * K and event["seconds"] <= 2 * rounds_s + 15
    subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "localavg", *long, "--learners", "4", "--out", tmp_path / "one.h5"],
        check=True, capture_output=True, timeout=LIMIT_S,
    )  # fmt: skip
    np.testing.assert_allclose(run.weights, record.load(tmp_path / "one.h5").weights, rtol=1e-3)


def begun(words, out, said, tries=3):
    """A run on emulated hosts that has begun to train.

    While a rank of a busy machine starts, Open MPI may take it for dead, and the job ends.
    """
    for _ in range(tries):
        with open(said, "w") as file:
            process = subprocess.Popen([ROOT / "jobs/emulated/run", *map(str, words)], stderr=file)
        try:
            wait_for(lambda process=process: process.poll() is not None or has_rows(out))
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
            raise
        if process.poll() is None:
            return process
    raise AssertionError(said.read_text())


def has_rows(out):
    with contextlib.suppress(record.UserError):  # there is none, or its name only
        return len(record.load(out).train) > 0
    return False


def wait_for(met):
    until = time.monotonic() + LIMIT_S
    while not met() and time.monotonic() < until:
        time.sleep(0.2)
    assert met()


def cut_off(number, host):
    """Cut off a host of the emulated ones that a process of this number has made."""
    name = f"{number % 60_000}-{host}"
    subprocess.run(["ip", "link", "set", f"lav{name}", "down"], check=True)
    pids = subprocess.run(
        ["ip", "netns", "pids", f"lah{name}"], check=True, capture_output=True, text=True
    ).stdout
    for pid in map(int, pids.split()):
        os.kill(pid, signal.SIGKILL)


def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path):
    words = ["--hosts", "2", "--", *TRAIN[:-1], "100000000", "--out", tmp_path / "run.h5"]
    process = subprocess.Popen(
        [ROOT / "jobs/emulated/run", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not (tmp_path / "run.h5").exists() and time.monotonic() < until:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert record.load(tmp_path / "run.h5").provenance["nodes"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--rate", "fast", "--", *TRAIN), "--rate fast"),
        (("--hosts", "none", "--", *TRAIN), "--hosts none"),
        ((), "jobs/emulated/run"),
    ],
)
def test_a_mistake_is_told_with_status_2(words, told):
    done = emulated(*words)
    assert done.returncode == 2 and told in done.stderr
