"""`localavg theory`: the constants of a problem against brute force, and what the command
prints.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from mpi import alone

from localavg.cli.theory import command
from localavg.cli.theory.runs import innermost, measured
from localavg.datasets import Dataset, Split
from localavg.errors import UserError
from localavg.files.record import Record, load
from localavg.problems.constants import logistic_constants, sampled_constants
from localavg.problems.logistic import Logistic

LAMBDA = 0.01


def test_a_log_without_data_is_one_line_before_any_is_made(tmp_path):
    config = {"algorithm": "kavg", "problem": "network", "model": "Net", "seed": 0, "batch_size": 8}
    Record.create(tmp_path / "log.h5", config, {}).finish("finished")
    run = load(tmp_path / "log.h5")
    with pytest.raises(UserError) as e:
        measured([run], None, 0.5)
    assert "log.h5: its /config does not say data, l2, as in a log of" in str(e.value)


@pytest.fixture(scope="module")
def problem():
    """A small ill-conditioned problem whose classes overlap."""
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((500, 12)) * np.linspace(0.2, 2, 12)).astype(np.float32)  # [n, d]
    y = np.where(x @ rng.standard_normal(12) + rng.standard_normal(500) > 0, 1, -1).astype(
        np.float32
    )  # [n]
    return Logistic(Dataset("small", "features", Split(x, y), None, (-1, 1), True), LAMBDA)


def gradients(problem, w):
    """∇f_i(w) of every example, [n, d] float64, from the definition."""
    x, y = problem.x.astype(float), problem.y.astype(float)
    return -(y / (1 + np.exp(y * (x @ w))))[:, None] * x + LAMBDA * w


def objective(problem, w):
    """F(w), float64, from the definition."""
    x, y = problem.x.astype(float), problem.y.astype(float)
    return np.mean(np.log(1 + np.exp(-y * (x @ w)))) + LAMBDA / 2 * (w @ w)


def minimiser(problem):
    """w* by Newton's method."""
    x, y, w = problem.x.astype(float), problem.y.astype(float), np.zeros(problem.d)
    for _ in range(50):
        s = 1 / (1 + np.exp(y * (x @ w)))
        hessian = (x * (s * (1 - s))[:, None]).T @ x / len(y) + LAMBDA * np.eye(problem.d)
        w = w - np.linalg.solve(hessian, gradients(problem, w).mean(0))
    return w


def test_constants_are_those_of_the_problem(problem):
    best = minimiser(problem)
    c, found = logistic_constants(problem, [], delta=0.5)
    x = problem.x.astype(float)
    assert c.L == pytest.approx(np.linalg.eigvalsh(x.T @ x)[-1] / (4 * len(x)) + LAMBDA, rel=5e-3)
    assert found["Fstar"] == pytest.approx(objective(problem, best), abs=2e-6)
    assert found["gap"] < 1e-5
    assert c.F1_minus_Fstar == pytest.approx(np.log(2) - objective(problem, best), abs=2e-6)
    at = [gradients(problem, w) for w in (np.zeros(problem.d), best)]
    assert c.M == pytest.approx(max(g.var(axis=0).sum() for g in at), rel=1e-4)
    assert c.G2_max == pytest.approx(max((g.mean(axis=0) ** 2).sum() for g in at), rel=1e-4)
    assert c.mu_PL == LAMBDA


def test_weights_that_a_run_visited_raise_the_gradients_bounds(problem):
    far = np.full(problem.d, -3.0, np.float32)
    c, _ = logistic_constants(problem, [far], delta=0.5)
    g = gradients(problem, far.astype(float))
    assert c.M == pytest.approx(g.var(axis=0).sum(), rel=1e-4)
    assert c.G2_max == pytest.approx((g.mean(axis=0) ** 2).sum(), rel=1e-4)


