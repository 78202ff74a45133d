"""Simulation of an annotator's clicks and strokes, placed where a prediction is most wrong.

An error region is a connected component of the voxels that should have one label but were predicted otherwise. This
covers false negatives of a structure, where the click is of the structure, and false positives on background, where the
click is of background. Clicks lie deep inside their region, as annotators place them (Sakinis et al., 2019). Arrays are
(X, Y, Z); slices have one voxel along Z. Pure functions; randomness comes from the generator passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.graph import route_through_array

from rayapp.inference.prompts.guidance import Position
from rayapp.training.metrics import dice

Array = npt.NDArray[Any]
MIN_DEPTH = 0.6
"""Least depth of a training click inside its region, as a share of the region's largest depth."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A connected region of voxels that should all have one label.

    Attributes:
        label: The label; 0 for background.
        box: Bounding box of the region.
        mask: The region within its box.
        size: Number of voxels.
    """

    label: int
    box: tuple[slice, ...]
    mask: npt.NDArray[np.bool_]
    size: int

    def click(
        self, rng: np.random.Generator, *, noise: float = 0.0, min_depth: float = MIN_DEPTH
    ) -> tuple[int, int, int]:
        """A random voxel deep inside the region.

        Args:
            rng: Source of randomness.
            noise: Standard deviation of the click's offset from that voxel, in voxels; none across a region of one
                slice. With noise the click may leave the region, but indices never become negative.
            min_depth: Least depth of the voxel, as a share of the region's largest depth.
        """
        border = [int(n > 1) for n in self.mask.shape]
        depth = ndimage.distance_transform_edt(np.pad(self.mask, [(n, n) for n in border]))
        candidates = np.argwhere(depth >= min_depth * depth.max()) - border
        voxel = candidates[int(rng.integers(len(candidates)))] + [part.start for part in self.box]
        x, y, z = (int(index) for index in voxel)
        if noise:
            flat = [n == 1 for n in self.mask.shape]
            offset = np.where(flat, 0, np.rint(rng.normal(0, noise, 3)))
            x, y, z = (max(0, int(index + by)) for index, by in zip((x, y, z), offset, strict=True))
        return x, y, z

    def stroke(self, rng: np.random.Generator, *, noise: float = 0.0) -> Array:
        """A stroke along the region's centreline, on the slice of the last axis that has most of its voxels.

        Args:
            rng: Source of randomness.
            noise: Standard deviation of the whole stroke's offset within the slice, in voxels. Indices never become
                negative.

        Returns:
            Voxel indices, (N, 3).
        """
        k = int(self.mask.sum((0, 1)).argmax())
        line = np.insert(centreline(self.mask[:, :, k]), 2, k, axis=1) + np.array([part.start for part in self.box])
        offset = np.append(np.rint(rng.normal(0, noise, 2)), 0).astype(int)
        stroke: Array = np.maximum(line + offset, 0)
        return stroke


def centreline(mask: npt.NDArray[np.bool_], spacing: Array | None = None) -> Array:
    """A line through the middle of a mask's largest component, along its principal axis.

    Args:
        mask: Mask of a slice, (X, Y).
        spacing: Pixel spacing in mm, (2,); isotropic by default.

    Returns:
        Pixel indices, (N, 2).
    """
    step = np.ones(2) if spacing is None else spacing
    components, sizes = _components(mask)
    mask = components == 1 + int(sizes.argmax())
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=step)[1:-1, 1:-1]
    core = np.argwhere(mask & (depth >= depth.max() / 2))
    off = core - core.mean(0)
    along = off @ np.linalg.svd(off * step, full_matrices=False)[2][0]
    costs = np.where(mask, 1 / np.maximum(depth, 1e-3), 1e6)
    path, _ = route_through_array(costs, core[along.argmin()], core[along.argmax()])
    return np.array(path)


def error_regions(truth: Array, predicted: Array, labels: int, *, count: int) -> list[Region]:
    """The largest error regions of a prediction, largest first.

    Args:
        truth: Reference label map, (X, Y, Z).
        predicted: Predicted label map, (X, Y, Z).
        labels: Number of labels, including background.
        count: Number of regions at most.
    """
    wrong = truth != predicted
    by_label = [_components(wrong & (truth == label)) for label in range(labels)]
    sizes = [(int(size), label, part) for label, (_, all_) in enumerate(by_label) for part, size in enumerate(all_, 1)]
    largest = sorted(sizes, key=lambda item: -item[0])[:count]
    return [_region(by_label[label][0] == part, label, size) for size, label, part in largest]


def drawn_regions(
    truth: Array, predicted: Array, labels: int, *, count: int, rng: np.random.Generator
) -> Iterator[Region]:
    """Error regions of structures drawn at random, with probabilities proportional to 1 - Dice, so that a small
    structure that was missed is corrected as often as a large one.

    Of each drawn structure, the largest region that is missed or too much of it and was not given before.

    Args:
        truth: Reference label map, (X, Y, Z); values from `labels` on, such as `UNSEEN`, are never wrong.
        predicted: Predicted label map, (X, Y, Z).
        labels: Number of labels, including background.
        count: Number of regions at most.
        rng: Source of randomness.
    """
    errors = 1 - np.nan_to_num(np.array(dice(predicted, truth, labels - 1)), nan=1.0)
    wrong = (truth != predicted) & (truth < labels)
    for _ in range(count):
        if errors.sum() <= 0:
            return
        label = 1 + int(rng.choice(labels - 1, p=errors / errors.sum()))
        region = _largest_error(truth, predicted, wrong, label)
        if region is None:
            errors[label - 1] = 0
        else:
            wrong[region.box][region.mask] = False
            yield region


def _largest_error(truth: Array, predicted: Array, wrong: npt.NDArray[np.bool_], label: int) -> Region | None:
    """The largest region among wrong voxels that is missed of a structure, or is too much of it."""
    much = wrong & (predicted == label)
    masks = [(label, wrong & (truth == label)), *((int(own), much & (truth == own)) for own in np.unique(truth[much]))]
    regions = [region for own, mask in masks if (region := _largest(mask, own)) is not None]
    return max(regions, key=lambda region: region.size, default=None)


def largest_component(truth: Array, label: int) -> Region | None:
    """The largest connected component of a label; None if the label map does not have it."""
    return _largest(truth == label, label)


def _largest(mask: npt.NDArray[np.bool_], label: int) -> Region | None:
    """The largest connected component of a mask, as a region of a label; None if the mask is empty."""
    components, sizes = _components(mask)
    if not len(sizes):
        return None
    return _region(components == 1 + int(sizes.argmax()), label, int(sizes.max()))


def clamped(voxel: tuple[int, int, int], shape: tuple[int, ...]) -> Position:
    """A click's voxel as a position, clamped to the grid of this shape."""
    x, y, z = (float(min(index, n - 1)) for index, n in zip(voxel, shape, strict=True))
    return x, y, z


def corrections(
    truth: Array,
    predicted: Array,
    labels: int,
    *,
    count: int,
    rng: np.random.Generator,
    min_depth: float = MIN_DEPTH,
) -> Iterator[tuple[int, Position]]:
    """Corrective clicks, one into each of the largest error regions.

    Args:
        truth: Reference label map, (X, Y, Z).
        predicted: Predicted label map, (X, Y, Z).
        labels: Number of labels, including background.
        count: Number of clicks at most.
        rng: Source of randomness.
        min_depth: Least depth inside the region, as a share of its largest depth.

    Yields:
        The label of each click, and its position.
    """
    for region in error_regions(truth, predicted, labels, count=count):
        yield region.label, clamped(region.click(rng, min_depth=min_depth), truth.shape)


def _components(mask: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Connected components, numbered from 1, and their sizes in voxels."""
    components, _ = ndimage.label(mask)
    return components, np.bincount(components.ravel())[1:]


def _region(mask: npt.NDArray[np.bool_], label: int, size: int) -> Region:
    (box,) = ndimage.find_objects(mask.view(np.uint8))
    return Region(label=label, box=box, mask=mask[box], size=size)
