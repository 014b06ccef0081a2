"""The runs of a figure: read from a folder, grouped by what the figure compares, reduced over
repeats; and what every figure script does before it draws and after.

A script takes its `arguments`, `gather`s its runs as {panel: {line: repeats}} and hands in its
figure with `finish`.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
SAID = {  # settings that a caption names, and how
    "learners": "P = {}",
    "batch_size": "B = {}",
    "K": "K = {}",
    "lr": "step size {}",
    "epochs": "{:g} epochs",
    "steps": "T = {}",
    "sampling": "{} sampling",
    "optimizer": "{}",
}
Groups = dict[str, dict[Any, list[Run]]]


def arguments(
    doc: str, folder: str | None = None, numbers: Mapping[str, float] | None = None
) -> argparse.Namespace:
    """The folder and --out of a script whose docstring is `doc`. folder: its help, where it may be
    left out.

    numbers: options that take a number, and their defaults.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?" if folder else None,
        help=folder or "run files, or one run file",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        help="folder of the figures (default: %(default)s)",
    )
    for name, default in (numbers or {}).items():
        parser.add_argument(
            f"--{name}", type=float, metavar="X", default=default, help="(default: %(default)g)"
        )
    return parser.parse_args()


def trained(run: Run) -> str:
    """What is trained; a network that is not one of ours has no name."""
    model = run.config.get("model") or (
        "network" if run.config.get("problem") == "network" else "logistic regression"
    )
    return NETWORKS.get(model, model)


def data(run: Run) -> str:
    """What it is trained on."""
    return run.config.get("data_name") or Path(str(run.config.get("data"))).stem


def problem(run: Run) -> str:
    """What is trained on what."""
    return f"{trained(run)}, {data(run)}"


def option(run: Run, *names: str) -> Any:
    """The first of the settings that the run has."""
    return next((run.config[name] for name in names if run.config.get(name) is not None), None)


def kind(run: Run) -> tuple:
    """The algorithm, and the period where it has a constant one."""
    return run.config.get("algorithm"), run.config.get("K")


def gather(
    folder: Path,
    line: Callable[[Run], Any],
    panel: Callable[[Run], str] = problem,
    expected: Mapping | None = None,
    needs: str | None = "eval.train_loss",
    ended: bool = False,
    over: Sequence[str] = (),
) -> Groups:
    """Runs as {panel: {line: repeats}}; says which are left out, unfinished, missing, or repeats of
    unequal settings.

    line: what a run is in this figure, None where it has no place there. expected: line -> its name
    in the legend, in the order of the legend; others follow, sorted. needs: TABLE.COLUMN without
    which a run is left out. ended: leave out unfinished runs. over: settings in which the runs of a
    line may differ. Raises UserError where nothing is left.
    """
    groups: Groups = {}
    names = expected or {}
    for run in load_many(folder):
        key = line(run)
        if key is None:
            print(
                f"left out: {run.path} is {run.config.get('algorithm')}, or of settings that this "
                "figure does not show"
            )
        elif needs and getattr(run, needs.split(".")[0])[needs.split(".")[1]].isna().all():
            print(
                f"left out: {run.path} has no {needs.split('.')[1]}"
                + (" yet" if run.status == "running" else "")
            )
        elif ended and run.status != "finished" and not diverged(run):
            print(f"left out: {run.path} is {run.status}, and only the end of a run counts here")
        else:
            groups.setdefault(panel(run), {}).setdefault(key, []).append(run)
            if run.status != "finished":
                print(
                    f"unfinished: {run.path} {'diverged' if diverged(run) else 'is ' + run.status}"
                )
    _say_missing(folder, groups, names)
    if not groups:
        raise UserError(
            f"{folder}: no run here belongs to this figure: its sweep is in jobs/sweeps"
        )
    order = list(names)
    ordered = {
        name: dict(
            sorted(
                lines.items(),
                key=lambda item: (
                    order.index(item[0]) if item[0] in order else len(order),
                    _natural(item[0]),
                ),
            )
        )
        for name, lines in sorted(groups.items())
    }
    for name, lines in ordered.items():
        for key, repeats in lines.items():
            if differ := sorted(
                {*style.differing(repeats)} - {*over, *(("steps",) if over else ())}
            ):
                print(
                    f"note: the {len(repeats)} runs of {name}, {names.get(key, key)} differ in "
                    f"{', '.join(differ)}, and "
                    f"count together"
                )
    return ordered