def test_sampling_finds_the_constants_of_a_problem_that_is_known(problem):
    """Batches of every fifth row of logistic regression: M to the error of 100 batches, L to that
    of the power iteration.
    """
    batches = [np.arange(i, i + 5) for i in range(0, 500, 5)]

    def gradient(w, rows):
        each, x, y = (
            gradients(problem, w)[rows],
            problem.x[rows].astype(float),
            problem.y[rows].astype(float),
        )
        return np.mean(np.log(1 + np.exp(-y * (x @ w)))) + LAMBDA / 2 * (w @ w), each.mean(axis=0)

    start = np.zeros(problem.d)
    c = sampled_constants(gradient, [start, minimiser(problem)], batches, B=5, Fstar=0.25)
    x = problem.x.astype(float)
    assert c.L == pytest.approx(
        np.linalg.eigvalsh(x.T @ x)[-1] / (4 * len(x)) + LAMBDA, rel=5e-3
    )  # the curvature at 0
    assert c.M == pytest.approx(gradients(problem, start).var(axis=0).sum(), rel=0.15)
    assert c.G2 == pytest.approx((gradients(problem, start).mean(axis=0) ** 2).sum(), rel=1e-6)
    assert c.F1_minus_Fstar == pytest.approx(np.log(2) - 0.25, rel=1e-9)


