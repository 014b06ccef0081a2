"""LUPA Fig. 2: training loss of the averaged model against wall clock (left) and against communication rounds (right).

Shows SyncSGD, LUPA-SGD with τ = 5 and τ = 91, and one-shot averaging; repeats with other seeds become a band.
On the right a curve has one point a round, the first evaluation after it, and the start (t = 0) at 0 rounds: one-shot
is two points, the start and the average at T. Draws what a partial sweep holds, and says what is missing.

Cost: about 2 s and 150 MB for a finished sweep of four runs.

    python analysis/lupa_fig2.py runs/lupa-fig2 --out figures
"""

import argparse
from pathlib import Path

import pandas as pd
import style
from results import by_rounds, evaluations

from localavg.record import Run, UserError, load_many

PAPER = {
    ("sync", None): "SyncSGD",
    ("kavg", 5): "LUPA-SGD τ = 5",
    ("kavg", 91): "LUPA-SGD τ = 91",
    ("oneshot", None): "one-shot",
}


def kind(run: Run) -> tuple[str, int | None]:
    """What the run is in this figure: the algorithm, and K for K-AVG (= LUPA-SGD)."""
    algorithm = run.config.get("algorithm")
    return algorithm, run.config.get("K") if algorithm == "kavg" else None


def sort(runs: list[Run]) -> dict[tuple[str, int | None], list[Run]]:
    """Runs of this figure by kind, in the order of the legend; says what is left out, unfinished or missing."""
    groups: dict[tuple[str, int | None], list[Run]] = {}
    for run in runs:
        if kind(run)[0] not in ("sync", "kavg", "oneshot"):
            print(f"left out: {run.path} is {kind(run)[0]}, which this figure does not show")
        elif run.eval.train_loss.isna().all():
            print(f"left out: {run.path} has no training loss yet")
        else:
            groups.setdefault(kind(run), []).append(run)
            if run.status != "finished":
                print(f"unfinished: {run.path} is {run.status}, drawn up to t = {run.eval.t.max()}")
    for missing in [key for key in PAPER if key not in groups]:
        print(f"missing: {PAPER[missing]} (train {missing[0]}{f' --K {missing[1]}' if missing[1] else ''})")
    order = ("sync", "kavg", "oneshot")
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1] or 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss against wall clock and communication rounds (LUPA Fig. 2).")
    parser.add_argument("folder", type=Path, help="run files of the sweep, or one run file")
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), help="folder of the figures (default: %(default)s)"
    )
    args = parser.parse_args()

    groups = sort(load_many(args.folder))
    if not groups:
        raise UserError(f"{args.folder}: no run here belongs to this figure: train sync, kavg or oneshot")

    figure, (left, right) = style.panels(2, sharey=True)
    others, rows = len(PAPER), []
    for key, runs in groups.items():
        label = PAPER.get(key, f"LUPA-SGD τ = {key[1]}")
        number = list(PAPER).index(key) if key in PAPER else others
        others += key not in PAPER
        style.curve(left, runs, "wall_s", "train_loss", label, number)
        style.curve(right, runs, "rounds", "train_loss", label, number, rows=by_rounds)
        ends = pd.concat([evaluations(run).tail(1) for run in runs])  # [runs, columns]
        rounds, loss, wall_s = ends[["rounds", "train_loss", "wall_s"]].mean()
        rows.append((label, str(len(runs)), f"{rounds:.0f}", f"{loss:.4f}", f"{wall_s:.1f}"))
        if differ := style.differing(runs):
            print(f"note: the {len(runs)} runs of {label} differ in {', '.join(differ)}; their band covers that too")

    left.set(xlabel="wall clock (s), evaluation left out", ylabel="training loss of the averaged model")
    right.set(xlabel="communication rounds")
    right.set_xscale("symlog", linthresh=1, linscale=0.4)
    right.set_xticks([0, *(10**n for n in range(8) if 10**n <= right.get_xlim()[1])])
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    print(style.table(("algorithm", "runs", "rounds", "final loss", "wall clock (s)"), rows))
    for path in style.save(figure, args.out / "lupa_fig2"):
        print(path)


if __name__ == "__main__":
    style.run(main)
