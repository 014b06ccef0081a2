"""Write the page of results: for every figure and table, the paper's claim and what the runs show.

The words are those of analysis/RESULTS.in.md. Pictures, captions, tables, checked claims, the
number of runs and the launch lines at the paper's scale are filled in, from run files and from the
figures of `python analysis --all`. The page names what is missing.

Cost: about 10 s for all laptop sweeps; `--pictures` keeps a smaller copy of every picture, so that
the page can be committed.

    python analysis/report.py runs --figures figures
    python analysis/report.py runs --figures figures --out RESULTS.md --pictures analysis/pictures
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import claims
import conclusions
import options
import output
import quantities
import style
from PIL import Image
from tabulate import tabulate

from localavg.files.record import Run, UserError, load_many

TEMPLATE = Path(__file__).with_name("RESULTS.in.md")
SWEEPS = Path(__file__).parent.parent / "jobs" / "sweeps"
# {{conclusions}}, {{overview}}, {{runs}}, {{claims}}, {{ID: STEM STEM}}
FILL = re.compile(r"\{\{([\w-]+)(?:: ([\w ]+))?\}\}")
SECTION = re.compile(r"^### (\S+)\n\n(.+?)\n\n", re.M | re.S)
VERSIONS = {
    "python": "Python",
    "numpy": "NumPy",
    "torch": "PyTorch",
    "mpi4py": "mpi4py",
    "h5py": "h5py",
}
COLOURS, MOST_BYTES = 256, 120_000  # of a picture that is kept
Checked: TypeAlias = list[tuple[str, claims.Finding]]  # claims and what the runs say


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the sweeps' folders")
    options.add_scale(parser, "report")
    options.add_figures(parser, "--figures", "take the figures from")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the page here (default: RESULTS.md in the folder of the figures)",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        help="keep smaller copies of the pictures here (default: link the figures)",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not args.folder.is_dir():
        raise UserError(
            f"{args.folder}: no such folder: run sweeps first (make paper), or give the one with "
            "their folders"
        )
    out = args.out or args.figures / "RESULTS.md"
    words = TEMPLATE.read_text(encoding="utf-8")
    names = [name for name, _ in FILL.findall(words) if toml(name).is_file()]
    folders = {name: args.folder / f"{name}-{args.scale}" for name in names}
    sweeps = {
        name: load_many(folder) if any(folder.rglob("*.h5")) else []
        for name, folder in folders.items()
    }
    states = {name: held(folders[name], runs) for name, runs in sweeps.items()}
    everything = [run for runs in sweeps.values() for run in runs]
    checked = check(sweeps)

    def fill(found: re.Match[str]) -> str:
        name, stems = found.groups()
        if name == "conclusions":
            return conclusions.page(checked)
        if name == "overview":
            return overview(words, states, checked)
        if name == "runs":
            return origin(everything, args.scale)
        if name == "claims":
            how = " ".join(claims.__doc__.split("\n\n")[1].split())
            return f"{claims.counts(checked)}. {how}"
        shown = [figure(args.figures / stem, out, args.pictures) for stem in stems.split()]
        if mine := about(checked, name):
            shown.append(claims.table(mine))
        if name in states:
            shown += [f"Runs: {states[name]}.", *launch(name)]
        return "\n\n".join(shown)

    output.write(out, FILL.sub(fill, words))
    print(out)


def check(sweeps: dict[str, list[Run]]) -> Checked:
    """Check the claims of every sweep on its own runs, without those that belong to another."""
    return [
        (claim, finding)
        for name, runs in sweeps.items()
        for claim, finding in about(claims.findings(runs), name)
    ]


def toml(name: str) -> Path:
    """Return the path of a sweep's file."""
    return SWEEPS / f"{name}.toml"


def about(checked: Iterable[tuple[str, claims.Finding]], name: str) -> Checked:
    """Return the findings of the claims that a sweep is for."""
    return [(claim, finding) for claim, finding in checked if claims.CLAIMS[claim].sweep == name]


