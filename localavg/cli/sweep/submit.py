"""Submit a sweep to a batch system: for each number of ranks an array of jobs."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localavg.cli import print_table, shell_words
from localavg.cli.status import print_states
from localavg.cli.sweep import state
from localavg.cli.sweep.arrays import Array, Node, arrays, hours
from localavg.cli.sweep.cost import RateOf, found_rate, given_rate
from localavg.cli.sweep.folder import states_of, title, write_plan
from localavg.cli.sweep.lacking import without_data
from localavg.cli.sweep.plan import Sweep
from localavg.errors import UserError

COLUMNS = (
    "runs at once: the runs that a job does at the same time, where several fit on its nodes\n"
    "idle: the part of the hours in which a GPU, or the place of a rank, is held and has no learner"
)
JOBS = Path(__file__).resolve().parents[3] / "jobs"


@dataclass(frozen=True)
class System:
    """A batch system. fill_in: placeholder in the template → options that give it, variable."""

    template: str
    submits: str
    ranks: str
    """pattern of the template's ranks a node"""
    gpus: str
    fill_in: Mapping[str, tuple[tuple[str, ...], str]]
    whole: bool = False
    """whether a job gets whole nodes only"""


PROJECT = {"PROJECT": (("-P",), ""), "QUEUE": (("-q",), "")}
SYSTEMS = {
    "slurm": System(
        "slurm/sweep.sbatch",
        "sbatch",
        r"^#SBATCH .*--ntasks-per-node=(\d+)",
        r"^#SBATCH .*--gpus-per-node=(\d+)",
        {
            "ACCOUNT": (("--account", "-A"), "SBATCH_ACCOUNT"),
            "PARTITION": (("--partition", "-p"), "SBATCH_PARTITION"),
        },
    ),
    "lsf": System("lsf/sweep.lsf", "bsub", r"\bptile=(\d+)", r'-gpu "num=(\d+)', PROJECT),
    "jsrun": System("lsf/sweep.jsrun", "bsub", r"TASKS:-(\d+)", r"GPUS:-(\d+)", PROJECT, True),
}


def submit(args: argparse.Namespace, sweep: Sweep, folder: Path) -> int:
    """Submit the template of the batch system with the sweep's words; return the exit status.

    The plan and the command lines are printed; with --dry-run nothing is submitted. Raises
    UserError before anything is submitted if data, account or partition are missing.
    """
    states = states_of(sweep.runs, folder)
    kinds = (*state.WANTED, *(("failed",) if args.retry_failed else ()))
    print_states(title(sweep, folder), states)
    todo = [run for run in sweep.runs if states[run.name].kind in kinds]
    if not todo:
        print("nothing to submit")
        return 0
    system, more = SYSTEMS[args.launcher], shell_words("submit", args.submit)
    template = JOBS / system.template
    if not template.exists():
        raise UserError(
            f"{template} is missing: sweeps are submitted from a checkout of localavg, by pip "
            "install -e"
        )
    text = template.read_text()
    found = arrays(sweep.runs, todo, _node(system, text, more), args.jobs, sweep.scale == "gpu")
    _print_hours(found, given_rate(args.rate) if args.rate else found_rate(folder))
    lacking = [*without_data(todo), *_to_fill_in(system, template, text, more)]
    calls = [_call(args, sweep, folder, array, more) for array in found]
    for command, env in calls:
        shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
        source = "" if args.launcher == "slurm" else f" < {template}"
        print(f"{shown} {shlex.join(command)}{source}", flush=True)
    if args.dry_run:
        for what in lacking:
            print(f"before it can be submitted: {what}", flush=True)
        return 0
    if shutil.which(system.submits) is None:
        raise UserError(
            f"--launcher {args.launcher}: no {system.submits} here; use a login node of the cluster"
        )
    if lacking:
        raise UserError("; ".join(lacking))
    write_plan(sweep, folder)
    return _submitted(calls, template)


def _submitted(calls: Sequence[tuple[list[str], dict[str, str]]], template: Path) -> int:
    """Submit the arrays one after the other; stop at the first that the batch system refuses."""
    for i, (command, env) in enumerate(calls):
        with template.open() as script:
            done = subprocess.run(command, env={**os.environ, **env}, stdin=script)
        if done.returncode:
            print(f"localavg: {i} of {len(calls)} arrays are submitted", file=sys.stderr)
            return 1
    return 0


def _node(system: System, text: str, more: Sequence[str]) -> Node:
    """Return the ranks and GPUs of a node, from the template or the options of --submit."""
    lines = f"{text}\n#SBATCH {shlex.join(more)}"
    ranks, gpus = (re.findall(pattern, lines, re.M) for pattern in (system.ranks, system.gpus))
    per_node = int(ranks[-1]) if ranks else 1
    return Node(max(1, per_node), int(gpus[-1]) if gpus else per_node, system.whole)


