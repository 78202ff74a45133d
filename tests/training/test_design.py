"""A design follows from the data: as fine as the images, as large as what the network sees at once allows."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from blobs import LABELS

from rayapp.imaging.volume import Grid
from rayapp.models.networks import build
from rayapp.training.design import CPU_VOXELS, WINDOWS, Design, rounded, scale, slice_scale, unet


def grid(shape, spacing, order=(0, 1, 2)):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.array(spacing, float))[:, list(order)]
    return Grid(shape=tuple(shape[axis] for axis in order), affine=affine)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_small_images_keep_their_voxels_and_are_seen_whole(order):
    grids = [grid((35, 51, 36), (1, 1, 1), order), grid((43, 48, 30), (1, 1, 1), order)]
    assert scale(grids, whole=True, voxels=CPU_VOXELS) == (1.0, (43, 51, 36))
    assert scale(grids, whole=False, voxels=CPU_VOXELS) == (1.0, (43, 51, 36))


def test_uneven_voxels_become_cubes_as_large():
    spacing, size = scale([grid((256, 256, 40), (1.25, 1.25, 8.0))], whole=False, voxels=CPU_VOXELS)
    assert spacing == pytest.approx(2.32, abs=0.01)
    assert np.prod(size) <= CPU_VOXELS * 1.05


@pytest.mark.parametrize("whole", [True, False])
def test_large_images_are_seen_coarser(whole):
    spacing, size = scale([grid((512, 512, 400), (0.8, 0.8, 1.0))], whole=whole, voxels=CPU_VOXELS)
    voxels = np.prod(np.array((512, 512, 400)) * (0.8, 0.8, 1.0) / spacing)
    assert voxels <= CPU_VOXELS * (1 if whole else WINDOWS) * 1.05
    assert np.prod(size) <= CPU_VOXELS * 1.05


def test_slices_are_seen_in_their_plane():
    spacing, size = slice_scale([grid((400, 300, 20), (0.5, 0.5, 5))], pixels=256**2)
    assert spacing == pytest.approx(0.78, abs=0.01)
    assert size == (257, 257)


@pytest.mark.parametrize("roi", [(48, 64, 48), (12, 40, 40), (96, 96, 96), (256, 256), (5, 5, 5)])
def test_the_network_takes_the_roi_it_was_made_for(roi):
    config = unet(2, 3, roi, width=4)
    design = Design(labels=LABELS, spacing=1, roi_size=roi, network=config, channels=1)
    size = rounded(roi, design.divisor)
    with torch.no_grad():
        assert build(config)(torch.zeros(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(("shortest", "levels"), [(6, 1), (20, 2), (38, 3), (64, 4), (300, 4)])
def test_the_coarsest_level_is_a_few_voxels_across(shortest, levels):
    assert unet(1, 3, (300, shortest, 300), width=4)["strides"] == [2] * levels


def test_a_card_gives_the_design_back():
    design = Design(
        labels=LABELS, spacing=1.5, roi_size=(16, 24, 16), network=unet(4, 3, (16, 24, 16), width=4), channels=1
    )
    assert Design.of(design.card(), guidance=3) == design
    uneven = dataclasses.replace(design, spacing=(1.5, 0.8, 4.0))
    assert Design.of(json.loads(json.dumps(uneven.card())), guidance=3) == uneven
