"""Why learners average, and why not too rarely: the loss when learners hold different classes.

It shows averages after every update (SyncSGD), every 5 updates, every 91, and one at the end.
Training loss of the averaged model (a) against local updates; (b) against the seconds that the runs
took here; (c) against the seconds of as many machines as learners, with links of 1 Gbit/s and 50 µs
a message: modelled, with the time of an update as it was measured here. Against seconds a curve is
the median over repeats and has one point a round, the first evaluation after it. A table is
printed, and three conclusions, each with the verdict of its claim.

Cost: about 2 s for a finished sweep.

    python analysis/headline.py runs/headline-laptop --out figures
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial

import curves
import numpy as np
import output
import pandas as pd
import quantities
import results
import style
from matplotlib.axes import Axes
from trends import headline as checks
from trends import rule, select

from localavg.files.record import Run

SYNC, OFTEN, RARE, ONCE = ("sync", None), ("kavg", 5), ("kavg", 91), ("oneshot", None)
NAMES = {
    SYNC: "after every update",
    OFTEN: "every 5 updates",
    RARE: "every 91 updates",
    ONCE: "once, at the end",
}
LINK = {"latency_s": 5e-5, "bytes_per_s": 1.25e8}
CONCLUSIONS = (  # what it says, the lines whose numbers it has, what decides it
    ("One average at the end is not enough", (ONCE, RARE), checks.visibly_worse),
    ("An average every 5 updates is often enough", (OFTEN, SYNC), checks.often_enough),
    ("One every 91 updates is slightly too rare", (RARE, SYNC), checks.slightly_worse),
)
LABELS = {
    "t": "local updates t",
    "wall_s": "seconds here",
    "link_s": "seconds at 1 Gbit/s, modelled",
}
HEADER = ("the learners average", "averages", "training loss", "test accuracy (%)")
Lines = Mapping[Hashable, Sequence[Run]]


def clocked(lines: Lines) -> quantities.Rows:
    """Return run → `quantities.on_link`, with the median time of an update of these runs."""
    runs = [run for repeats in lines.values() for run in repeats if len(run.train)]
    step_s = float(np.median([quantities.update_s(run) for run in runs])) if runs else np.nan
    return partial(quantities.on_link, step_s=step_s, **LINK)


def timed(axes: Axes, repeats: Sequence[Run], x: str, key: Hashable, rows: quantities.Rows) -> None:
    """Draw the medians over repeats of seconds x and loss; a bar is the range of their ends."""
    look = style.LINES[list(NAMES).index(key)]
    tables = [rows(run)[["t", x, "train_loss"]] for run in repeats]
    middle = pd.concat(tables).groupby("t").median()  # [evaluations, 2]
    step = max(1, len(middle) // 10)
    axes.plot(middle[x], middle.train_loss, label=NAMES[key], markevery=step, **look)
    ends = [table[x].iloc[-1] for table in tables]
    axes.hlines(middle.train_loss.iloc[-1], min(ends), max(ends), color=look["color"])


def draw(panels: Sequence[Axes], lines: Lines) -> None:
    """Draw the three panels of a problem."""
    on_link = partial(quantities.by_rounds, rows=clocked(lines))
    for key, repeats in lines.items():
        curves.curve(panels[0], repeats, "t", "train_loss", NAMES[key], list(NAMES).index(key))
        timed(panels[1], repeats, "wall_s", key, quantities.by_rounds)
        timed(panels[2], repeats, "link_s", key, on_link)
    for axes, label in zip(panels, LABELS.values(), strict=True):
        axes.set(xlabel=label, xlim=(0, None), yscale="log")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")


def numbers(lines: Lines) -> Iterator[tuple[str, ...]]:
    """Write a row of the table for every line of a problem."""
    on_link = clocked(lines)
    for key, repeats in lines.items():
        yield (
            NAMES[key],
            output.over(repeats, quantities.rounds, 0),
            output.over(repeats, "train_loss", 4),
            output.over(repeats, "test_accuracy"),
            f"{np.median([quantities.wall_s(run) for run in repeats]):.2f}",
            f"{np.median([on_link(run).link_s.iloc[-1] for run in repeats]):.2f}",
        )


def conclusions(lines: Lines) -> Iterator[str]:
    """Write the three conclusions of a problem, with the verdicts of their claims."""
    runs = [run for repeats in lines.values() for run in repeats]
    for words, (one, other), decide in CONCLUSIONS:
        if one in lines and other in lines:
            found = [finding.decision for finding in checks.by_period(decide)(runs)]
            verdict = rule.all_of(*found).verdict if found else rule.MISSING
            losses = [np.mean([*map(select.loss, lines[key])]) for key in (one, other)]
            yield (
                f"{words}: training loss {losses[0]:.3f}, and {losses[1]:.3f} with one "
                f"{NAMES[other]} ({verdict})."
            )


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder,
        lambda run: key if (key := quantities.kind(run)) in NAMES else None,
        expected=NAMES,
    )
    figure, panels = style.panels(3, rows=len(groups), sharey="row", height_in=2.2)
    rows, several = [], len(groups) > 1
    for i, (problem, lines) in enumerate(groups.items()):
        draw(panels[3 * i : 3 * i + 3], lines)
        panels[3 * i].set(ylabel=curves.Y_LABELS["train_loss"])
        rows += [(problem, *row) if several else row for row in numbers(lines)]
    style.legend(figure)
    header = (*["problem"] * several, *HEADER, LABELS["wall_s"], "seconds at 1 Gbit/s")
    caption = (
        f"{', '.join(groups)}: training loss of the averaged model; the learners hold different "
        "classes. (b) Seconds of the runs, medians; bars: the range of their ends. (c) Modelled "
        "seconds of as many machines as learners, "
        "1 Gbit/s and 50 µs a message between them, an update as long as here."
    )
    output.finish(args, "headline", figure, caption, groups, header, rows)
    for problem, lines in groups.items():
        print("", *[f"{problem}:"] * several, *conclusions(lines), sep="\n")
    print(f"\nThe picture: {args.out / 'headline.png'}")


if __name__ == "__main__":
    style.run(main)
