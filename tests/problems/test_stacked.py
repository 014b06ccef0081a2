"""The engine `batch` of logistic regression gives the gradients of `loop`, on the host and on a
stand-in for CuPy that works only when somebody waits for it.
"""

import subprocess
import sys
import threading

import numpy as np
import pytest
import stand_in
from mpi4py import MPI
from test_logistic import dataset, examples

from localavg.config import TrainConfig
from localavg.errors import UserError
from localavg.files import record
from localavg.learner.sampling import SAMPLERS, Block
from localavg.learner.sampling import make as sampling_of
from localavg.parallel.device import numbers
from localavg.problems import row_numbers
from localavg.problems.engines import memory
from localavg.problems.engines.choose import make
from localavg.problems.engines.stacked import Stacked
from localavg.problems.logistic import Logistic
from localavg.problems.row_numbers import HostRows

N, D, B, P, L2, T = 83, 12, 5, 9, 0.3, 40
PLACES = ["host", "device"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Windows of 4 updates on the device, and of 8 in the samplers."""
    monkeypatch.setattr(row_numbers, "WINDOW", 4)
    for sampler in SAMPLERS.values():
        monkeypatch.setattr(sampler, "length", 8, raising=False)


def problem(place="host", d=D, l2=L2, n=N):
    x, y, _ = examples(n, d)
    if place == "host":
        return Logistic(dataset(x, y), l2)
    return Logistic(dataset(x, y, wrap=stand_in.asarray), l2, stand_in)


def weights(L, d=D):
    """Other rows for every learner, with margins of some units."""
    return np.random.default_rng(L).normal(size=(L, d)).astype(np.float32)


def engine(name, p, learners=range(3), sampling="iid", B=B, size=None):
    sampler = SAMPLERS[sampling](p.n, P, B, 5)
    made = make(name, p, p.feed(sampler, learners, T), learners)
    if size:
        made.size = size
    return made


def gradients(name, p, w, ts=(1,), **how):
    """(losses, gradients) [ts, L, …] of updates ts at w; nobody waits for the device before."""
    e, losses, results = engine(name, p, **how), [], []
    device = p.xp is not np
    w = stand_in.asarray(w) if device else w
    for t in ts:
        g = p.xp.empty(w.shape, np.float32)
        losses += e.gradients_(w, t, g)
        results.append(g)
    losses = numbers(losses)
    p.close()
    found = np.array([g.get() if device else g for g in results])
    return losses.reshape(len(ts), -1), found


def apart(a, b):
    """The largest difference of a learner's gradient, in units of its largest entry."""
    return (np.abs(a - b).max(-1) / np.abs(b).max(-1)).max()


def same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    return apart(found[1], expected[1]) < 1e-5


# ------------------------------------------------------------------------------------ equal to loop


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("L", [1, 3, 8])
@pytest.mark.parametrize("sampling", SAMPLERS)
def test_losses_and_gradients_are_those_of_one_learner_after_the_other(sampling, L, place):
    """Across windows, for learners that are not the first; swapped rows are not the same."""
    how, w, ts = {"sampling": sampling, "learners": range(1, L + 1)}, weights(L), range(1, 22)
    loop = gradients("loop", problem(), w, ts, **how)
    batch = gradients("batch", problem(place), w, ts, **how)
    assert same(batch, loop)
    if L > 1:
        swapped = w[::-1].copy()
        assert apart(gradients("batch", problem(place), swapped, ts, **how)[1], loop[1]) > 0.1
    assert apart(batch[1][1:], loop[1][:-1]) > 0.1  # each update has batches of its own


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("d", "B"), [(1, 1), (7, 1), (1, 9), (300, 2)])
def test_shapes_with_shortcuts(d, B, place):
    w = weights(3, d)
    loop = gradients("loop", problem(d=d), w, B=B)
    assert same(gradients("batch", problem(place, d=d), w, B=B), loop)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("sampling", ["block", "shard"])
def test_a_batch_of_everything_is_in_the_stored_order(sampling, place):
    p, host = problem(place, n=27), problem(n=27)
    B = 27 if sampling == "block" else 3
    how = {"sampling": sampling, "B": B, "ts": range(1, 12), "w": weights(3)}
    assert same(gradients("batch", p, **how), gradients("loop", host, **how))


@pytest.mark.parametrize("sampling", [*SAMPLERS, "shards:1", "dirichlet-class:5"])
def test_tables_of_row_numbers_are_the_batches(sampling):
    """Blocks that go round at the end too."""
    y = np.arange(4 * N) // 29
    one, other = (sampling_of(sampling, 4 * N, P, B, 1, y) for _ in range(2))
    went_round = False
    for j in (0, 8):
        for window in range(6):
            table = one.table(j, window)
            assert table.shape == (one.length, B)
            for rows, batch in zip(table, other.draw(j, window), strict=True):
                went_round |= rows[-1] < rows[0]
                assert (rows == (np.r_[batch] if isinstance(batch, slice) else batch)).all()
    assert went_round or sampling != "block"


