"""Datasets as a run sees them: prepared files, the Epsilon-like generator, one copy a node."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import Fleet

from localavg.datasets import epsilon_like, load
from localavg.datasets.epsilon_like import BLOCK, generate, prepare_epsilon_like, spectrum, teacher
from localavg.datasets.writer import create
from localavg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def write(path, x, y, test=None, **attributes):
    """Write a prepared file with the given rows."""
    splits = {"train": (x, y)} | ({"test": test} if test else {})
    attributes = {
        "name": "tiny",
        "source": "tiny.txt",
        "classes": [0.0, 1.0],
        "shuffled": False,
    } | attributes
    with create(
        path, x.shape[1], {split: len(rows) for split, (rows, _) in splits.items()}, attributes
    ) as target:
        for split, (rows, labels) in splits.items():
            target.write(split, 0, rows, labels)
    return str(path)


def examples(n, d, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)).astype(np.float32), random.choice([-1, 1], n).astype(
        np.float32
    )


def draw(n, d, first_row=0, **options):
    x, y = np.full((n, d), np.nan, np.float32), np.full(n, np.nan, np.float32)
    generate(x, y, first_row, **({"teacher": teacher(d)} | options))
    return x, y


# Prepared files


def test_load_gives_what_was_written(tmp_path):
    (x, y), test = examples(50, 7), examples(9, 7, seed=1)
    data = load(
        write(tmp_path / "a.h5", x, y, test, shuffled=True, name="mine", classes=[1.0, 2.0]),
        Fleet(),
    )
    np.testing.assert_array_equal(data.train.x, x)
    np.testing.assert_array_equal(data.train.y, y)
    np.testing.assert_array_equal(data.test.x, test[0])
    np.testing.assert_array_equal(data.test.y, test[1])
    assert (data.name, data.kind, data.classes, data.shuffled) == (
        "mine",
        "features",
        (1.0, 2.0),
        True,
    )
    assert data.train.x.dtype == data.train.y.dtype == np.float32


def test_a_set_without_test_rows_has_no_test_split(tmp_path):
    data = load(write(tmp_path / "a.h5", *examples(5, 3)), Fleet())
    assert data.test is None and data.shuffled is False


@pytest.mark.parametrize("spec", ["file", f"epsilon-like:{3 * BLOCK + 5}x6"])
def test_each_rank_of_a_node_fills_its_own_rows_of_one_shared_copy(tmp_path, spec):
    x, y = examples(11, 6)
    spec = write(tmp_path / "a.h5", x, y) if spec == "file" else spec
    alone, shared = load(spec, Fleet()), []
    for rank in range(3):
        before = [np.isnan(a).sum() for a in shared]
        data = load(spec, Fleet(rank, 3, shared))
        assert not before or np.isnan(data.train.x).sum() < before[0]
        assert np.isnan(data.train.x).any() == (rank < 2)
    assert data.train.x is shared[0] and data.train.y is shared[1]
    np.testing.assert_array_equal(data.train.x, alone.train.x)
    np.testing.assert_array_equal(data.train.y, alone.train.y)


def test_more_ranks_than_rows_still_fill_every_row(tmp_path):
    x, y = examples(2, 3)
    path, shared = write(tmp_path / "a.h5", x, y), []
    for rank in range(5):
        data = load(path, Fleet(rank, 5, shared))
    np.testing.assert_array_equal(data.train.x, x)


@pytest.mark.parametrize("spec", ["file", "epsilon-like:20000x1000"])
def test_loading_allocates_no_second_copy(tmp_path, spec):
    n, d = 20_000, 1000  # 80 MB of training rows, 20 of test rows
    spec = (
        write(tmp_path / "a.h5", np.ones((n, d), np.float32), np.ones(n, np.float32))
        if spec == "file"
        else spec
    )
    tracemalloc.start()
    data = load(spec, Fleet())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = data.train.x.nbytes + (data.test.x.nbytes if data.test else 0)
    assert peak - held < 10e6


def test_errors_of_another_rank_reach_this_one(tmp_path):
    class Elsewhere(Fleet):
        def together(self, work):
            work()
            raise UserError("row 7 on another rank")

    path = write(tmp_path / "a.h5", *examples(5, 3))
    for spec in (path, "epsilon-like:8x3"):
        with pytest.raises(UserError, match="row 7 on another rank"):
            load(spec, Elsewhere())


def spoil(path, name, change):
    """Change an array or attribute of a prepared file."""
    with h5py.File(path, "r+") as file:
        if callable(change):
            file[name][...] = change(file[name][...])
        elif name in file:
            del file[name]
            file[name] = change
        else:
            file.attrs[name] = change


def put(at, value):
    def change(array):
        array[at] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train/x", put((4, 2), np.nan), "row 4 of /train/x .*not finite"),
        ("test/x", put((1, 0), -np.inf), "row 1 of /test/x .*not finite"),
        ("train/y", put(3, 0), "label 0.0 in row 3 of /train/y is not -1 or"),
        ("test/y", put(0, np.nan), "label nan in row 0 of /test/y"),
        ("train/y", np.ones(5, np.float32), r"\(6, 3\) and y \(5,\)"),
        ("train/x", np.ones((6, 3)), "x float64 .*not float32"),
        ("train/x", np.ones(6, np.float32), r"not \[n, d\]"),
        ("test/x", np.ones((2, 4), np.float32), "different widths"),
        ("test", 1.0, "x and y"),
        ("train/y", "none", "prepare it again"),
        ("classes", 3.0, "attribute"),
        ("schema", 99, "schema 99"),
        ("kind", "graphs", "'graphs'"),
    ],
)
def test_a_spoilt_file_is_refused_with_the_value_and_the_rule(tmp_path, name, change, words):
    path = write(tmp_path / "a.h5", *examples(6, 3), test=examples(2, 3))
    spoil(path, name, change)
    with pytest.raises(UserError, match=words) as caught:
        load(path, Fleet())
    assert path in str(caught.value)


def test_rows_are_numbered_from_the_start_of_the_file_beyond_the_first_slab(tmp_path, monkeypatch):
    monkeypatch.setattr("localavg.datasets.prepared.slabs.__defaults__", (0, 24))
    path = write(tmp_path / "a.h5", *examples(50, 3))
    spoil(path, "train/x", put((41, 1), np.inf))
    with pytest.raises(UserError, match="row 41 of /train/x"):
        load(path, Fleet())


def test_missing_cut_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*prepare"):
        load(str(tmp_path / "none.h5"), Fleet())
    (tmp_path / "text.h5").write_text("+1 1:0.5\n")
    with pytest.raises(UserError, match=r"not an HDF5 file.*prepare"):
        load(str(tmp_path / "text.h5"), Fleet())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1.0]
    with pytest.raises(UserError, match="holds no prepared dataset"):
        load(str(tmp_path / "other.h5"), Fleet())
    whole = Path(write(tmp_path / "a.h5", *examples(1000, 30))).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged or cut short.*again"):
        load(str(tmp_path / "cut.h5"), Fleet())


@pytest.mark.parametrize("spec", ["epsilom", "epsilonlike:3x4", "some/folder", ""])
def test_an_unknown_name_lists_what_is_accepted(spec):
    with pytest.raises(UserError, match=r"\.h5 file.*epsilon-like\[:ROWSxFEATURES\]"):
        load(spec, Fleet())


@pytest.mark.parametrize("size", ["", "20", "20x", "x5", "0x5", "5x0", "-5x5", "5x5x5", "1e3x5"])
def test_a_bad_size_is_refused_with_an_example(size):
    with pytest.raises(UserError, match="ROWSxFEATURES"):
        load(f"epsilon-like:{size}", Fleet())


def test_loading_brings_in_no_heavy_or_mpi_package(tmp_path):
    path = write(tmp_path / "a.h5", *examples(5, 3))
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from localavg.datasets import load\nfrom samples import Fleet\n"
        "load(sys.argv[3], Fleet()); load('epsilon-like:9x3', Fleet())\n"
        "print([m for m in ('sklearn', 'pandas', 'scipy', 'mpi4py', 'torch') if m in "
        "sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests" / "support"), path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


# The Epsilon-like generator


def test_a_named_size_gives_a_quarter_as_many_test_rows():
    data = load("epsilon-like:401x30", Fleet())
    assert (
        data.train.x.shape == (401, 30)
        and data.test.x.shape == (100, 30)
        and data.test.y.shape == (100,)
    )
    assert data.shuffled and data.kind == "features" and data.name == "epsilon-like:401x30"
    assert load("epsilon-like:3x2", Fleet()).test is None
    assert epsilon_like.sizes(epsilon_like.ROWS) == {"train": 400_000, "test": 100_000}


@pytest.mark.parametrize(
    "cuts", [(1,), (BLOCK,), (BLOCK - 1, BLOCK + 1), (5, 6, 7, 2 * BLOCK, 2 * BLOCK + 3)]
)
def test_the_bits_do_not_depend_on_who_draws_which_rows(cuts):
    n, d = 2 * BLOCK + 100, 37
    x, y = draw(n, d)
    for start, stop in zip((0, *cuts), (*cuts, n), strict=True):
        part_x, part_y = draw(stop - start, d, start)
        np.testing.assert_array_equal(part_x, x[start:stop])
        np.testing.assert_array_equal(part_y, y[start:stop])


GOLDEN_X = [[0.631700635, 0.402067304, 0.472830981], [0.396194875, 0.278610259, 0.399995804]]
GOLDEN_TEACHER = [2.21160102, 2.19267845, 2.43540907]


def test_the_rows_of_a_seed_are_these():
    x, y = draw(2, 5)
    np.testing.assert_allclose(x[:, :3], GOLDEN_X, rtol=1e-5)
    np.testing.assert_allclose(teacher(5)[:3], GOLDEN_TEACHER, rtol=1e-5)
    assert set(y) <= {-1, 1}


def test_seed_and_split_change_the_rows_and_the_teacher_stays():
    x, _ = draw(500, 20)
    for other in (draw(500, 20, seed=1)[0], draw(500, 20, split="test")[0]):
        assert len(np.intersect1d(x, other)) < 10
    assert not np.array_equal(teacher(20, seed=1), teacher(20))
    w = teacher(20)
    for split in ("train", "test"):
        x, y = draw(4000, 20, split=split)
        assert (np.sign(x @ w) == y).mean() > 0.85


def test_rows_have_unit_norm_and_both_labels():
    x, y = draw(3000, 300)
    np.testing.assert_allclose(np.linalg.norm(x.astype(np.float64), axis=1), 1, atol=2e-6)
    assert 0.2 < (y == 1).mean() < 0.8
    assert abs(x[:, 0].var() / x[:, -1].var() - 1) < 0.2  # a stationary start


def test_the_second_moments_of_the_rows_have_the_stated_spectrum():
    n, d, rho = 200_000, 48, 0.8
    x, _ = draw(n, d, rho=rho)
    found = np.linalg.eigvalsh(x.T.astype(np.float64) @ x / n)[::-1]  # [d]
    np.testing.assert_allclose(found, spectrum(d, rho), rtol=0.02)


def test_the_spectrum_tends_to_the_stated_limits():
    for d, rho in ((8000, 0.5), (20_000, 0.9)):
        values = spectrum(d, rho)
        assert values.sum() == pytest.approx(1, rel=1e-6)
        limit = (1 + rho) / (1 - rho)
        assert values[0] == pytest.approx(limit / d, rel=0.01)
        assert values[0] / values[-1] == pytest.approx(limit**2, rel=0.01)
    default = spectrum(epsilon_like.FEATURES)
    assert default[0] == pytest.approx(0.0470, abs=5e-5) and default[0] / default[
        -1
    ] == pytest.approx(8870, abs=5)


def test_the_default_teacher_has_the_stated_margin_error_and_loss():
    w = teacher()
    x, y = draw(8 * BLOCK, epsilon_like.FEATURES)
    margin = (x @ w).astype(np.float64)  # [n]
    assert margin.std() == pytest.approx(0.99 * epsilon_like.MARGIN, rel=0.03)
    assert (y * margin < 0).mean() == pytest.approx(0.10, abs=0.012)
    assert np.logaddexp(0, -y * margin).mean() == pytest.approx(0.24, abs=0.015)


def test_the_teacher_lies_d_over_2n_above_the_minimum():
    from scipy.optimize import minimize

    n, d, seeds = 20_000, 20, range(8)
    statistic = 0.0  # Σ 2n (F_n(w*) − min F_n): χ² with 8 d degrees of freedom
    for seed in seeds:
        w = teacher(d, seed=seed, rho=0.9).astype(np.float64)
        x, y = (
            a.astype(np.float64)
            for a in draw(n, d, teacher=w.astype(np.float32), seed=seed, rho=0.9)
        )

        def loss(v, x=x, y=y):
            return np.logaddexp(0, -y * (x @ v)).mean()

        def gradient(v, x=x, y=y):
            return -(y / (1 + np.exp(y * (x @ v)))) @ x / n

        def hessian(v, x=x):
            p = 1 / (1 + np.exp(-(x @ v)))
            return (x * (p * (1 - p))[:, None]).T @ x / n

        least = minimize(
            loss, w, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
        )
        statistic += 2 * n * (loss(w) - least.fun)
    freedom = d * len(seeds)
    assert abs(statistic - freedom) < 3 * np.sqrt(2 * freedom)


def test_a_prepared_epsilon_like_file_holds_the_generated_rows_and_their_teacher(tmp_path):
    path = str(tmp_path / "e.h5")
    prepare_epsilon_like(path, rows=BLOCK + 50, features=12, seed=3, rho=0.7, margin=4.0)
    data = load(path, Fleet())
    with h5py.File(path) as file:
        stored = file["teacher"]
        w, attributes = stored[:], dict(stored.attrs)
        assert file.attrs["shuffled"] and file["train/x"].chunks is None
    np.testing.assert_array_equal(w, teacher(12, seed=3, rho=0.7, margin=4.0))
    assert attributes["margin"] == 4 and attributes["rho"] == 0.7
    assert attributes["condition_number"] == pytest.approx(np.divide(*spectrum(12, 0.7)[[0, -1]]))
    for split, name in ((data.train, "train"), (data.test, "test")):
        x, y = draw(len(split.y), 12, teacher=w, seed=3, rho=0.7, split=name)
        np.testing.assert_array_equal(split.x, x)
        np.testing.assert_array_equal(split.y, y)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"features": 0},
        {"rho": 1.0},
        {"rho": -0.1},
        {"margin": 0.0},
        {"margin": np.nan},
        {"seed": -1},
    ],
)
def test_a_bad_parameter_of_the_generator_is_refused_by_name(tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        prepare_epsilon_like(tmp_path / "e.h5", **({"rows": 8, "features": 4} | wrong))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "epsilon-like:2x100000000000",
        "epsilon-like:999999999999x9999999",
        f"epsilon-like:{10**30}x{10**30}",
        "cifar10-like:99999999999999",
    ],
)
def test_a_named_set_that_no_machine_can_hold_is_refused_before_it_is_made(name):
    fleet = Fleet()
    with pytest.raises(UserError, match=f"`data = {name}` needs .* GB a node, and this machine"):
        load(name, fleet)
    assert not fleet.asked


def test_a_made_set_without_room_is_refused_before_its_teacher_is_drawn(tmp_path):
    with pytest.raises(UserError, match="GB free"):
        prepare_epsilon_like(tmp_path / "f.h5", rows=4, features=10**15)
