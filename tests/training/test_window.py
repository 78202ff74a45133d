"""Training windows show the image and its labels together, turned without empty corners, and reach every voxel."""

import numpy as np
import pytest
import torch

from rayapp.inference.network.normalisation import PADDING
from rayapp.training.window import Window

SHAPE = (40, 33, 29)


def numbered():
    """An image whose channels tell where a voxel is, and that it is one, and labels that repeat the first."""
    at = torch.from_numpy(np.stack(np.indices(SHAPE)).astype(np.float32))
    image = torch.stack([at[0] / 20, at[1] / 20, torch.ones(SHAPE)]).half()
    return image, (at[0] > 19).to(torch.uint8)


def places(labels):
    return [np.flatnonzero(labels.numpy() == value) for value in range(3)]


@pytest.mark.parametrize("seed", range(20))
def test_a_window_that_is_not_turned_is_a_part_of_the_image(seed):
    image, labels = numbered()
    window = Window((16, 12, 40), dimensions=3, spacing=1.0, turned=False)
    shown, mask = window.cut(image, labels, np.random.default_rng(seed), places=places(labels))
    assert shown.dtype == torch.float32
    assert shown.shape == (3, 16, 12, 29)
    start = [round(float(shown[channel].min()) * 20) for channel in (0, 1)]
    inside = (slice(start[0], start[0] + 16), slice(start[1], start[1] + 12))
    torch.testing.assert_close(shown, image[:, *inside].float(), rtol=0, atol=0)
    torch.testing.assert_close(mask, labels[inside], rtol=0, atol=0)


def test_a_window_in_the_image_has_no_empty_corner_however_it_is_turned():
    image, labels = torch.zeros(1, 80, 80, 80).half(), torch.ones(80, 80, 80, dtype=torch.uint8)
    window = Window((24, 24, 24), dimensions=3, spacing=1.0, turned=True)
    middle = [np.array([np.ravel_multi_index((40, 40, 40), (80, 80, 80))])]
    for seed in range(40):
        shown, mask = window.cut(image, labels, np.random.default_rng(seed), places=middle)
        assert shown.shape == (1, 24, 24, 24)
        assert (shown == 0).all()
        assert (mask == 1).all()


def test_beyond_the_image_a_turned_window_is_padding():
    image, labels = torch.zeros(1, 24, 24, 24).half(), torch.ones(24, 24, 24, dtype=torch.uint8)
    window = Window((24, 24, 24), dimensions=3, spacing=1.0, turned=True)
    least = min(float(window.cut(image, labels, np.random.default_rng(seed))[0].min()) for seed in range(10))
    assert least == PADDING


@pytest.mark.parametrize("seed", range(12))
def test_image_and_labels_are_turned_together(seed):
    image, labels = numbered()
    window = Window((20, 20, 20), dimensions=3, spacing=(1.0, 1.0, 2.0), turned=True)
    shown, mask = window.cut(image, labels, np.random.default_rng(seed), places=places(labels))
    inside = (shown[2] - 1).abs() < 1e-3
    first = shown[0] * 20
    sure = inside & ((first - 19.5).abs() > 1.5)
    assert sure.any()
    assert torch.equal(mask[sure] == 1, first[sure] > 19.5)


def test_windows_reach_every_voxel_of_an_image_a_little_larger_than_they_are():
    image, labels = numbered()
    window = Window((32, 26, 24), dimensions=3, spacing=1.0, turned=False)
    seen = {
        float(at)
        for seed in range(30)
        for at in window.cut(image, labels, np.random.default_rng(seed), places=places(labels))[0][0].unique()
    }
    assert len(seen) == SHAPE[0]


def test_turning_varies_and_a_seed_repeats_it():
    image, labels = numbered()
    window = Window(None, dimensions=3, spacing=1.0, turned=True)
    shown = [window.cut(image, labels, np.random.default_rng(seed))[0] for seed in range(30)]
    as_it_is = sum(bool(torch.equal(one, image.float())) for one in shown)
    assert 4 <= as_it_is <= 20
    again = window.cut(image, labels, np.random.default_rng(3))[0]
    torch.testing.assert_close(again, shown[3], rtol=0, atol=0)


def test_slices_are_turned_in_their_plane():
    image, labels = torch.rand(1, 30, 20).half(), torch.ones(30, 20, dtype=torch.uint8)
    window = Window(None, dimensions=2, spacing=(1.0, 1.5), turned=True)
    assert {tuple(window.cut(image, labels, np.random.default_rng(seed))[0].shape) for seed in range(6)} == {
        (1, 30, 20)
    }


def test_windows_of_a_case_without_places_are_drawn_anywhere():
    image, labels = numbered()
    window = Window((16, 12, 10), dimensions=3, spacing=1.0, turned=False)
    for known in ((), [np.array([], dtype=np.int64)] * 3):
        shown = [window.cut(image, labels, np.random.default_rng(seed), places=known)[0] for seed in range(20)]
        assert {one.shape for one in shown} == {(3, 16, 12, 10)}
        assert len({float(one[0].min()) for one in shown}) > 3
