"""The page of results: for every figure and table the paper's claim, what the runs show, and how to
run it at the paper's size.

The words are analysis/RESULTS.in.md's. Pictures, captions, tables, checked claims, the runs that
are there and the launch lines are filled in from run files and from the figures that `python
analysis --all` drew. What is missing is said in the page.

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
from pathlib import Path

import claims
import results
import style
from PIL import Image
from tabulate import tabulate

from localavg.files.record import Run, UserError, load_many

TEMPLATE = Path(__file__).with_name("RESULTS.in.md")
SWEEPS = Path(__file__).parent.parent / "jobs" / "sweeps"
FILL = re.compile(
    r"\{\{([\w-]+)(?:: ([\w ]+))?\}\}"
)  # {{overview}}, {{runs}}, {{claims}}, {{ID: STEM STEM}}
SECTION = re.compile(
    r"^### (\S+)\n\n(.+?)\n\n.*?^\*\*(Agrees|Half|Not seen|Not run)\.\*\*", re.M | re.S
)
VERSIONS = {
    "python": "Python",
    "numpy": "NumPy",
    "torch": "PyTorch",
    "mpi4py": "mpi4py",
    "h5py": "h5py",
}
COLOURS, MOST_BYTES = 64, 80_000  # of a picture kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the sweeps' folders are")
    parser.add_argument(
        "--scale",
        default="laptop",
        choices=("laptop", "paper"),
        help="of the sweeps (default: %(default)s)",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        default=Path("figures"),
        help="folder of the figures (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help="the page (default: RESULTS.md in the folder of the figures)"
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        help="keep smaller copies of the pictures here (default: the figures serve)",
    )
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise UserError(
            f"{args.folder}: no such folder: run sweeps first (make paper), or give the one with "
            "their folders"
        )
    out = args.out or args.figures / "RESULTS.md"
    words = TEMPLATE.read_text(encoding="utf-8")
    folders = {
        name: args.folder / f"{name}-{args.scale}"
        for name, _ in FILL.findall(words)
        if toml(name).is_file()
    }
    sweeps = {
        name: load_many(folder) if any(folder.rglob("*.h5")) else []
        for name, folder in folders.items()
    }
    states = {name: held(folders[name], runs) for name, runs in sweeps.items()}
    every = [run for runs in sweeps.values() for run in runs]
    checked = [
        (claim, finding)
        for name, runs in sweeps.items()
        for claim, finding in claims.findings(runs)
        if claims.CLAIMS[claim][1] == name
    ]  # what the odd run of another sweep says is left to claims.py

    def fill(found: re.Match) -> str:
        name, stems = found.groups()
        if name == "overview":
            return overview(words, states, checked)
        if name == "runs":
            return origin(every, args.scale)
        if name == "claims":
            how = " ".join(claims.__doc__.split("\n\n")[1].split())
            return f"{claims.counts(checked)}. {how}"
        shown = [figure(args.figures / stem, out, args.pictures) for stem in stems.split()]
        if mine := about(checked, name):
            shown.append(claims.table(mine))
        if name in states:
            shown += [f"Runs: {states[name]}.", *launch(name)]
        return "\n\n".join(shown)

    results.write(out, FILL.sub(fill, words))
    print(out)


def toml(name: str) -> Path:
    """The file of a sweep."""
    return SWEEPS / f"{name}.toml"


def about(checked: list, name: str) -> list:
    """The findings of the claims that a sweep is for."""
    return [(claim, finding) for claim, finding in checked if claims.CLAIMS[claim][1] == name]


def held(folder: Path, runs: list[Run]) -> str:
    """How many of a sweep's runs are there, how they ended, and their seeds."""
    plan = folder / "sweep.json"
    every = len(json.loads(plan.read_text())["runs"]) if plan.is_file() else len(runs)
    if not runs:
        return "none yet"
    ends = Counter("diverged" if results.diverged(run) else run.status for run in runs)
    seeds = sorted({run.config.get("seed") for run in runs} - {None})
    missing = f", {every - len(runs)} missing" if every > len(runs) else ""
    said = ", ".join(f"{n} {how}" for how, n in ends.items())
    return f"{said}{missing}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def overview(words: str, states: dict[str, str], checked: list) -> str:
    """A row a section of the template: its title, its verdict, its runs and its claims."""
    rows = [
        (
            f"[{name}](#{name})",
            title.rstrip("."),
            verdict.lower(),
            states.get(name, "-").partition(";")[0],
            claims.counts(about(checked, name)) or "-",
        )
        for name, title, verdict in SECTION.findall(words)
    ]
    return tabulate(
        rows, ("id", "what it shows", "seen here", "runs", "its claims"), tablefmt="github"
    )