def _natural(key: Any) -> list:
    return [
        (isinstance(x, str), x)
        for x in (key if isinstance(key, tuple) else (key,))
        if x is not None
    ]


def _say_missing(folder: Path, groups: Groups, expected: Mapping) -> None:
    """Lines of the figure without a run, everywhere or in a panel, and runs of the folder's sweep
    without a file.
    """
    for key, words in expected.items():
        lacking = [panel for panel, lines in groups.items() if key not in lines]
        if lacking or not groups:
            print(
                f"missing: {words}"
                + (f" ({'; '.join(lacking)})" if len(lacking) < len(groups) else "")
            )
    plan = folder / "sweep.json"
    if plan.is_file():
        names = json.loads(plan.read_text())["runs"]
        absent = [name for name in names if not (folder / f"{name}.h5").exists()]
        if absent:
            print(
                f"missing: {len(absent)} of {len(names)} runs of the sweep: "
                f"{', '.join(absent[:12])}" + (", …" if len(absent) > 12 else "")
            )


def diverged(run: Run) -> bool:
    """Whether the run ended because its loss was not finite."""
    return run.status == "failed" and "not finite" in str(run.attrs.get("failure", ""))


def end(run: Run, column: str) -> float:
    """The last value of a column of /eval."""
    values = run.eval[column].dropna()
    return float(values.iloc[-1]) if len(values) else np.nan


def accuracy(run: Run) -> float:
    """Test accuracy at the end, in percent; of a diverged run that of guessing, one in
    `classes`.
    """
    return (
        100 / (run.config.get("classes") or 10)
        if diverged(run)
        else 100 * end(run, "test_accuracy")
    )


def best_accuracy(run: Run) -> float:
    """The best test accuracy of all evaluations, in percent."""
    return 100 * run.eval.test_accuracy.max()


def rounds(run: Run) -> int:
    """How many averages of all learners."""
    return int((run.averages.scope == WORLD).sum())


def wall_s(run: Run) -> float:
    """Wall clock at the end, evaluation left out; of a clock that was simulated, the modelled
    one.
    """
    return float(pd.concat([run.train.wall_s, run.eval.wall_s, run.staleness.wall_s]).max())


def by(repeats: Iterable[Run], *names: str) -> dict[Any, list[Run]]:
    """Runs by the value of the first setting of these that they have, sorted."""
    cells: dict[Any, list[Run]] = {}
    for run in repeats:
        cells.setdefault(option(run, *names), []).append(run)
    return dict(sorted(cells.items(), key=lambda item: _natural(item[0])))


def values(
    cells: Mapping[Any, Sequence[Run]], of: Callable[[Run], float]
) -> dict[Any, list[float]]:
    """What `of` says of every run of every cell; cells without a finite one are left out."""
    found = {x: [v for v in map(of, repeats) if np.isfinite(v)] for x, repeats in cells.items()}
    return {x: v for x, v in found.items() if v}


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over repeats, or `-`."""
    numbers = [x for x in numbers if np.isfinite(x)]
    if not numbers:
        return "-"
    text = f"{np.mean(numbers):.{digits}f}"
    return text + (f" ± {np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else "")


def over(repeats: Iterable[Run], of: str | Callable[[Run], float], digits: int = 2) -> str:
    """`spread` of a quantity, or of the last value of a column of /eval, accuracies in percent."""
    if isinstance(of, str):
        column, unit = of, 100 if of.endswith("accuracy") else 1
        return over(repeats, lambda run: unit * end(run, column), digits)
    return spread([of(run) for run in repeats], digits)


def settings(groups: Groups) -> str:
    """What the runs of a figure have in common, and how many seeds there are of each."""
    runs, words = (
        [run for lines in groups.values() for repeats in lines.values() for run in repeats],
        [],
    )
    if not runs:
        return ""
    for name, how in SAID.items():
        said = {run.config.get(name) for run in runs}
        if name == "lr" and all(run.config.get("schedule") == "inverse" for run in runs):
            said, how = {"4/(μ(t + a))"}, "step size {}"  # which has no lr
        if len(said) == 1 and (value := said.pop()) is not None:
            words.append(how.format(value))
    seeds = sorted(
        {
            len({run.config.get("seed") for run in repeats})
            for lines in groups.values()
            for repeats in lines.values()
        }
    )
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
    """Write a figure as PDF and PNG with its caption, and its numbers, printed too, as Markdown;
    name the files.
    """
    paths = style.save(figure, args.out / stem)
    banded = any(axes.collections for axes in figure.axes)
    words = [caption, *["Bands: from least to most over repeats."] * banded, settings(groups)]
    said = " ".join(filter(None, words)) + "\n"
    write(args.out / f"{stem}.txt", said)
    if rows:
        print(style.table(header, rows))
        write(args.out / f"{stem}.md", f"{said}\n{style.table(header, rows, 'github')}\n")
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
    """Print a table, write it as text, Markdown and LaTeX, and name the files."""
    caption = f"{caption} {settings(groups)}"
    kinds = {".txt": "simple", ".md": "github", ".tex": "latex_booktabs"}
    for suffix, how in kinds.items():
        text = style.table(header, rows, how)
        if suffix == ".txt":
            print(text)
        said = f"% {caption}\n\n{_plain(text)}\n" if suffix == ".tex" else f"{caption}\n\n{text}\n"
        write(args.out / f"{stem}{suffix}", said)
    print(*(args.out / f"{stem}{suffix}" for suffix in kinds), sep="\n")


def _plain(latex: str) -> str:
    """Symbols that LaTeX has under other names."""
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
    """Write a text file, making its folder. Raises UserError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(
            f"{path.parent}: cannot write here ({e.strerror}): give another --out"
        ) from e


