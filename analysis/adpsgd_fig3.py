"""ADPSGD Fig. 3: the averaging period over the run, beside CPSGD's constant ones; vertical lines: the step size drops.

One panel a problem: logistic regression with the paper's 16 learners, B = 128 and 160 epochs on Epsilon-like data, and
a convolutional network on scikit-learn's digits with 4 learners. As in the paper the period is 1 for an epoch and 4
while C₂ is sampled, a quarter of the run, and the step size drops tenfold at 1/2 and 3/4 of the run. Repeats with other
seeds become a band. The table has the averages and the final training loss of every algorithm.

Cost: about 2 s for the figure; the runs take a minute and a half on two cores (all of it is `jobs/local/adpsgd-fig3`):

    python analysis/adpsgd_fig3.py runs/adpsgd-fig3 --out figures

    jobs/local/mpirun -n 2 python -m mpi4py -m localavg train adpsgd --data epsilon-like:50000x500 --learners 16 \\
        --sampling shuffle --batch-size 128 --epochs 160 --lr 1 --schedule steps --milestones 80 120 \\
        --out runs/adpsgd-fig3/logistic-adpsgd-s0.h5
    jobs/local/mpirun -n 2 python -m mpi4py -m localavg train kavg --K 8 --data epsilon-like:50000x500 --learners 16 \\
        --sampling shuffle --batch-size 128 --epochs 160 --lr 1 --schedule steps --milestones 80 120 \\
        --out runs/adpsgd-fig3/logistic-kavg8-s0.h5
    jobs/local/mpirun -n 4 python -m mpi4py tests/example_attach.py --algorithm adpsgd --batch-size 16 --epochs 60 \\
        --out runs/adpsgd-fig3/network-adpsgd-s0.h5
    jobs/local/mpirun -n 4 python -m mpi4py tests/example_attach.py --algorithm kavg K=8 --batch-size 16 --epochs 60 \\
        --out runs/adpsgd-fig3/network-kavg8-s0.h5

and the two lines with --K 8 or K=8 once more with 4 for 8.
"""

import argparse
from pathlib import Path

import pandas as pd
import style

from localavg.record import WORLD, Run, UserError, load_many

PROBLEMS = {"logistic": "logistic regression", "network": "network"}
ALGORITHMS = {("adpsgd", 0): "ADPSGD", ("kavg", 8): "CPSGD p = 8", ("kavg", 4): "CPSGD p = 4"}


def kind(run: Run) -> tuple[str, int]:
    """What the run is in this figure: the algorithm, and p for CPSGD (= K-AVG)."""
    algorithm = run.config.get("algorithm")
    return algorithm, run.config.get("K") if algorithm == "kavg" else 0


def name(key: tuple[str, int]) -> str:
    """An algorithm in words."""
    return ALGORITHMS.get(key, f"CPSGD p = {key[1]}")


def periods(run: Run) -> pd.DataFrame:
    """The averages of all learners, but for one at the end of the run, which may cut its period short."""
    return run.averages[(run.averages.scope == WORLD) & (run.averages.t < run.config["steps"])]


def drops(run: Run) -> list[float]:
    """The t at which the step size drops."""
    end = run.eval.iloc[-1]
    return [milestone * end.t / end.epoch for milestone in run.config.get("milestones", ())]


def sort(runs: list[Run]) -> dict[str, dict[tuple[str, int], list[Run]]]:
    """Runs of this figure by problem and kind, in the legend's order; says what is left out, unfinished or missing."""
    groups: dict[str, dict[tuple[str, int], list[Run]]] = {}
    for run in runs:
        problem, key = run.config.get("problem"), kind(run)
        if problem not in PROBLEMS or key[0] not in ("adpsgd", "kavg"):
            print(f"left out: {run.path} is {key[0]} on {problem}, which this figure does not show")
        elif periods(run).empty or run.eval.train_loss.isna().all():
            print(f"left out: {run.path} has no averages or no training loss yet")
        else:
            groups.setdefault(problem, {}).setdefault(key, []).append(run)
            if run.status != "finished":
                print(f"unfinished: {run.path} is {run.status}, drawn up to t = {run.averages.t.max()}")
    for problem in PROBLEMS:
        for key in [key for key in ALGORITHMS if key not in groups.get(problem, {})]:
            print(f"missing: {name(key)} on {PROBLEMS[problem]} (jobs/local/adpsgd-fig3 trains it)")
    return {problem: dict(sorted(groups[problem].items(), key=lambda item: (item[0][0], -item[0][1])))
            for problem in PROBLEMS if problem in groups}


def main() -> None:
    parser = argparse.ArgumentParser(description="The averaging period over the run (ADPSGD Fig. 3).")
    parser.add_argument("folder", type=Path, help="run files of ADPSGD and CPSGD")
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), help="folder of the figures (default: %(default)s)"
    )
    args = parser.parse_args()

    groups = sort(load_many(args.folder))
    if not groups:
        raise UserError(f"{args.folder}: no run here belongs to this figure: train adpsgd or kavg")

    figure, panels = style.panels(len(groups), width_in=style.DOUBLE_IN if len(groups) > 1 else style.SINGLE_IN)
    rows = []
    for axes, (problem, kinds) in zip(panels, groups.items(), strict=True):
        others = len(ALGORITHMS)
        for key, runs in kinds.items():
            number = list(ALGORITHMS).index(key) if key in ALGORITHMS else others
            others += key not in ALGORITHMS
            averages = pd.Series([(run.averages.scope == WORLD).sum() for run in runs])  # [runs]
            last = pd.Series([periods(run).period.iloc[-1] for run in runs])  # [runs]
            loss = pd.Series([run.eval.train_loss.dropna().iloc[-1] for run in runs])  # [runs]
            style.curve(axes, runs, "t", "period", f"{name(key)}: {averages.mean():.0f} averages", number, rows=periods)
            spread = f" ± {loss.std():.2g}" if len(runs) > 1 else ""
            label, numbers = f"{PROBLEMS[problem]}, {name(key)}", (averages.mean(), last.mean())
            rows.append((label, str(len(runs)), *(f"{x:.0f}" for x in numbers), f"{loss.mean():.4g}{spread}"))
            if differ := style.differing(runs):
                print(f"note: the {len(runs)} runs of {label} differ in {', '.join(differ)}; the band covers that too")
        first = next(iter(kinds.values()))[0]
        data = first.config.get("data_name", first.config["data"])
        for t in drops(first):
            axes.axvline(t, color="0.6", linewidth=0.6, linestyle=":")
        axes.set(xlabel="local updates t", ylabel="averaging period", ylim=(0, None),
                 title=f"{PROBLEMS[problem]} ({data}), {first.config['learners']} learners")
        axes.legend(loc="upper left", frameon=True, framealpha=1, edgecolor="none")  # over the vertical lines

    print(style.table(("problem, algorithm", "runs", "averages", "last period", "final training loss"), rows))
    for path in style.save(figure, args.out / "adpsgd_fig3"):
        print(path)


if __name__ == "__main__":
    style.run(main)
