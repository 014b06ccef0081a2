"""``localavg sweep FILE.toml``: do all runs of a figure or table that are not done yet.

The runs are started here, some at a time, or submitted to a batch system.
"""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from localavg.cli import Commands, above_0, at_least_1, flag
from localavg.errors import UserError

if TYPE_CHECKING:
    from localavg.cli.sweep.plan import Planned, Sweep


def add(commands: Commands) -> None:
    """Declare the command."""
    p = commands.add_parser(
        "sweep",
        help="do all runs of a figure or table, from a TOML file",
        description="Do the runs of a sweep that are not done yet. Exit status: 0 if all are "
        "finished; 75 if one is interrupted and the same command resumes it; 1 if some failed or "
        "run elsewhere; 2 for a mistake.",
    )
    p.add_argument("file", metavar="FILE.toml", help="a file of jobs/sweeps, or your own")
    p.add_argument(
        "--scale",
        default="laptop",
        choices=("paper", "laptop", "digits", "root", "gpu"),
        help="use the paper's settings, with a rank a learner (paper) or with all learners on one "
        "GPU (gpu), or reduced ones, on Fashion-MNIST (laptop) or, where it is not at hand, on "
        "scikit-learn's digits (digits), or the laptop's with measured times, for emulated hosts "
        "(root) (default: %(default)s)",
    )
    p.add_argument(
        "--launcher",
        default="local",
        choices=("local", "slurm", "lsf", "jsrun"),
        help="run here, or submit arrays of batch jobs, one for each number of ranks: to Slurm, to "
        "LSF with mpirun, or to LSF with jsrun (default: %(default)s)",
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="only print what would be done, with the command lines (default: do it)",
    )
    p.add_argument(
        "--out", metavar="DIR", help="write the run files here (default: runs/FILE-SCALE)"
    )
    _add_changes(p)
    _add_failures(p)
    _add_launchers(p)
    p.add_argument(
        "--rate",
        type=above_0,
        metavar="X",
        help="print the hours of the runs at this rate, in examples a second of one rank (default: "
        "with a batch system, the rates of runs in DIR that have begun; at scale gpu, measure it "
        "before the sweep starts, for every kind of run)",
    )
    p.set_defaults(call=partial(_sweep, train=commands.choices["train"]))


def _add_changes(p: argparse.ArgumentParser) -> None:
    """Declare what changes the runs of the file."""
    p.add_argument(
        "--seeds",
        type=at_least_1,
        metavar="N",
        help="repeat every run with the seeds 0 to N - 1 (default: the file's number)",
    )
    p.add_argument(
        "--ranks",
        type=at_least_1,
        metavar="N",
        help="use at most N MPI ranks for a run (default: the file's number)",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="set an option of all runs, such as data=my.h5 (default: the file's options)",
    )


def _add_failures(p: argparse.ArgumentParser) -> None:
    """Declare what is done about runs that fail."""
    p.add_argument(
        "--retry-failed",
        action="store_true",
        help="also run failed runs again (default: leave them)",
    )
    p.add_argument(
        "--keep-going",
        action="store_true",
        help="continue after a user's mistake as after a failure (default: stop there)",
    )


def _add_launchers(p: argparse.ArgumentParser) -> None:
    """Declare the options of one launcher or the other."""
    local = p.add_argument_group("--launcher local")
    local.add_argument(
        "--at-once",
        type=at_least_1,
        metavar="N",
        help="have up to N ranks at work at the same time: so many runs of one rank, each on its "
        "part of the GPUs, with a thread a rank unless srun or jsrun binds it; a run of N ranks or "
        "more runs alone (default: 1)",
    )
    local.add_argument(
        "--only-ranks",
        type=at_least_1,
        metavar="N",
        help="do only the runs of N ranks, as the jobs of one array do (default: all)",
    )
    local.add_argument(
        "--share",
        metavar="K/N",
        help="do only the K-th of N shares of the runs, as one job of an array does (default: all)",
    )
    local.add_argument(
        "--mpirun",
        metavar="'WORDS'",
        help="start runs with this launcher; it takes -n RANKS COMMAND, or {ranks} stands in its "
        "words (default: jobs/local/mpirun, or the mpirun on PATH)",
    )
    batch = p.add_argument_group("--launcher slurm, lsf, jsrun")
    batch.add_argument(
        "--jobs",
        type=at_least_1,
        metavar="N",
        help="share the runs of an array among N batch jobs (default: one a run, at most 10; one "
        "at scale gpu, which is one task with one GPU)",
    )
    batch.add_argument(
        "--submit",
        default="",
        metavar="'WORDS'",
        help="give sbatch or bsub more options, such as --submit='--time=2:00:00' (default: none)",
    )


