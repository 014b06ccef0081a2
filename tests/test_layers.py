"""The house rules of imports: a folder imports only from those below it, no cycles, and what a
command loads.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "localavg"

ORDER = (  # a folder imports only from those further down; from its own line only itself
    {"__main__"},
    {"library"},
    {"cli"},
    {"attaching"},
    {"training"},
    {"problems"},
    {"datasets", "models", "simulate"},
    {"algorithms", "learner", "files"},
    {"parallel", "config", "theory"},
    {"interfaces"},
    {"errors", "scope", "streams"},
)
FLOOR = {place: len(ORDER) - i for i, places in enumerate(ORDER) for place in places}
PACKAGES = {  # what a folder may import beside the standard library; the others: anything
    "training": {"numpy", "mpi4py", "tqdm"},
    "attaching": {"torch", "numpy"},
    "problems": {"numpy", "torch", "scipy"},
    "datasets": {"numpy", "h5py", "sklearn", "scipy", "tqdm", "PIL"},
    "models": {"torch"},
    "simulate": {"numpy"},
    "algorithms": {"numpy", "scipy"},
    "learner": {"numpy"},
    "files": {"numpy", "h5py", "pandas", "matplotlib"},
    "parallel": {"numpy", "mpi4py", "threadpoolctl", "cupy", "torch"},
    "theory": {"numpy"},
    "streams": {"numpy"},
    "interfaces": {"numpy"},  # its types
    **{place: set() for place in ("config", "errors", "scope")},
}
EMPTY = (
    "parallel",
    "files",
    "learner",
    "training",
    "simulate",
)  # else --help and `import localavg` would load MPI
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
    """The dotted names that a file imports, wherever in it; `from a import b` is a.b, whatever b
    may be.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(path):
    """The modules of the package that a file imports, by their names inside it."""
    names = {
        name.removeprefix("localavg.") for name in imports(path) if name.startswith("localavg.")
    }
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} - {""}


def outer(path):
    """The packages beside this one and the standard library that a file imports."""
    return (
        {name.partition(".")[0] for name in imports(path)}
        - set(sys.stdlib_module_names)
        - {"localavg"}
    )


def place(module):
    return module.partition(".")[0]


def test_every_module_has_its_place():
    assert {place(module) for module in MODULES} - {""} - set(FLOOR) == set()


def test_at_most_seven_modules_lie_beside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 7


@pytest.mark.parametrize("folder", sorted({place(module) for module in MODULES} - {""}))
def test_a_folder_imports_only_from_those_below_it(folder):
    mine = {module: path for module, path in MODULES.items() if place(module) == folder}
    upward = {
        (module, other)
        for module, path in mine.items()
        for other in inner(path)
        if place(other) != folder and FLOOR[place(other)] >= FLOOR[folder]
    }
    assert upward == set()


@pytest.mark.parametrize("folder", sorted(PACKAGES))
def test_a_folder_imports_only_its_own_libraries(folder):
    strange = {
        (module, name)
        for module, path in MODULES.items()
        if place(module) == folder
        for name in outer(path) - PACKAGES[folder]
    }
    assert strange == set()


@pytest.mark.parametrize("folder", EMPTY)
def test_folders_that_load_nothing_by_themselves(folder):
    assert not (PACKAGE / folder / "__init__.py").read_text(encoding="utf-8").strip()


def test_the_order_is_read_from_real_imports():
    assert {"errors", "parallel.kernels"} <= inner(MODULES["algorithms.outer"])
    assert {"datasets", "parallel.transport"} <= inner(
        MODULES["training.build"]
    )  # `from localavg import datasets`
    assert "datasets.libsvm" in inner(MODULES["cli.prepare.vectors"])  # inside a function
    assert outer(MODULES["parallel.fleet"]) == {"numpy", "mpi4py", "threadpoolctl"}


def test_no_two_modules_import_each_other_by_any_way_round():
    graph = {module: inner(path) - {module} for module, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as e:
        pytest.fail(f"imports go round: {' → '.join(e.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_modules_import_from_where_a_thing_is_made_and_not_from_the_root(module):
    """What the root offers is for users; inside, it would hide who needs whom."""
    names = {
        name.removeprefix("localavg.")
        for name in imports(MODULES[module])
        if name.startswith("localavg.")
    }
    at_the_root = {name for name in names if place(name) not in FLOOR} - {"__version__"}
    assert at_the_root == set()


def test_only_the_command_line_reaches_for_the_world():
    """Below it communicators are arguments; how many ranks there are in all may be asked."""
    reaching = set()
    for module, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        sizes = {
            id(node.value)
            for node in nodes
            if isinstance(node, ast.Attribute) and node.attr == "size"
        }
        reaching |= {
            module
            for node in nodes
            if id(node) not in sizes
            and "COMM_WORLD" in (getattr(node, "attr", None), getattr(node, "id", None))
        }
    assert {place(module) for module in reaching - {"parallel.probe", "parallel.losing"}} <= {
        "__main__",
        "library",
        "cli",
    }  # their children are commands


@pytest.mark.parametrize(
    "path", sorted((ROOT / "analysis").glob("*.py")), ids=lambda path: path.name
)
def test_analysis_needs_only_records_and_theory(path):
    names = {
        name.removeprefix("localavg.") for name in imports(path) if name.startswith("localavg.")
    }
    assert {
        name for name in names if not name.startswith(("files.record", "files.schema", "theory"))
    } == set()
    assert outer(path) & HEAVY == set()


def loaded(*words):
    """The packages that `python WORDS` loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "words", ["", "--help", "train --help", "prepare --help", "prepare libsvm --help"]
)
def test_help_and_import_load_no_mpi_no_hdf5_and_no_gpu(words):
    found = loaded("-m", "localavg", *words.split()) if words else loaded("-c", "import localavg")
    assert "localavg" in found
    assert found & HEAVY == set()


def test_the_library_offers_every_synchronous_algorithm_and_loads_nothing_before_it_is_used():
    assert loaded("-c", "import localavg") & {*HEAVY, "numpy"} == set()
    words = "import localavg; from localavg.algorithms import ALGORITHMS as table; "
    words += "assert table.keys() <= {*dir(localavg)} & {*localavg.__all__}; "
    words += "assert all(getattr(localavg, name) is table[name] for name in table)"
    assert loaded("-c", words) & HEAVY == set()


def test_any_name_of_the_library_may_be_the_first_that_a_program_uses():
    """Modules import each other, so what comes first decides whether it works."""
    words = "import sys, localavg; names = [*localavg._HOME, 'kavg']\nfor name in names:\n"
    words += " for module in [m for m in sys.modules if m.startswith('localavg')]:\n"
    words += "  del sys.modules[module]\n import localavg; getattr(localavg, name)"
    assert "mpi4py" in loaded("-c", words)  # for Fleet


def test_the_list_of_loaded_packages_shows_h5py_where_it_is():
    found = loaded("-c", "import localavg.files.record")
    assert {"localavg", "h5py"} <= found and not found & {"matplotlib", "pandas"}


@pytest.mark.parametrize("folder", ["parallel", "training", "attaching"])
def test_objects_are_not_reduced_by_mpi4py(folder):
    """It does that in a copy of the communicator, which survivors of a dead rank cannot revoke: they
    would wait for ever.
    """
    calls = [
        f"{path.name}:{node.lineno}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("allreduce", "scan", "exscan")
    ]
    assert calls == []
