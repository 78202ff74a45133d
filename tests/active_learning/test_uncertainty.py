"""Uncertainty: what samples say is what the formulas say, in the memory of one sample, on the image's own grid."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from scipy.stats import entropy as shannon

from rayapp.active_learning.uncertainty import (
    REGION,
    Moments,
    descriptor,
    moments_of,
    most_uncertain_slices,
    sample_dropout,
    sample_views,
    slice_sums,
    uncertainty_levels,
)
from rayapp.active_learning.views import Spatial, random_views
from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.methods.segmentation import PreparedImage
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.network.restoration import restore
from tests.active_learning.networks import Scripted, Voxelwise, small_task
from tests.inference.grids import ORIENTATIONS, affine_of

SHAPE = (6, 5, 4)


def samples(count, seed=0, classes=3, shape=SHAPE):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.dirichlet([0.5] * classes, (count, *shape))).float().movedim(-1, 1)


def accumulated(found):
    moments = Moments(found.shape[1], found.shape[2:])
    for sample in found:
        moments.add(sample)
    return moments


def test_moments_are_those_of_all_samples_at_once():
    found = samples(9)
    moments, every = accumulated(found), found.double().numpy()
    mean = every.mean(axis=0)
    np.testing.assert_allclose(moments.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moments.variance, every.var(axis=0), atol=1e-6)
    np.testing.assert_allclose(moments.entropy, shannon(mean, axis=0), atol=1e-5)
    expected = shannon(mean, axis=0) - shannon(every, axis=1).mean(axis=0)
    np.testing.assert_allclose(moments.mutual_information, expected, atol=1e-5)


def test_a_structures_measures_are_those_of_its_region_and_its_masks():
    found = samples(7, seed=1)
    every, masks = found.double().numpy(), found.argmax(dim=1).numpy()
    mean = every.mean(axis=0)
    measures = accumulated(found).structure(2)
    region = mean[2] >= REGION
    assert measures.entropy == pytest.approx(shannon(mean, axis=0)[region].mean(), abs=1e-5)
    assert measures.variance == pytest.approx(every.var(axis=0)[2][region].mean(), abs=1e-5)
    sizes = (masks == 2).sum(axis=(1, 2, 3))
    assert measures.voxels == pytest.approx(sizes.mean())
    assert measures.volume_variation == pytest.approx(sizes.std() / sizes.mean())
    pairs = list(itertools.combinations(masks == 2, 2))
    overlap, size = sum((a & b).sum() for a, b in pairs), sum(a.sum() + b.sum() for a, b in pairs)
    assert measures.dice == pytest.approx(2 * overlap / size)


def test_an_images_measures_take_all_structures_together():
    found = samples(5, seed=2)
    masks = found.argmax(dim=1).numpy()
    measures = accumulated(found).image()
    sizes = (masks > 0).sum(axis=(1, 2, 3))
    assert measures.volume_variation == pytest.approx(sizes.std() / sizes.mean())
    assert measures.entropy == pytest.approx(float(accumulated(found).entropy.mean()), abs=1e-5)


def test_samples_that_agree_leave_nothing_open():
    moments = accumulated(samples(1, seed=3).expand(11, -1, -1, -1, -1))
    assert not moments.variance.any()
    assert not moments.mutual_information.any()
    assert moments.entropy.max() > 0.5  # each is unsure by itself
    for measures in (moments.image(), moments.structure(1)):
        assert (measures.volume_variation, measures.dice) == (0, 1)


def test_sure_samples_that_contradict_each_other_are_all_mutual_information():
    certain = torch.zeros(2, 3, *SHAPE)
    certain[0, 1], certain[1, 2] = 1, 1
    moments = accumulated(certain)
    np.testing.assert_allclose(moments.mutual_information, np.log(2), rtol=1e-6)
    assert moments.structure(1).dice == 0


def test_what_was_found_nowhere_has_no_measures_but_its_size():
    background = torch.zeros(3, 3, *SHAPE)
    background[:, 0] = 1
    measures = accumulated(background).structure(1)
    assert measures.voxels == 0
    assert {measures.entropy, measures.dice, measures.volume_variation, measures.variance} == {None}


def prepared(image, grid=None):
    grid = grid or NetworkGrid.fit(tuple(image.shape[1:]), np.eye(4), spacing_mm=0, limit=None, divisor=1)
    return PreparedImage(grid=grid, image=image)


def test_a_network_that_commutes_with_the_views_gives_no_variance_at_all():
    image = torch.rand((1, 6, 4, 6), generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = random_views(40, image.shape[1:], spatial=Spatial.ALL, seed=4, intensity=0)
    for batch in (1, 7):
        moments = moments_of(sample_views(Voxelwise(), image, found, batch=batch), prepared(image))
        assert moments.count == 40
        assert not moments.variance.any()
        assert not moments.mutual_information.any()
        assert moments.entropy.min() > 0


def test_memory_does_not_grow_with_the_samples():
    alive = weakref.WeakSet()

    def stream(count):
        for number in range(count):
            sample = samples(1, seed=number)[0]
            alive.add(sample)
            assert len(alive) <= 2  # this one, and the one before while it is let go
            yield sample

    image = torch.zeros(1, *SHAPE)
    few, many = (moments_of(stream(count), prepared(image)) for count in (2, 50))
    assert few.nbytes == many.nbytes
    assert (few.count, many.count) == (2, 50)


def test_no_sample_is_no_measure():
    with pytest.raises(BadRequest, match="at least one"):
        moments_of(iter(()), prepared(torch.zeros(1, *SHAPE)))


def test_padding_is_left_out():
    grid = NetworkGrid.fit((5, 4, 3), np.eye(4), spacing_mm=0, limit=None, divisor=4)
    found = samples(4, shape=grid.padded)
    moments = moments_of(iter(found), prepared(torch.zeros(1, *grid.padded), grid))
    np.testing.assert_allclose(moments.mean, found[:, :, :5, :4, :3].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_the_entropy_lies_on_the_source_grid_where_labels_do(orientation):
    shape, affine = (17, 12, 9), affine_of(orientation, (1.0, 1.3, 2.1), oblique=12)
    grid = NetworkGrid.fit(shape, affine, spacing_mm=2.6, limit=None, divisor=4)
    random = np.random.default_rng(6)
    within = tuple(slice(n) for n in grid.canonical)
    log_odds = np.full((1, *grid.padded), -0.4, dtype=np.float32)
    log_odds[0][within] = random.uniform(-0.4, 0.4, grid.canonical)
    half = torch.zeros(2, *grid.canonical)
    # A voxel whose entropy lies above the half is one whose margin is above 0.
    target = torch.from_numpy(0.5 + log_odds[0][within])
    low, high = torch.zeros_like(target), torch.full_like(target, 0.5)
    for _ in range(40):
        middle = (low + high) / 2
        entropy = -(middle * middle.log2() + (1 - middle) * (1 - middle).log2())
        low, high = torch.where(entropy < target, middle, low), torch.where(entropy < target, high, middle)
    half[1], half[0] = low, 1 - low
    levels = uncertainty_levels(accumulated(half[None]), prepared(torch.zeros(1, *grid.padded), grid))
    labels = restore(log_odds, grid)
    assert levels.shape == shape
    sure = np.abs(levels.astype(int) - 127.5) > 1
    assert sure.mean() > 0.9
    assert np.array_equal(levels[sure] > 127, labels[sure] > 0)


def test_slices_across_each_axis_of_the_source_are_summed():
    levels = np.zeros((7, 5, 4), np.uint8)
    levels[2, 3, 1], levels[2, 0, 3] = 255, 51
    i, j, k = slice_sums(levels)
    np.testing.assert_allclose(i, [0, 0, 1.2, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(j, [0.2, 0, 0, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(k, [0, 1, 0, 0.2], rtol=1e-6)


def test_the_worst_slices_lie_apart_and_are_no_more_than_there_are():
    sums = np.zeros(60)
    sums[[10, 11, 12, 30, 59]] = 5, 9, 8, 3, 4
    assert most_uncertain_slices(sums, 9) == [11, 59, 30]
    assert most_uncertain_slices(sums, 1) == [11]
    assert most_uncertain_slices(np.zeros(5), 3) == []


def test_dropout_samples_differ_and_come_again_with_their_seed(tmp_path):
    task = small_task(tmp_path)
    ready = task.prepare(
        Volume(array=np.random.default_rng(0).normal(size=(1, 22, 18, 14)), affine=affine_of(ORIENTATIONS[13]))
    )
    plain = task.probabilities(ready.image[None])[0]
    one, again, other = (
        list(sample_dropout(task, ready.image, 4, probability=0.3, seed=seed, batch=2)) for seed in (1, 1, 2)
    )
    assert len(one) == 4
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations([*one, *other, plain], 2))
    assert torch.equal(task.probabilities(ready.image[None])[0], plain)  # and after it the network is as it was


def test_a_network_with_dropout_of_its_own_uses_that_alone(tmp_path):
    task = small_task(tmp_path, dropout=0.2)
    task.load()
    network = task._network._network
    with task.dropout(0.9):
        training = [module for module in network.modules() if module.training]
        assert training
        assert {type(module).__name__ for module in training} <= {"Dropout", "Dropout3d"}
        assert not any(module._forward_hooks for module in network.modules())
    assert not any(module.training for module in network.modules())


def test_a_network_without_dropout_drops_channels_of_its_deepest_convolutions(tmp_path):
    task = small_task(tmp_path)
    task.load()
    network = task._network._network
    with task.dropout(0.5):
        hooked = [module for module in network.modules() if module._forward_hooks]
        assert {module.out_channels for module in hooked} <= {8, 16}
        assert 16 in {module.out_channels for module in hooked}
        assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_samples_of_a_scripted_network_arrive_in_order():
    found = samples(5)
    arrived = list(sample_dropout(Scripted(found), torch.zeros(1, *SHAPE), 5, probability=0.1, seed=0, batch=2))
    assert torch.equal(torch.stack(arrived), found)


def test_descriptors_tell_images_apart_and_do_not_change():
    random = torch.Generator().manual_seed(0)
    one, other = (torch.rand((1, 12, 9, 10), generator=random) for _ in range(2))
    assert descriptor(one).shape == (128,)
    assert np.array_equal(descriptor(one), descriptor(one.clone()))
    assert np.linalg.norm(descriptor(one) - descriptor(other)) > 0.05
    assert np.linalg.norm(descriptor(one) - descriptor(one + 0.5)) > np.linalg.norm(descriptor(one) - descriptor(other))
