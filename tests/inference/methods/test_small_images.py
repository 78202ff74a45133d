"""Images of a few voxels and of spacings that no body has: a mask on the image's voxels, at a bounded cost."""

from __future__ import annotations

import numpy as np
import pytest

from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.inference.network.network_grid import ALWAYS, MAX_FINER, NetworkGrid
from tests.inference.shipped_models import shipped


@pytest.mark.parametrize("task", [SegmentationTask, DeepEditTask])
@pytest.mark.parametrize(
    ("shape", "edge"),
    [((24, 28, 20), 1.0), ((24, 28, 1), 1.2), ((1, 1, 1), 1.0), ((3, 4, 5), 0.05), ((40, 2, 70), 1.0)],
)
def test_an_image_smaller_than_the_networks_deepest_level_gets_a_mask(task, shape, edge):
    name = "deepedit" if task is DeepEditTask else "segmentation"
    model = task.from_version(shipped(name))
    model.load()
    array = np.random.default_rng(0).integers(-200, 300, (1, *shape)).astype(np.int16)
    volume = Volume(array=array, affine=np.diag([-edge, -edge, edge, 1.0]))
    assert model.predict(model.prepare(volume), Prompts(), {}).labels.shape == shape


@pytest.mark.parametrize("edges", [(1500, 1200, 3000), (1e5, 1e5, 1e5), (1500, 1, 1)])
def test_millimetres_that_are_micrometres_cost_no_more_than_a_small_scan(edges):
    shape = (24, 28, 20)
    grid = NetworkGrid.fit(shape, np.diag([*edges, 1.0]), spacing_mm=1.5, limit=None, divisor=16)
    assert np.prod(grid.resampled) <= ALWAYS
    assert grid.remarks


def test_the_grid_has_a_bounded_number_of_voxels_for_each_of_the_images():
    shape = (300, 300, 40)
    grid = NetworkGrid.fit(shape, np.diag([30.0, 30.0, 30.0, 1.0]), spacing_mm=1.0, limit=None, divisor=1)
    assert np.prod(grid.resampled) <= MAX_FINER * np.prod(shape)
    thick = NetworkGrid.fit((256, 256, 12), np.diag([1.0, 1.0, 10.0, 1.0]), spacing_mm=1.0, limit=None, divisor=1)
    assert thick.resampled == (256, 256, 120)
    assert not thick.remarks


@pytest.mark.parametrize("divisor", [(16, 16, 16), (16, 16, 1), (8, 16, 4)])
def test_no_image_is_one_voxel_at_the_deepest_level_unless_the_network_takes_no_more(divisor):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    deepest = np.divide(NetworkGrid.fit((3, 4, 1), affine, spacing_mm=1, limit=None, divisor=divisor).padded, divisor)
    assert deepest.prod() == 2
    assert NetworkGrid.fit((3, 4, 1), affine, spacing_mm=1, limit=divisor, divisor=divisor).padded == divisor