@pytest.mark.parametrize("place", PLACES)
def test_the_ends_of_floating_point(place):
    """Losses of margins up to 1e4, and slopes that fade out, to float64."""
    m = np.array([-1e4, -100, -20, -1, -1e-3, 0, 1e-3, 1, 14, 15.5, 17, 20, 80, 1e4], np.float32)
    x, y = np.ones((1, 1), np.float32), np.ones(1, np.float32)
    wrap = stand_in.asarray if place == "device" else np.asarray
    p = Logistic(dataset(x, y, wrap=wrap), 0.0, stand_in if place == "device" else np)
    how = {"learners": range(len(m)), "B": 1, "sampling": "block"}
    losses, g = gradients("batch", p, m[:, None], **how)
    m = m.astype(np.float64)
    np.testing.assert_allclose(losses[0], np.logaddexp(0, -m), rtol=2e-6, atol=1e-36)
    np.testing.assert_allclose(g[0, :, 0], -np.exp(-np.logaddexp(0, m)), rtol=2e-6, atol=1e-36)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_chunks_change_only_rounding(size, place):
    w, ts, how = weights(8), (1, 2, 30), {"learners": range(8)}
    whole = gradients("batch", problem(place), w, ts, size=8, **how)
    parts = gradients("batch", problem(place), w, ts, size=size, **how)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
    assert apart(parts[1], whole[1]) < 1e-6


@pytest.mark.parametrize("place", PLACES)
def test_two_runs_and_a_run_that_starts_at_t_have_the_same_bits(place):
    w = weights(3)
    one, other = (gradients("batch", problem(place), w, range(1, 24)) for _ in range(2))
    resumed = gradients("batch", problem(place), w, range(14, 24))
    for a, b, c in zip(one, other, resumed, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a[13:], c)


def test_a_float64_problem_has_float64_gradients():
    x, y, _ = examples(dtype=np.float64)
    p, w = Logistic(dataset(x, y), 0.1), weights(3).astype(np.float64)
    g, out = np.empty_like(w), np.empty_like(w)
    engine("loop", p).gradients_(w, 1, g)
    engine("batch", p).gradients_(w, 1, out)
    np.testing.assert_allclose(out, g, rtol=1e-12)


# -------------------------------------------------------------------------------------- on a device


def queued(L, ts=(2,), size=None):
    """What a step of update 2 queues and waits for."""
    p = problem("device")
    e = engine("batch", p, range(L), size=size)
    w, g = stand_in.asarray(weights(L)), stand_in.empty((L, D), np.float32)
    e.gradients_(w, 1, g)
    stand_in.log.clear()
    for t in ts:
        losses = e.gradients_(w, t, g)
    log = [what for _, what in stand_in.log]
    assert len(losses) == 1 and len(losses[0]) == L
    p.close()
    return log


def test_a_step_has_as_many_kernels_for_eight_learners_as_for_one():
    """And waits for nothing."""
    log = queued(1)
    assert log == queued(8) == queued(8, size=8)
    assert len(log) == 7 and "synchronize" not in log
    assert len(queued(8, size=4)) == 14


def test_row_numbers_travel_in_one_copy_a_window():
    log = queued(3, ts=range(2, 13))
    assert len([what for what in log if what.startswith("copy")]) == 2
    assert f"copy {4 * 3 * B * 4}" in log


@pytest.mark.parametrize("broken", [False, True])
def test_pinned_memory_is_written_again_only_when_it_was_copied(broken, monkeypatch):
    """The device is as late as it can be: it works only when the thread or the end waits."""
    if broken:
        monkeypatch.setattr(stand_in.Event, "synchronize", lambda self: None)
    w, ts = weights(3), range(1, T + 1)
    loop = gradients("loop", problem(), w, ts)
    batch = gradients("batch", problem("device"), w, ts)
    assert (apart(batch[1], loop[1]) < 1e-5) != broken


def windows():
    return {thread for thread in threading.enumerate() if thread.name.startswith("windows")}


def test_the_thread_ends_with_the_problem_or_the_next_feed():
    before, p = windows(), problem("device")  # a test before may have left its own
    w, g = stand_in.asarray(weights(3)), stand_in.empty((3, D), np.float32)
    for _ in range(2):
        engine("batch", p).gradients_(w, 1, g)
        assert len(windows() - before) == 1
    p.close()
    p.close()
    assert windows() <= before