def reach(run: Run, level: float, column: str = "wall_s") -> float:
    """Where `column` of /eval was when the training loss came down to `level`, between evaluations
    in proportion; or NaN.
    """
    rows = run.eval.dropna(subset=["train_loss", column])
    loss, x = rows.train_loss.to_numpy(), rows[column].to_numpy()  # [n]
    below = np.flatnonzero(loss <= level)
    if not len(below):
        return np.nan
    i = below[0]
    return (
        float(x[i]) if i == 0 else float(np.interp(-level, -loss[i - 1 : i + 1], x[i - 1 : i + 1]))
    )


def evaluations(run: Run) -> pd.DataFrame:
    """The rows of /eval with a training loss, and beside them `rounds`: the averages of all
    learners done by then.
    """
    rows = run.eval.dropna(subset="train_loss")
    world = np.sort(run.averages.t[run.averages.scope == WORLD])  # [rounds]
    return rows.assign(rounds=np.searchsorted(world, rows.t, "right"))


def by_rounds(run: Run) -> pd.DataFrame:
    """Of `evaluations`, the first after each round, and the one at t = 0 before any."""
    rows = evaluations(run).drop_duplicates("rounds")
    return rows[(rows.rounds > 0) | (rows.t == 0)]


def clock(run: Run) -> str:
    """What is trained on what, and whose clock and link the times are of."""
    if not run.config.get("simulate"):
        return problem(run)
    return f"{problem(run)}, modelled at {8e-9 * run.config['bandwidth_bytes_per_s']:g} Gbit/s"


def by_clock(repeats: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by their problem and clock."""
    cells: dict[str, list[Run]] = {}
    for run in repeats:
        cells.setdefault(clock(run), []).append(run)
    return cells


def sent_MB(run: Run) -> float:
    """The payload of all averages, within nodes and between them."""
    return 1e-6 * float((run.averages.bytes_node + run.averages.bytes_cross).sum())


def variances(run: Run) -> pd.DataFrame:
    """The averages of all learners with a mean variance V_t above 0."""
    return run.averages[(run.averages.scope == WORLD) & (run.averages.mean_variance > 0)]


def weighted_variance(run: Run) -> float:
    """The weighted average (9) of adpsgd, V_t standing for every Var[W_k] of its period; NaN where
    V_t was not recorded.
    """
    rows = run.averages[run.averages.scope == WORLD]
    if rows.empty or rows.mean_variance.isna().any() or run.train.empty:
        return np.nan
    variance = np.repeat(rows.mean_variance.to_numpy(), rows.period)  # [T]
    gamma = np.interp(np.arange(1, len(variance) + 1), run.train.t, run.train.step_size)  # [T]
    return float(adpsgd_weighted_variance(gamma=gamma, variance=variance))
