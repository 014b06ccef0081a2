"""``localavg sweep FILE.toml``: all runs of a figure or table, here or as batch jobs; finished ones
are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localavg.cli import at_least_1
from localavg.errors import UserError
from localavg.files import atomic
from localavg.training.checks import difference

if TYPE_CHECKING:
    from localavg.cli.sweep.plan import Planned, Sweep

JOBS = Path(__file__).resolve().parents[3] / "jobs"


def add(commands: Any) -> None:
    p = commands.add_parser(
        "sweep",
        help="all runs of a figure or table, from a TOML file",
        description=(
            "Do the runs of a sweep that are not done yet. Exit status: 0 all finished, 75 "
            "interrupted (run it again to go on), "
            "1 some failed or run elsewhere, 2 a mistake."
        ),
    )
    p.add_argument("file", metavar="FILE.toml", help="one of jobs/sweeps, or your own")
    p.add_argument(
        "--scale",
        default="laptop",
        choices=("paper", "laptop"),
        help="the paper's settings, or reduced ones",
    )
    p.add_argument(
        "--launcher",
        default="local",
        choices=("local", "slurm", "lsf"),
        help="here, or as an array of batch jobs",
    )
    p.add_argument(
        "--dry-run", action="store_true", help="say what would be done, with the command lines"
    )
    p.add_argument(
        "--out", metavar="DIR", help="folder of the run files (default: runs/FILE-SCALE)"
    )
    p.add_argument(
        "--seeds",
        type=at_least_1,
        metavar="N",
        help="repeats, with seeds 0 to N - 1 (default: the file's)",
    )
    p.add_argument(
        "--ranks",
        type=at_least_1,
        metavar="N",
        help="MPI ranks of a run, at most (default: the file's)",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option for all runs, as data=my.h5",
    )
    p.add_argument("--retry-failed", action="store_true", help="run failed ones again too")
    p.add_argument(
        "--keep-going",
        action="store_true",
        help="go on after a user's mistake as well as after a failure",
    )
    local = p.add_argument_group("--launcher local")
    local.add_argument(
        "--share",
        metavar="K/N",
        help="do only the K-th of N shares of the runs, as one job of an array",
    )
    local.add_argument(
        "--mpirun",
        metavar="'WORDS'",
        help="what starts a run, taking -n RANKS COMMAND or with {ranks} in it (default: "
        "jobs/local/mpirun, or "
        "the mpirun found)",
    )
    batch = p.add_argument_group("--launcher slurm, lsf")
    batch.add_argument(
        "--jobs",
        type=at_least_1,
        metavar="N",
        help="batch jobs that share the runs (default: one a run, 10 at most)",
    )
    batch.add_argument(
        "--submit",
        default="",
        metavar="'WORDS'",
        help="more for sbatch or bsub: --submit='--time=2:00:00'",
    )
    p.set_defaults(call=partial(_sweep, train=commands.choices["train"]))


def _sweep(args: argparse.Namespace, train: argparse.ArgumentParser) -> int:
    from localavg.cli.sweep import plan

    sweep = plan.read(args.file, args.scale, train, args.seeds, args.ranks, _changes(args.set))
    folder = Path(args.out or f"runs/{Path(args.file).stem}-{args.scale}")
    if args.launcher == "local":
        return _local(args, sweep, folder)
    for option in ("share", "mpirun"):
        if getattr(args, option) is not None:
            raise UserError(
                f"--{option} {getattr(args, option)}: only with --launcher local; leave it out"
            )
    return _submit(args, sweep, folder)


def _changes(words: list[str]) -> dict[str, Any]:
    """The options of --set."""
    if bad := [word for word in words if "=" not in word]:
        raise UserError(
            f"--set {bad[0]}: must read OPTION=VALUE, as in --set data=my.h5 or --set "
            "save-weights=true"
        )
    pairs = [word.split("=", 1) for word in words]
    return {
        name.removeprefix("--"): {"true": True, "false": False}.get(value, value)
        for name, value in pairs
    }


def _local(args: argparse.Namespace, sweep: Sweep, folder: Path) -> int:
    from localavg.cli.status import print_states
    from localavg.cli.sweep import launch, state

    runs = _share(sweep.runs, args.share)
    states = _looked(runs, folder)
    todo = [run for run in runs if states[run.name].kind in state.WANTED]
    if args.retry_failed:
        todo += [run for run in runs if states[run.name].kind == "failed"]
    print_states(
        f"{sweep.about.get('title', sweep.path.stem)} ({sweep.scale}), in {folder}",
        states,
        every=args.dry_run,
    )
    if args.dry_run:
        for run in todo:
            print(shlex.join(launch.command(run, folder / f"{run.name}.h5", args.mpirun)))
        return 0
    _write_plan(sweep, folder)
    status = launch.Queue(folder, args.mpirun, args.keep_going, partial(print, flush=True)).work(
        todo
    )
    states = _looked(runs, folder)
    print_states(f"now in {folder}", states)
    unfinished = [s for s in states.values() if s.kind != "finished"]
    return status or int(bool(unfinished))


def _share(runs: tuple[Planned, ...], share: str | None) -> tuple[Planned, ...]:
    if share is None:
        return runs
    k, _, n = share.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UserError(f"--share {share}: must read K/N with K from 1 to N, as in 3/10")
    return runs[int(k) - 1 :: int(n)]


def _looked(runs: tuple[Planned, ...], folder: Path) -> dict[str, Any]:
    """The states of the runs; UserError where a run file is of another run than the one asked
    for.
    """
    from localavg.cli.sweep import state

    states = {run.name: state.look(folder / f"{run.name}.h5") for run in runs}
    for run in runs:
        found = states[run.name]
        if found.config is not None and (what := difference(run.asked, found.config)):
            raise UserError(
                f"{folder / run.name}.h5 holds another run, {found.kind}, of other settings "
                f"({what}): move it "
                f"away, or give another --out"
            )
    return states


def _write_plan(sweep: Sweep, folder: Path) -> None:
    """Leave the names of all runs in the folder, so that `localavg status` knows which are
    missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        **sweep.about,
        "file": str(sweep.path),
        "scale": sweep.scale,
        "runs": [run.name for run in sweep.runs],
    }
    with atomic.replacing(folder / "sweep.json") as part:
        part.write_text(json.dumps(plan, indent=1) + "\n")


