"""Images: the named sets, and the feeds that turn (learner, update) into tensors."""

import math
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi import call
from samples import Fleet, packed, photo

from localavg.datasets import Augment, Dataset, Split, cifar10_like, digits, load
from localavg.datasets.jpegs import (
    AREA,
    ASPECT,
    NUMBERS,
    Decoder,
    Jpegs,
    centre,
    decoded,
    random_crop,
)
from localavg.errors import UserError
from localavg.learner.sampling import SAMPLERS
from localavg.streams import Stream, generator

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
feed = pytest.importorskip("localavg.problems.feed")

ROOT = Path(__file__).resolve().parents[2]


class Given:
    """A sampler that answers with what it was given: {(j, t): batch}."""

    def __init__(self, batches):
        self.batches, self.asked = batches, []

    def batch(self, j, t):
        self.asked.append((j, t))
        return self.batches(j, t) if callable(self.batches) else self.batches[j, t]


def some_images(n=23, shape=(6, 6, 3), seed=0, **fields):
    """A Dataset of random images; channel c has its own mean and std."""
    random = np.random.default_rng(seed)
    split = Split(random.integers(0, 256, (n, *shape), np.uint8), random.integers(0, 7, n))
    channels = range(shape[2])
    fields = {
        "mean": tuple(100.0 + 10 * c for c in channels),
        "std": tuple(50.0 + 7 * c for c in channels),
    } | fields
    return Dataset("some", "images", split, None, tuple("abcdefg"), False, shape=shape, **fields)


def normalised(data, x):
    """(x − mean)/std of images [m, H, W, C] in float64, as [m, C, H, W]."""
    return ((x.astype(np.float64) - data.mean) / data.std).transpose(0, 3, 1, 2)


def slowly_changed(image, pad, code):
    """One image [H, W, C] changed as the code says, pixel by pixel."""
    H, W, _ = image.shape
    flip, place = code % 2, code // 2
    row, column = place // (2 * pad + 1), place % (2 * pad + 1)
    out = np.zeros_like(image)
    for h in range(H):
        for w in range(W):
            from_h, from_w = h + row - pad, w + column - pad
            if 0 <= from_h < H and 0 <= from_w < W:
                out[h, W - 1 - w if flip else w] = image[from_h, from_w]
    return out


def kept(batch):
    """A batch that later calls do not overwrite."""
    return batch[0].numpy().copy(), batch[1].numpy().copy()


# Named sets


