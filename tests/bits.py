"""The bits of runs of every kind, to see that a change of the code changes no result.

    python tests/bits.py record OUT.json [--checkout DIR]   train and write down the bits: minutes
    python tests/bits.py compare A.json B.json              list what differs; status 1 if anything

Record before a change and after it, on one machine, and compare. All runs are command lines as a
user types them, so one copy of this script records any two checkouts. At 1, 2 and 4 ranks it has
every pair of an algorithm with an optimiser and its state policy, and of an algorithm with a
sampling. Asynchronous runs are in simulated time on one rank, and several ranks repeat their order.
OUT.json maps a command line to the SHA-256 of each vector and column of its run file that does not
depend on the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parent / "support"))  # mpi.py, where this is run as a script

ROWS, FEATURES = 168, 20  # of the feature file; rows: a multiple of 4, 6 and 8
TIMEOUT_S = 1200  # of a launch
SIMULATED = "simulated time"  # the first launch
RENAME, REPLACE = os.rename, os.replace

SYNCHRONOUS = [  # every synchronous row of the algorithm table but sgd
    "sync",
    "qsgd --bucket 8",
    "qsgd --bits 4 --bucket 512",
    "kavg --K 7",
    "kavg --K 1",
    "oneshot",
    "mavg --K 6 --mu 0.5",
    "mavg --K 7 --mu 0.4 --nesterov",
    "diloco --K 3",
    "slowmo --K 4 --mu 0.6",
    "postlocal --K 3 --switch 1",
    "fedavg --K 3 --participants 3",
    "kavg --K 4 --delay 3",
    "diloco --K 3 --delay 3 --merge lerp --pull 0.5",
    "hieravg --K1 3 --K2 8 --S 2",
    "hieravg --K1 2 --K2 7 --S 4 --mu 0.4",
    "adpsgd --p-init 3 --Ks 12 --warmup 1",
    "adpsgd --p-init 4 --Ks 0.25 --warmup 0 --mu 0.3 --nesterov",
    "adalupa --tau0 4 --alpha 0.5",
    "adalupa --tau0 3 --rule loss --mu 0.3",
    "piecewise --pieces 0:3,2:5",
    "adacomm --tau0 6 --block 8",
    "qsr --alpha 0.9 --K 3",
    "piecewise --pieces 0:8,4:2 --mu 0.4 --nesterov",
    "gossip --K 2",
    "gossip --graph exp --mix first",
    "gossip --graph push --K 3",
    "gossip --graph matching --base complete",
]
SAMPLINGS = ["iid", "shuffle", "shard", "block"]
OPTIMISERS = {
    "sgd": 0.5,
    "momentum": 0.2,
    "nesterov": 0.2,
    "adam": 0.03,
    "adamw": 0.03,
}  # name: step size
STATES = ["keep", "average", "reset"]
LOCAL = [(name, state) for name in OPTIMISERS for state in STATES[: 1 if name == "sgd" else 3]]
STEP_SIZES = [
    "--lr {lr}",
    "--lr {lr} --schedule steps --milestones 2 5 --factor 0.5",
    "--lr {lr} --schedule steps --every 3 --factor 0.7",
    "--lr {lr} --warmup-epochs 3 --warmup-from 0.01",
    "--schedule inverse --pl-constant 0.2 --shift 40",
]
TRANSPORTS = {  # by the number of ranks
    1: ["shared", "mpi"],
    2: ["shared", "mpi"],
    4: ["shared", "mpi", "shared --ranks-per-node 2", "mpi --ranks-per-node 2"],
}
ALWAYS = "--save-weights --seed 3"
FILE = f"--data rows.h5 --batch-size 5 --l2 0.01 {ALWAYS} --log-every 9 --eval-every 20"
OTHERS = [  # what the pairs leave out
    "kavg --K 7 --variance steps --grad-norm",
    "hieravg --K1 3 --K2 8 --S 4 --variance averages",
    "mavg --K 3 --eval-examples 40",
    "kavg --K 5 --sampling shard --optimizer nesterov --momentum 0.5",
    "adpsgd",
    "kavg --simulate",
    "hieravg --K1 2 --K2 6 --S 2 --simulate --step-cv 0.5",
    "hieravg --levels 3:2,8:P --simulate --step-cv 0.5",
    "sync --simulate",
    "qsgd --simulate",
]
WIDE = [  # rows too wide for the short way within a node
    "kavg --K 4",
    "sync",
    "qsgd",
    "mavg --K 4 --optimizer momentum --state average",
    "hieravg --K1 2 --K2 6 --S 2 --optimizer adam --state average",
    "adpsgd --p-init 2 --Ks 8 --warmup 0",
    "kavg --K 4 --fragments 4",
    "diloco --K 6 --fragments 3 --delay 1",
    "slowmo --K 5 --fragments 2 --optimizer adam --state reset",
]
ON_NODES = "shared --ranks-per-node 2"  # for wires, where there are as many ranks
WIRED = [  # as WIDE
    "kavg --K 4 --wire int8",
    "kavg --K 4 --wire bf16 --fragments 2",
    "diloco --K 4 --wire int8 --delay 2",
    "mavg --K 3 --mu 0.5 --wire bf16 --optimizer momentum --state average",
    "hieravg --K1 2 --K2 6 --S 2 --wire int8 --variance averages",
]
WIRED_NETWORKS = [
    "kavg --K 3 --model mlp --wire lowrank:2 --optimizer momentum --lr 0.05",
    "diloco --K 3 --model nin --wire lowrank:1 --delay 2 --lr 0.02",
    "kavg --K 3 --model nin --wire int8 --fragments 3 --statistics keep --lr 0.02",
]
RESUMED = [
    "sync --sampling shuffle",
    "qsgd --bucket 8 --optimizer nesterov",
    "kavg --K 7",
    "oneshot --optimizer momentum --sampling shuffle",
    "mavg --K 6 --mu 0.6 --nesterov --optimizer momentum",
    "hieravg --K1 3 --K2 7 --S 2 --optimizer adam --sampling shuffle",
    "adpsgd --p-init 2 --Ks 12 --warmup 0.2 --optimizer momentum",
    "adalupa --tau0 3 --alpha 0.5 --mu 0.3",
    "adalupa --tau0 3 --rule loss --optimizer nesterov --sampling shuffle",
    "adacomm --tau0 7 --block 9 --optimizer momentum",
    "kavg --K 7 --optimizer adam --state m=reset,v=average",
    "piecewise --pieces 0:3,2:5 --sampling shard",
    "kavg --K 7 --variance steps",
    "mavg --K 7 --optimizer adam --state average",
    "kavg --K 7 --optimizer momentum --state reset --sampling block",
    "hieravg --levels 3:2,7:4 --optimizer nesterov --sampling shuffle",
]

IMAGES = f"--data digits --batch-size 8 {ALWAYS} --log-every 4 --eval-every 10"
NETWORKS = [  # nin and its BatchNorm are small on digits
    "sync --model mlp --optimizer momentum --lr 0.05",
    "qsgd --model nin --lr 0.02",
    "kavg --K 3 --model mlp --optimizer nesterov --state average --sampling shuffle --lr 0.02",
    "kavg --K 3 --model nin --optimizer adam --state average --lr 0.002",
    "kavg --K 4 --model nin --statistics keep --calibrate 2 --lr 0.02",
    "oneshot --model mlp --optimizer adam --sampling shard --lr 0.002",
    "mavg --K 3 --mu 0.4 --model nin --optimizer momentum --state reset --lr 0.02",
    "hieravg --K1 2 --K2 5 --S 2 --model nin --optimizer momentum --statistics keep --lr 0.02",
    "adpsgd --p-init 2 --Ks 4 --warmup 0 --model nin --sampling block --lr 0.05",
    "adalupa --tau0 2 --rule loss --model nin --statistics keep --lr 0.05",
    "piecewise --pieces 0:2 --model mlp --schedule steps --milestones 0.1 --lr 0.05",
]
RESUMED_NETWORKS = [
    "mavg --K 3 --model mlp --optimizer adam --state average --lr 0.002",
    "hieravg --K1 2 --K2 5 --S 2 --model nin --optimizer momentum --statistics keep --lr 0.02",
]

RESUMED_WIRED = {
    "features": ["kavg --K 3 --wire int8", "diloco --K 3 --wire bf16 --delay 3"],
    "networks": [
        "kavg --K 3 --model mlp --wire lowrank:2 --lr 0.05",
        "diloco --K 4 --model mlp --wire int8 --fragments 2 --delay 1 --lr 0.05",
    ],
}

ASYNCHRONOUS = ["downpour --K 3", "eamsgd --K 2", "eamsgd --K 4 --alpha 0.2 --momentum 0.8"]
ASYNCHRONOUS_NETWORKS = ["downpour --K 3 --model nin", "eamsgd --K 2 --model mlp"]

EXACT = {  # group: the columns that do not depend on the clock
    "train": ("t", "samples", "step_size", "loss"),
    "averages": ("t", "scope", "period", "variance", "mean_variance", "bytes_node", "bytes_cross"),
    "eval": ("t", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "grad_norm_sq"),
    "staleness": ("t", "learner", "staleness"),
}
MODELLED = {  # the columns with modelled times, of runs with --simulate
    "train": ("wall_s", "compute_s", "wait_s"),
    "averages": ("seconds",),
    "eval": ("wall_s",),
    "staleness": ("wall_s",),
}

Digests = dict[str, dict[str, str]]  # {command line: {column or vector: SHA-256}}


class Run(NamedTuple):
    """One run, `localavg train LINE`, with its file; and a second one that resumes it half-way."""

    line: str
    out: str
    saved: int | None = None  # after so many updates the run is copied as it is, and resumed there
    resumed: str = ""  # the file of the copy


# ------------------------------------------------------------------------------- the command lines


def alone() -> Iterator[str]:
    """Sequential SGD, which is for one learner on one rank."""
    for sampling in SAMPLINGS:
        for (optimiser, lr), step in zip(OPTIMISERS.items(), STEP_SIZES, strict=False):
            how = f"--sampling {sampling} --optimizer {optimiser} {step.format(lr=lr)}"
            yield f"sgd {how} --steps 40 {FILE}"


def logistic(ranks: int) -> Iterator[str]:
    """Logistic regression: every row with every optimiser and state; all else takes turns."""
    ways = TRANSPORTS[ranks]
    for i, row in enumerate(SYNCHRONOUS):
        for k, (optimiser, state) in enumerate(LOCAL):
            if "participants" in row and optimiser in ("adam", "adamw") and state == "keep":
                continue  # refused
            if "delay" in row and state == "average":
                continue  # so is this
            if row.split()[0] in ("sync", "qsgd"):
                state = "keep"  # they average no weights
            step = STEP_SIZES[(3 * i + k + k // 5) % 5].format(lr=OPTIMISERS[optimiser])
            how = f"--optimizer {optimiser} --state {state} {step}"
            where = f"--learners {(4, 8)[(i + k // 2) % 2]} --transport {ways[(i + k) % len(ways)]}"
            sampling = SAMPLINGS[(i + k + k // 4) % 4]
            yield f"{row} {where} --sampling {sampling} --steps 40 {how} {FILE}"
    for n, row in enumerate(OTHERS):
        yield f"{row} --learners 4 --epochs 8 --lr 0.5 --transport {ways[n % len(ways)]} {FILE}"
    wide = [(row, way) for way in ways for row in WIDE]
    for row, way in wide + [(row, ON_NODES) for row in WIRED if ON_NODES in ways]:
        yield (
            f"{row} --learners 4 --steps 12 --eval-every 12 --batch-size 5 --lr 0.5 "
            f"--data epsilon-like:60x9000 --transport {way} {ALWAYS}"
        )


def networks(ranks: int) -> Iterator[str]:
    """Networks on the digits."""
    for n, row in enumerate(NETWORKS):
        way = TRANSPORTS[ranks][n % len(TRANSPORTS[ranks])]
        yield f"{row} --learners 4 --steps 10 --transport {way} {IMAGES}"
    for row in WIRED_NETWORKS if ON_NODES in TRANSPORTS[ranks] else ():
        yield f"{row} --learners 4 --steps 10 --transport {ON_NODES} {IMAGES}"


def saved(kind: str, ranks: int) -> Iterator[tuple[str, int]]:
    """Runs that are saved on the way, and after how many updates."""
    for n, row in enumerate(RESUMED if kind == "features" else RESUMED_NETWORKS):
        way, t = TRANSPORTS[ranks][n % len(TRANSPORTS[ranks])], 17 if kind == "features" else 4
        how = f"--learners 4 --checkpoint-every {t} --transport {way}"
        if kind == "features":
            yield f"{row} {how} --steps 40 --lr 0.1 --schedule steps --milestones 3 {FILE}", t
        else:
            yield f"{row} {how} --steps 10 {IMAGES}", t
    for row in RESUMED_WIRED[kind] if ON_NODES in TRANSPORTS[ranks] else ():
        how = f"--learners 4 --checkpoint-every 5 --steps 10 --transport {ON_NODES}"
        yield f"{row} {how} {IMAGES if kind == 'networks' else f'--lr 0.5 {FILE}'}", 5


def asynchronous(kind: str) -> list[str]:
    """Downpour and EAMSGD."""
    if kind == "networks":
        return [f"{row} --learners 6 --steps 7 --lr 0.01 {IMAGES}" for row in ASYNCHRONOUS_NETWORKS]
    return [f"{row} --learners 6 --sampling {sampling} --steps 20 {step.format(lr=0.1)} {FILE}"
            for i, row in enumerate(ASYNCHRONOUS) for k, sampling in enumerate(SAMPLINGS)
            for step in [STEP_SIZES[(i + k) % 5]]]  # fmt: skip


def simulated(kind: str) -> list[Run]:
    """Asynchronous runs in simulated time."""
    return [Run(f"{line} --simulate --step-cv 0.5", f"order-{kind}-{n}.h5")
            for n, line in enumerate(asynchronous(kind))]  # fmt: skip


def replayed(kind: str, ranks: int) -> list[Run]:
    """Asynchronous runs over MPI in the order of arrival of the simulated ones."""
    return [Run(f"{line} --servers {1 + n % (ranks // 2)} --replay order-{kind}-{n}.h5",
                f"{kind}-{ranks}-replay{n}.h5")
            for n, line in enumerate(asynchronous(kind))]  # fmt: skip


def launches() -> dict[str, tuple[int, list[Run]]]:
    """What is launched, in this order: {name: (ranks, runs)}."""
    found = {SIMULATED: (1, simulated("features") + simulated("networks"))}
    for ranks in TRANSPORTS:
        features = [*(alone() if ranks == 1 else ()), *logistic(ranks)]
        for kind, lines in {"features": features, "networks": list(networks(ranks))}.items():
            runs = [Run(line, f"{kind}-{ranks}-{n}.h5") for n, line in enumerate(lines)]
            runs += [Run(line, f"{kind}-{ranks}-whole{n}.h5", t, f"{kind}-{ranks}-part{n}.h5")
                     for n, (line, t) in enumerate(saved(kind, ranks))]  # fmt: skip
            found[f"{kind} on {ranks}"] = ranks, runs + (replayed(kind, ranks) if ranks > 1 else [])
    return found


# ------------------------------------------------------------------------------------ in the ranks


def drive(request: str) -> None:
    """Run the command lines in REQUEST one after the other in the processes of one launch."""
    from mpi4py import MPI

    from localavg.__main__ import main

    MPI.Finalize = lambda: None  # by which a command ends; here others follow
    asked = json.loads(Path(request).read_text())
    os.chdir(asked["folder"])
    for run in (Run(*fields) for fields in asked["runs"]):
        commands = [["train", *run.line.split(), "--out", run.out]]
        if run.saved:
            commands.append(["train", *run.line.split(), "--out", run.resumed, "--resume"])
            _copy_when_saved(run)
        for words in commands:
            try:
                main(words)
            except SystemExit as end:
                if end.code and MPI.COMM_WORLD.rank == 0:
                    print(f"status {end.code}: {' '.join(words)}", file=sys.stderr, flush=True)


def _copy_when_saved(run: Run) -> None:
    """Copy the run at its first checkpoint, which is complete when it is given its name."""
    wanted = re.compile(rf"{re.escape(run.out)}\.ckpt/\D*0*{run.saved}\b")

    def copying(move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **how: Any) -> None:
            move(source, target, **how)
            if wanted.search(os.fspath(target)) and not os.path.exists(run.resumed):
                shutil.copytree(f"{run.out}.ckpt", f"{run.resumed}.ckpt")
                shutil.copy(run.out, run.resumed)

        return moved

    os.rename, os.replace = copying(RENAME), copying(REPLACE)


# ----------------------------------------------------------------------------------- what came out


def digests(path: Path, modelled: bool) -> dict[str, str]:
    """The SHA-256 of each vector and column of a run file that a second run must give again."""
    import h5py

    if not path.exists():
        return {"status": "no run file"}
    columns = [f"{group}/{column}" for group in EXACT for column in EXACT[group]]
    columns += [f"{group}/{column}" for group in MODELLED for column in MODELLED[group] if modelled]
    with h5py.File(path, "r") as file:
        names = [name for name in ("weights", "initial_weights", *columns) if name in file]
        found = {name: hashlib.sha256(file[name][()].tobytes()).hexdigest() for name in names}
        return {"status": str(file.attrs["status"]), **found}


def write_features(path: Path) -> None:
    """A prepared feature file whose rows drift, so that shards disagree; for every sampling."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(7)
    drift = 1.5 * np.linspace(-1, 1, ROWS)[:, None] * rng.normal(size=FEATURES)  # [n, d]
    x = ((rng.normal(size=(ROWS, FEATURES)) + drift) / np.sqrt(FEATURES)).astype(np.float32)
    y = np.sign(x @ rng.normal(size=FEATURES) + rng.normal(size=ROWS)).astype(np.float32)  # [n]
    with h5py.File(path, "w") as file:
        file.attrs.update({"schema": 1, "kind": "features", "name": "rows", "shuffled": True})
        file.attrs["classes"] = [-1.0, 1.0]
        for split, rows in (("train", slice(None)), ("test", slice(None, None, 3))):
            file[f"{split}/x"], file[f"{split}/y"] = x[rows], y[rows]


