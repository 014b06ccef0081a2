"""What one run shows: its names, and the quantities that the figures and claims compare."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from localavg.files.record import CLUSTER, WORLD, Run
from localavg.theory import adpsgd_weighted_variance

Rows: TypeAlias = Callable[[Run], pd.DataFrame]  # run → its evaluations, with columns of a figure
LEVEL = 0.4
"""the training loss to which the figure of all methods measures time"""
GBITS = (1, 10, 100)
"""rates of the links for which `on_links` models the clock, in Gbit/s"""
ADPSGD_GBITS = (10, 100)
"""rates of the links of ADPSGD's paper"""
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
    """Return the number of averages in which all learners take part."""
    return int((run.averages.scope != CLUSTER).sum())


def wall_s(run: Run) -> float:
    """Return the wall clock at the end without evaluation; the modelled one if it was simulated."""
    return float(pd.concat([run.train.wall_s, run.eval.wall_s, run.staleness.wall_s]).max())


def reach(run: Run, level: float, column: str = "wall_s", rows: Rows | None = None) -> float:
    """Return the value of a column when the training loss reached `level`, or NaN.

    rows: run → the table of the column (default: /eval). Between two evaluations it is interpolated
    linearly.
    """
    rows = (run.eval if rows is None else rows(run)).dropna(subset=["train_loss", column])
    loss, x = rows.train_loss.to_numpy(), rows[column].to_numpy()  # [n]
    below = np.flatnonzero(loss <= level)
    if not len(below):
        return np.nan
    i = below[0]
    if i == 0:
        return float(x[0])
    return float(np.interp(-level, -loss[i - 1 : i + 1], x[i - 1 : i + 1]))


def common_level(found: Iterable[Run], level: float) -> float:
    """Return the training loss `level`, or the least, rounded up, that all of the runs reach."""
    ends = [run.eval.train_loss.min() for run in found]
    return max(level, float(np.ceil(100 * max(ends)) / 100)) if ends else level


def evaluations(run: Run) -> pd.DataFrame:
    """Return the rows of /eval with a training loss, and a column `rounds`.

    rounds: the number of averages in which all learners take part, up to the evaluation.
    """
    rows = run.eval.dropna(subset="train_loss")
    ends = np.sort(run.averages.t[run.averages.scope != CLUSTER])  # [rounds]
    return rows.assign(rounds=np.searchsorted(ends, rows.t, "right"))


def by_rounds(run: Run, rows: Rows = evaluations) -> pd.DataFrame:
    """Return the first of the `rows` of a run after each round, and the one at t = 0."""
    found = rows(run).drop_duplicates("rounds")
    return found[(found.rounds > 0) | (found.t == 0)]


def clock(run: Run) -> str:
    """Return the names of the problem and of the clock: measured, or modelled with its link."""
    if not run.config.get("simulate"):
        return problem(run)
    return f"{problem(run)}, modelled at {8e-9 * run.config['bandwidth_bytes_per_s']:g} Gbit/s"


def rescales(run: Run) -> bool:
    """Return whether the run's clock is modelled without latency, as `on_links` needs it."""
    return bool(run.config.get("simulate")) and run.config.get("latency_s") == 0


def seconds_at(gbit: float) -> str:
    """Return the name of the column of `on_links` for links of so many Gbit/s."""
    return f"seconds at {gbit:g} Gbit/s"


def on_links(run: Run) -> pd.DataFrame:
    """Return `evaluations` with the bytes of the averages so far, and the seconds on other links.

    MB: what the link of a learner has carried in each direction, in averages of any scope. The
    columns `seconds_at` a rate of GBITS: the modelled clock with links of that rate. Learners that
    average wait for each other, so a link that makes an average last longer by x makes the whole
    run last longer by x. Without latency, averages last as long as their bytes take: `rescales`.
    """
    rows, averages = evaluations(run), run.averages.sort_values("t", kind="stable")
    link = run.config["bandwidth_bytes_per_s"]
    spent_s = _until(rows, averages, averages.seconds)  # [n]
    clocks = {
        seconds_at(gbit): rows.wall_s + _until(rows, averages, _longer_s(run, averages, gbit))
        for gbit in GBITS
    }
    return rows.assign(MB=1e-6 * link * spent_s, **clocks)


def at_rate(run: Run, gbit: float) -> Run:
    """Return a run with its clock as it is modelled for links of so many Gbit/s.

    What it trains does not change: no learner sees the clock. All averages are of everyone: each
    has its 2 log₂P messages, and the rest of its time is that of its bytes. As in `on_links`, what
    makes an average longer makes the whole run longer.
    """
    averages = run.averages.sort_values("t", kind="stable")
    longer_s = _longer_s(run, averages, gbit)

    def later(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
        more_s = _until(rows, averages, longer_s)  # [n]
        return rows.assign(**{column: rows[column] + more_s for column in columns})

    return replace(
        run,
        config={**run.config, "bandwidth_bytes_per_s": 1.25e8 * gbit},
        train=later(run.train, "wall_s", "communicate_s"),
        eval=later(run.eval, "wall_s"),
        averages=averages.assign(seconds=averages.seconds + longer_s),
    )


def _longer_s(run: Run, averages: pd.DataFrame, gbit: float) -> pd.Series:
    """Return by how much longer each average takes on links of so many Gbit/s."""
    messages_s = 2 * np.log2(run.config["learners"] or 1) * run.config["latency_s"]
    ratio = run.config["bandwidth_bytes_per_s"] / (1.25e8 * gbit)
    return (averages.seconds - messages_s) * (ratio - 1)


def _until(rows: pd.DataFrame, averages: pd.DataFrame, values: pd.Series) -> np.ndarray:
    """Return the sum of the values [averages] of the averages up to each of the rows [n]."""
    sums = np.concatenate([[0.0], values.cumsum()])  # [averages + 1]
    return sums[np.searchsorted(averages.t, rows.t, "right")]


def update_s(run: Run) -> float:
    """Return the measured seconds of a learner's update, its data included, on average."""
    end = run.train.iloc[-1]
    return float(end.compute_s + end.data_s) / end.t / run.provenance.get("learners_per_rank", 1)


def on_link(run: Run, step_s: float, latency_s: float, bytes_per_s: float) -> pd.DataFrame:
    """Return `evaluations` with the column `link_s`: seconds on P machines joined by such links.

    An update lasts step_s, and an average what `--simulate` models: 2 log₂P messages, and 2 (P −
    1)/P of the 4d bytes of the weights. Machines are alike, and none waits for another.
    """
    P, nbytes = run.config["learners"], 4 * run.config["d"]
    average_s = 2 * np.log2(P) * latency_s + 2 * (P - 1) / P * nbytes / bytes_per_s
    rows = evaluations(run)
    return rows.assign(link_s=rows.t * step_s + rows.rounds * average_s)


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
