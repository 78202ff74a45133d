"""Label maps on their image's grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.errors import GridMismatch
from rayapp.imaging.placement import pad_masks_to_grid, pad_to_grid
from rayapp.imaging.volume import Grid, Masks, Segmentation
from tests.imaging.grids import AFFINES, SHAPE, Affine, every_affine, labels

_sides = st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE])


def _moved(affine: Affine, corner: tuple[float, float, float]) -> Affine:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(corner)
    return moved


@given(st.sampled_from(sorted(AFFINES)), _sides)
@settings(max_examples=100, deadline=None)
def test_a_cropped_label_map_goes_back_to_its_place(name: str, sides: tuple[tuple[int, int], ...]) -> None:
    grid = Grid(shape=SHAPE, affine=AFFINES[name])
    box = tuple(slice(start, start + size) for start, size in sides)
    whole = np.zeros(SHAPE, np.uint8)
    whole[box] = labels()[box]
    corner = (box[0].start, box[1].start, box[2].start)
    crop = Segmentation(array=whole[box], affine=_moved(grid.affine, corner), names={"liver": 1})
    found = pad_to_grid(crop, grid)
    np.testing.assert_array_equal(found.array, whole)
    assert found.affine is grid.affine
    assert found.names == {"liver": 1}


@every_affine
def test_a_label_map_larger_than_its_image_is_cut_where_it_is_empty(affine: Affine) -> None:
    padded = Segmentation(array=np.pad(labels(), 2), affine=_moved(affine, (-2, -2, -2)))
    np.testing.assert_array_equal(pad_to_grid(padded, Grid(shape=SHAPE, affine=affine)).array, labels())


@every_affine
def test_a_label_map_of_the_same_grid_is_not_copied_and_takes_the_image_s_affine(affine: Affine) -> None:
    array, rounded = labels(), affine.astype(np.float32).astype(float)
    found = pad_to_grid(Segmentation(array=array, affine=rounded), Grid(shape=SHAPE, affine=affine))
    assert found.array is array
    assert found.affine is affine


@every_affine
@pytest.mark.parametrize("corner", [(1, 0, 0), (0, -1, 0), (0, 0, 4), (90, 0, 0)])
def test_labelled_voxels_outside_the_image_are_refused(affine: Affine, corner: tuple[int, int, int]) -> None:
    array = np.ones(SHAPE, np.uint8)
    with pytest.raises(GridMismatch, match="extends beyond"):
        pad_to_grid(Segmentation(array=array, affine=_moved(affine, corner)), Grid(shape=SHAPE, affine=affine))


@every_affine
@pytest.mark.parametrize("corner", [(0.5, 0, 0), (0, 0.1, 0), (0, 0, -0.5)])
def test_voxels_between_those_of_the_image_are_refused(affine: Affine, corner: tuple[float, float, float]) -> None:
    with pytest.raises(GridMismatch, match="do not coincide with its image's"):
        pad_to_grid(Segmentation(array=labels(), affine=_moved(affine, corner)), Grid(shape=SHAPE, affine=affine))


@every_affine
@pytest.mark.parametrize("axis", range(3))
def test_a_flipped_label_map_is_refused(affine: Affine, axis: int) -> None:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
    with pytest.raises(GridMismatch):
        pad_to_grid(Segmentation(array=labels(), affine=affine @ flip), Grid(shape=SHAPE, affine=affine))


@every_affine
def test_cropped_segments_that_overlap_go_back_to_their_place_each_for_itself(affine: Affine) -> None:
    grid = Grid(shape=SHAPE, affine=affine)
    whole = np.zeros((2, *SHAPE), bool)
    whole[0, 1:4, 2:6, 1:3], whole[1, 2:4, 3:5, 1:2] = True, True
    crop = Masks(array=whole[:, 1:4, 2:6, 1:3], affine=_moved(affine, (1, 2, 1)), names=("liver", "tumour"))
    found = pad_masks_to_grid(crop, grid)
    assert found.overlap
    np.testing.assert_array_equal(found.array, whole)
    assert (found.affine is affine, found.names) == (True, ("liver", "tumour"))
