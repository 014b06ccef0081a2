"""Draw figures and tables by their ids, from the runs of their sweeps.

An id is the name of a sweep, jobs/sweeps/ID.toml, and, with _ for -, of the script here that draws
its runs; only `theory` has no runs. The runs lie in RUNS/ID-SCALE, where `localavg sweep
jobs/sweeps/ID.toml --scale SCALE` puts them. Missing runs are printed, and the others drawn. Cost:
2 s a figure.

    python analysis lupa-fig2 kavg-fig5-6
    python analysis --all --scale laptop --out figures
"""

import argparse
import subprocess
import sys
from pathlib import Path

import options

HERE = Path(__file__).parent
SWEEPS = HERE.parent / "jobs" / "sweeps"


def script(name: str) -> Path:
    """Return the path of the script that draws the figure or table `name`."""
    return HERE / f"{name.replace('-', '_')}.py"


FIGURES = [
    *sorted(path.stem for path in SWEEPS.glob("*.toml") if script(path.stem).exists()),
    "theory",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="analysis", description=__doc__.partition("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"draw these of {', '.join(FIGURES)}")
    parser.add_argument(
        "--all",
        action="store_true",
        help="draw everything, check the papers' claims, and write OUT/RESULTS.md",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="read the sweeps' folders from this folder (default: %(default)s)",
    )
    options.add_scale(parser, "draw")
    options.add_figures(parser, "--out", "write the figures into")
    args = parser.parse_args()
    if bool(args.ids) == args.all:
        parser.error(f"name figures, or give --all: {', '.join(FIGURES)}")
    if unknown := [name for name in args.ids if name not in FIGURES]:
        parser.error(f"{unknown[0]} is no figure: {', '.join(FIGURES)}")
    runs, out, worst = str(args.runs), str(args.out), 0
    for name in args.ids or FIGURES:
        folder = [str(args.runs / f"{name}-{args.scale}")] if name != "theory" else []
        worst = max(worst, draw(script(name), *folder, "--out", out))
    if args.all:
        worst = max(worst, draw(HERE / "claims.py", runs, "--out", out))
        if any(args.runs.glob("*-root")):
            worst = max(worst, draw(HERE / "measured.py", runs, "--out", out))
        page = (runs, "--scale", args.scale, "--figures", out)
        worst = max(worst, draw(HERE / "report.py", *page))
    return worst


def draw(script: Path, *words: str) -> int:
    """Run a script and return its exit status."""
    print(f"\n$ python analysis/{script.name} {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, str(script), *words]).returncode


if __name__ == "__main__":
    sys.exit(main())
