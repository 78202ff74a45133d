"""A simulated annotator: clicks, or draws, where a prediction is most wrong.

A region is a connected part of what one label should be and the prediction says otherwise; that covers false negatives
of a structure (the click is of the structure) and false positives where there is none (the click is of background).
Clicks lie deep inside their region, as annotators place them (Sakinis et al., 2019). Arrays are (X, Y, Z); slices have
one voxel along Z. Pure functions; randomness comes from the generator that is passed in.
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

Array = npt.NDArray[Any]
DEEP = 0.6
"""A click of training lies at least this share of the largest depth inside its region."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Voxels that should all be `label`: `mask` within the box `box`, `size` voxels."""

    label: int
    box: tuple[slice, ...]
    mask: npt.NDArray[np.bool_]
    size: int

    def click(self, rng: np.random.Generator, *, noise: float = 0.0, deep: float = DEEP) -> tuple[int, int, int]:
        """A voxel inside, at least the share `deep` of the largest depth, `noise` (standard deviation, voxels) beside
        where it was meant; never off the mask's box by more than the noise, and never below 0."""
        border = [int(n > 1) for n in self.mask.shape]
        depth = ndimage.distance_transform_edt(np.pad(self.mask, [(n, n) for n in border]))
        places = np.argwhere(depth >= deep * depth.max()) - border
        place = places[int(rng.integers(len(places)))] + [part.start for part in self.box]
        x, y, z = (int(at) for at in place)
        if noise:
            flat = [n == 1 for n in self.mask.shape]
            missed = np.where(flat, 0, np.rint(rng.normal(0, noise, 3)))
            x, y, z = (max(0, int(at + by)) for at, by in zip((x, y, z), missed, strict=True))
        return x, y, z

    def stroke(self, rng: np.random.Generator, *, noise: float = 0.0) -> Array:
        """Voxels (N, 3) of a line along the middle, on the slice of the last axis where most of the region is; all of
        it `noise` (standard deviation, voxels) beside where it was meant, and never below 0."""
        k = int(self.mask.sum((0, 1)).argmax())
        line = np.insert(middle_line(self.mask[:, :, k]), 2, k, axis=1) + np.array([part.start for part in self.box])
        missed = np.append(np.rint(rng.normal(0, noise, 2)), 0).astype(int)
        drawn: Array = np.maximum(line + missed, 0)
        return drawn


def middle_line(mask: npt.NDArray[np.bool_], spacing: Array | None = None) -> Array:
    """Pixels (N, 2) of a line through the middle of a mask's largest part, from end to end of its depth; `spacing` of
    the pixels in mm."""
    step = np.ones(2) if spacing is None else spacing
    parts, sizes = _parts(mask)
    mask = parts == 1 + int(sizes.argmax())
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=step)[1:-1, 1:-1]
    core = np.argwhere(mask & (depth >= depth.max() / 2))
    off = core - core.mean(0)
    along = off @ np.linalg.svd(off * step, full_matrices=False)[2][0]
    costs = np.where(mask, 1 / np.maximum(depth, 1e-3), 1e6)
    path, _ = route_through_array(costs, core[along.argmin()], core[along.argmax()])
    return np.array(path)


def regions(truth: Array, guess: Array, labels: int, *, count: int) -> list[Region]:
    """The `count` largest errors of the guess, largest first; `labels` is how many there are, background included."""
    wrong = truth != guess
    parts = [_parts(wrong & (truth == label)) for label in range(labels)]
    sizes = [(int(size), label, part) for label, (_, found) in enumerate(parts) for part, size in enumerate(found, 1)]
    largest = sorted(sizes, key=lambda item: -item[0])[:count]
    return [_region(parts[label][0] == part, label, size) for size, label, part in largest]


def structure(truth: Array, label: int) -> Region | None:
    """The largest connected part of a structure."""
    parts, sizes = _parts(truth == label)
    if not len(sizes):
        return None
    return _region(parts == 1 + int(sizes.argmax()), label, int(sizes.max()))


def placed_on(position: tuple[int, int, int], shape: tuple[int, ...]) -> Position:
    """A click as a position on a grid of this shape, moved onto it if noise took it beyond."""
    x, y, z = (float(min(at, n - 1)) for at, n in zip(position, shape, strict=True))
    return x, y, z


def corrections(
    truth: Array,
    guess: Array,
    labels: int,
    *,
    count: int,
    rng: np.random.Generator,
    noise: float = 0.0,
    deep: float = DEEP,
) -> Iterator[tuple[int, Position]]:
    """Labels and places of clicks into the `count` largest wrong regions."""
    for region in regions(truth, guess, labels, count=count):
        yield region.label, placed_on(region.click(rng, noise=noise, deep=deep), truth.shape)


def _parts(mask: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Connected parts, numbered from 1, and their sizes in voxels."""
    parts, _ = ndimage.label(mask)
    return parts, np.bincount(parts.ravel())[1:]


def _region(mask: npt.NDArray[np.bool_], label: int, size: int) -> Region:
    (box,) = ndimage.find_objects(mask.view(np.uint8))
    return Region(label=label, box=box, mask=mask[box], size=size)