def held(folder: Path, runs: list[Run]) -> str:
    """Write the number of a sweep's runs, how they ended, and their seeds."""
    plan = folder / "sweep.json"
    planned = len(json.loads(plan.read_text())["runs"]) if plan.is_file() else len(runs)
    if not runs:
        return "none yet"
    ends = Counter("diverged" if quantities.diverged(run) else run.status for run in runs)
    seeds = sorted({run.config.get("seed") for run in runs} - {None})
    missing = f", {planned - len(runs)} missing" if planned > len(runs) else ""
    counts = ", ".join(f"{n} {how}" for how, n in ends.items())
    return f"{counts}{missing}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def overview(words: str, states: dict[str, str], checked: Checked) -> str:
    """Write a table with a row for each section: its title, runs and decided claims."""
    rows = [
        (
            f"[{name}](#{name})",
            title.rstrip("."),
            states.get(name, "-").partition(";")[0],
            claims.counts(about(checked, name)) or "-",
        )
        for name, title in SECTION.findall(words)
    ]
    header = ("id", "what it shows", "runs", "its claims")
    return tabulate(rows, header, tablefmt="github")


def origin(runs: list[Run], scale: str) -> str:
    """Write the origin of the runs: number, days, commit, versions, ranks and processors."""
    if not runs:
        return f"There are no runs at {scale} scale yet."

    def all_of(name: str, letters: int | None = None) -> str:
        known = [run.provenance[name] for run in runs if run.provenance.get(name)]
        return ", ".join(sorted({str(value)[:letters] for value in known})) or "unknown"

    days = sorted({day[:10] for run in runs if (day := run.provenance.get("end"))}) or ["?"]
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    versions = ", ".join(f"{word} {all_of(name)}" for name, word in VERSIONS.items())
    libraries = {str(run.provenance.get("mpi_library")).partition(",")[0] for run in runs}
    return (
        f"{len(runs)} runs at {scale} scale, {when}, commit {all_of('git_commit', 7)}; {versions}, "
        f"{', '.join(sorted(libraries))}; on {all_of('ranks')} ranks, {all_of('cpu')}."
    )


def figure(stem: Path, out: Path, pictures: Path | None) -> str:
    """Write a figure or table: its picture, caption and numbers, or that it is missing."""
    table, plain, picture = (
        stem.with_name(f"{stem.name}.{suffix}") for suffix in ("md", "txt", "png")
    )
    page = table if table.is_file() else plain
    if not page.is_file():
        return f"*Missing: {stem.name} has not been drawn, because there are no runs.*"
    caption, _, numbers = page.read_text(encoding="utf-8").strip().partition("\n\n")
    shown = []
    if picture.is_file():
        kept = smaller(picture, pictures / picture.name) if pictures else picture
        shown.append(f"![{stem.name}]({Path(os.path.relpath(kept, out.parent)).as_posix()})")
    return "\n\n".join([*shown, f"*{caption}*", *[numbers] * bool(numbers)])


def smaller(picture: Path, kept: Path) -> Path:
    """Write a copy of a PNG with fewer colours and, if it is still too large, fewer pixels.

    Return its path. Raises UserError if it cannot be written.
    """
    with Image.open(picture) as image:
        full = image.convert("RGB")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        scale = 1.0
        while scale == 1 or kept.stat().st_size > MOST_BYTES:
            size = [round(scale * pixels) for pixels in full.size]
            small = full.resize(size, Image.Resampling.LANCZOS)
            # the colours that are far apart: each line keeps its own
            small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(kept, optimize=True)
            scale *= 0.85
    except OSError as e:
        raise UserError(
            f"{kept.parent}: cannot write pictures here ({e.strerror}): give another --pictures"
        ) from e
    return kept


def launch(name: str) -> list[str]:
    """Write how to run a sweep at the paper's scale, with the cost that its file states."""
    text = toml(name).read_text(encoding="utf-8")
    paper = text.partition("[paper]\n")[2].partition("\n[")[0]
    cost = re.search(r"^#.*paper: (\d+ runs?.*)\.$", text, re.M)
    data = re.search(r'^data = "(.*)"', paper, re.M)
    assert cost and data, f"{name}.toml states no cost or no data of the paper's scale"
    return [
        f"The paper's scale, {cost[1]}:",
        f"    .venv/bin/localavg sweep jobs/sweeps/{name}.toml --scale paper "
        f"--launcher slurm --set data={data[1]}",
    ]


if __name__ == "__main__":
    style.run(main)
