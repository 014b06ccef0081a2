"""The flat weight matrix: tensors are views into their learner's row, parameters first."""

import numpy as np
import pytest

from localavg.learner.flat import Flat

SHAPES = {
    "conv": (4, 3, 2),
    "bias": (4,),
    "scale": (),
    "mean": (5,),
    "nothing": (0, 3),
    "var": (2, 1),
}
SIZES = {"conv": 24, "bias": 4, "scale": 1, "mean": 5, "nothing": 0, "var": 2}


@pytest.fixture
def flat():
    return Flat(SHAPES, L=3, parameters=3)


def test_a_row_holds_the_tensors_in_order_without_gaps(flat):
    assert flat.d == 36
    assert flat.w.shape == (3, 36) and flat.w.dtype == np.float32 and flat.w.flags.c_contiguous
    ends = np.cumsum([0, *SIZES.values()])
    assert flat.segments == {
        name: slice(a, b) for name, a, b in zip(SHAPES, ends[:-1], ends[1:], strict=True)
    }


def test_the_trained_part_comes_first(flat):
    assert flat.d_trained == 29
    assert Flat(SHAPES, L=1).d_trained == 36  # all of them unless told
    assert Flat(SHAPES, L=1, parameters=0).d_trained == 0


def test_weights_start_at_zero(flat):
    assert not flat.w.any()


def test_a_view_is_its_part_of_the_row_and_no_copy(flat):
    flat.w[:] = np.arange(3 * 36).reshape(3, 36)
    for l in range(3):
        views = flat.views(l)
        assert list(views) == list(SHAPES)
        for name, view in views.items():
            assert view.shape == SHAPES[name]
            assert view.ravel().tolist() == flat.w[l, flat.segments[name]].tolist()
            assert SIZES[name] == 0 or np.shares_memory(view, flat.w)
    conv = flat.view(1, "conv")
    assert conv[2, 1, 1] == 36 + (2 * 3 + 1) * 2 + 1  # row-major


def test_writing_to_a_view_writes_that_learner_only(flat):
    flat.view(1, "bias")[2] = 5
    flat.view(2, "scale")[...] = 7
    assert np.argwhere(flat.w).tolist() == [[1, 26], [2, 28]]
    flat.w[1:] = flat.w[1]
    assert flat.view(2, "bias")[2] == 5 and flat.view(2, "scale") == 0


def test_an_average_of_rows_is_an_average_of_tensors(flat):
    for l in range(3):
        for value, view in enumerate(flat.views(l).values()):
            view[...] = l + 10 * value
    flat.w[:] = flat.w.mean(axis=0)
    assert all(
        (view == 1 + 10 * value).all()
        for l in range(3)
        for value, view in enumerate(flat.views(l).values())
    )


def test_the_matrix_lies_where_it_is_told():
    asked, memory = [], np.ones((2, 36), np.float32)

    def allocate(shape):
        asked.append(shape)
        return memory

    flat = Flat(SHAPES, L=2, parameters=3, allocate=allocate)
    assert asked == [(2, 36)] and flat.w is memory
    flat.view(1, "var")[:] = 3
    assert memory[1, 34:].tolist() == [3, 3]


def test_later_changes_of_the_given_shapes_do_not_matter():
    shapes = {"a": (2,), "b": (3,)}
    flat = Flat(shapes, L=1)
    shapes["a"] = (50,)
    assert flat.view(0, "a").shape == (2,)