def _submit(args: argparse.Namespace, sweep: Sweep, folder: Path) -> int:
    """Hand the template of jobs/slurm or jobs/lsf to the batch system, as an array whose jobs take
    a share each.
    """
    from localavg.cli.status import print_states
    from localavg.cli.sweep import state

    states = _looked(sweep.runs, folder)
    kinds = (*state.WANTED, *(("failed",) if args.retry_failed else ()))
    todo = sum(s.kind in kinds for s in states.values())
    print_states(
        f"{sweep.about.get('title', sweep.path.stem)} ({sweep.scale}), in {folder}",
        states,
        every=args.dry_run,
    )
    if not todo:
        print("nothing to submit")
        return 0
    n, ranks = min(args.jobs or 10, len(sweep.runs)), max(run.ranks for run in sweep.runs)
    words = [args.file, "--scale", args.scale, "--out", str(folder)]
    words += [
        w for o in ("seeds", "ranks") if getattr(args, o) for w in (f"--{o}", str(getattr(args, o)))
    ]
    words += [w for change in args.set for w in ("--set", change)]
    words += [
        f"--{o}" for o in ("retry-failed", "keep-going") if getattr(args, o.replace("-", "_"))
    ]
    name, more = f"{sweep.path.stem}-{sweep.scale}", shlex.split(args.submit)
    if args.launcher == "slurm":
        template, env = JOBS / "slurm" / "sweep.sbatch", {"PYTHON": sys.executable}
        said = (template.read_text() if template.exists() else "") + f"\n#SBATCH {args.submit}"
        per_node = re.findall(r"^#SBATCH .*--ntasks-per-node=(\d+)", said, re.M)
        nodes = math.ceil(ranks / int(per_node[-1] if per_node else 1))
        submit = [
            "sbatch",
            f"--job-name={name}",
            f"--array=1-{n}",
            f"--nodes={nodes}",
            f"--ntasks={ranks}",
            *more,
            str(template),
            *words,
        ]
    # bsub reads #BSUB lines from its standard input alone, so the words go by the environment
    else:
        template, env = (
            JOBS / "lsf" / "sweep.lsf",
            {"PYTHON": sys.executable, "SWEEP": shlex.join(words)},
        )
        per_node = re.search(
            r"--tasks_per_rs (\d+)", template.read_text() if template.exists() else ""
        )
        nodes = math.ceil(ranks / int(per_node[1] if per_node else 1))
        submit = [
            "bsub",
            "-J",
            f"{name}[1-{n}]",
            *([] if "-nnodes" in more else ["-nnodes", str(nodes)]),
            *more,
        ]
    shown = (
        " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
        + " "
        + shlex.join(submit)
    )
    print(shown + (f" < {template}" if args.launcher == "lsf" else ""), flush=True)
    if not template.exists():
        raise UserError(
            f"{template} is missing: sweeps are submitted from a checkout of localavg, by pip "
            "install -e"
        )
    if args.dry_run:
        return 0
    _write_plan(sweep, folder)
    try:
        with template.open() as script:
            return int(
                subprocess.run(submit, env={**os.environ, **env}, stdin=script).returncode != 0
            )
    except FileNotFoundError:
        raise UserError(
            f"--launcher {args.launcher}: no {submit[0]} here; use a login node of the cluster"
        ) from None
