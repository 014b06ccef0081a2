"""The runs of a figure: read from a folder, grouped for the figure, and reduced over repeats.

A script reads its `arguments`, `gather`s its runs as {panel: {line: repeats}} and writes its figure
with `finish`.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import style
from matplotlib.figure import Figure

from localavg.files.record import WORLD, Run, UserError, load_many
from localavg.theory import adpsgd_weighted_variance

NETWORKS = {
    "vgg": "VGG",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "nin": "NiN",
    "googlenet": "GoogLeNet",
    "mobilenet": "MobileNet",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet8": "ResNet-8",
    "alexnet": "AlexNet",
    "densenet": "DenseNet",
    "senet18": "SENet",
    "preactresnet18": "PreActResNet-18",
    "dpn26": "DPN",
    "mlp": "MLP",
}
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
Groups: TypeAlias = dict[str, dict[Any, list[Run]]]  # {panel: {line: repeats}}


def arguments(
    doc: str, folder: str | None = None, numbers: Mapping[str, float] | None = None
) -> argparse.Namespace:
    """Parse the command line of a script: the folder of its runs and --out.

    doc: the script's docstring. folder: the help of the folder, if it may be left out. numbers:
    options that take a number, and their defaults.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?" if folder else None,
        help=folder or "folder of run files, or one run file",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        help="write the figures into this folder (default: %(default)s)",
    )
    for name, default in (numbers or {}).items():
        about = "value in the formulas (default: %(default)g)"
        parser.add_argument(f"--{name}", type=float, metavar="X", default=default, help=about)
    return parser.parse_args()


def trained(run: Run) -> str:
    """Return the name of what is trained; "network" for a network that is not one of ours."""
    unnamed = "network" if run.config.get("problem") == "network" else "logistic regression"
    model = run.config.get("model") or unnamed
    return NETWORKS.get(model, model)


def data(run: Run) -> str:
    """Return the name of the run's data."""
    return run.config.get("data_name") or Path(str(run.config.get("data"))).stem


def problem(run: Run) -> str:
    """Return the names of what is trained and of the data."""
    return f"{trained(run)}, {data(run)}"


def option(run: Run, *names: str) -> Any:
    """Return the first of these settings that the run has, or None."""
    return next((run.config[name] for name in names if run.config.get(name) is not None), None)


def kind(run: Run) -> tuple[str, int | None]:
    """Return the algorithm, and its period K if it has a constant one."""
    return run.config.get("algorithm"), run.config.get("K")


def gather(
    folder: Path,
    line: Callable[[Run], Any],
    panel: Callable[[Run], str] = problem,
    expected: Mapping[Any, str] | None = None,
    needs: str | None = "eval.train_loss",
    ended: bool = False,
    over: Sequence[str] = (),
) -> Groups:
    """Read the runs of a folder and group them as {panel: {line: repeats}}.

    line: the key of a run's line in this figure, None if the run does not belong to it. expected:
    line -> its name in the legend, in the order of the legend; other lines follow, sorted. needs:
    TABLE.COLUMN without which a run is left out. ended: leave out unfinished runs. over: settings
    in which the runs of a line may differ. Runs that are left out, unfinished, missing, or repeats
    of unequal settings are printed. Raises UserError if no run is left.
    """
    groups: Groups = {}
    names = expected or {}
    for run in load_many(folder):
        key = line(run)
        if why := _unfit(run, key, needs, ended):
            print(f"left out: {run.path} {why}")
            continue
        groups.setdefault(panel(run), {}).setdefault(key, []).append(run)
        if run.status != "finished":
            how = "diverged" if diverged(run) else f"is {run.status}"
            print(f"unfinished: {run.path} {how}")
    _print_missing(folder, groups, names)
    if not groups:
        raise UserError(
            f"{folder}: no run here belongs to this figure: its sweep is in jobs/sweeps"
        )
    order = list(names)

    def place(key: Any) -> tuple[int, list[Any]]:
        return order.index(key) if key in order else len(order), _natural(key)

    ordered = {
        name: {key: lines[key] for key in sorted(lines, key=place)}
        for name, lines in sorted(groups.items())
    }
    _print_unequal(ordered, names, over)
    return ordered


