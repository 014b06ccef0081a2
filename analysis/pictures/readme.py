"""The README's picture: when learners average (left), and the rounds to the same loss (right).

It shows the four runs of LUPA's Fig. 2. It has no seconds, so it looks the same on any machine.
Cost: 2 s. It reads runs/lupa-fig2, which `make run` writes:

    python analysis/pictures/readme.py runs/lupa-fig2 [PICTURE.png]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import style  # noqa: E402

from localavg.files.record import load  # noqa: E402

LINES = {  # by the names of the runs
    "sync-s0": "every update (SyncSGD)",
    "kavg-tau5-s0": "every 5 (K-AVG)",
    "kavg-tau91-s0": "every 91",
    "oneshot-s0": "once, at the end",
}
SHOWN = 300  # updates on the left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the runs of make run")
    parser.add_argument(
        "picture",
        type=Path,
        nargs="?",
        default=HERE / "readme.png",
        help="write the picture here (default: the README's)",
    )
    args = parser.parse_args()
    figure, (left, right) = style.panels(2, height_in=2.2)
    for i, (name, label) in enumerate(LINES.items()):
        run, look = load(args.folder / f"{name}.h5", weights=False), style.LINES[i]
        t = run.averages.t.to_numpy()  # [rounds]
        left.plot([1, SHOWN], [-i, -i], color="0.85", zorder=0)
        left.vlines(t[t <= SHOWN], -i - 0.3, -i + 0.3, color=look["color"], linewidth=0.6)
        rounds = np.searchsorted(t, run.eval.t, side="right")  # [evaluations] averages so far
        kept = np.diff(rounds, prepend=-1) > 0
        right.plot(rounds[kept], run.eval.train_loss[kept], label=label, markevery=0.2, **look)
    left.set(
        xlabel="local updates; a stroke is an average of all learners",
        yticks=range(0, -len(LINES), -1),
        xlim=(0, SHOWN),
    )
    left.set_yticklabels(LINES.values())
    left.grid(False)
    right.set_xscale("symlog", linthresh=1, linscale=0.4)
    right.set(xlabel="averages = communication rounds", ylabel="training loss")
    right.set_xticks([0, 1, 10, 100, 1000, 10000])
    figure.savefig(args.picture, dpi=150, metadata={"Software": None})
    print(args.picture)


if __name__ == "__main__":
    style.run(main)
