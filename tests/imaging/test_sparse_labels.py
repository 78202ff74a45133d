"""Label maps of which only a box is stored read as the arrays that they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.imaging import mask_codec
from rayapp.imaging.sparse_labels import SparseLabels, bounding_box

SHAPE = (7, 9, 11)


@st.composite
def arrays(draw):
    """A few voxels with the values 1 and 2, in either order in memory."""
    array = np.zeros(SHAPE, np.uint8, order=draw(st.sampled_from("CF")))
    for _ in range(draw(st.integers(0, 5))):
        array[tuple(draw(st.integers(0, n - 1)) for n in SHAPE)] = draw(st.integers(1, 2))
    return array


@st.composite
def boxes(draw):
    pairs = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in SHAPE]
    return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)


@given(arrays(), boxes())
@settings(max_examples=100, deadline=None)
def test_they_read_as_the_array(array, box):
    sparse = SparseLabels.of(array)
    low, high = box
    np.testing.assert_array_equal(sparse, array)
    np.testing.assert_array_equal(sparse == 2, array == 2)
    np.testing.assert_array_equal(sparse.voxels(1), np.argwhere(array == 1))
    np.testing.assert_array_equal(
        sparse.within(low, high), array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    )
    np.testing.assert_array_equal(sparse.covering(low, high), array)
    for k in range(SHAPE[2]):
        np.testing.assert_array_equal(sparse.on_slice(k), array[:, :, k : k + 1])
    assert [sparse[point] for point in np.ndindex(SHAPE)] == array.ravel().tolist()
    assert sparse.part.size == 0 or sparse.box == bounding_box(array)


@given(arrays(), arrays())
@settings(max_examples=100, deadline=None)
def test_the_later_of_two_lies_on_top(first, second):
    both = SparseLabels.of(second).over(SparseLabels.of(first))
    np.testing.assert_array_equal(both, np.where(second > 0, second, first))


@given(boxes(), boxes())
@settings(max_examples=100, deadline=None)
def test_the_value_beyond_the_box_is_everywhere_else(own, other):
    sparse = SparseLabels.blank(SHAPE, *own, beyond=1)
    expected = np.ones(SHAPE, np.uint8)
    expected[tuple(slice(a, b) for a, b in zip(*own, strict=True))] = 0
    np.testing.assert_array_equal(sparse, expected)
    np.testing.assert_array_equal(sparse.covering(*other), expected)


@given(arrays(), arrays())
@settings(max_examples=50, deadline=None)
def test_painting_changes_the_voxels_of_one_value(array, onto):
    expected = np.where(array == 2, 7, onto)
    SparseLabels.of(array).paint(onto, 2, 7)
    np.testing.assert_array_equal(onto, expected)


@given(arrays())
@settings(max_examples=100, deadline=None)
def test_they_go_through_text_as_arrays_do(array):
    sparse = SparseLabels.of(array)
    assert mask_codec.encode(sparse) == mask_codec.encode(array)
    np.testing.assert_array_equal(mask_codec.sparse_from_text(mask_codec.to_text(sparse), SHAPE), array)
    padded = sparse.covering((0, 0, 0), SHAPE)
    assert mask_codec.encode(padded) == mask_codec.encode(array)
    beyond = SparseLabels(shape=SHAPE, lower=sparse.lower, part=sparse.part, beyond=3)
    np.testing.assert_array_equal(mask_codec.decode(mask_codec.encode(beyond)), np.asarray(beyond))


def test_a_value_that_needs_two_bytes_is_refused():
    array = np.full(SHAPE, 256, np.uint16)
    with pytest.raises(Exception, match="values up to 255"):
        mask_codec.sparse_from_text(mask_codec.to_text(array), SHAPE)
