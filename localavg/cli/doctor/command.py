"""``localavg doctor``: try what training needs on these ranks, and print what to correct."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from localavg.cli import Commands, above_0, print_table, rank, started
from localavg.cli.doctor.facts import PART, STEP_S
from localavg.parallel import losing
from localavg.parallel.probe import counted, find_gpus, probe

if TYPE_CHECKING:
    from localavg.cli.doctor.facts import Facts, Rank

WORTH = 0.5  # part of an average that must be hidden for a delay to be worth it
SHOWN = 8  # lines of hosts, or of groups of ranks, in the table


def add(commands: Commands) -> None:
    """Declare the command."""
    p = commands.add_parser(
        "doctor",
        help="check whether training will work here, and print what to correct",
        description="Look at the ranks, hosts and MPI, try what training needs, and print what to "
        "correct. Exit status: 0 if training will work, 1 if a check failed.",
    )
    p.add_argument(
        "--learners",
        type=int,
        metavar="N",
        help="P, learners in all; at least one a rank (default: one a rank)",
    )
    p.add_argument(
        "--ranks-per-node",
        type=int,
        metavar="N",
        help="treat every N ranks of a host as one node (default: all ranks of a host)",
    )
    p.add_argument(
        "--transport",
        choices=("auto", "shared", "mpi"),
        default="auto",
        help="average by this transport (default: %(default)s, the first that can be used)",
    )
    p.add_argument(
        "--step-s",
        type=above_0,
        metavar="X",
        help="seconds of an update of ResNet-50, from which the period K follows that keeps "
        f"averages under {PART:.0%}% of the time (default: {STEP_S}, 64 images at 320 a second)",
    )
    p.add_argument(
        "--fresh",
        action="store_true",
        help="try device memory again (default: use the result of an earlier trial)",
    )
    p.add_argument(
        "--json", metavar="FILE", help="also write the facts to this file (default: only print)"
    )
    p.set_defaults(call=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import mpi4py

    mpi4py.rc.initialize = False  # the children run first
    started()
    from mpi4py import MPI

    gpus, why = find_gpus()
    found = probe(gpus, why, args.fresh) if rank() == 0 else None
    survives = losing.tried() if rank() == 0 else None
    if not MPI.Is_initialized():
        MPI.Init_thread()
    from localavg.cli.doctor.advice import ADVICE, wrong_numbers
    from localavg.cli.doctor.gather import gather
    from localavg.cli.doctor.line import launch_line
    from localavg.parallel.fleet import Fleet

    fleet = Fleet(MPI.COMM_WORLD, args.learners, args.ranks_per_node)
    facts = gather(fleet, args.transport, gpus, why, found, survives, args.step_s)
    warnings = [advice for check in ADVICE for advice in check(facts)]
    failures = wrong_numbers(facts)
    if fleet.rank == 0:
        print_table("doctor", [{"fact": name, "found": text} for name, text in _rows(facts)])
        for word, advices in (("warning", warnings), ("failed", failures)):
            for advice in advices:
                print(f"\n{word}: {advice.what}\n  remedy: {advice.remedy}")
        print(f"\ntraining will {'not ' * bool(failures)}work here", flush=True)
        if not failures:
            print(f"launch it by: {launch_line(facts)}", flush=True)
    if args.json:
        written = {
            **asdict(facts),
            "warnings": [a._asdict() for a in warnings],
            "failures": [a._asdict() for a in failures],
        }
        text = json.dumps(written, indent=1) + "\n"
        fleet.together(lambda: Path(args.json).write_text(text) if fleet.rank == 0 else None)
    return 1 if failures else 0


def _rows(f: Facts) -> list[tuple[str, str]]:
    """Return the facts as rows (name, text) of the table."""
    counts = (
        _count(len(f.ranks), "rank"),
        _count(f.nodes, "node"),
        _count(len(f.machines()), "machine"),
        _count(f.learners, "learner"),
    )
    hosts = [
        f"{here[0].host}: {_count(len(here), 'rank')}, {_count(here[0].host_cpus, 'core')}"
        for here in f.machines()
    ]
    threads = [f"{r.threads} (OMP_NUM_THREADS {r.omp or 'not set'})" for r in f.ranks]
    gpus = [counted(name for name, _ in r.gpus) or r.gpus_why for r in f.ranks]
    flag = {True: "set", False: "not set", None: "unknown: no MPIX_Query_cuda_support()"}
    memory = f"{f.memory_bytes_per_s / 1e9:.3g} GB/s a node, read and written, all ranks copying"
    link = ""
    if f.link_bytes_per_s and f.latency_s is not None:
        rate = f"{f.link_bytes_per_s / 1e9:.3g} GB/s each way"
        link = f"{rate}, {1e6 * f.latency_s:.3g} µs for an empty message"
    rooms = {r.node: _room(r) for r in f.ranks}
    return [
        ("MPI library", f.mpi),
        ("mpi4py", f"version {f.mpi4py}"),
        ("thread level", f.thread_level),
        ("size", ", ".join(counts)),
        ("machines", _lines(hosts)),
        ("binding", _by_rank([_binding(r) for r in f.ranks])),
        ("threads a rank", _by_rank(threads)),
        ("GPUs", _by_rank(gpus)),
        ("MPI on device memory", _device_memory(f)),
        ("MPI's own CUDA flag", flag[f.cuda_flag]),
        ("/dev/shm", _lines(list(Counter(rooms.values())))),
        ("memory", memory),
        ("link", link or "unknown: one node"),
        ("Allreduce", _exact(f.allreduce_wrong)),
        ("mean", _exact(f.mean_wrong)),
        ("period", _period(f)),
        ("averages overlap", _overlap(f)),
        ("a rank that dies", _survives(f)),
        ("transport", f"{f.transport}: {f.transport_why}"),
    ]


def _period(f: Facts) -> str:
    """Write which K keeps averages short, and what that assumes."""
    if f.average_s is None:
        return "unknown: one rank"
    return (
        f"K = {f.period} or more keeps averages of ResNet-50 under {PART:.0%} of the time: one "
        f"takes {f.average_s:.3g} s,\nmeasured for an eighth of it; an update is assumed to take "
        f"{f.step_s:g} s (--step-s), and no rank to wait"
    )


def _overlap(f: Facts) -> str:
    """Write whether averages go on while the ranks make updates, and what to set."""
    if f.hidden is None:
        return f"unknown: {f.hidden_why}"
    gpu, cpu = (f.hidden[way] for way in ("sleeping", "computing"))
    found = f"a delay hides {gpu:.0%} of one behind a GPU's updates, {cpu:.0%} behind a CPU's"
    if max(gpu, cpu) >= WORTH:
        return f"yes: {found};\nset --delay to the number of updates that an average lasts"
    near = ": inside a node it lasts little longer than its copies" if f.nodes == 1 else ""
    return f"hardly: {found}{near};\nleave --delay out, and raise K"


def _survives(f: Facts) -> str:
    """Write whether the other ranks can go on, and what to set."""
    if f.survives:
        use = "add --on-failure continue, and launch by mpirun --with-ft ulfm"
        return f"the others can go on: {f.survives_why};\n{use}"
    known = "unknown: " if f.survives is None else "the others cannot go on: "
    return f"{known}{f.survives_why}"


def _device_memory(f: Facts) -> str:
    text = {True: "yes: ", False: "no: ", None: ""}[f.probe.works] + f.probe.why
    if f.probe.works is None:
        return text
    before, after = ("cached, ", "; --fresh tries again") if f.probe.cached else ("", "")
    return f"{text} ({before}tried {f.probe.tried}{after})"


def _room(r: Rank) -> str:
    if r.shm_free_bytes is None:
        return "not needed: one rank a node"
    free, need = r.shm_free_bytes / 1e9, r.shm_need_bytes / 1e9
    return f"{free:.2f} GB free, {need:.2f} GB needed for ResNet-50"


def _exact(wrong: int) -> str:
    return f"wrong numbers: {wrong}" if wrong else "exact"


def _binding(r: Rank) -> str:
    if r.cpus is None:
        return "unknown: this system does not show affinities"
    bound = "not bound" if len(r.cpus) == r.host_cpus else f"cores {_ranges(r.cpus)}"
    return f"{bound} ({len(r.cpus)} of {r.host_cpus})"


def _by_rank(texts: Sequence[str]) -> str:
    """Write each different text on a line, with its ranks; a single text without ranks."""
    ranks: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        ranks.setdefault(text, []).append(i)
    if len(ranks) == 1:
        return texts[0]
    return _lines([f"rank {_ranges(group)}: {text}" for text, group in ranks.items()])


def _lines(texts: list[str]) -> str:
    more = [f"and {len(texts) - SHOWN} more (--json FILE has all)"] if len(texts) > SHOWN else []
    return "\n".join(texts[:SHOWN] + more)


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2,5."""
    found: list[list[int]] = []
    for i in numbers:
        if found and i == found[-1][1] + 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in found)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
