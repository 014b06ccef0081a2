"""Predicted wall clock an update against the period K, averages made at once and delayed.

One panel for each number of nodes and bandwidth in the file that `localavg plan --json` wrote; both
axes are logarithmic. The dotted line is an update alone.

Cost: about 2 s.

    .venv/bin/localavg plan --step-s 0.01 --floats 4000000 --bandwidth 1gbit 100mbit \\
        --json plan.json
    python analysis/plan.py plan.json --out figures
"""

import json
from pathlib import Path
from typing import Any

import output
import results
import style

from localavg.files.record import UserError

NEEDS = ("nodes", "bandwidth_bytes_per_s", "K", "merged", "wire", "wall_s", "steps", "step_s")


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a plan. Raises UserError for another file."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(
            f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}); give a file that "
            "localavg plan --json FILE wrote"
        ) from e
    if not rows or not isinstance(rows, list) or any(name not in rows[0] for name in NEEDS):
        raise UserError(f"{path}: is no plan; give a file that localavg plan --json FILE wrote")
    return rows


def title(row: dict[str, Any]) -> str:
    """Write the nodes and the link of a row."""
    nodes, gbit_s = row["nodes"], 8e-9 * row["bandwidth_bytes_per_s"]
    return f"{nodes} nodes, {gbit_s:.4g} Gbit/s" if nodes > 1 else "1 node"


def line_of(row: dict[str, Any]) -> str:
    """Write when an average of a row is merged, its code and its pieces if it has them."""
    code = "" if row["wire"] == "float32" else f", {row['wire']}"
    pieces = f", {F} pieces" if (F := row.get("fragments", 1)) > 1 else ""
    return f"{row['merged']}{code}{pieces}"


def main() -> None:
    args = results.arguments(__doc__, "file of plan --json (default: plan.json)")
    rows = read(args.folder or Path("plan.json"))
    names = list(dict.fromkeys(map(title, rows)))
    figure, panels = style.grid(len(names), across=2)
    for axes, name in zip(panels, names, strict=True):
        of = [row for row in rows if title(row) == name]
        for number, label in enumerate(dict.fromkeys(map(line_of, of))):
            line = sorted((r["K"], r["wall_s"] / r["steps"]) for r in of if line_of(r) == label)
            axes.plot(*zip(*line, strict=True), label=label, **style.LINES[number])
        style.level(axes, of[0]["step_s"], "an update alone")
        style.doubling(axes, {row["K"] for row in of})
        axes.set(xlabel="period K", ylabel="wall clock an update (s)", yscale="log", title=name)
    style.legend(figure)
    first = rows[0]
    caption = (
        f"Predicted for {first['steps']} updates of {first['step_s']:.3g} s and averages of "
        f"{4 * first['floats'] / 1e6:.3g} MB, merged at once or after so many updates."
    )
    table = [
        [
            title(row),
            line_of(row),
            f"{row['K']}",
            f"{row['wall_s']:.4g}",
            f"{100 * row['communicate']:.1f}",
            f"{100 * row['wait']:.1f}",
            f"{row['link_bytes'] / 1e6:.4g}",
        ]
        for row in rows
    ]
    header = ["place", "merged", "K", "wall (s)", "averaging (%)", "waiting (%)", "link (MB)"]
    output.finish(args, "plan", figure, caption, {}, header, table)


if __name__ == "__main__":
    style.run(main)