def _unfit(run: Run, key: Any, needs: str | None, ended: bool) -> str:
    """Return why a run is left out of a figure, "" if it is not; arguments as in `gather`."""
    if key is None:
        return f"is {run.config.get('algorithm')}, or of settings that this figure does not show"
    if needs:
        table, column = needs.split(".")
        if getattr(run, table)[column].isna().all():
            return f"has no {column}" + " yet" * (run.status == "running")
    if ended and run.status != "finished" and not diverged(run):
        return f"is {run.status}, and only the end of a run counts here"
    return ""


def _natural(key: Any) -> list[Any]:
    """Return a key by which lines are sorted: numbers before words."""
    parts = key if isinstance(key, tuple) else (key,)
    return [(isinstance(x, str), x) for x in parts if x is not None]


def _print_unequal(groups: Groups, names: Mapping[Any, str], over: Sequence[str]) -> None:
    """Print where repeats differ in settings other than those of `over`."""
    allowed = {*over, "steps"} if over else set()
    for name, lines in groups.items():
        for key, repeats in lines.items():
            if differ := sorted(set(style.differing(repeats)) - allowed):
                print(
                    f"note: the {len(repeats)} runs of {name}, {names.get(key, key)} differ in "
                    f"{', '.join(differ)}, and count together"
                )


def _print_missing(folder: Path, groups: Groups, expected: Mapping[Any, str]) -> None:
    """Print which lines of the figure and which runs of the folder's sweep are missing."""
    for key, words in expected.items():
        lacking = [panel for panel, lines in groups.items() if key not in lines]
        if lacking or not groups:
            where = f" ({'; '.join(lacking)})" if len(lacking) < len(groups) else ""
            print(f"missing: {words}{where}")
    plan = folder / "sweep.json"
    if plan.is_file():
        names = json.loads(plan.read_text())["runs"]
        absent = [name for name in names if not (folder / f"{name}.h5").exists()]
        if absent:
            shown = ", ".join(absent[:12]) + ", …" * (len(absent) > 12)
            print(f"missing: {len(absent)} of {len(names)} runs of the sweep: {shown}")


def diverged(run: Run) -> bool:
    """Return whether the run ended because its loss was not finite."""
    return run.status == "failed" and "not finite" in str(run.attrs.get("failure", ""))


def end(run: Run, column: str) -> float:
    """Return the last value of a column of /eval, or NaN."""
    values = run.eval[column].dropna()
    return float(values.iloc[-1]) if len(values) else np.nan


def accuracy(run: Run) -> float:
    """Return the test accuracy at the end, in percent; of a diverged run that of guessing."""
    if diverged(run):
        return 100 / (run.config.get("classes") or 10)
    return 100 * end(run, "test_accuracy")


def best_accuracy(run: Run) -> float:
    """Return the best test accuracy of all evaluations, in percent."""
    return 100 * run.eval.test_accuracy.max()


def rounds(run: Run) -> int:
    """Return the number of averages of all learners."""
    return int((run.averages.scope == WORLD).sum())


def wall_s(run: Run) -> float:
    """Return the wall clock at the end without evaluation; the modelled one if it was simulated."""
    return float(pd.concat([run.train.wall_s, run.eval.wall_s, run.staleness.wall_s]).max())


def by(repeats: Iterable[Run], *names: str) -> dict[Any, list[Run]]:
    """Group runs by the value of the first of these settings that they have, sorted."""
    cells: dict[Any, list[Run]] = {}
    for run in repeats:
        cells.setdefault(option(run, *names), []).append(run)
    return dict(sorted(cells.items(), key=lambda item: _natural(item[0])))