def test_digits_are_all_of_scikit_learns_shuffled_and_dealt_out_once():
    from sklearn.datasets import load_digits

    data, found = load("digits", Fleet()), load_digits()
    x = np.concatenate([data.train.x, data.test.x])[..., 0]
    y = np.concatenate([data.train.y, data.test.y])
    assert (data.train.x.shape, data.test.x.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert data.train.x.dtype == np.uint8 and data.train.y.dtype == np.int64
    order = np.random.default_rng(digits.SHUFFLE).permutation(1797)
    np.testing.assert_array_equal(x, found.images[order])
    np.testing.assert_array_equal(y, found.target[order])
    assert np.abs(np.diff(y)).mean() > 2  # shuffled
    assert min(np.bincount(data.test.y)) > 20
    assert (
        data.kind == "images"
        and data.shuffled
        and data.classes == tuple("0123456789")
        and not data.augment
    )
    assert data.shape == (8, 8, 1)


def test_digits_are_always_dealt_out_alike():
    data = load("digits", Fleet())
    assert data.train.y[:12].tolist() == GOLDEN_DIGITS
    assert digits.MEAN == pytest.approx([data.train.x.mean()], abs=1e-3)
    assert digits.STD == pytest.approx([data.train.x.std()], abs=1e-3)


@pytest.mark.parametrize("package", [None, "an empty folder"])
def test_missing_digits_are_one_line_with_a_remedy(package, tmp_path, monkeypatch):
    monkeypatch.setattr(
        digits,
        "find_spec",
        lambda name: package and SimpleNamespace(submodule_search_locations=[tmp_path]),
    )
    with pytest.raises(
        UserError,
        match=r"`data = digits`: .*digits\.csv\.gz is not found; .*pip install.*scikit-learn",
    ):
        load("digits", Fleet())


GOLDEN_DIGITS = [6, 6, 6, 2, 5, 6, 6, 2, 2, 1, 1, 9]


@pytest.mark.parametrize(
    ("cuts", "n"), [((1,), 700), ((cifar10_like.BLOCK,), 1100), ((499, 501, 1003), 1100)]
)
def test_generated_images_do_not_depend_on_who_draws_which_rows(cuts, n):
    def draw(first, stop):
        x, y = np.full((stop - first, 32, 32, 3), 7, np.uint8), np.full(stop - first, -1)
        cifar10_like.generate(x, y, first)
        return x, y

    x, y = draw(0, n)
    for start, stop in zip((0, *cuts), (*cuts, n), strict=True):
        part_x, part_y = draw(start, stop)
        np.testing.assert_array_equal(part_x, x[start:stop])
        np.testing.assert_array_equal(part_y, y[start:stop])


def test_generated_images_are_these_and_the_test_rows_are_others():
    data = load("cifar10-like:2500", Fleet())
    assert data.train.x.shape == (2500, 32, 32, 3) and data.test.x.shape == (500, 32, 32, 3)
    assert (
        data.name == "cifar10-like:2500"
        and data.augment == Augment(pad=4, flip=True)
        and data.shuffled
    )
    assert (
        data.train.x[0, 0, :4, 0].tolist() == GOLDEN_PIXELS
        and data.train.y[:8].tolist() == GOLDEN_LABELS
    )
    assert not np.array_equal(data.train.x[:500], data.test.x)
    assert np.bincount(data.train.y, minlength=10).min() > 180
    np.testing.assert_allclose(data.train.x.mean((0, 1, 2)), data.mean, atol=1.5)
    np.testing.assert_allclose(data.train.x.std((0, 1, 2)), data.std, atol=1.5)
    assert load("cifar10-like:4", Fleet()).test is None
    assert cifar10_like.sizes(cifar10_like.ROWS) == {"train": 50_000, "test": 10_000}


GOLDEN_PIXELS, GOLDEN_LABELS = [67, 82, 99, 59], [5, 3, 9, 8, 7, 5, 9, 0]


def test_the_smooth_patterns_are_linear_between_their_grid_points():
    grid = np.arange(25, dtype=np.int16).reshape(1, 5, 5, 1) * 16 + np.zeros(3, np.int16)
    image = cifar10_like._interpolated(grid)[0, :, :, 0]
    points = (np.arange(32) + 0.5) / 8
    np.testing.assert_array_equal(image, np.add.outer(points * 80, points * 16))
    grids = cifar10_like.class_grids()
    np.testing.assert_array_equal(grids, grids[:, :, ::-1])
    assert len(np.unique(grids.reshape(10, -1), axis=0)) == 10


def test_labels_can_be_learned_but_not_for_nothing():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    data = load("cifar10-like:5000", Fleet())
    small = [
        s.x.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4)).reshape(len(s.y), -1)
        for s in (data.train, data.test)
    ]
    classifier = LinearDiscriminantAnalysis().fit(small[0], data.train.y)
    accuracy = classifier.score(small[1], data.test.y)
    assert 0.85 < accuracy < 0.99
    flipped = small[1].reshape(-1, 8, 8, 3)[:, :, ::-1].reshape(len(small[1]), -1)
    assert classifier.score(flipped, data.test.y) == pytest.approx(accuracy, abs=0.03)


@pytest.mark.parametrize(
    "spec",
    [
        "digits:100",
        "digits:",
        "cifar10-like:",
        "cifar10-like:0",
        "cifar10-like:-5",
        "cifar10-like:10x32",
    ],
)
def test_a_bad_size_is_refused(spec):
    with pytest.raises(UserError, match=f"`data = {spec}"):
        load(spec, Fleet())