def launched(folder: Path, ranks: int, runs: list[Run], checkout: Path) -> Digests:
    """Train `runs` in one launch; what came out."""
    from mpi import run as launch

    request, found = folder / "request.json", {}
    request.write_text(json.dumps({"folder": str(folder), "runs": runs}))
    done = launch(ranks, __file__, "drive", request, timeout=TIMEOUT_S, root=checkout)
    for line in done.stderr.splitlines():
        if done.returncode or line.startswith(("status ", "localavg: --")):
            print(line, file=sys.stderr)
    for run in runs:
        key = f"mpirun -n {ranks} localavg train {run.line}"
        found[key] = digests(folder / run.out, "--simulate" in run.line)
        if run.saved:
            found[f"{key} --resume  # after {run.saved}"] = digests(folder / run.resumed, False)
    return found


def record(out: Path, checkout: Path, only: str) -> int:
    """Train everything in `checkout` and write the digests to `out`; 1 if a run did not finish."""
    found: Digests = {}
    with tempfile.TemporaryDirectory(prefix="bits-") as folder:
        write_features(Path(folder, "rows.h5"))
        for name, (ranks, runs) in launches().items():
            if only in name or name == SIMULATED:  # whose order others repeat
                started = time.monotonic()
                found |= launched(Path(folder), ranks, runs, checkout)
                print(f"{name}: {len(runs)} runs, {time.monotonic() - started:.0f} s", flush=True)
    out.write_text(json.dumps(found, indent=1, sort_keys=True))
    unfinished = [key for key in found if found[key]["status"] != "finished"]
    for key in unfinished:
        print(f"{found[key]['status']}: {key}", file=sys.stderr)
    print(f"{len(found)} lines, {len(unfinished)} of them not finished: {out}")
    return 1 if unfinished else 0


