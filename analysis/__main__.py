"""Draw figures and tables by their ids, from the runs that their sweeps left.

An id is the name of a sweep, jobs/sweeps/ID.toml, and, with _ for -, of the script here that draws
its runs; `theory` alone has no runs. They lie in RUNS/ID-SCALE, where `localavg sweep
jobs/sweeps/ID.toml --scale SCALE` puts them. What is missing is said, and the rest drawn. Cost: 2 s
a figure.

    python analysis lupa-fig2 kavg-fig5-6
    python analysis --all --scale laptop --out figures
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SWEEPS = HERE.parent / "jobs" / "sweeps"


def script(name: str) -> Path:
    """The script that draws the figure or table `name`."""
    return HERE / f"{name.replace('-', '_')}.py"


FIGURES = [
    *sorted(path.stem for path in SWEEPS.glob("*.toml") if script(path.stem).exists()),
    "theory",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="analysis", description=__doc__.partition("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help=", ".join(FIGURES))
    parser.add_argument(
        "--all",
        action="store_true",
        help="everything, the check of the papers' claims, and OUT/RESULTS.md",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="where the sweeps' folders are (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        default="laptop",
        choices=("laptop", "paper"),
        help="of the sweeps (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        help="folder of the figures (default: %(default)s)",
    )
    args = parser.parse_args()
    if bool(args.ids) == args.all:
        parser.error(f"name figures, or give --all: {', '.join(FIGURES)}")
    if unknown := [name for name in args.ids if name not in FIGURES]:
        parser.error(f"{unknown[0]} is no figure: {', '.join(FIGURES)}")
    worst = 0
    for name in args.ids or FIGURES:
        folder = [str(args.runs / f"{name}-{args.scale}")] if name != "theory" else []
        worst = max(worst, draw(script(name), *folder, "--out", str(args.out)))
    if args.all:
        worst = max(worst, draw(HERE / "claims.py", str(args.runs), "--out", str(args.out)))
        worst = max(
            worst,
            draw(
                HERE / "report.py",
                str(args.runs),
                "--scale",
                args.scale,
                "--figures",
                str(args.out),
            ),
        )
    return worst


def draw(script: Path, *words: str) -> int:
    """Run a script; its exit status."""
    print(f"\n$ python analysis/{script.name} {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, str(script), *words]).returncode


if __name__ == "__main__":
    sys.exit(main())