def test_an_error_of_the_thread_reaches_the_caller_and_the_next_try_works(monkeypatch):
    w, table, failed = weights(3), SAMPLERS["iid"].table, []

    def failing(self, j, window):
        if window == 1 and not failed:
            failed.append(1)
            raise RuntimeError("no rows")
        return table(self, j, window)

    expected = gradients("batch", problem("device"), w, (9,))
    p = problem("device")
    e, g = engine("batch", p), stand_in.empty((3, D), np.float32)
    monkeypatch.setattr(SAMPLERS["iid"], "table", failing)
    with pytest.raises(RuntimeError, match="no rows"):
        e.gradients_(stand_in.asarray(w), 9, g)
    e.gradients_(stand_in.asarray(w), 9, g)
    assert np.array_equal(g.get(), expected[1][0])
    p.close()


def test_vectors_and_scalars_become_numbers_in_their_order():
    vector = stand_in.asarray(np.array([1, 2], np.float32))
    values = [0.5, vector, stand_in.asarray(np.float32(3)), 4, vector]
    assert numbers(values).tolist() == [0.5, 1, 2, 3, 4, 1, 2]


# ------------------------------------------------------------------------------------ memory, names


@pytest.mark.parametrize("place", PLACES)
def test_a_mini_batch_that_does_not_fit_is_one_clear_line(place, monkeypatch):
    each = B * D * 4
    for name in ("host_free_bytes", "array_free_bytes"):
        monkeypatch.setattr(memory, name, lambda *args: each)
    with pytest.raises(UserError, match=rf"^`engine = batch`: .*use `batch_size = {B - 1}`$"):
        engine("batch", problem(place))
    for name in ("host_free_bytes", "array_free_bytes"):
        monkeypatch.setattr(memory, name, lambda *args: 5 * each)
    assert engine("batch", problem(place), range(8)).size == 4  # of 5 · 0.8


def test_memory_that_is_used_up_later_is_one_clear_line(monkeypatch):
    p = problem()
    e = engine("batch", p)
    monkeypatch.setattr(e, "_allocated", lambda: np.empty(1 << 50))
    with pytest.raises(UserError, match=r"memory is used up.*`engine = loop`"):
        e.gradients_(weights(3), 1, np.empty((3, D), np.float32))


def test_more_rows_than_int32_can_number_are_refused():
    with pytest.raises(UserError, match="use `engine = loop`"):
        HostRows(Block(2**31, 1, 1, 0), range(1))


def test_the_sampler_of_the_caller_is_not_used_by_the_thread():
    p = problem("device")
    sampler = SAMPLERS["shuffle"](N, P, B, 5)
    e = make("batch", p, p.feed(sampler, range(3), T), range(3))
    e.gradients_(stand_in.asarray(weights(3)), 1, stand_in.empty((3, D), np.float32))
    p.close()
    assert sampler._drawn == {} and sampler._order is None


def test_it_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import localavg.problems.logistic"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_is_that_of_loop_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    from localavg.training import build
    from localavg.training.run import run

    def trained(name, engine, stop=None, **more):
        c = TrainConfig(
            algorithm="kavg", options={"K": 3}, data="epsilon-like:300x9", learners=4, steps=20,
            batch_size=4, lr=0.5, checkpoint_every="6", save_weights=True, engine=engine,
            out=str(tmp_path / f"{name}.h5"), **more,
        )  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(build.stepsizes, "make", lambda *_: lambda t: 0.5 if t != stop else 1 / 0)
            if stop is None:
                run(c, MPI.COMM_SELF)
            else:
                with pytest.raises(ZeroDivisionError):
                    run(c, MPI.COMM_SELF)
        return record.load(tmp_path / f"{name}.h5")

    loop, batch = trained("loop", "loop"), trained("batch", "batch")
    trained("stopped", "batch", stop=15)
    one = 4 * 9 * 4  # bytes of a learner's rows
    monkeypatch.setattr(memory, "host_free_bytes", lambda: 2 * one)
    sizes, on_host_ = set(), Stacked._on_host_

    def looking(self, w, *others):
        sizes.add(len(w))
        on_host_(self, w, *others)

    monkeypatch.setattr(Stacked, "_on_host_", looking)
    resumed = trained("stopped", "batch", resume=True)
    assert sizes == {4}  # the chunk of the run that was stopped
    assert batch.provenance["engine"] == "batch"
    np.testing.assert_allclose(batch.weights, loop.weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(batch.train.loss, loop.train.loss, rtol=1e-5)
    assert np.array_equal(batch.weights, resumed.weights)
    assert batch.train.loss.tolist() == resumed.train.loss.tolist()