def loaded_on(world, spec):
    from localavg.parallel.fleet import Fleet

    data = load(spec, Fleet(world))
    return data.train.x, data.train.y, data.test.x


def test_ranks_share_one_copy_of_the_digits():
    ours = call(2, loaded_on, "digits")
    data = load("digits", Fleet())
    for x, y, test_x in ours:
        np.testing.assert_array_equal(x, data.train.x)
        np.testing.assert_array_equal(y, data.train.y)
        np.testing.assert_array_equal(test_x, data.test.x)


def test_a_node_of_several_ranks_fills_every_generated_row():
    class OfThree(Fleet):
        def node_array(self, shape, dtype, **words):
            self.asked += 1
            if self.asked > len(self.shared):
                self.shared.append(np.full(shape, 255, dtype))
            return self.shared[self.asked - 1]

    alone, shared = load("cifar10-like:1300", Fleet()), []
    for rank in range(3):
        data = load("cifar10-like:1300", OfThree(rank, 3, shared))
    np.testing.assert_array_equal(data.train.x, alone.train.x)
    np.testing.assert_array_equal(data.train.y, alone.train.y)
    assert data.train.x is shared[0]


def test_generating_images_allocates_no_second_copy():
    tracemalloc.start()
    data = load("cifar10-like:20000", Fleet())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - data.train.x.nbytes - data.test.x.nbytes < 25e6 < data.train.x.nbytes / 2


def test_images_bring_in_no_torch_and_no_pillow():
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from localavg.datasets import load\nfrom samples import Fleet\n"
        "load('cifar10-like:9', Fleet())\n"
        "print([m for m in ('sklearn', 'scipy', 'torch', 'PIL', 'mpi4py') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests" / "support")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


# Feeds of images in memory


ROWS = np.array([3, 0, 22, 3, 11])