def test_sampling_finds_the_curvature_of_a_network():
    """Against the Hessian of a small network with a smooth activation, written out by torch."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 2, (40,))
    d = 3 * 4 + 4 * 2

    def loss(w, rows):
        hidden = torch.tanh(x[rows] @ w[:12].reshape(3, 4))
        return torch.nn.functional.cross_entropy(hidden @ w[12:].reshape(4, 2), y[rows])

    def gradient(w, rows):
        w = torch.tensor(w, requires_grad=True)
        value = loss(w, rows)
        return float(value.detach()), torch.autograd.grad(value, w)[0].numpy()

    w = torch.randn(d, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda w: loss(w, slice(None)), w)
    batches = [slice(i, i + 10) for i in range(0, 40, 10)]
    c = sampled_constants(gradient, [w.numpy()], batches, B=10, turns=100)
    assert c.L == pytest.approx(float(torch.linalg.eigvalsh(hessian).abs().max()), rel=1e-2)


def test_tables_and_predictions_are_printed():
    done = alone(
        "theory",
        "--F1-minus-Fstar",
        2.3,
        "--L",
        10,
        "--M",
        100,
        "--gamma",
        0.01,
        "--batch-size",
        128,
        "--steps",
        21875,
        "--P",
        5,
        "--mu-PL",
        0.1,
    )
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout
        for word in ("K-AVG", "M-AVG", "Hier-AVG", "LUPA", "predicted for P = 5", "that fail there")
    )
    assert done.stdout.count("no rows") == 2 and "4 divides none of --P" in done.stdout
    tau = next(line.split() for line in done.stdout.splitlines() if line.startswith("tau "))
    assert tau == ["tau", "91"]  # lupa §6


def test_a_missing_constant_is_named():
    done = alone("theory", "--L", 10, "--M", 100)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "localavg: theory needs --F1-minus-Fstar, --gamma, --batch-size, --steps"
    )


def test_predictions_from_a_run(tmp_path):
    """B, P, γ and T are the run's, the constants its problem's."""
    out = tmp_path / "run.h5"
    assert (
        alone(
            "train",
            "kavg",
            "--K",
            4,
            "--learners",
            2,
            "--data",
            "epsilon-like:2000x20",
            "--steps",
            60,
            "--batch-size",
            8,
            "--lr",
            0.5,
            "--l2",
            0.001,
            "--save-weights",
            "--out",
            out,
        ).returncode
        == 0
    )
    done = alone("theory", "--from-run", out, "--tables", "none")
    assert done.returncode == 0, done.stderr
    lines = {
        line.split()[0]: line.split()[-1]
        for line in done.stdout.splitlines()
        if len(line.split()) == 2
    }
    assert lines["tau"] == str(round(60 ** (2 / 3) / 16 ** (1 / 3)))
    assert float(lines["mu_PL"]) == 0.001


@pytest.mark.parametrize(
    ("config", "what"),
    [
        *(({"algorithm": name}, name) for name in ("qsr", "adacomm", "diloco", "slowmo", "qsgd")),
        ({"algorithm": "postlocal", "switch": 0.5}, "postlocal"),
        ({"algorithm": "kavg", "outer": "adam"}, "kavg --outer adam"),
        ({"algorithm": "hieravg", "switch": 2.0}, "hieravg --switch"),
        ({"algorithm": "kavg", "wire": "int8", "fragments": 2}, "kavg --wire int8 --fragments 2"),
        ({"algorithm": "kavg", "delay": 3, "wire": None}, "kavg --delay 3"),
        ({"algorithm": "mavg", "outer": "momentum"}, ""),
        *(({"algorithm": name, "outer": None, "switch": None}, "") for name in command.BOUNDED),
    ],
)
def test_a_run_whose_algorithm_has_no_bound_is_told(config, what, capsys):
    command._print_unbounded(SimpleNamespace(path="run.h5", config=config))
    said = capsys.readouterr().out
    assert said.startswith(f"run.h5: no bound of {what} here") if what else said == ""


def test_constants_of_a_network_are_sampled_from_its_run(tmp_path):
    out = tmp_path / "run.h5"
    assert (
        alone(
            "train",
            "kavg",
            "--K",
            4,
            "--learners",
            2,
            "--data",
            "digits",
            "--model",
            "mlp",
            "--steps",
            40,
            "--batch-size",
            16,
            "--lr",
            0.05,
            "--save-weights",
            "--out",
            out,
        ).returncode
        == 0
    )
    done = alone("theory", "--from-run", out, "--tables", "none")
    assert done.returncode == 0, done.stderr
    lines = {
        line.split()[0]: line.split()[-1]
        for line in done.stdout.splitlines()
        if len(line.split()) == 2
    }
    assert "mlp on digits, B = 16" in done.stdout and lines["weights"] == "2"
    assert (
        2 < float(lines["F1_minus_Fstar"]) < 5
        and float(lines["L"]) > 0.1
        and float(lines["M"]) > 0.1
    )
    assert int(lines["tau"]) == round(40 ** (2 / 3) / 32 ** (1 / 3))


def test_the_weighted_variance_takes_the_step_size_of_every_update(tmp_path):
    """Eq. (9) of adpsgd with γ as the schedule had it, though /train has few rows."""
    out = tmp_path / "run.h5"
    words = (
        "kavg --K 8 --learners 4 --data epsilon-like:2000x20 --steps 400 --batch-size 20 --lr 1 "
        "--lr-schedule steps "
        "--milestones 5 --log-every 400 --variance steps --out"
    )
    assert alone("train", *words.split(), out).returncode == 0
    done = alone("theory", "--from-run", out, "--tables", "none")
    assert done.returncode == 0, done.stderr
    printed = float(done.stdout.partition("weighted variance (9)")[2].splitlines()[2].split()[0])
    V = load(out).averages
    gamma = np.where(np.arange(1, 401) <= 125, 1.0, 0.1)  # 25 updates an epoch
    expected = float((gamma * np.repeat(V.mean_variance, V.period)).sum() / gamma.sum())
    assert printed == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "K1", "S"),
    [
        ({}, 1, 1),
        ({"K1": 4, "S": 2}, 4, 2),
        ({"K1": None, "S": None, "levels": "8:P"}, 1, 1),
        ({"K1": None, "S": None, "levels": "3:2,8:P"}, 3, 2),
        ({"K1": None, "S": None, "levels": "3:2,8:4,20:16"}, 3, 2),
    ],
)
def test_the_theory_takes_the_innermost_clusters_of_a_run_and_says_where_there_are_more(
    config, K1, S, capsys
):
    assert innermost(SimpleNamespace(config=config, path="run.h5")) == {"K1": K1, "S": S}
    said = capsys.readouterr().err
    more = "localavg: run.h5 has 2 levels of clusters, and the theory has one"
    assert said.startswith(more) if "20" in config.get("levels", "") else said == ""


@pytest.mark.parametrize("words", ["--gamma 0", "--gamma nan", "--steps 0", "--batch-size 0"])
def test_a_zero_is_refused_and_not_replaced_by_the_runs_value(words):
    done = alone("theory", "--from-run", "none.h5", *words.split())
    assert done.returncode == 2 and words.split()[0] in done.stderr
    assert done.stderr.count("\n") == 1
