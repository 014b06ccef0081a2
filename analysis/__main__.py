"""Draw figures and tables by their ids, from the runs that their sweeps left: the table of id,
sweep and script.

A sweep's runs lie in RUNS/SWEEP-SCALE, where `localavg sweep jobs/sweeps/SWEEP.toml --scale SCALE`
puts them. What is missing is said, and the rest drawn. Cost: 2 s a figure.

    python analysis lupa-fig2 kavg-fig5-6
    python analysis --all --scale laptop --out figures
"""

import argparse
import subprocess
import sys
from pathlib import Path

FIGURES = {  # id: (sweep in jobs/sweeps, script here)
    "kavg-fig1-2": ("kavg-fig1-2", "kavg_fig1_2.py"),
    "kavg-fig3-4": ("kavg-fig3-4", "kavg_fig3_4.py"),
    "kavg-fig5-6": ("kavg-fig5-6", "kavg_fig5_6.py"),
    "kavg-fig7": ("kavg-fig7", "kavg_fig7.py"),
    "lupa-fig1": ("lupa-fig1", "lupa_fig1.py"),
    "lupa-fig2": ("lupa-fig2", "lupa_fig2.py"),
    "lupa-fig3": ("lupa-fig3", "lupa_fig3.py"),
    "lupa-fig4": ("lupa-fig4", "lupa_fig4.py"),
    "adpsgd-fig1-2": ("adpsgd-fig1-2", "adpsgd_fig1_2.py"),
    "adpsgd-fig3": ("adpsgd-fig3", "adpsgd_fig3.py"),
    "adpsgd-fig4-5": ("adpsgd-fig4-5", "adpsgd_fig4_5.py"),
    "adpsgd-fig6": ("adpsgd-fig6", "adpsgd_fig6.py"),
    "adpsgd-table1": ("adpsgd-table1", "adpsgd_table1.py"),
    "adpsgd-fig7-8": ("adpsgd-fig7-8", "adpsgd_fig7_8.py"),
    "adpsgd-strategies": ("adpsgd-strategies", "adpsgd_decreasing.py"),
    "mavg-fig1-6": ("mavg-fig1-6", "mavg_fig1_6.py"),  # and Table I
    "mavg-fig7-8": ("mavg-fig7-8", "mavg_fig7_8.py"),
    "mavg-fig9-12": ("mavg-fig9-12", "mavg_fig9_12.py"),
    "hieravg-fig1-2": ("hieravg-fig1-2", "hieravg_fig1_2.py"),
    "hieravg-fig3-4": ("hieravg-fig3-4", "hieravg_fig3_4.py"),
    "hieravg-table1": ("hieravg-table1", "hieravg_table1.py"),
    "hieravg-fig5": ("hieravg-fig5", "hieravg_fig5.py"),
    "theory": (None, "theory.py"),
}


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
    here, worst = Path(__file__).parent, 0
    for name in args.ids or FIGURES:
        sweep, script = FIGURES[name]
        folder = [str(args.runs / f"{sweep}-{args.scale}")] if sweep else []
        worst = max(worst, draw(here / script, *folder, "--out", str(args.out)))
    if args.all:
        worst = max(worst, draw(here / "claims.py", str(args.runs), "--out", str(args.out)))
        worst = max(
            worst,
            draw(
                here / "report.py",
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