def compare(a: Path, b: Path) -> int:
    """Print what differs between two records, a command line each; 1 if anything does."""
    first, second = (json.loads(path.read_text()) for path in (a, b))
    keys, different = sorted(first.keys() | second.keys()), 0
    for key in keys:
        one, other = first.get(key), second.get(key)
        if one == other:
            continue
        different += 1
        if one is None or other is None:
            print(f"only in {b if one is None else a}: {key}")
        else:
            names = sorted(name for name in one | other if one.get(name) != other.get(name))
            print(f"{', '.join(names)}: {key}")
    print(f"{different} of {len(keys)} lines differ")
    return 1 if different else 0


def main() -> int:
    """Read the command line."""
    if sys.argv[1:2] == ["drive"]:
        drive(sys.argv[2])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record", help="train everything and write the digests")
    recording.add_argument("out", type=Path)
    recording.add_argument(
        "--checkout",
        type=Path,
        default=Path(__file__).resolve().parents[1],
        help="whose localavg trains (default: where this script lies)",
    )
    recording.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="only launches with this in their name, such as 'features on 2'",
    )
    comparing = commands.add_parser("compare", help="list the differences of two records")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    args = parser.parse_args()
    if args.command == "record":
        return record(args.out, args.checkout.resolve(), args.only)
    return compare(args.a, args.b)


if __name__ == "__main__":
    sys.exit(main())