def _sweep(args: argparse.Namespace, train: argparse.ArgumentParser) -> int:
    from localavg.cli.sweep import plan

    sweep = plan.read(args.file, args.scale, train, args.seeds, args.ranks, _changes(args.set))
    folder = Path(args.out or f"runs/{Path(args.file).stem}-{args.scale}")
    if args.launcher == "local":
        if args.rate is not None and args.scale != "gpu":
            raise UserError(
                f"--rate {args.rate:g}: only with --scale gpu or a batch system; leave it out"
            )
        return _run_here(args, sweep, folder)
    for option in ("share", "mpirun", "only_ranks", "at_once"):
        if (value := getattr(args, option)) is not None:
            raise UserError(f"{flag(option)} {value}: only with --launcher local; leave it out")
    from localavg.cli.sweep.submit import submit

    return submit(args, sweep, folder)


def _changes(words: list[str]) -> dict[str, str | bool]:
    """Turn the words of --set into options by name."""
    if bad := [word for word in words if "=" not in word]:
        raise UserError(
            f"--set {bad[0]}: must read OPTION=VALUE, as in --set data=my.h5 or --set "
            "save-weights=true"
        )
    flags = {"true": True, "false": False}
    pairs = [word.split("=", 1) for word in words]
    return {name.removeprefix("--"): flags.get(value, value) for name, value in pairs}


def _run_here(args: argparse.Namespace, sweep: Sweep, folder: Path) -> int:
    """Start the runs on this host; return the exit status."""
    from localavg.cli.status import print_states
    from localavg.cli.sweep import launch, state
    from localavg.cli.sweep.folder import states_of, title, write_plan
    from localavg.cli.sweep.gpu import check_gpu
    from localavg.cli.sweep.lacking import without_data

    runs = sweep.runs
    if args.only_ranks is not None:
        runs = tuple(run for run in runs if run.ranks == args.only_ranks)
        if not runs:
            counts = ", ".join(map(str, sorted({run.ranks for run in sweep.runs})))
            raise UserError(f"--only-ranks {args.only_ranks}: the runs have {counts} ranks")
    runs = _share(runs, args.share)
    states = states_of(runs, folder)
    todo = [run for run in runs if states[run.name].kind in state.WANTED]
    if args.retry_failed:
        todo += [run for run in runs if states[run.name].kind == "failed"]
    if args.scale == "gpu" and not args.dry_run:
        check_gpu(todo)
    print_states(title(sweep, folder), states)
    if args.scale == "gpu":
        _print_hours(args, todo)
    if args.dry_run:
        for run in todo:
            print(shlex.join(launch.command(run, folder / f"{run.name}.h5", args.mpirun)))
        for what in without_data(todo):
            print(f"before it can start: {what}")
        return 0
    write_plan(sweep, folder)
    report = partial(print, flush=True)
    queue = launch.Queue(folder, args.mpirun, args.keep_going, report, args.at_once or 1)
    status = queue.work(todo)
    states = states_of(runs, folder)
    print_states(f"now in {folder}", states)
    return status or int(any(s.kind != "finished" for s in states.values()))


def _print_hours(args: argparse.Namespace, todo: list[Planned]) -> None:
    """Print the hours of the runs, by a given rate or a measured one. A plan measures nothing."""
    from localavg.cli.sweep import gpu
    from localavg.cli.sweep.cost import given_rate

    if not todo or (args.dry_run and args.rate is None):
        return
    if args.rate is None:
        print("the rate of every kind of run is measured first:", flush=True)
    rate_of = gpu.measured_rate(args.mpirun) if args.rate is None else given_rate(args.rate)
    total, unknown = 0.0, False
    for taken, what in gpu.hours(todo, rate_of):
        unknown |= taken is None
        total += taken or 0.0
        print(f"  {'?' if taken is None else f'{taken:.2f}'} h: {what}", flush=True)
    if unknown and not total:
        print("the hours are not known", flush=True)
        return
    more = ", and what is not known" if unknown else ""
    print(f"about {total:.2f} hours in all{more}, without evaluations", flush=True)


def _share(runs: tuple[Planned, ...], share: str | None) -> tuple[Planned, ...]:
    """Return the K-th of N shares of the runs, for a share K/N."""
    if share is None:
        return runs
    k, _, n = share.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UserError(f"--share {share}: must read K/N with K from 1 to N, as in 3/10")
    return runs[int(k) - 1 :: int(n)]
