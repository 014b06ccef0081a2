"""The house rules of imports: floors that build on lower ones, no cycles, and what a command loads."""

import ast
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "localavg"

SIDE = 2.5  # problems, models and datasets stand beside the house: on floors 0–2, under 3
ARRAYS = {"numpy", "cupy"}
FLOORS = {  # module or subpackage: (its floor, packages it may import beside the standard library; None: any)
    "config": (0, set()),
    "fleet": (1, {"numpy", "mpi4py", "threadpoolctl"}),
    "flat": (1, ARRAYS),
    "device": (1, ARRAYS),
    "kernels": (1, ARRAYS),
    "schedules": (2, set()),
    "combine": (2, ARRAYS),
    "center": (2, ARRAYS),
    "exchange": (2, ARRAYS),
    "optim": (2, ARRAYS),
    "stepsizes": (2, ARRAYS),
    "sampling": (2, ARRAYS),
    "theory": (2, {"numpy"}),
    "provenance": (2, {"numpy", "h5py"}),
    "hdf5": (1, {"numpy", "h5py"}),
    "schema": (1, {"h5py"}),
    "record": (2, {"numpy", "h5py", "pandas"}),
    "checkpoint": (2, {"numpy", "h5py"}),
    "transport": (2, ARRAYS | {"mpi4py"}),  # above the fleet, and it says whose mean by schedules.Scope
    "problems": (SIDE, ARRAYS | {"torch", "scipy"}),
    "models": (SIDE, {"torch"}),
    "datasets": (SIDE, {"numpy", "h5py", "sklearn", "scipy", "tqdm", "PIL"}),
    "algorithms": (3, set()),
    "monitor": (3, None),
    "keeper": (3, {"numpy", "mpi4py"}),
    "machine": (3, ARRAYS),
    "estimate": (3, None),
    "train": (4, ARRAYS),
    "settings": (4, set()),
    "sweep": (4.5, {"tomllib"}),
    "asynchronous": (5, None),  # its run is made from the pieces of `run`
    "averager": (4, None),
    "runfile": (4, {"mpi4py"}),
    "run": (5, None),
    "bench": (5, None),
    "doctor": (5, set()),
    "commands": (5, None),
    "__main__": (5, None),
}
HEAVY = {"mpi4py", "torch", "cupy", "h5py"}


def modules():
    """{dotted name inside the package: file}; a subpackage goes by its own name, the root by ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """The dotted names that a file imports, wherever in it; `from a import b` is a.b, whatever b may be."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(path):
    """The modules of the package that a file imports, by their names inside it."""
    names = {name.removeprefix("localavg.") for name in imports(path) if name.startswith("localavg.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} - {""}


def outer(path):
    """The packages beside this one and the standard library that a file imports."""
    return {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"localavg"}


def place(module):
    return module.partition(".")[0]


def test_every_module_stands_on_a_floor():
    assert {place(module) for module in MODULES} - {""} - set(FLOORS) == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_a_module_builds_on_its_own_floor_and_lower_ones(module):
    floor, packages = FLOORS[place(module)]
    above = {other for other in inner(MODULES[module]) if FLOORS[place(other)][0] > floor}
    assert above == set(), f"{module} is on floor {floor}"
    assert packages is None or outer(MODULES[module]) <= packages


def test_the_floors_are_read_from_real_imports():
    assert {"config", "schedules"} <= inner(MODULES["combine"])
    assert {"fleet", "monitor", "datasets", "transport"} <= inner(MODULES["run"])  # `from localavg import datasets`
    assert "datasets.libsvm" in inner(MODULES["commands.prepare"])  # inside a function
    assert outer(MODULES["fleet"]) == {"numpy", "mpi4py", "threadpoolctl"}


def test_no_two_modules_import_each_other_by_any_way_round():
    graph = {module: inner(path) - {module} for module, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as e:
        pytest.fail(f"imports go round: {' → '.join(e.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_modules_import_from_where_a_thing_is_made_and_not_from_the_root(module):
    """What the root offers is for users; inside, it would hide who needs whom."""
    names = {name.removeprefix("localavg.") for name in imports(MODULES[module]) if name.startswith("localavg.")}
    at_the_root = {name for name in names if place(name) not in FLOORS} - {"__version__"}
    assert at_the_root == set()


def test_only_the_command_line_reaches_for_the_world():
    """Below it communicators are arguments; how many ranks there are in all may be asked."""
    reaching = set()
    for module, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        sizes = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr == "size"}
        reaching |= {module for node in nodes if id(node) not in sizes
                     and "COMM_WORLD" in (getattr(node, "attr", None), getattr(node, "id", None))}
    assert {place(module) for module in reaching} <= {"__main__", "commands"}


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("*.py")), ids=lambda path: path.name)
def test_analysis_needs_only_records_and_theory(path):
    names = {name.split(".")[1] for name in imports(path) if name.startswith("localavg.")}
    assert names <= {"record", "theory"}
    assert outer(path) & HEAVY == set()


def loaded(*words):
    """The packages that `python WORDS` loads."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("words", ["", "--help", "train --help", "prepare --help", "prepare libsvm --help"])
def test_help_and_import_load_no_mpi_no_hdf5_and_no_gpu(words):
    found = loaded("-m", "localavg", *words.split()) if words else loaded("-c", "import localavg")
    assert "localavg" in found
    assert found & HEAVY == set()


def test_the_list_of_loaded_packages_shows_h5py_where_it_is():
    assert {"localavg", "h5py"} <= loaded("-c", "import localavg.record")


def test_help_comes_at_once():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "localavg", "--help"], capture_output=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
