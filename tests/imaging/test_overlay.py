"""Pictures: sides, directions and proportions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rayapp.imaging.overlay import COLOURS, GAP, HEIGHT, LEGEND, mask_overlay
from rayapp.imaging.volume import Volume

SHAPE = (40, 30, 20)
SPACING = (2.0, 1.0, 4.0)  # mm along right, front, head: 80 x 30 x 80 mm
TURNS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def turned(array: np.ndarray, axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The same body, stored with its axes in another order and direction, and the affine that says so."""
    stored = array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, column] = sign * SPACING[axis]
        affine[axis, 3] = 0 if sign > 0 else (array.shape[axis] - 1) * SPACING[axis]
    return stored, affine


def body() -> tuple[np.ndarray, np.ndarray]:
    """A grey body with a mask in its right, front, upper corner."""
    grey = np.random.default_rng(1).normal(50, 5, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    mask[30:38, 22:28, 14:18] = 1
    return grey, mask


@pytest.mark.parametrize(("axes", "signs"), TURNS)
def test_right_is_left_and_front_and_head_are_up_however_the_image_is_stored(axes, signs):
    grey, mask = body()
    stored, affine = turned(grey, axes, signs)
    labels, _ = turned(mask, axes, signs)
    sheet = np.asarray(mask_overlay(Volume(array=stored[None], affine=affine), labels, {}))
    widths = [round(HEIGHT * 80 / 30), round(HEIGHT * 80 / 80), round(HEIGHT * 30 / 80)]
    assert sheet.shape == (HEIGHT + LEGEND, sum(widths) + 2 * GAP, 3)
    left = 0
    for width in widths:
        view = sheet[:HEIGHT, left : left + width].astype(int)
        rows, columns = np.nonzero(view[..., 0] > view[..., 2] + 30)
        assert rows.mean() < HEIGHT / 2
        assert columns.mean() < width / 2
        left += width + GAP


def test_the_mask_covers_its_share_in_millimetres():
    grey, mask = body()
    stored, affine = turned(grey, (0, 1, 2), (1, 1, 1))
    sheet = np.asarray(mask_overlay(Volume(array=stored[None], affine=affine), mask, {})).astype(int)
    axial = sheet[:HEIGHT, : round(HEIGHT * 80 / 30)]
    covered = (axial[..., 0] > axial[..., 2] + 30).mean()
    assert covered == pytest.approx(8 * 6 / (40 * 30), rel=0.1)


def test_the_legend_names_what_is_in_the_mask_only():
    grey, mask = body()
    stored, affine = turned(grey, (0, 1, 2), (1, 1, 1))
    volume = Volume(array=stored[None], affine=affine)
    legend = np.asarray(mask_overlay(volume, mask, {"liver": 1, "spleen": 2, "background": 0}))[HEIGHT:]
    assert (legend == COLOURS[0]).all(-1).any()
    assert not (legend == COLOURS[1]).all(-1).any()


def test_an_empty_mask_still_makes_a_picture():
    stored, affine = turned(body()[0], (0, 1, 2), (1, 1, 1))
    sheet = np.asarray(mask_overlay(Volume(array=stored[None], affine=affine), np.zeros(SHAPE, np.uint8), {"liver": 1}))
    assert sheet[:HEIGHT].std() > 0
    assert sheet[HEIGHT:].max() == 0