@pytest.mark.parametrize("batch", [ROWS, slice(4, 9), ROWS[::-1]], ids=["rows", "slice", "strided"])
@pytest.mark.parametrize("table", [True, False], ids=["ready", "gathered"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_rows_normalised_with_the_channels_last(monkeypatch, batch, table, channels):
    data = some_images(shape=(6, 4, channels))
    monkeypatch.setattr(feed, "TABLE_BYTES", 1 << 20 if table else 0)
    f = feed.Feed(data, Given(lambda j, t: batch), seed=0)
    x, y = f(0, 1)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape == (5, channels, 6, 4)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.stride() == (
        24 * channels,
        1,
        4 * channels,
        channels,
    )
    np.testing.assert_allclose(x.numpy(), normalised(data, data.train.x[batch]), atol=1e-6)
    np.testing.assert_array_equal(y.numpy(), data.train.y[batch])


@settings(deadline=None, max_examples=60)
@given(
    H=st.integers(1, 7),
    W=st.integers(1, 7),
    C=st.sampled_from([1, 3]),
    pad=st.integers(0, 5),
    flip=st.booleans(),
    B=st.integers(1, 9),
    consecutive=st.booleans(),
    seed=st.integers(0, 2**31),
    j=st.integers(0, 3),
    t=st.integers(1, 999),
)
def test_changed_images_equal_those_of_a_slow_loop(H, W, C, pad, flip, B, consecutive, seed, j, t):
    data = some_images(
        shape=(H, W, C), augment=Augment(pad=pad, flip=flip), mean=(0.0,) * C, std=(1.0,) * C
    )
    before = data.train.x.copy()
    rows = slice(5, 5 + B) if consecutive else np.random.default_rng(seed).integers(0, 23, B)
    x, y = feed.Feed(data, Given({(j, t): rows}), seed)(j, t)
    codes = generator(seed, j, t, Stream.IMAGES).integers(0, 2 * (2 * pad + 1) ** 2, B)
    codes = codes if flip else codes - codes % 2
    slow = [
        slowly_changed(image, pad, int(code))
        for image, code in zip(data.train.x[rows], codes, strict=True)
    ]
    np.testing.assert_array_equal(x.numpy(), np.stack(slow).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(y.numpy(), data.train.y[rows])
    np.testing.assert_array_equal(data.train.x, before)
    assert x.stride() == (H * W * C, 1, W * C, C)


def test_every_place_and_both_sides_come_equally_often():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    data = some_images(shape=(3, 3, 1), augment=Augment(pad=1, flip=True), mean=(0.0,), std=(1.0,))
    data = replace(data, train=Split(image, np.zeros(1, np.int64)))
    f = feed.Feed(data, Given(lambda j, t: np.zeros(4000, np.int64)), seed=3)
    seen, counts = np.unique(f(0, 1)[0].numpy().reshape(4000, 9), axis=0, return_counts=True)
    assert len(seen) == 18  # 9 places, flipped or not
    expected = 4000 / 18
    assert ((counts - expected) ** 2 / expected).sum() < 45  # χ² with 17 degrees of freedom


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_a_batch_depends_on_seed_learner_and_update_alone(sampling):
    data = some_images(n=48, shape=(8, 8, 3), augment=Augment(pad=2, flip=True))

    def make(seed=5):
        return feed.Feed(data, SAMPLERS[sampling](48, 4, 3, seed), seed)

    one = make()
    order = {(j, t): kept(one(j, t)) for t in range(1, 10) for j in range(4)}
    other = make()
    for j, t in [
        (3, 9),
        (2, 1),
        (0, 5),
        (1, 8),
        (2, 1),
    ]:  # another order: another layout, a run that starts again
        for mine, theirs in zip(kept(other(j, t)), order[j, t], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(kept(make(6)(2, 1))[0], order[2, 1][0])
    assert not np.array_equal(order[2, 1][0], order[2, 2][0]) and not np.array_equal(
        order[2, 1][0], order[3, 1][0]
    )


def test_the_changes_of_learners_and_updates_are_independent_of_which_rows_they_draw():
    data = some_images(augment=Augment(pad=2, flip=True))
    f = feed.Feed(data, Given(lambda j, t: np.arange(16)), seed=0)
    batches = [kept(f(j, t))[0] for j, t in [(0, 1), (1, 1), (0, 2)]]
    assert len({batch.tobytes() for batch in batches}) == 3


def test_augment_can_be_left_out_and_batches_may_change_their_size():
    data = some_images(augment=Augment(pad=2, flip=True))
    f = feed.Feed(data, Given(lambda j, t: np.arange(t)), seed=0, augment=False)
    for t in (5, 2, 7, 7):
        np.testing.assert_allclose(
            f(0, t)[0].numpy(), normalised(data, data.train.x[:t]), atol=1e-6
        )
    f.close()


def test_the_shared_images_are_not_copied():
    data = some_images(augment=Augment(flip=True))
    f = feed.Feed(data, Given({}), seed=0)
    assert f.x.data_ptr() == data.train.x.ctypes.data and f.y.data_ptr() == data.train.y.ctypes.data


@pytest.mark.parametrize(("lo", "hi", "size"), [(0, 23, 5), (4, 20, 4), (7, 8, 100), (9, 9, 3)])
def test_examples_are_all_rows_in_order_and_unchanged(lo, hi, size):
    data = some_images(augment=Augment(pad=2, flip=True))
    found = [kept(batch) for batch in feed.examples(data, data.train, lo, hi, size)]
    assert all(len(y) <= size for _, y in found) and len(found) == math.ceil((hi - lo) / size)
    if found:
        np.testing.assert_allclose(
            np.concatenate([x for x, _ in found]), normalised(data, data.train.x[lo:hi]), atol=1e-6
        )
        np.testing.assert_array_equal(np.concatenate([y for _, y in found]), data.train.y[lo:hi])


def test_examples_have_their_channels_last():
    data = some_images()
    (x, _), *_ = feed.examples(data, data.train, 0, 4, 4)
    assert x.stride() == (108, 1, 18, 3)


def test_a_feature_matrix_is_refused():
    data = load("epsilon-like:8x3", Fleet())
    with pytest.raises(UserError, match=r"epsilon-like:8x3`: .*not features.*digits"):
        feed.make_feed(data, None, 0, range(1), 1)


# Packed pictures


def some_pictures(folder, pictures, shape=(16, 16, 3), labels=None, **fields):
    """A Dataset of kind "jpeg" of packed pictures."""
    path = folder / "pictures"
    path.write_bytes(b"1234567" + b"".join(pictures))
    ends = np.cumsum([len(picture) for picture in pictures])
    places = np.stack([ends - [len(picture) for picture in pictures], ends], 1)
    labels = np.arange(len(pictures)) if labels is None else labels
    split = Split(Jpegs(str(path), "train", 7, places), labels)
    return Dataset(
        "photos",
        "jpeg",
        split,
        split,
        tuple(map(str, range(len(pictures)))),
        False,
        shape=shape,
        mean=(100.0, 110.0, 120.0),
        std=(50.0, 60.0, 70.0),
        augment=Augment(flip=True, resized=True),
        **fields,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return some_pictures(
        tmp_path_factory.mktemp("photos"),
        [packed(photo(40 + 5 * k, 90 - 6 * k, k)) for k in range(12)],
    )


def test_pictures_of_every_kind_become_three_colours():
    image = photo(60, 50)
    plain = decoded(packed(image), (50, 60))
    assert plain.shape == (50, 60, 3) and plain.dtype == np.uint8
    exact = decoded(packed(image, format="PNG"), (50, 60)).astype(int)
    assert np.abs(exact - plain).max() < 25
    assert np.abs(decoded(packed(image, "CMYK"), (50, 60)).astype(int) - exact).mean() < 4
    assert np.abs(decoded(packed(image, "RGBA", "PNG"), (50, 60)).astype(int) - exact).max() == 0
    grey = decoded(packed(image, "L"), (50, 60))
    assert (grey == grey[..., :1]).all() and grey.std() > 5
    assert np.abs(decoded(packed(image, "P", "PNG"), (50, 60)).astype(int) - exact).mean() < 25


@pytest.mark.parametrize(
    ("W", "H", "size"), [(256, 256, 224), (500, 375, 224), (300, 800, 64), (50, 40, 64), (7, 3, 5)]
)
def test_evaluation_cuts_the_centre_of_a_resized_picture(W, H, size):
    left, top, width, height = centre(W, H, (size, size))
    assert width == height == pytest.approx(min(W, H) * 7 / 8)
    assert (left + width / 2, top + height / 2) == pytest.approx((W / 2, H / 2))
    image = photo(W, H)
    found = decoded(packed(image, format="PNG"), (size, size)).astype(float)
    scale = 8 * size / 7 / min(W, H)
    resized = Image.fromarray(image).resize(
        (round(W * scale), round(H * scale)), Image.Resampling.BILINEAR
    )
    x, y = (resized.width - size) / 2, (resized.height - size) / 2
    other = np.asarray(resized.crop((round(x), round(y), round(x) + size, round(y) + size)), float)
    assert np.abs(found - other).mean() < (4 if min(W, H) > 10 else 25)


def test_decoding_at_a_fraction_hardly_changes_the_picture():
    image = photo(900, 700)
    found = decoded(packed(image), (64, 64)).astype(float)  # at 1/8
    assert np.abs(found - decoded(packed(image, format="PNG"), (64, 64))).mean() < 3
    numbers = np.concatenate([[0.9, 0.5] * 10, [0.3, 0.6, 0.2]])
    found = decoded(packed(image), (64, 64), numbers).astype(float)
    assert np.abs(found - decoded(packed(image, format="PNG"), (64, 64), numbers)).mean() < 3


def test_a_random_crop_is_the_first_that_fits_at_the_place_the_numbers_say():
    W, H, size = 60, 40, (24, 24)
    numbers = np.full(NUMBERS, 0.999)  # too large to fit
    numbers[2:4] = 0.25, 0.5  # the second try: area 0.31, square
    numbers[-3:] = 0.5, 0.25, 0.9
    side = round(math.sqrt(W * H * (0.08 + 0.92 * 0.25)))
    assert random_crop(W, H, numbers) == (
        int(0.25 * (W - side + 1)),
        int(0.5 * (H - side + 1)),
        side,
        side,
    )
    left, top, width, height = random_crop(W, H, numbers)
    image = photo(W, H)
    crop = Image.fromarray(image[top : top + height, left : left + width]).resize(
        size, Image.Resampling.BILINEAR
    )
    found = decoded(packed(image, format="PNG"), size, numbers).astype(int)
    assert np.abs(found - np.asarray(crop, int))[1:-1, 1:-1].max() <= 2
    numbers[-1] = 0.4
    np.testing.assert_array_equal(
        decoded(packed(image, format="PNG"), size, numbers), found[:, ::-1]
    )


def test_random_crops_have_the_stated_areas_aspects_and_places():
    random = np.random.default_rng(0)
    W = H = 1000
    crops = np.array([random_crop(W, H, random.random(NUMBERS)) for _ in range(4000)], float)
    left, top, width, height = crops.T
    area, aspect = width * height / (W * H), width / height
    assert AREA[0] - 1e-3 < area.min() < 0.09 and 0.97 < area.max() <= 1
    assert ASPECT[0] - 0.01 < aspect.min() < 0.77 and 1.31 < aspect.max() < ASPECT[1] + 0.01
    assert (
        abs(np.log(aspect).mean()) < 0.01
        and ((left + width) <= W).all()
        and ((top + height) <= H).all()
    )
    small = area < 0.3
    np.testing.assert_allclose((left[small] / (W - width[small])).mean(), 0.5, atol=0.03)
    np.testing.assert_allclose((top[small] / (H - height[small])).mean(), 0.5, atol=0.03)


@pytest.mark.parametrize(
    ("W", "H", "crop"),
    [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_where_no_draw_fits_the_largest_good_crop_in_the_centre_is_taken(W, H, crop):
    assert random_crop(W, H, np.full(NUMBERS, 0.999)) == crop


def directly(data, sampler, seed, j, t):
    """What JpegFeed should give, without threads."""
    batch = sampler.batch(j, t)
    rows = np.arange(len(data.train.y))[batch]
    numbers = generator(seed, j, t, Stream.IMAGES).random((len(rows), NUMBERS))
    x = np.stack(
        [
            decoded(data.train.x.packed(row), data.shape[:2], numbers[k])
            for k, row in enumerate(rows)
        ]
    )
    return normalised(data, x), data.train.y[rows]


@pytest.mark.parametrize("sampling", ["iid", "block", "shuffle"])
def test_a_feed_of_pictures_equals_decoding_them_one_by_one(photos, sampling):
    f = feed.make_feed(photos, SAMPLERS[sampling](12, 2, 3, 4), 4, range(2), 4)
    try:
        for t in range(1, 5):
            for j in range(2):
                x, y = f(j, t)
                expected_x, expected_y = directly(photos, SAMPLERS[sampling](12, 2, 3, 4), 4, j, t)
                np.testing.assert_allclose(x.numpy(), expected_x, atol=1e-6)
                np.testing.assert_array_equal(y.numpy(), expected_y)
                assert x.shape == (3, 3, 16, 16) and x.stride() == (768, 1, 48, 3)
                assert x.dtype == torch.float32 and y.dtype == torch.int64
    finally:
        f.close()


def test_a_feed_of_pictures_may_start_anywhere_and_be_asked_in_any_order(photos):
    f = feed.JpegFeed(photos, SAMPLERS["iid"](12, 4, 3, 0), 0, range(1, 3), 50, threads=2)
    try:
        for j, t in [(1, 30), (2, 30), (1, 31), (1, 7), (2, 49), (1, 50), (2, 50), (2, 50)]:
            x, y = f(j, t)
            expected_x, expected_y = directly(photos, SAMPLERS["iid"](12, 4, 3, 0), 0, j, t)
            np.testing.assert_allclose(x.numpy(), expected_x, atol=1e-6)
            np.testing.assert_array_equal(y.numpy(), expected_y)
    finally:
        f.close()


def test_batches_are_begun_in_the_order_of_the_loop_and_no_more_than_said(photos):
    sampler = Given(lambda j, t: np.array([j, t]))
    f = feed.JpegFeed(photos, sampler, 0, range(3, 5), 3, ahead=2)
    loop = [(j, t) for t in (1, 2, 3) for j in (3, 4)]
    for k, pair in enumerate(loop):
        f(*pair)
        assert sampler.asked == loop[: k + 3] and len(f._flight) == min(2, 5 - k)
    f.close()


def test_the_next_batches_are_decoded_while_the_caller_is_busy(photos):
    f = feed.JpegFeed(photos, Given(lambda j, t: np.array([0, 1])), 0, range(1), 9, ahead=2)
    f(0, 1)
    deadline = time.monotonic() + 20
    while not all(future.done() for _, pictures, _ in f._flight for future in pictures._futures):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [pair for pair, _, _ in f._flight] == [(0, 2), (0, 3)]
    f.close()


def test_without_augmentation_training_pictures_are_those_of_evaluation(photos):
    f = feed.make_feed(photos, Given(lambda j, t: np.arange(12)), 0, range(1), 1, augment=False)
    x, _ = f(0, 1)
    found = [kept(batch) for batch in feed.examples(photos, photos.test, 0, 12, 5)]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), x.numpy())
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), photos.test.y)
    expected = np.stack([decoded(photos.train.x.packed(i), (16, 16)) for i in range(12)])
    np.testing.assert_allclose(x.numpy(), normalised(photos, expected), atol=1e-6)
    f.close()


def test_a_picture_that_cannot_be_decoded_is_named_where_its_batch_is_wanted(tmp_path):
    whole = packed(photo(80, 80))
    data = some_pictures(
        tmp_path, [whole, whole[: len(whole) // 2], whole, b"\xff\xd8\xff nothing"]
    )
    f = feed.JpegFeed(
        data, Given(lambda j, t: np.array([0, 2] if t in (1, 4) else [0, t - 1])), 0, range(1), 4
    )
    f(0, 1)  # the next ones, begun by now, are bad
    with pytest.raises(UserError, match=r"picture 1 of /train cannot be decoded \(.*truncated"):
        f(0, 2)
    f(0, 3)
    f(0, 4)
    f.close()
    with pytest.raises(UserError, match=r"picture 3 of /train cannot be decoded"):
        list(feed.examples(data, data.train, 2, 4, 1))
    (tmp_path / "pictures").write_bytes(b"1234567" + whole)
    with pytest.raises(UserError, match=r"pictures is cut short: picture 2 of /train"):
        data.train.x.decode(2, (8, 8))


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_close_ends_the_threads_though_much_is_left_to_do(photos):
    assert decoders() == []
    f = feed.JpegFeed(
        photos,
        Given(lambda j, t: np.zeros(3000, np.int64) if t > 1 else np.zeros(1, np.int64)),
        0,
        range(1),
        9,
    )
    f(0, 1)
    assert decoders()
    start = time.monotonic()
    f.close()
    assert decoders() == [] and time.monotonic() - start < 5
    steps = feed.examples(photos, photos.test, 0, 12, 1)
    next(steps)
    assert decoders()
    steps.close()  # left before its end
    assert decoders() == []


def test_as_many_threads_decode_at_once_as_were_asked_for(photos):
    together = threading.Barrier(3, timeout=20)

    class Pictures:
        def decode(self, i, size, numbers):
            together.wait()
            return np.zeros((*size, 3), np.uint8)

    decoder = Decoder(Pictures(), (4, 4, 3), threads=3)
    decoder.begin(np.arange(3)).result()
    decoder.close()


def test_no_process_is_forked(photos, monkeypatch):
    monkeypatch.setattr("os.fork", lambda: pytest.fail("forked"))
    f = feed.make_feed(photos, Given(lambda j, t: np.arange(4)), 0, range(1), 2)
    f(0, 1)
    f.close()


def test_a_missing_pillow_is_told_with_its_remedy(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="pip install pillow"):
        next(feed.examples(photos, photos.test, 0, 1, 1))
