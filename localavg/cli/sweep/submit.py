"""Submit a sweep to a batch system: an array of jobs that take a share of the runs each."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from localavg.cli import shell_words
from localavg.cli.status import print_states
from localavg.cli.sweep import state
from localavg.cli.sweep.folder import states_of, title, write_plan
from localavg.cli.sweep.plan import Sweep
from localavg.errors import UserError

JOBS = Path(__file__).resolve().parents[3] / "jobs"


def submit(args: argparse.Namespace, sweep: Sweep, folder: Path) -> int:
    """Submit the template of jobs/slurm or jobs/lsf with the sweep's words; return the status.

    The command line is printed; with --dry-run it is not executed.
    """
    states = states_of(sweep.runs, folder)
    kinds = (*state.WANTED, *(("failed",) if args.retry_failed else ()))
    print_states(title(sweep, folder), states, every=args.dry_run)
    if not any(s.kind in kinds for s in states.values()):
        print("nothing to submit")
        return 0
    template, command, env = _call(args, sweep, folder)
    shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
    source = f" < {template}" if args.launcher == "lsf" else ""
    print(f"{shown} {shlex.join(command)}{source}", flush=True)
    if not template.exists():
        raise UserError(
            f"{template} is missing: sweeps are submitted from a checkout of localavg, by pip "
            "install -e"
        )
    if args.dry_run:
        return 0
    write_plan(sweep, folder)
    try:
        with template.open() as script:
            done = subprocess.run(command, env={**os.environ, **env}, stdin=script)
    except FileNotFoundError:
        raise UserError(
            f"--launcher {args.launcher}: no {command[0]} here; use a login node of the cluster"
        ) from None
    return int(done.returncode != 0)


def _call(
    args: argparse.Namespace, sweep: Sweep, folder: Path
) -> tuple[Path, list[str], dict[str, str]]:
    """Return the template, the command that submits it, and what its environment adds."""
    jobs = min(args.jobs or (1 if sweep.scale == "gpu" else 10), len(sweep.runs))
    ranks = max(run.ranks for run in sweep.runs)
    name = f"{sweep.path.stem}-{sweep.scale}"
    words, more = _words(args, folder), shell_words("submit", args.submit)
    env = {"PYTHON": sys.executable}
    if args.launcher == "slurm":
        template = JOBS / "slurm" / "sweep.sbatch"
        # all ranks of a run at scale gpu are on one node and share one GPU
        one = [f"--ntasks-per-node={ranks}", "--gpus-per-node=1"] if sweep.scale == "gpu" else []
        options = _sbatch(template, name, jobs, ranks, [*one, *more])
        return template, [*options, str(template), *words], env
    # bsub reads #BSUB lines only from its standard input, so the environment has the words
    template = JOBS / "lsf" / "sweep.lsf"
    env["SWEEP"] = shlex.join(words)
    return template, _bsub(template, name, jobs, ranks, more), env


def _words(args: argparse.Namespace, folder: Path) -> list[str]:
    """Return the words of `localavg sweep` for a job, without its share and launcher."""
    words = [args.file, "--scale", args.scale, "--out", str(folder)]
    for option in ("seeds", "ranks"):
        if getattr(args, option):
            words += [f"--{option}", str(getattr(args, option))]
    for change in args.set:
        words += ["--set", change]
    flags = {"--retry-failed": args.retry_failed, "--keep-going": args.keep_going}
    return words + [flag for flag, given in flags.items() if given]


def _sbatch(template: Path, name: str, jobs: int, ranks: int, more: list[str]) -> list[str]:
    """Return sbatch and its options, with nodes for `ranks`; those of `more` stand last."""
    lines = f"{_text(template)}\n#SBATCH {shlex.join(more)}"
    per_node = re.findall(r"^#SBATCH .*--ntasks-per-node=(\d+)", lines, re.M)
    nodes = math.ceil(ranks / int(per_node[-1] if per_node else 1))
    size = [f"--nodes={nodes}", f"--ntasks={ranks}"]
    return ["sbatch", f"--job-name={name}", f"--array=1-{jobs}", *size, *more]


def _bsub(template: Path, name: str, jobs: int, ranks: int, more: list[str]) -> list[str]:
    """Return bsub and its options, with nodes for `ranks` unless `more` sets them."""
    per_node = re.search(r"--tasks_per_rs (\d+)", _text(template))
    nodes = math.ceil(ranks / int(per_node[1] if per_node else 1))
    size = [] if "-nnodes" in more else ["-nnodes", str(nodes)]
    return ["bsub", "-J", f"{name}[1-{jobs}]", *size, *more]


def _text(template: Path) -> str:
    return template.read_text() if template.exists() else ""