def origin(runs: list[Run], scale: str) -> str:
    """Where the runs come from: how many, when, which commit, versions and processors."""
    if not runs:
        return f"There are no runs at {scale} scale yet."

    def said(name: str, letters: int | None = None) -> str:
        return (
            ", ".join(
                sorted(
                    {
                        str(run.provenance[name])[:letters]
                        for run in runs
                        if run.provenance.get(name)
                    }
                )
            )
            or "unknown"
        )

    days = sorted({day[:10] for run in runs if (day := run.provenance.get("end"))}) or ["?"]
    versions = ", ".join(f"{word} {said(name)}" for name, word in VERSIONS.items())
    mpi = ", ".join(
        sorted({str(run.provenance.get("mpi_library")).partition(",")[0] for run in runs})
    )
    return (
        f"{len(runs)} runs at {scale} scale, {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        "commit "
        f"{said('git_commit', 7)}; {versions}, {mpi}; on {said('ranks')} ranks, {said('cpu')}."
    )


def figure(stem: Path, out: Path, pictures: Path | None) -> str:
    """A figure or table of the page: its picture, caption and numbers, or that it is missing."""
    text, caption, picture = (
        stem.with_name(f"{stem.name}.{suffix}") for suffix in ("md", "txt", "png")
    )
    text = text if text.is_file() else caption
    if not text.is_file():
        return f"*Missing: {stem.name} has not been drawn, for want of runs.*"
    caption, _, numbers = text.read_text(encoding="utf-8").strip().partition("\n\n")
    shown = []
    if picture.is_file():
        kept = smaller(picture, pictures / picture.name) if pictures else picture
        shown.append(f"![{stem.name}]({Path(os.path.relpath(kept, out.parent)).as_posix()})")
    return "\n\n".join([*shown, f"*{caption}*", *[numbers] * bool(numbers)])


def smaller(picture: Path, kept: Path) -> Path:
    """A copy of a PNG in fewer colours and, if still too large, fewer pixels. Raises UserError if
    it cannot be written.
    """
    with Image.open(picture) as image:
        full = image.convert("RGB")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        scale = 1.0
        while scale == 1 or kept.stat().st_size > MOST_BYTES:
            size = [round(scale * pixels) for pixels in full.size]
            full.resize(size, Image.Resampling.LANCZOS).quantize(COLOURS).save(kept, optimize=True)
            scale *= 0.85
    except OSError as e:
        raise UserError(
            f"{kept.parent}: cannot write pictures here ({e.strerror}): give another --pictures"
        ) from e
    return kept


def launch(name: str) -> list[str]:
    """How to run a sweep at the paper's scale, and what that takes, as its file says."""
    text = toml(name).read_text(encoding="utf-8")
    paper = text.partition("[paper]\n")[2].partition("\n[")[0]
    cost, data = (
        re.search(r"^#.*paper: (\d+ runs?.*)\.$", text, re.M)[1],
        re.search(r'^data = "(.*)"', paper, re.M)[1],
    )
    no_gpu = "" if "cuda" in paper else " --submit=--gpus-per-node=0"
    return [
        f"The paper's scale, {cost}:",
        f"    .venv/bin/python -m localavg sweep jobs/sweeps/{name}.toml --scale paper "
        f"--launcher slurm{no_gpu} --set data={data}",
    ]


if __name__ == "__main__":
    style.run(main)
