"""The page of results: what is there is filled in, what is missing is said."""

import re
import shlex
import sys

import claims
import numpy as np
import pytest
import report
from drive import parser
from figures import FIGURES, planned, write
from mpi import ROOT
from PIL import Image

from localavg.cli.sweep.file import SCALES

TEMPLATE = report.TEMPLATE.read_text()
PAGE = ROOT / "RESULTS.md"


@pytest.fixture
def page(monkeypatch, capsys, tmp_path):
    """page(*words) runs the script on tmp_path/runs; exit status, stderr and the page."""

    def go(*words):
        monkeypatch.setattr(
            sys,
            "argv",
            ["report.py", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures"), *words],
        )
        status = 0
        try:
            report.style.run(report.main)
        except SystemExit as e:
            status = e.code
        out, err = capsys.readouterr()
        return status, err, (tmp_path.joinpath(out.strip()).read_text() if out else "")

    return go


def links(text, folder):
    return [folder / path for path in re.findall(r"!\[\w+\]\((.+?)\)", text)]


def test_without_runs_the_page_says_so(page, tmp_path):
    (tmp_path / "runs").mkdir()
    status, err, text = page()
    assert (status, err) == (0, "") and "{{" not in text
    assert (
        "There are no runs at laptop scale yet." in text and f"{len(claims.CLAIMS)} missing" in text
    )
    assert text.count("Runs: none yet.") == len(FIGURES) - 1 and text.count("*Missing: ") == len(
        re.findall(r"\w+", " ".join(stems for _, stems in report.FILL.findall(TEMPLATE)))
    )


@pytest.mark.parametrize("scale", SCALES)
def test_the_page_takes_the_runs_of_every_scale(scale, page, tmp_path):
    name, run = next(iter(planned("kavg_fig5_6", scale).items()))
    write(tmp_path / "runs" / f"kavg-fig5-6-{scale}" / f"{name}.h5", run)
    status, err, text = page("--scale", scale)
    assert (status, err) == (0, "") and f"1 runs at {scale} scale" in text


def test_a_missing_folder_is_one_line_and_exit_2(page, tmp_path):
    status, err, _ = page()
    assert (
        status == 2
        and err.startswith(f"report: {tmp_path / 'runs'}: no such folder")
        and err.count("\n") == 1
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("")
    status, err, _ = page("--out", str(tmp_path / "file" / "a.md"))
    assert status == 2 and "cannot write here" in err and err.count("\n") == 1


def test_figures_tables_claims_runs_and_pictures_are_filled_in(page, draw, tmp_path):
    for script, name in (("kavg_fig1_2", "kavg-fig1-2"), ("mavg_fig1_6", "mavg-fig1-6")):
        folder, names = tmp_path / "runs" / f"{name}-laptop", planned(script)
        folder.mkdir(parents=True)
        for run in list(names)[:-2]:
            write(folder / f"{run}.h5", names[run])
        (folder / "sweep.json").write_text(f'{{"runs": {[*names]}}}'.replace("'", '"'))
        assert draw(script, folder, save="png")[0] == 0
    status, err, text = page()
    assert (status, err) == (0, "")
    assert (
        "| [kavg-fig1-2](#kavg-fig1-2)" in text
        and "Runs: 43 finished, 2 missing; seeds 0, 1, 2." in text
    )
    assert re.search(
        r"\| Downpour and EAMSGD degrade as P grows.*\| MLP, fashion-mnist, γ₀ = 0.02, Downpour",
        text,
    )
    assert (tmp_path / "figures" / "kavg_fig1_2.txt").read_text().strip() in text  # the caption
    numbers = (tmp_path / "figures" / "mavg_table1.md").read_text().strip().split("\n")
    assert all(line in text for line in numbers[1:])
    assert all(path.is_file() for path in links(text, tmp_path / "figures"))

    status, err, text = page(
        "--out", str(tmp_path / "page" / "RESULTS.md"), "--pictures", str(tmp_path / "kept")
    )
    assert (status, err) == (0, "")
    kept = links(text, tmp_path / "page")
    assert [path.resolve() for path in kept] == [
        tmp_path / "kept" / name for name in ("kavg_fig1_2.png", "mavg_fig1_6.png")
    ]
    assert all(0 < path.stat().st_size <= report.MOST_BYTES for path in kept)


def test_a_picture_too_large_loses_pixels_not_its_look(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    monkeypatch.setattr(report, "MOST_BYTES", 20_000)
    kept = report.smaller(tmp_path / "a.png", tmp_path / "b" / "a.png")
    with Image.open(kept) as image:
        assert image.width < 400 and abs(image.width / image.height - 4 / 3) < 0.02
    assert kept.stat().st_size <= 20_000


@pytest.mark.parametrize("name", sorted({*FIGURES} - {"theory"}))
def test_the_launch_lines_at_the_papers_scale_are_commands(name):
    cost, line = report.launch(name)
    program, *words = shlex.split(line)
    assert program == ".venv/bin/localavg"
    args = parser().parse_args(words)
    assert args.scale == "paper" and str(args.file) == f"jobs/sweeps/{name}.toml"
    assert re.search(r"\d+ runs? of \d+ (epochs|updates)", cost)
    assert args.submit == ""  # the sweep itself asks for no GPU where none is needed


def test_the_committed_page_is_the_templates_and_its_pictures_are_there():
    text = PAGE.read_text()
    for words in re.split(r"\{\{.*?\}\}", TEMPLATE):
        assert words.strip() in text
    assert all(path.is_file() for path in links(text, ROOT))
    assert not re.search(
        r"(?<![\w.)}])/\w+/\w", text
    )  # no absolute path: it would be one machine's own