def values(
    cells: Mapping[Any, Sequence[Run]], of: Callable[[Run], float]
) -> dict[Any, list[float]]:
    """Return the finite values of `of` for the runs of every cell that has one."""
    found = {x: [v for v in map(of, repeats) if np.isfinite(v)] for x, repeats in cells.items()}
    return {x: v for x, v in found.items() if v}


def highest(cells: Mapping[Any, Sequence[float]]) -> Any:
    """Return the cell with the highest mean over repeats, the first of several."""
    return max(cells, key=lambda x: float(np.mean(cells[x])))


def lowest(cells: Mapping[Any, Sequence[float]]) -> Any:
    """Return the cell with the lowest mean over repeats, the first of several."""
    return min(cells, key=lambda x: float(np.mean(cells[x])))


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
        return over(repeats, lambda run: unit * end(run, column), digits)
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
    paths = style.save(figure, args.out / stem)
    banded = any(axes.collections for axes in figure.axes)
    words = [caption, *["Bands: from least to most over repeats."] * banded, settings(groups)]
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


def reach(run: Run, level: float, column: str = "wall_s") -> float:
    """Return the value of a column of /eval when the training loss reached `level`, or NaN.

    Between two evaluations it is interpolated linearly.
    """
    rows = run.eval.dropna(subset=["train_loss", column])
    loss, x = rows.train_loss.to_numpy(), rows[column].to_numpy()  # [n]
    below = np.flatnonzero(loss <= level)
    if not len(below):
        return np.nan
    i = below[0]
    if i == 0:
        return float(x[0])
    return float(np.interp(-level, -loss[i - 1 : i + 1], x[i - 1 : i + 1]))


def evaluations(run: Run) -> pd.DataFrame:
    """Return the rows of /eval with a training loss, and a column `rounds`.

    rounds: the number of averages of all learners up to the evaluation.
    """
    rows = run.eval.dropna(subset="train_loss")
    world = np.sort(run.averages.t[run.averages.scope == WORLD])  # [rounds]
    return rows.assign(rounds=np.searchsorted(world, rows.t, "right"))


def by_rounds(run: Run) -> pd.DataFrame:
    """Return the first of `evaluations` after each round, and the one at t = 0."""
    rows = evaluations(run).drop_duplicates("rounds")
    return rows[(rows.rounds > 0) | (rows.t == 0)]


def clock(run: Run) -> str:
    """Return the names of the problem and of the clock: measured, or modelled with its link."""
    if not run.config.get("simulate"):
        return problem(run)
    return f"{problem(run)}, modelled at {8e-9 * run.config['bandwidth_bytes_per_s']:g} Gbit/s"


def by_clock(repeats: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by their problem and clock."""
    cells: dict[str, list[Run]] = {}
    for run in repeats:
        cells.setdefault(clock(run), []).append(run)
    return cells


def sent_MB(run: Run) -> float:
    """Return the payload of all averages, within nodes and between them, in MB."""
    return 1e-6 * float((run.averages.bytes_node + run.averages.bytes_cross).sum())


def variances(run: Run) -> pd.DataFrame:
    """Return the averages of all learners with a mean variance V_t above 0."""
    return run.averages[(run.averages.scope == WORLD) & (run.averages.mean_variance > 0)]


def weighted_variance(run: Run) -> float:
    """Return the weighted average (9) of adpsgd; NaN if V_t was not recorded.

    V_t stands for every Var[W_k] of its period.
    """
    rows = run.averages[run.averages.scope == WORLD]
    if rows.empty or rows.mean_variance.isna().any() or run.train.empty:
        return np.nan
    variance = np.repeat(rows.mean_variance.to_numpy(), rows.period)  # [T]
    gamma = np.interp(np.arange(1, len(variance) + 1), run.train.t, run.train.step_size)  # [T]
    return float(adpsgd_weighted_variance(gamma=gamma, variance=variance))
