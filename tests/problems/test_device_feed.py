"""Feeds on a GPU give the numbers of those on the CPU, drawn ahead by a thread; on a stand-in for
torch.cuda that keeps what is read and written, and after what.
"""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_stand_in import Event, Gpu, Stream
from mpi4py import MPI
from samples import Fixed, random_images

from localavg.config import TrainConfig
from localavg.datasets import Augment, Split
from localavg.errors import UserError
from localavg.learner.sampling import SAMPLERS
from localavg.parallel.fleet import Fleet
from localavg.problems import device_feed, feed, network
from localavg.problems.device_feed import DeviceFeed
from localavg.problems.device_jpegs import DeviceJpegFeed
from localavg.problems.feed import Feed
from localavg.problems.jpeg_feed import JpegFeed
from localavg.problems.network import Network

N, B, P, T = 50, 3, 5, 11
CHANGES = [Augment(), Augment(pad=2, flip=True), Augment(pad=1), Augment(flip=True)]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Windows of 4 updates, so that a run has three of them."""
    monkeypatch.setattr(device_feed, "WINDOW", 4)


@pytest.fixture
def gpu():
    with Gpu() as gpu:
        yield gpu


def images(change=CHANGES[1], shape=(6, 5, 3)):
    return random_images(shape, N, augment=change)


def sampler(name="iid"):
    return SAMPLERS[name](N, P, B, 7)


def pair(gpu, data=None, name="iid", learners=range(3), augment=True, own=None, T=T):
    """The feed on the GPU and the one on the CPU."""
    data = data or images()
    on_gpu = DeviceFeed(data, own or sampler(name), 7, learners, T, "cpu", augment, gpu)
    return on_gpu, Feed(data, own or sampler(name), 7, "cpu", augment)


def check(on_gpu, plain, t, learners=range(3)):
    x, y = on_gpu.step(learners, t)
    for l, j in enumerate(learners):
        expected_x, expected_y = plain(j, t)
        assert torch.equal(x[l], expected_x) and torch.equal(y[l], expected_y)
        assert x[l].stride() == expected_x.stride() and x.dtype == torch.float32


@pytest.mark.parametrize("learners", [range(1), range(2, 5)], ids=["1", "3"])
@pytest.mark.parametrize("change", CHANGES, ids=["none", "both", "pad", "flip"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_are_those_of_the_feed_on_the_cpu(name, change, learners, gpu):
    """Across windows, where a run resumes, and in any order."""
    data = images(change)
    on_gpu, plain = pair(gpu, data, name, learners)
    for t in range(1, T + 1):
        check(on_gpu, plain, t, learners)
    for t in (2, 11, 5, 5, 1):
        check(on_gpu, plain, t, learners)
    on_gpu.close()
    resumed, _ = pair(gpu, data, name, learners)
    for t in range(7, T + 1):
        check(resumed, plain, t, learners)
    resumed.close()
    assert gpu.races() == 0


@pytest.mark.parametrize("table", [True, False])
def test_batches_without_changes_may_be_normalised_before(table, gpu, monkeypatch):
    monkeypatch.setattr(feed, "TABLE_BYTES", feed.TABLE_BYTES if table else 0)
    on_gpu, plain = pair(gpu, augment=False)
    assert on_gpu._ready == table
    for t in range(1, T + 1):
        check(on_gpu, plain, t)
    on_gpu.close()


def test_a_batch_of_one_learner_is_its_part_of_the_step(gpu):
    on_gpu, plain = pair(gpu, learners=range(1, 3))
    for j, t in [(1, 1), (2, 1), (2, 5), (1, 5), (0, 5), (4, 9), (1, 9), (1, T + 3), (2, 4)]:
        for mine, theirs in zip(on_gpu(j, t), plain(j, t), strict=True):
            assert torch.equal(mine, theirs)
    x, _ = on_gpu.step(on_gpu.learners, 6)
    assert on_gpu(2, 6)[0].data_ptr() == x[1].data_ptr() == on_gpu.batches[0][1].data_ptr()
    on_gpu.close()


def test_batches_lie_where_they_lay_in_the_step_before(gpu):
    on_gpu, _ = pair(gpu)
    places = {tuple(part.data_ptr() for part in on_gpu.step(on_gpu.learners, t)) for t in (1, 2, 9)}
    assert len(places) == 1
    on_gpu.close()


@pytest.mark.parametrize("kind", ["images", "jpeg"])
def test_the_batch_of_every_learner_begins_where_a_gpu_can_read_it_fast(kind, gpu):
    on_gpu = (pair if kind == "images" else jpegs)(gpu)[0]  # 90 pixels a picture, 3 a batch
    x, _ = on_gpu.step(on_gpu.learners, 1)
    assert all((part.data_ptr() - x.data_ptr()) % 256 == 0 for part in x)
    on_gpu.close()


def test_images_that_do_not_fit_on_the_gpu_are_one_clear_line(gpu, monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Feed, "__init__", full)
    with pytest.raises(UserError, match=r"images of noise, 0\.0 GB, do not fit.*`device = cpu`"):
        pair(gpu)
    problem = Network(random_images((8, 8, 3), 20), "nin", 0.0, 0)
    with pytest.raises(UserError, match=r"images of noise, 0\.0 GB, do not fit"):
        problem.feed(SAMPLERS["iid"](20, 2, 4, 0), range(2), 3, in_step=False)


def kernels(gpu, L):
    """How often a step touches memory, in the middle of a window."""
    on_gpu, _ = pair(gpu, learners=range(L))
    on_gpu.step(on_gpu.learners, 1)
    before = len(gpu.log)
    on_gpu.step(on_gpu.learners, 2)
    on_gpu.close()
    return len(gpu.log) - before


def test_a_step_has_as_many_kernels_for_three_learners_as_for_one(gpu):
    assert kernels(gpu, 1) == kernels(gpu, 3)


def test_a_window_travels_in_one_copy(gpu):
    on_gpu, _ = pair(gpu)
    for t in range(1, T + 1):
        on_gpu.step(on_gpu.learners, t)
        assert gpu.sent == (t + 3) // 4
    on_gpu.close()


@pytest.mark.parametrize(("m", "T", "length"), [(64, 9999, 256), (8192, 9999, 64), (64, 9, 9)])
def test_a_window_is_of_four_megabytes_or_256_updates(m, T, length, gpu, monkeypatch):
    monkeypatch.setattr(device_feed, "WINDOW", 256)
    data = replace(images(), train=Split(np.zeros((m, 2, 2, 1), np.uint8), np.zeros(m, np.int64)))
    data = replace(data, shape=(2, 2, 1), mean=(0.0,), std=(1.0,))
    on_gpu = DeviceFeed(data, SAMPLERS["iid"](m, 1, m, 0), 0, range(1), T, "cpu", True, gpu)
    assert on_gpu.length == length
    on_gpu.close()


@pytest.mark.parametrize("broken", [None, "thread"])
def test_numbers_are_drawn_again_only_when_the_gpu_has_read_them(broken, gpu, monkeypatch):
    if broken:
        monkeypatch.setattr(Event, "synchronize", lambda self: None)
    on_gpu, _ = pair(gpu, T=40)
    for t in range(1, 41):
        on_gpu.step(on_gpu.learners, t)
    on_gpu.close()
    assert (gpu.races() > 0) == bool(broken)


class Failing:
    """A sampler that fails in update 6, the first time."""

    def __init__(self):
        self.B, self.failed = B, []

    def batch(self, j, t):
        if t == 6 and not self.failed:
            self.failed.append(1)
            raise RuntimeError("no rows")
        return np.arange(B) + t

    def __deepcopy__(self, memo):
        return self


def test_an_error_of_the_thread_reaches_the_caller(gpu):
    on_gpu, plain = pair(gpu, own=Failing())
    for t in range(1, 5):
        check(on_gpu, plain, t)
    with pytest.raises(RuntimeError, match="no rows"):
        on_gpu.step(on_gpu.learners, 5)
    for t in (5, 6, 2):
        check(on_gpu, plain, t)
    on_gpu.close()


def windows():
    return [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_close_ends_the_thread_whatever_is_left_to_draw(gpu):
    on_gpu, _ = pair(gpu)
    assert windows() == []
    on_gpu.step(on_gpu.learners, 1)
    assert windows()
    on_gpu.close()
    on_gpu.close()
    assert windows() == []
    slow = Fixed(np.arange(B))
    slow.batch = lambda j, t: time.sleep(0.02 if t < 5 else 0.5) or np.arange(B)
    on_gpu, _ = pair(gpu, own=slow, T=4000)
    on_gpu.step(on_gpu.learners, 1)
    start = time.monotonic()
    on_gpu.close()
    assert windows() == [] and time.monotonic() - start < 6  # of 6 that the window would take


def test_the_thread_draws_the_next_window_while_the_caller_is_busy(gpu):
    on_gpu, _ = pair(gpu)
    on_gpu.step(on_gpu.learners, 1)
    deadline = time.monotonic() + 20
    while not on_gpu._ahead._next[1].done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert on_gpu._ahead._next[0] == 1
    on_gpu.step(on_gpu.learners, 9)
    assert on_gpu._ahead._next is None  # it was the last
    on_gpu.close()


def test_the_thread_has_a_sampler_of_its_own(gpu):
    own = sampler("shuffle")
    on_gpu, _ = pair(gpu, own=own)
    on_gpu.step(on_gpu.learners, 1)
    on_gpu.close()
    assert own._drawn == {} and own._order is None


def test_some_of_the_learners_can_be_asked_for(gpu):
    for on_gpu, plain in (pair(gpu), jpegs(gpu)):
        for t, learners in [(1, range(1, 3)), (1, range(1)), (2, range(3)), (2, range(2, 3))]:
            check(on_gpu, plain, t, learners)
        ends(on_gpu, plain)


def test_a_batch_of_another_size_is_not_of_a_step(gpu):
    own = Fixed(np.arange(B))
    own.batch = lambda j, t: np.arange(B + (t == 2 and j == 1))
    on_gpu, plain = pair(gpu, own=own)
    assert not on_gpu.ready(2) and not on_gpu.ready(T + 1)
    check(on_gpu, plain, T + 1)
    for j, t in [(0, 2), (1, 2), (2, 3)]:
        assert torch.equal(on_gpu(j, t)[0], plain(j, t)[0])
    check(on_gpu, plain, 3)
    on_gpu.close()


def test_a_second_feed_and_the_end_of_training_close_the_thread(gpu):
    net = Network(images(shape=(8, 8, 1)), "mlp", 0.0, 0)
    net.cuda = gpu
    for _ in range(2):
        net.feed(sampler(), range(2), T)(0, 1)
        assert len(windows()) == 1
    net.close()
    assert windows() == []


def test_no_thread_is_left_after_a_failed_start(gpu, monkeypatch):
    from localavg.training import build

    def on_gpu(*args, **how):
        made = Network(*args, **how)
        made.cuda = gpu
        return made

    monkeypatch.setattr(network, "Network", on_gpu)
    monkeypatch.setattr(build, "start_equal_", lambda *args: 1 / 0)
    c = TrainConfig(algorithm="kavg", data="digits", model="mlp", steps=4)
    with pytest.raises(ZeroDivisionError):
        build.build(c, Fleet(MPI.COMM_SELF))
    assert windows() == []


# ------------------------------------------------------------------------------------------ pictures


class Fake:
    """Pictures whose pixels tell which they are and how they are cropped."""

    def decode(self, i, size, numbers):
        time.sleep(0.001)
        value = 10 * i + (0 if numbers is None else int(7 * numbers[0]))
        return np.full((*size, 3), value % 256, np.uint8)


def pictures():
    split = Split(Fake(), np.arange(N) % 7)
    how = {"train": split, "kind": "jpeg", "augment": Augment(resized=True)}
    return replace(images(), **how)


def jpegs(gpu, learners=range(3), own=None, T=T):
    data = pictures()
    on_gpu = DeviceJpegFeed(data, own or sampler(), 7, learners, T, "cpu", True, gpu, threads=2)
    return on_gpu, JpegFeed(data, own or sampler(), 7, learners, T, threads=2)


def ends(*feeds):
    for f in feeds:
        f.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_pictures_on_the_gpu_are_those_of_the_feed_on_the_cpu(gpu):
    on_gpu, plain = jpegs(gpu)
    for t in (*range(1, T + 1), 3, 4, 9):
        check(on_gpu, plain, t)
    for j, t in [(0, 4), (1, 4), (2, 4), (0, 5), (2, 9), (4, 2)]:
        assert torch.equal(on_gpu(j, t)[0], plain(j, t)[0])
    ends(on_gpu, plain)
    assert gpu.races() == 0


def test_a_batch_of_pictures_of_another_size_is_not_of_a_step(gpu):
    own = Fixed(np.arange(B))
    own.batch = lambda j, t: np.arange(B + (t == 2 and j == 1))
    on_gpu, plain = jpegs(gpu, own=own)
    assert not on_gpu.ready(2)
    assert torch.equal(on_gpu(1, 2)[0], plain(1, 2)[0])
    check(on_gpu, plain, 3)
    ends(on_gpu, plain)


def test_pictures_are_copied_in_a_stream_that_does_not_wait_for_the_gradients(gpu):
    """The copies of a step wait for what main did in the step before the last at the latest."""
    on_gpu, plain = jpegs(gpu)
    weights = torch.zeros(4)
    for t in range(1, 4):
        on_gpu.step(on_gpu.learners, t)
        for _ in range(10):
            weights.add_(1)  # the gradients
        last = gpu.now.clock[gpu.now]
    on_gpu.step(on_gpu.learners, 4)
    copies = [stream_clock for *_, stream, stream_clock in gpu.log if stream is on_gpu._side]
    assert copies and all(clock.get(gpu.now, 0) <= last - 10 for clock in copies)
    ends(on_gpu, plain)


@pytest.mark.parametrize("broken", ["used", "copied", "host"])
def test_the_stand_in_finds_a_wait_for_pictures_that_is_missing(broken, gpu, monkeypatch):
    waits = Stream.wait_event
    if broken == "host":
        monkeypatch.setattr(Event, "synchronize", lambda self: None)
    else:
        monkeypatch.setattr(
            Stream,
            "wait_event",
            lambda self, event: (
                None if (self.name == "main") == (broken == "copied") else waits(self, event)
            ),
        )
    on_gpu, plain = jpegs(gpu, T=20)
    for t in range(1, 21):
        on_gpu.step(on_gpu.learners, t)
    ends(on_gpu, plain)
    assert gpu.races() > 0


def test_memory_that_threads_still_write_to_is_not_taken_again(gpu):
    """An order that is left early leaves pictures that are decoded at the moment."""
    on_gpu, plain = jpegs(gpu)
    for t in (1, 9, 2, 8, 3, 7, 4):
        check(on_gpu, plain, t)
    ends(on_gpu, plain)


def test_an_error_of_decoding_reaches_the_caller(gpu, monkeypatch):
    on_gpu, plain = jpegs(gpu)
    right = on_gpu._decoder.pictures
    on_gpu._decoder.pictures = SimpleNamespace(decode=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        on_gpu.step(on_gpu.learners, 1)
    on_gpu._decoder.pictures = right
    on_gpu._cancel()
    check(on_gpu, plain, 1)
    ends(on_gpu, plain)
