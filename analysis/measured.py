"""Times measured on emulated hosts, beside those that the model of the clock gives for such links.

LUPA Fig. 2 (time), ADPSGD Fig. 4c, 5c and 6, from the runs of `make paper-root` in
RUNS/NAME-root/RATE. Bars: where the measured time went, medians over repeats. Stars: the model,
the measured time of computation and, for every average, two messages of 50 µs and what each of the
two hosts sends over the link, as the run file has it: a row of sums, or for QSGD the codes of every
learner. The table has means, with the standard deviation over repeats; its last two columns are
ratios of medians, per example. SGD alone runs on one host.

Cost: about 6 s for 66 runs.

    python analysis/measured.py runs --out figures
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import adpsgd_fig4_5
import adpsgd_fig6
import numpy as np
import output
import quantities
import results
import style

from localavg.files.record import Run, UserError, load_many

NAMES = {
    ("sgd", None): "SGD alone",
    ("sync", None): "every update",
    ("qsgd", None): "QSGD",
    ("kavg", 5): "τ = 5",
    ("kavg", 8): "p = 8",
    ("kavg", 91): "τ = 91",
    ("adpsgd", None): "ADPSGD",
    ("oneshot", None): "one-shot",
}
UNITS = {"mbit": 1e6, "gbit": 1e9}
LATENCY_S = 5e-5
HEADER = (
    *("problem and link", "averages", "rounds", "measured (s)", "modelled (s)"),
    *("times as fast as every update", "speed-up over one"),
)
Cells: TypeAlias = dict[tuple[str, int | None], list[Run]]


def rate(run: Run) -> float:
    """Return the bits a second of the emulated links: the folder has their name, as 100mbit."""
    found = re.fullmatch(r"(\d+)(mbit|gbit)", run.path.absolute().parent.name)
    return int(found[1]) * UNITS[found[2]] if found else np.nan


def modelled_s(run: Run) -> float:
    """Return the seconds of a run by the model of the clock, with its measured computation."""
    end, hosts = run.train.iloc[-1], run.provenance.get("ranks", 1)
    if hosts == 1:
        return float(end.compute_s + end.data_s)
    sent_s = 8 * run.averages.bytes_cross.sum() / hosts / rate(run)
    return float(end.compute_s + end.data_s + quantities.rounds(run) * 2 * LATENCY_S + sent_s)


def panel(run: Run) -> str:
    """Return the name of a run's panel: problem, learners, hosts and link."""
    P, hosts = run.config["learners"] or 1, run.provenance.get("ranks", 1)
    if run.config["algorithm"] == "sgd":
        P = hosts = 2  # stands beside the runs whose speed-up it measures
    link = f"{rate(run) / 1e9:g} Gbit/s"
    return f"{quantities.problem(run)}, {P} learners on {hosts} hosts, measured at {link}"


def gathered(runs: Sequence[Run]) -> dict[str, Cells]:
    """Group the finished runs whose folder names a rate as {panel: {line: repeats}}."""
    groups: dict[str, Cells] = {}
    for run in sorted(runs, key=panel):
        key = quantities.kind(run)
        if run.status == "finished" and np.isfinite(rate(run)) and key in NAMES:
            groups.setdefault(panel(run), {}).setdefault(key, []).append(run)
    return {
        name: {key: lines[key] for key in NAMES if key in lines} for name, lines in groups.items()
    }


def row(name: str, key: tuple[str, int | None], lines: Cells) -> tuple[str, ...]:
    """Return a row of the table."""
    repeats, sync, alone = lines[key], lines.get(("sync", None)), lines.get(("sgd", None))

    def over(others: list[Run] | None, of: Callable[[Run], float]) -> str:
        if not others:
            return "-"
        theirs, ours = (np.median([of(run) for run in some]) for some in (others, repeats))
        return f"{theirs / ours:.2f}"

    return (
        name,
        NAMES[key],
        output.over(repeats, quantities.rounds, 0),
        output.over(repeats, quantities.wall_s, 2),
        output.over(repeats, modelled_s, 2),
        over(sync, adpsgd_fig6.an_example_s),
        over(alone, adpsgd_fig6.an_example_s),
    )


def main() -> None:
    args = results.arguments(__doc__)
    groups = gathered([run for run in load_many(args.folder) if "-root" in str(run.path)])
    if not groups:
        raise UserError(f"{args.folder}: no runs on emulated hosts here: make paper-root first")
    figure, panels = style.grid(len(groups), across=2)
    for axes, (name, lines) in zip(panels, groups.items(), strict=True):
        parts = {
            NAMES[key]: {
                word: float(np.median([run.train[column].iloc[-1] for run in repeats]))
                for column, word in adpsgd_fig4_5.PARTS.items()
            }
            for key, repeats in lines.items()
        }
        style.bars(axes, parts, "seconds")
        times = [float(np.median([modelled_s(run) for run in some])) for some in lines.values()]
        style.mark(axes, times, range(len(times)), "modelled, in all")
        axes.set_title(style.short(name))
    style.legend(figure)
    rows = [row(name, key, lines) for name, lines in groups.items() for key in lines]
    caption = (
        "Where the time went, measured on emulated hosts whose links have the rate named: medians. "
        "Stars: modelled for such links. The table has means ± standard deviations; its last two "
        "columns are ratios of medians, per example. SGD alone runs on one host."
    )
    output.finish(args, "measured", figure, caption, {}, HEADER, rows)


if __name__ == "__main__":
    style.run(main)
