"""The scripts of analysis/, their sweeps, and run files as these would make them."""

import re
import runpy
from functools import cache

import numpy as np
from drive import parser
from mpi import ROOT

from localavg.cli.sweep import plan
from localavg.files.record import WORLD, Record

ANALYSIS = ROOT / "analysis"
SHARED = {
    "style",
    "results",
    "curves",
    "output",
    "options",
    "quantities",
    "__main__",
    "claims",
    "theory",
    "bench_average",
    "plan",
    "report",
    "conclusions",
    "measured",
}
FIGURES = runpy.run_path(str(ANALYSIS / "__main__.py"), run_name="table")["FIGURES"]
SCRIPTS = sorted(path.stem for path in ANALYSIS.glob("*.py") if path.stem not in SHARED)
SWEEPS = {name.replace("-", "_"): name for name in FIGURES}
TABLES = {"adpsgd_table1", "hieravg_table1"}
STRANGER = {
    script: {"lupa_fig2": "hieravg", "headline": "hieravg", "methods": "sgd"}.get(script, "oneshot")
    for script in SCRIPTS
}  # an algorithm it does not show
T = 40


def rows_of(config):
    """The tables of a made-up run with these settings, lists of rows by group."""
    algorithm, P, seed = config["algorithm"], config["learners"] or 1, config["seed"]
    asked = None if config.get("K") == "auto" else config.get("K")
    K = asked or config.get("K2") or {"sync": 1, "qsgd": 1, "sgd": T}.get(algorithm, 5)
    ends = [*range(K, T, K), T]
    split = {
        "compute_s": 0.01,
        "communicate_s": 1e-3,
        "wait_s": 1e-4,
        "data_s": 1e-4,
    }  # of an update
    end = 0.01 + 0.001 * seed + 0.001 * len(algorithm) + 0.0001 * (K + P)
    end += 0.001 * (config.get("K1") or 0) - 0.0001 * (config.get("S") or 0)
    wall = T * 0.01 + 0.001 * len(ends) * P
    times = np.linspace(0, T, 9).astype(int)
    return {
        "train": [
            {
                "t": t,
                "epoch": t / 5,
                "samples": t * P,
                "step_size": config["lr"],
                "loss": 1 / t,
                "wall_s": wall * t / T,
                **{name: s * t for name, s in split.items()},
            }
            for t in times[1:]
        ],
        "averages": [
            {
                "t": t,
                "begun": t,
                "scope": WORLD,
                "level": 1,
                "period": t - before,
                "variance": 1e-3,
                "mean_variance": 1e-3 * (t - before) / t,
                "bytes_node": 8,
                "bytes_cross": 8,
                "seconds": 1e-4,
            }
            for t, before in zip(ends, [0, *ends], strict=False)
        ]
        if algorithm not in ("downpour", "eamsgd")
        else [],
        "eval": [
            {
                "t": t,
                "epoch": t / 5,
                "wall_s": wall * t / T,
                "train_loss": end + 2.3 * np.exp(-t / 5),
                "train_accuracy": 0.9 - end,
                "test_accuracy": 0.85 - end - 0.001 * np.exp(-t),
                "grad_norm_sq": end / P,
            }
            for t in times
        ],
        "staleness": [{"t": t, "learner": 0, "staleness": P - 1, "wall_s": 0.01 * t} for t in ends]
        if algorithm in ("downpour", "eamsgd")
        else [],
    }


@cache
def planned(script, scale="laptop", seeds=None):
    """The runs of a script's sweep, {name: settings}."""
    path = ROOT / "jobs" / "sweeps" / f"{SWEEPS[script]}.toml"
    train = next(a for a in parser()._actions if hasattr(a, "choices") and a.choices).choices[
        "train"
    ]
    found = {
        run.name: run.asked
        for run in plan.read(path, scale, train, seeds, changes={"device": False}).runs
    }
    filled = {"bandwidth_bytes_per_s": 1e10, "latency_s": 5e-6}

    def clock(asked):
        given = {name: asked[name] for name in filled if asked.get(name) is not None}
        return {**filled, **given} if asked.get("simulate") else {}

    return {
        name: {**asked, "data_name": asked["data"], "steps": T, "d": 65, **clock(asked)}
        for name, asked in found.items()
    }


made = {}  # finished run files by their settings


def write(path, config, status="finished"):
    """A run file with these settings, copied where one like it was made before."""
    key = repr(config)
    if status == "finished" and key in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[key])
        return
    file = Record.create(path, {**config, "out": str(path)}, {})
    for group, rows in rows_of(config).items():
        for row in rows if status == "finished" else rows[: len(rows) // 2]:
            file.append(group, **row)
    if status == "running":
        file.flush(force=True)
    else:
        file.finish(status)
    if status == "finished":
        made[key] = path.read_bytes()


def check_labels(figure):
    """Every panel has data, its axes named; lines have different looks and are told in a legend."""
    told = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        inside = axes.get_legend()
        words = told + ([text.get_text() for text in inside.get_texts()] if inside else [])
        assert axes.has_data() and axes.get_xlabel()
        shared = [
            other for other in axes.get_shared_y_axes().get_siblings(axes) if other is not axes
        ]
        ticks = [text.get_text() for text in axes.get_yticklabels()]
        assert (
            axes.get_ylabel()
            or any(other.get_ylabel() for other in shared)
            or any(re.match("[A-Z]", x) for x in ticks)
        )
        handles, labels = axes.get_legend_handles_labels()
        assert labels and set(labels) <= set(words)
        looks = [
            (str(line.get_linestyle()), line.get_marker())
            for line in handles
            if hasattr(line, "get_marker")
        ]
        assert len(set(looks)) == len(looks)
