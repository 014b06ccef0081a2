"""Logistic regression: loss, gradient and sums against float64, at the ends of floating point, and
as on a device.
"""

import operator
from types import SimpleNamespace

import numpy as np
import pytest

from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.problems import logistic
from localavg.problems.logistic import Logistic


def dataset(x, y, wrap=lambda a: a, **changes):
    train = Split(wrap(x), wrap(y))
    return Dataset(
        **{
            "name": "made up",
            "kind": "features",
            "train": train,
            "test": None,
            "classes": (-1.0, 1.0),
            "shuffled": True,
            **changes,
        }
    )


def examples(n=300, d=12, seed=0, dtype=np.float32):
    """x [n, d], y [n], and weights [d] for margins of a few units."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(dtype)
    y = np.where(rng.random(n) < 0.4, 1, -1).astype(dtype)
    return x, y, rng.normal(size=d).astype(dtype)


def losses(w, x, y):
    """log(1 + exp(−y x·w)) [n] in float64."""
    x, y, w = (a.astype(np.float64) for a in (x, y, w))
    return np.logaddexp(0, -y * (x @ w))


def objective(w, x, y, l2):
    return losses(w, x, y).mean() + l2 / 2 * (w.astype(np.float64) ** 2).sum()


def gradient(w, x, y, l2):
    """(1/n) Σ −y_i x_i / (1 + exp(y_i x_i·w)) + λw [d] in float64."""
    x, y, w = (a.astype(np.float64) for a in (x, y, w))
    return (-y / (1 + np.exp(y * (x @ w)))) @ x / len(y) + l2 * w


# ----------------------------------------------------------------------------------------- loss and


@pytest.mark.parametrize("l2", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize(
    "batch", [slice(0, 300), slice(17, 18), slice(40, 169), np.array([5, 299, 0, 5, 77, 13, 5])]
)
def test_loss_and_gradient_are_those_of_the_formula(batch, l2):
    x, y, w = examples()
    problem, out = Logistic(dataset(x, y), l2), np.full(12, np.nan, np.float32)
    loss = problem.gradient_(w, problem.fetch(batch), out=out)
    assert float(loss) == pytest.approx(objective(w, x[batch], y[batch], l2), rel=1e-6)
    np.testing.assert_allclose(out, gradient(w, x[batch], y[batch], l2), rtol=1e-5, atol=1e-6)
    assert out.dtype == np.float32


def test_the_gradient_is_the_slope_of_the_loss():
    """Central differences in float64, where the same code runs too."""
    x, y, w = examples(dtype=np.float64)
    problem, out, unused = Logistic(dataset(x, y), 0.05), np.empty(12), np.empty(12)
    batch, h = problem.fetch(np.arange(0, 300, 7)), 1e-5
    problem.gradient_(w, batch, out=out)
    for k in range(12):
        e = h * np.eye(12)[k]
        slope = (
            problem.gradient_(w + e, batch, out=unused)
            - problem.gradient_(w - e, batch, out=unused)
        ) / (2 * h)
        assert out[k] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_loss_and_gradient_by_hand():
    x, y = np.array([[1, 0], [2, 1]], np.float32), np.array([1, -1], np.float32)
    problem, out = Logistic(dataset(x, y), 0.5), np.empty(2, np.float32)
    batch = problem.fetch(slice(0, 2))
    # w = 0: both losses are log 2, both slopes ½
    assert problem.gradient_(np.zeros(2, np.float32), batch, out=out) == pytest.approx(
        np.log(2), rel=1e-6
    )
    np.testing.assert_allclose(out, [0.5 * (-0.5 * 1 + 0.5 * 2), 0.5 * 0.5], rtol=1e-6)
    # w = (log 3, 0): losses log(1 + 1/3) and log(1 + 9), slopes ¼ and 9/10
    w = np.array([np.log(3), 0], np.float32)
    expected = (np.log(4 / 3) + np.log(10)) / 2 + 0.25 * np.log(3) ** 2
    assert problem.gradient_(w, batch, out=out) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(out, [(-0.25 + 1.8) / 2 + 0.5 * np.log(3), 0.45], rtol=1e-6)


def test_slopes_keep_their_relative_precision_over_all_margins():
    """One row of x = 1 a batch, so the gradient is −y σ(−m); float32 has room for it down to m =
    80.
    """
    x, y = np.ones((1, 1), np.float32), np.ones(1, np.float32)
    problem, out = Logistic(dataset(x, y), 0.0), np.empty(1, np.float32)
    for m in np.linspace(-80, 80, 641, dtype=np.float32):
        loss = problem.gradient_(np.array([m]), problem.fetch(slice(0, 1)), out=out)
        assert out[0] == pytest.approx(-1 / (1 + np.exp(float(m))), rel=2e-6)
        assert float(loss) == pytest.approx(np.log1p(np.exp(-float(m))), rel=2e-6)


def test_far_margins_have_their_exact_limits():
    """At |z| = 1e4 a wrong row costs 1e4 and pulls with slope 1, a right one costs and pulls
    nothing.
    """
    x = np.array([[100, 1], [100, 2], [-100, 4], [-100, 8]], np.float32)
    y = np.array([1, -1, 1, -1], np.float32)  # right, wrong, wrong, right
    w, out = np.array([100, 0], np.float32), np.empty(2, np.float32)
    problem = Logistic(dataset(x, y), 0.0)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert problem.gradient_(w, problem.fetch(slice(0, 4)), out=out) == 5000
        assert out.tolist() == [(100 - -100) / 4, (2 - 4) / 4]
        assert problem.gradient_(w, problem.fetch(np.array([0, 3])), out=out) == 0
        assert out.tolist() == [0, 0]
        loss, right, total = problem.sums(w, problem.data.train, 0, 4, gradient=True)
    assert (loss, right, total.tolist()) == (20000, 2, [200, -2])


def test_the_gradient_is_written_in_place_and_nothing_else_changes():
    x, y, w = examples()
    x_before, y_before, w_before = x.copy(), y.copy(), w.copy()
    problem, g = (
        Logistic(dataset(x, y), 0.1),
        np.full((3, 12), 7, np.float32),
    )  # g: rows of three learners
    for batch in (slice(10, 90), np.arange(50)):
        problem.gradient_(w, problem.fetch(batch), out=g[1])
        np.testing.assert_allclose(g[1], gradient(w, x[batch], y[batch], 0.1), rtol=1e-5, atol=1e-6)
    assert (g[[0, 2]] == 7).all()
    assert (x == x_before).all() and (y == y_before).all() and (w == w_before).all()


def test_consecutive_rows_are_fetched_without_a_copy_and_others_into_one_buffer():
    x, y, _ = examples()
    problem = Logistic(dataset(x, y), 0.0)
    a, b = problem.fetch(slice(3, 9))
    assert np.shares_memory(a, x) and np.shares_memory(b, y)
    assert (a == x[3:9]).all() and (b == y[3:9]).all()
    first = problem.fetch(np.array([7, 0, 299]))
    assert (first[0] == x[[7, 0, 299]]).all() and (first[1] == y[[7, 0, 299]]).all()
    second = problem.fetch(np.array([1, 1, 2]))
    assert second[0] is first[0] and second[1] is first[1]
    assert (second[0] == x[[1, 1, 2]]).all() and (second[1] == y[[1, 1, 2]]).all()
    assert not np.shares_memory(second[0], x)
    shorter = problem.fetch(np.array([4]))
    assert (shorter[0] == x[[4]]).all() and shorter[1] == y[4]


def test_training_starts_at_zero():
    x, y, w = examples()
    problem = Logistic(dataset(x, y), 0.1)
    assert problem.shapes == {"weights": (12,)} and (problem.n, problem.d) == (300, 12)
    problem.initial_(w)
    assert not w.any()


def test_data_of_another_kind_is_refused():
    x, y, _ = examples()
    with pytest.raises(
        UserError,
        match=r"`data = made up`: logistic regression needs a feature matrix .* not images",
    ):
        Logistic(dataset(x, y, kind="images"), 0.1)


# ---------------------------------------------------------------------------------------------- eva


@pytest.mark.parametrize(
    ("lo", "hi"), [(0, 300), (0, 1), (63, 65), (64, 128), (299, 300), (10, 10), (37, 251)]
)
def test_sums_over_any_part(lo, hi, monkeypatch):
    monkeypatch.setattr(logistic, "ROWS", 64)
    x, y, w = examples()
    problem = Logistic(dataset(x, y), 0.7)  # the regulariser is left out
    loss, right, total = problem.sums(w, problem.data.train, lo, hi, gradient=True)
    a, b = x[lo:hi], y[lo:hi]
    assert loss == pytest.approx(losses(w, a, b).sum(), rel=1e-6)
    assert right == sum((a.astype(float) @ w >= 0) == (b > 0))
    np.testing.assert_allclose(
        total, gradient(w, a, b, 0) * len(b) if hi > lo else np.zeros(12), rtol=1e-5, atol=1e-5
    )
    assert total.dtype == np.float64 and isinstance(loss, float) and isinstance(right, int)
    assert problem.sums(w, problem.data.train, lo, hi) == (loss, right, None)


def test_sums_of_another_split_are_over_its_rows():
    x, y, w = examples()
    other = Split(x[::-3].copy(), y[::-3].copy())
    problem = Logistic(dataset(x, y, test=other), 0.0)
    assert problem.sums(w, problem.data.test, 0, 100)[0] == pytest.approx(
        losses(w, other.x, other.y).sum(), rel=1e-6
    )


def test_sums_are_kept_in_float64():
    """A loss of 1e4 and 4095 of 1e-4: in float32, whose step at 1e4 is 1e-3, much of the small ones
    would be lost.
    """
    x, y, w = (
        np.full((4096, 1), 9.21, np.float32),
        np.ones(4096, np.float32),
        np.ones(1, np.float32),
    )
    x[1000] = -1e4
    loss, right, _ = Logistic(dataset(x, y), 0.0).sums(w, Split(x, y), 0, 4096)
    assert (
        loss == pytest.approx(1e4 + 4095 * losses(w, x[:1], y[:1])[0], rel=2e-10) and right == 4095
    )


def test_accuracy_counts_the_sign_of_the_score():
    x = np.array([[2], [1], [-1], [-3], [0], [0], [0]], np.float32)
    y = np.array(
        [1, -1, 1, -1, 1, 1, -1], np.float32
    )  # right, wrong, wrong, right; a score of 0 says +1
    problem = Logistic(dataset(x, y), 0.0)
    assert problem.sums(np.array([1], np.float32), problem.data.train, 0, 7)[1] == 4
    assert problem.sums(np.array([-1], np.float32), problem.data.train, 0, 4)[1] == 2


def test_the_full_gradient_and_regulariser_make_the_objectives():
    x, y, w = examples()
    problem = Logistic(dataset(x, y), 0.2)
    loss, _, total = problem.sums(w, problem.data.train, 0, 300, gradient=True)
    assert loss / 300 + problem.regulariser(w) == pytest.approx(objective(w, x, y, 0.2), rel=1e-6)
    np.testing.assert_allclose(total / 300 + 0.2 * w, gradient(w, x, y, 0.2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2", [0.0, 0.25])
@pytest.mark.parametrize("spread", ["one feature leads", "slow decay", "all alike"])
def test_smoothness_is_a_quarter_of_the_largest_eigenvalue(spread, l2, monkeypatch):
    monkeypatch.setattr(logistic, "ROWS", 64)
    rng = np.random.default_rng(0)
    scale = {
        "one feature leads": [9] + 19 * [1],
        "slow decay": 0.8 ** np.arange(20),
        "all alike": np.ones(20),
    }[spread]
    x = (rng.normal(size=(500, 20)) * scale).astype(np.float32)
    problem = Logistic(dataset(x, np.ones(500, np.float32)), l2)
    top = np.linalg.eigvalsh(x.astype(float).T @ x)[-1] / (4 * 500) + l2
    assert problem.smoothness() == pytest.approx(top, rel=1e-4)
    assert problem.smoothness(tolerance=1e-7) == pytest.approx(top, rel=1e-6)


def test_smoothness_of_one_feature_and_of_many_alike():
    x, rng = np.float32([[3], [4]]), np.random.default_rng(1)
    assert Logistic(dataset(x, np.ones(2, np.float32)), 0.5).smoothness() == pytest.approx(
        25 / 8 + 0.5
    )
    x = rng.normal(size=(2000, 300)).astype(
        np.float32
    )  # eigenvalues close together: where power iteration stops early
    top = np.linalg.eigvalsh(x.astype(float).T @ x)[-1] / (4 * 2000)
    assert Logistic(dataset(x, np.ones(2000, np.float32)), 0.0).smoothness() == pytest.approx(
        top, rel=1e-4
    )


@pytest.mark.parametrize("far", [0, 1, 50])
def test_the_variance_of_one_examples_gradient(far, monkeypatch):
    """(1/n) Σ ‖∇f_i − ∇F‖², the same with and without the regulariser, which is in every f_i."""
    monkeypatch.setattr(logistic, "ROWS", 64)
    x, y, w = examples()
    w *= far
    each = np.array([gradient(w, x[i : i + 1], y[i : i + 1], 0.3) for i in range(300)])  # [n, d]
    expected = ((each - each.mean(axis=0)) ** 2).sum() / 300
    for l2 in (0.0, 0.3):
        assert Logistic(dataset(x, y), l2).gradient_variance(w) == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------- another arra


class DeviceArray:
    """An array that lives elsewhere, as CuPy's do: it mixes with its like and with scalars, and
    never with NumPy's.
    """

    # NumPy's functions refuse it, and its arrays leave `array + this` to the methods below
    __array_ufunc__ = None

    def __init__(self, host):
        self.host = np.asarray(host)
        self.shape, self.dtype = self.host.shape, self.host.dtype

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to NumPy")

    __cuda_array_interface__ = None  # by which it is known for what it is

    def get(self):
        return self.host.copy()

    def __array_function__(self, *args, **kwargs):
        raise TypeError("a NumPy function on a device array")

    def __len__(self):
        return len(self.host)

    def __getitem__(self, index):
        return DeviceArray(self.host[inside(index)])

    def __setitem__(self, index, value):
        self.host[inside(index)] = inside(value)

    def __float__(self):
        return float(self.host)

    def __int__(self):
        return int(self.host)

    def __bool__(self):
        return bool(self.host)

    def __neg__(self):
        return DeviceArray(-self.host)

    def sum(self, *args, **kwargs):
        return DeviceArray(self.host.sum(*args, **kwargs))

    def mean(self, *args, **kwargs):
        return DeviceArray(self.host.mean(*args, **kwargs))

    def astype(self, dtype):
        return DeviceArray(self.host.astype(dtype))


def inside(x):
    """The NumPy array of a device array; scalars and slices as they are; TypeError for a NumPy
    array.
    """
    if isinstance(x, DeviceArray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError("a NumPy array among device arrays")
    return x


def give_operators():
    """Give DeviceArray its arithmetic: binary, reflected and in place."""

    def binary(function):
        return lambda self, other: DeviceArray(function(self.host, inside(other)))

    def reflected(function):
        return lambda self, other: DeviceArray(function(inside(other), self.host))

    def in_place(function):
        def method(self, other):
            self.host = function(self.host, inside(other))
            return self

        return method

    for name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
        setattr(DeviceArray, f"__{name}__", binary(getattr(operator, name)))
        setattr(DeviceArray, f"__r{name}__", reflected(getattr(operator, name)))
        setattr(DeviceArray, f"__i{name}__", in_place(getattr(operator, f"i{name}")))
    for name in ("lt", "le", "eq", "ne", "gt", "ge"):
        setattr(DeviceArray, f"__{name}__", binary(getattr(operator, name)))


give_operators()


class Device:
    """Stands in for the module `cupy`: NumPy's ufuncs on device arrays, and functions with CuPy's
    signatures.
    """

    def __getattr__(self, name):
        function = getattr(np, name)
        if not isinstance(function, np.ufunc):
            raise AttributeError(name)

        def call(*args, out=None):
            assert out is None or isinstance(out, DeviceArray)
            result = function(*map(inside, args), out=None if out is None else out.host)
            return DeviceArray(result) if out is None else out

        return call

    @staticmethod
    def asarray(x, dtype=None):
        return DeviceArray(np.array(x.host if isinstance(x, DeviceArray) else x, dtype))

    @staticmethod
    def dot(a, b, out):
        np.dot(a.host, b.host, out.host)

    @staticmethod
    def einsum(subscripts, *arrays):
        return DeviceArray(np.einsum(subscripts, *map(inside, arrays)))

    @staticmethod
    def empty(shape, dtype=float):
        return DeviceArray(np.full(shape, np.nan, dtype))

    @staticmethod
    def zeros(shape, dtype=float):
        return DeviceArray(np.zeros(shape, dtype))

    @staticmethod
    def take(a, indices, axis=None, out=None):  # no modes; indices may be NumPy's
        rows = indices.host if isinstance(indices, DeviceArray) else indices
        result = np.take(a.host, rows, axis)
        if out is None:
            return DeviceArray(result)
        assert (out.shape, out.dtype) == (result.shape, result.dtype)
        out.host[...] = result
        return out


def on_both(l2=0.2):
    """The same problem in NumPy and on the device, with weights for each."""
    x, y, w = examples()
    x *= 3
    device = Logistic(dataset(x, y, wrap=lambda a: DeviceArray(a.copy())), l2, xp=Device())
    return SimpleNamespace(
        host=Logistic(dataset(x, y), l2), device=device, w=w, w_device=DeviceArray(w.copy())
    )


@pytest.mark.parametrize(
    "misuse",
    [
        np.negative,
        np.asarray,
        np.zeros_like,
        np.sum,
        lambda a: np.take(a, [0]),
        lambda a: np.matmul(a, a),
        lambda a: a + np.ones(3),
        lambda a: np.ones(3) @ a,
        lambda a: a.__iadd__(np.ones(3)),
        lambda a: Device().logaddexp(a, np.zeros(3)),
        lambda a: np.add(np.ones(3), 1, out=a),
        lambda a: a[np.array([0])],
    ],
)
def test_the_stand_in_for_a_device_takes_no_numpy_arrays(misuse):
    with pytest.raises(TypeError):
        misuse(DeviceArray(np.ones(3)))


def test_consecutive_rows_give_the_same_gradient_on_the_device():
    case, out, out_device = (
        on_both(),
        np.empty(12, np.float32),
        DeviceArray(np.empty(12, np.float32)),
    )
    memory = out_device.host
    loss = case.host.gradient_(case.w, case.host.fetch(slice(20, 84)), out=out)
    on_device = case.device.gradient_(
        case.w_device, case.device.fetch(slice(20, 84)), out=out_device
    )
    assert float(on_device) == float(loss)
    assert out_device.host is memory and (memory == out).all()


def test_gathered_rows_are_the_same_on_the_device():
    case, rows = on_both(), np.array([3, 299, 0, 3])
    for _ in range(2):
        x, y = case.device.fetch(rows)
        assert isinstance(x, DeviceArray) and isinstance(y, DeviceArray)
        assert (x.host == case.host.x[rows]).all() and (y.host == case.host.y[rows]).all()


def test_evaluation_is_the_same_on_the_device(monkeypatch):
    monkeypatch.setattr(logistic, "ROWS", 64)
    case = on_both()
    loss, right, total = case.host.sums(case.w, case.host.data.train, 5, 290, gradient=True)
    on_device = case.device.sums(case.w_device, case.device.data.train, 5, 290, gradient=True)
    assert on_device[:2] == (loss, right) and (on_device[2].host == total).all()
    assert case.device.regulariser(case.w_device) == case.host.regulariser(case.w)


def test_start_and_constants_are_the_same_on_the_device():
    case = on_both()
    for w in (case.w, case.w_device):
        assert float(case.device.gradient_variance(w)) == case.host.gradient_variance(case.w)
    case.device.initial_(case.w_device)
    assert not case.w_device.host.any()
    assert case.device.smoothness() == pytest.approx(case.host.smoothness(), rel=1e-4)
