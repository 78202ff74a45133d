"""The same organ in a fine and a coarse copy of one image gets the same mask: constants are millimetres."""

import numpy as np
import pytest
from scipy import ndimage

from rayapp.imaging.volume import Volume
from rayapp.inference.energy import likelihood
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.closed_curves import ClosedCurvesTask
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import bounding_box

SHAPE = (108, 96, 84)
"""Voxels of 1 mm of the fine image."""
CENTRE, RADII = np.array((50.2, 46.7, 41.3)), np.array((31.0, 25.0, 30.0))
STEPS = [(2, 2, 2), (3, 3, 3), (1, 1, 3), (2, 2, 6), (4, 1, 1)]
SLICES_MM = (27.1, 39.1, 57.1)
"""Where is drawn along the third axis, the same distances apart on all grids."""


@pytest.fixture(scope="module")
def fine():
    """An organ in noisy tissue, beside another, in voxels of 1 mm."""
    at = np.stack(np.indices(SHAPE), axis=-1)
    inside = (np.square((at - CENTRE) / RADII).sum(axis=-1) < 1).astype(np.float32)
    other = np.square((at - (50, 85, 40)) / (20, 8, 14)).sum(axis=-1) < 1
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(0, 40, SHAPE), 1.2)
    return (100 + 90 * inside - 60 * other + noise).astype(np.float32)


def coarse(image, steps):
    """The image in blocks of voxels, each with their mean."""
    shape = [(n // step, step) for n, step in zip(image.shape, steps, strict=True)]
    return image.reshape([n for pair in shape for n in pair]).mean(axis=(1, 3, 5))


def places(shape, steps):
    """The voxels' centres in mm, from the outer corner of the first one."""
    return [(np.arange(n) + 0.5) * step for n, step in zip(shape, steps, strict=True)]


def depth_mm(shape, steps):
    """About the distance in mm to the organ's outline, positive inside, at the voxels of a grid."""
    i, j, k = (
        (x - 0.5 - centre) / radius
        for x, centre, radius in zip(np.ix_(*places(shape, steps)), CENTRE, RADII, strict=True)
    )
    return (1 - np.sqrt(i * i + j * j + k * k)) * RADII.min()


def strokes(shape, steps):
    """A band inside the outline and one outside it on three slices."""
    depth, marks = depth_mm(shape, steps), np.zeros(shape, np.uint8)
    for mm in SLICES_MM:
        k = int(mm / steps[2])
        marks[..., k][(depth[..., k] > 6) & (depth[..., k] < 12)] = FOREGROUND
        marks[..., k][(depth[..., k] < -5) & (depth[..., k] > -9)] = BACKGROUND
    return {"marks": marks}


def box(shape, steps):
    return {"roi": bounding_box(np.argwhere(depth_mm(shape, steps) > 0))}


def extremes(shape, steps):
    ends = [np.where(np.arange(3) == axis, side * RADII * 0.98, 0) for axis in range(3) for side in (-1, 1)]
    points = [tuple(int(n) for n in (CENTRE + 0.5 + end) / steps) for end in ends]
    return {"extremes": {"foreground": points}, "clicks": {"foreground": points}, "roi": bounding_box(points)}


def curves(shape, steps):
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    drawn = []
    for mm in SLICES_MM:
        k = int(mm / steps[2])
        height = ((k + 0.5) * steps[2] - 0.5 - CENTRE[2]) / RADII[2]
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * RADII[:2] * np.sqrt(1 - height**2) + CENTRE[:2]
        drawn.append([(*((point + 0.5) / steps[:2] - 0.5).tolist(), k) for point in ring])
    return {"curves": drawn}


def answer(task, image, steps, prompts, optimiser):
    volume = Volume(array=image[None], affine=np.diag([*map(float, steps), 1.0]))
    found = task.predict(task.prepare(volume), Prompts(**prompts(image.shape, steps)), {"optimiser": optimiser})
    return found.labels


@pytest.mark.parametrize(
    ("optimiser", "kind", "prompts", "differs"),
    [
        ("graph cut", ScribblesTask, strokes, 0.04),
        ("random walk", ScribblesTask, strokes, 0.03),
        ("graph cut", ClosedCurvesTask, curves, 0.03),
        ("random walk", ClosedCurvesTask, curves, 0.03),
        ("graph cut", ScribblesTask, box, 0.15),  # the range of intensities that fits a box is one of a few
        ("random walk", ScribblesTask, box, 0.12),
        ("graph cut", ScribblesTask, extremes, 0.15),
        ("random walk", ScribblesTask, extremes, 0.1),
    ],
)
def test_the_same_organ_gets_the_same_mask_at_any_voxel_size(fine, optimiser, kind, prompts, differs):
    task = kind(fit=likelihood.histogram, description="")
    shares = answer(task, fine, (1, 1, 1), prompts, optimiser).astype(np.float32)
    for steps in STEPS:
        again = answer(task, coarse(fine, steps), steps, prompts, optimiser)
        assert again.sum() * np.prod(steps) == pytest.approx(shares.sum(), rel=differs), steps
        expected = coarse(shares, steps) >= 0.5
        dice = 2 * (expected & (again > 0)).sum() / (expected.sum() + again.sum())
        assert dice > 1 - max(0.03, differs / 1.5), steps
