"""What a script writes: its figure with a caption, its table, and numbers over repeats."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import curves
import numpy as np
import quantities
import style
from matplotlib.figure import Figure
from results import Groups

from localavg.files.record import Run, UserError

CAPTION = {  # settings that a caption names, and how
    "learners": "P = {}",
    "batch_size": "B = {}",
    "K": "K = {}",
    "lr": "step size {}",
    "epochs": "{:g} epochs",
    "steps": "T = {}",
    "sampling": "{} sampling",
    "optimizer": "{}",
}


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """Write mean ± standard deviation over repeats, or `-`."""
    numbers = [x for x in numbers if np.isfinite(x)]
    if not numbers:
        return "-"
    text = f"{np.mean(numbers):.{digits}f}"
    return text + (f" ± {np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else "")


def over(repeats: Iterable[Run], of: str | Callable[[Run], float], digits: int = 2) -> str:
    """Write the `spread` of a quantity over repeats.

    of: a function of a run, or a column of /eval, whose last value counts; accuracies in percent.
    """
    if isinstance(of, str):
        column, unit = of, 100 if of.endswith("accuracy") else 1
        return over(repeats, lambda run: unit * quantities.end(run, column), digits)
    return spread([of(run) for run in repeats], digits)


def settings(groups: Groups) -> str:
    """Write the settings that the runs of a figure share, and the number of seeds of each line."""
    lines = [repeats for panel in groups.values() for repeats in panel.values()]
    runs = [run for repeats in lines for run in repeats]
    if not runs:
        return ""
    words = []
    for name, how in CAPTION.items():
        values = {run.config.get(name) for run in runs}
        if name == "lr" and all(run.config.get("lr_schedule") == "inverse" for run in runs):
            values, how = {"4/(μ(t + a))"}, "step size {}"  # this schedule has no lr
        if len(values) == 1 and (value := values.pop()) is not None:
            words.append(how.format(value))
    seeds = sorted({len({run.config.get("seed") for run in repeats}) for repeats in lines})
    modelled = ", modelled clock" if any(run.config.get("simulate") for run in runs) else ""
    few, many = seeds[0], seeds[-1]
    count = few if few == many else f"{few} to {many}"
    return f"{', '.join(words)}{modelled}; {count} seed{'s' * (many > 1)} a setting."


def bands(figure: Figure, groups: Groups) -> str:
    """Write what lines and bands of a figure are, if it has bands."""
    if not any(axes.collections for axes in figure.axes):
        return ""
    counts = [
        len({run.config.get("seed") for run in repeats})
        for panel in groups.values()
        for repeats in panel.values()
    ]
    ends = "from least to most"
    if max(counts, default=0) >= curves.ROBUST:
        ends = "from quartile to quartile"
        if min(counts) < curves.ROBUST:
            ends += f" of {curves.ROBUST} repeats or more, else from least to most,"
    return f"Lines: medians; bands: {ends} over repeats."


def finish(
    args: argparse.Namespace,
    stem: str,
    figure: Figure,
    caption: str,
    groups: Groups,
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> None:
    """Write a figure as PDF and PNG, its caption as text, and its numbers as Markdown.

    The numbers and the names of the files are printed.
    """
    style.letter(figure)
    paths = style.save(figure, args.out / stem)
    words = [caption, bands(figure, groups), settings(groups)]
    text = " ".join(filter(None, words)) + "\n"
    write(args.out / f"{stem}.txt", text)
    if rows:
        print(style.table(header, rows))
        write(args.out / f"{stem}.md", f"{text}\n{style.table(header, rows, 'github')}\n")
        print(args.out / f"{stem}.md")
    print(args.out / f"{stem}.txt", *paths, sep="\n")


def finish_table(
    args: argparse.Namespace,
    stem: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    groups: Groups,
) -> None:
    """Print a table, write it as text, Markdown and LaTeX, and print the names of the files."""
    caption = f"{caption} {settings(groups)}"
    kinds = {".txt": "simple", ".md": "github", ".tex": "latex_booktabs"}
    for suffix, how in kinds.items():
        text = style.table(header, rows, how)
        if suffix == ".txt":
            print(text)
        page = f"% {caption}\n\n{_plain(text)}\n" if suffix == ".tex" else f"{caption}\n\n{text}\n"
        write(args.out / f"{stem}{suffix}", page)
    print(*(args.out / f"{stem}{suffix}" for suffix in kinds), sep="\n")


def _plain(latex: str) -> str:
    """Replace symbols by their names in LaTeX."""
    names = {
        "±": r"$\pm$",
        "μ": r"$\mu$",
        "τ": r"$\tau$",
        "₁": "$_1$",
        "₂": "$_2$",
        "γ": r"$\gamma$",
        "→": r"$\to$",
        "–": "--",
    }
    return re.sub("|".join(names), lambda m: names[m[0]], latex)


def write(path: Path, text: str) -> None:
    """Write a text file, and its folder. Raises UserError if they cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(
            f"{path.parent}: cannot write here ({e.strerror}): give another --out"
        ) from e