def _to_fill_in(system: System, template: Path, text: str, more: Sequence[str]) -> list[str]:
    """Describe the placeholders of the template that no option of --submit replaces."""
    found = []
    for name, (options, variable) in system.fill_in.items():
        given = any(word.partition("=")[0] in options for word in more)
        if re.search(rf"^#(SBATCH|BSUB) .*\b{name}$", text, re.M) and not (
            given or (variable and os.environ.get(variable))
        ):
            value = (
                f"{options[0]}={name}" if options[0].startswith("--") else f"{options[0]} {name}"
            )
            found.append(
                f"{template} has {value}: fill it in, or give --submit='{value}' with its name; "
                "remove the line if your site has none"
            )
    return found


def _print_hours(found: Sequence[Array], rate_of: RateOf) -> None:
    """Print a table of the arrays, and the hours and the idle part of all together."""
    costs = [hours(array, rate_of) for array in found]
    on_gpus = any(array.gpus for array in found)
    unit = "GPU hours" if on_gpus else "hours of ranks (no GPU is asked for)"
    rows = [
        {
            "ranks": a.ranks,
            "runs": len(a.todo),
            "jobs": a.jobs,
            "runs at once": a.at_once,
            "nodes a job": a.nodes,
            "ranks a node": a.per_node,
            "GPUs a node": a.gpus,
            "hours a job": "?" if c.longest is None else round(c.longest, 2),
            unit.partition(" (")[0]: "?" if c.gpu is None else round(c.gpu, 2),
            "idle (%)": round(100 * c.idle, 1),
        }
        for a, c in zip(found, costs, strict=True)
    ]
    print_table("job arrays, one for each number of ranks", rows)
    print(COLUMNS)
    weight = sum(c.weight for c in costs)
    idle = 100 * sum(c.weight * c.idle for c in costs) / weight
    if why := next((c.why for c in costs if c.why), ""):
        print(f"{idle:.1f} % of the {unit} are idle; how many they are is not known: {why}")
        return
    total, longest = sum(c.gpu or 0.0 for c in costs), max(c.longest or 0.0 for c in costs)
    print(
        f"{total:,.2f} {unit}, {idle:.1f} % of them idle, and {longest:.2f} hours of wall clock "
        "where all jobs run at once; averages and evaluations are not counted"
    )


def _call(
    args: argparse.Namespace, sweep: Sweep, folder: Path, array: Array, more: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command that submits an array, and what its environment adds."""
    name = f"{sweep.path.stem}-{sweep.scale}-{array.ranks}"
    words = _words(args, folder, array)
    env = {"PYTHON": sys.executable, "MODULES": str(JOBS / "modules.sh")}
    ranks = array.ranks * array.at_once
    if args.launcher == "slurm":
        size = {
            "array": f"1-{array.jobs}",
            "nodes": array.nodes,
            "ntasks": ranks,
            "ntasks-per-node": array.per_node,
            "gpus-per-node": array.gpus,
        }
        options = [f"--{option}={value}" for option, value in size.items()]
        template = str(JOBS / SYSTEMS["slurm"].template)
        return ["sbatch", f"--job-name={name}", *options, *more, template, *words], env
    # bsub reads #BSUB lines only from its standard input, so the environment has the words
    env["SWEEP"] = shlex.join(words)
    return ["bsub", "-J", f"{name}[1-{array.jobs}]", *_bsub(args.launcher, array, more, env)], env


def _bsub(launcher: str, array: Array, more: list[str], env: dict[str, str]) -> list[str]:
    """Return the options of bsub that give an array's size; those of `more` stand last."""
    if launcher == "jsrun":
        env["TASKS"] = str(array.per_node // array.at_once)
        env["GPUS"] = str(array.gpus // array.at_once)
        return [*([] if "-nnodes" in more else ["-nnodes", str(array.nodes)]), *more]
    text = (JOBS / SYSTEMS[launcher].template).read_text()
    # an option of the command line replaces the whole line of the template
    needs = re.search(r'^#BSUB -R "(.*)"', text, re.M)
    needed = re.sub(r"\bptile=\d+", f"ptile={array.per_node}", needs[1]) if needs else ""
    size = ["-n", str(array.ranks * array.at_once), *(["-R", needed] if needed else [])]
    gpu = re.search(r'-gpu "num=\d+(.*?)"', text)
    size += ["-gpu", f"num={array.gpus}{gpu[1] if gpu else ''}"] if array.gpus else []
    return [*size, *more]


def _words(args: argparse.Namespace, folder: Path, array: Array) -> list[str]:
    """Return the words of `localavg sweep` for a job, without its share and launcher."""
    words = [args.file, "--scale", args.scale, "--out", str(folder)]
    words += ["--only-ranks", str(array.ranks)]
    words += ["--at-once", str(array.at_once * array.ranks)] if array.at_once > 1 else []
    for option in ("seeds", "ranks"):
        if getattr(args, option):
            words += [f"--{option}", str(getattr(args, option))]
    for change in args.set:
        words += ["--set", change]
    flags = {"--retry-failed": args.retry_failed, "--keep-going": args.keep_going}
    return words + [flag for flag, given in flags.items() if given]
