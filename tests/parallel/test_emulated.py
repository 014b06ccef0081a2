"""Emulated hosts: real node and cross-node communicators on one machine. Root; `make test-root`."""

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
