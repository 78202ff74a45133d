"""Appearance learnt from marks: the right side of the border, the same every time, whatever the samples are."""

import numpy as np
import pytest

from rayapp.inference.energy import likelihood

FITS = (likelihood.histogram, likelihood.gaussian_mixture, likelihood.forest)


def samples(count, seed=0):
    rng = np.random.default_rng(seed)
    foreground = rng.random(count) < 0.3
    means = np.where(foreground[:, None], (0.5, 0.6, 0.7), (-0.4, -0.5, -0.6))
    return (means + rng.normal(0, 0.2, (count, 3))).astype(np.float32), foreground


@pytest.mark.parametrize("fit", FITS)
def test_what_looks_like_foreground_has_positive_log_odds(fit):
    model = fit(*samples(400))
    values, foreground = samples(2000, seed=1)
    logits = model(values)
    assert logits.dtype == np.float32
    assert ((logits > 0) == foreground).mean() > 0.97
    assert np.abs(logits).max() <= np.float32(likelihood.MAX_LOG_ODDS)


@pytest.mark.parametrize("fit", FITS)
def test_the_same_samples_give_the_same_answer(fit):
    values, _ = samples(300, seed=2)
    np.testing.assert_array_equal(fit(*samples(400))(values), fit(*samples(400))(values))


@pytest.mark.parametrize("fit", FITS)
def test_one_voxel_of_each_kind_is_enough(fit):
    model = fit(np.array([[1, 1, 1], [-1, -1, -1]], np.float32), np.array([True, False]))
    assert np.isfinite(model(np.zeros((5, 3), np.float32))).all()


@pytest.mark.parametrize("fit", FITS)
def test_samples_that_are_all_alike_say_nothing_wrong(fit):
    model = fit(np.zeros((40, 3), np.float32), np.arange(40) < 20)
    assert np.isfinite(model(np.zeros((5, 3), np.float32))).all()


def test_how_often_a_kind_was_marked_does_not_matter():
    values, foreground = samples(4000)
    few = np.flatnonzero(foreground)[40:]
    kept = np.delete(np.arange(4000), few)
    points, kinds = samples(2000, seed=4)
    for fit in FITS:
        assert ((fit(values[kept], foreground[kept])(points) > 0) == kinds).mean() > 0.95


def test_features_are_the_intensities_smoothed_in_millimetres():
    image = np.zeros((1, 21, 17, 9), np.float32)
    image[0, 10, 8, 4] = 1
    values = likelihood.features(image, np.array((1.0, 2.0, 8.0)))
    assert values.shape == (21, 17, 9, len(likelihood.SCALES_MM))
    np.testing.assert_array_equal(values[..., 0], image[0])
    spread = values[..., 2]
    assert spread[12, 8, 4] == pytest.approx(spread[10, 9, 4], rel=1e-3)
    assert spread[10, 8, 4] > 20 * spread[10, 8, 5]


def test_no_more_samples_than_it_takes_are_fitted():
    values, foreground = samples(20_000)
    kept, kinds = likelihood.subsample(values, foreground)
    assert kinds.sum() <= likelihood.MAX_SAMPLES
    assert (~kinds).sum() <= likelihood.MAX_SAMPLES
    assert len(kept) == len(kinds) > likelihood.MAX_SAMPLES
