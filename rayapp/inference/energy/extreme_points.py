"""Extreme points as strokes: paths through the structure between opposite extreme points (Roth et al., 2021).

A path follows small intensity changes, so that it stays in the structure. Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.arrays import Floats, Spacing
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan
from rayapp.inference.energy.smoothing import gaussian
from rayapp.inference.infer_task import Point
from rayapp.inference.prompts.scribble_map import FOREGROUND, Marks
from rayapp.inference.prompts.to_clicks import bounding_box

MAX_VOXELS = 60_000
"""Largest number of (averaged) voxels in which paths are searched."""
BASE_COST = 0.1
"""Cost of one mm in a homogeneous image; crossing an edge of half of the body's range adds 1, at any voxel size."""
SMOOTH_MM = 1.5
"""Standard deviation, in mm, of the Gaussian that removes noise."""


def with_paths(marks: SparseLabels, scan: Scan, points: Sequence[Point]) -> SparseLabels:
    """A scribble map with the paths between the first and the last extreme point along each axis as foreground.

    Args:
        marks: Scribble map of the image; marked voxels keep their mark.
        scan: The image.
        points: Extreme points in source voxels.
    """
    from skimage.graph import MCP_Geometric  # slow to import

    low, high = bounding_box(points)
    marks = marks.covering(low, high)
    region = Region.around(low, high, scan.shape, scan.spacing, max_voxels=MAX_VOXELS)
    image, steps = scan.view(region), np.array(region.steps)
    spacing = tuple(float(n) for n in scan.spacing * steps)
    costs = path_costs(image, scan.spacing * steps)
    for axis in range(3):
        ends = [pick(points, key=lambda point: point[axis]) for pick in (min, max)]
        first, last = (tuple((np.array(end) - low) // steps) for end in ends)
        finder = MCP_Geometric(costs, sampling=spacing)
        finder.find_costs([first], [last])
        path = np.array(finder.traceback(last)) * steps + steps // 2 + low
        for start, end in zip((ends[0], *path), (*path, ends[1]), strict=True):
            _mark_line(marks.part, np.asarray(start) - marks.lower, np.asarray(end) - marks.lower)
    return marks


def path_costs(image: Floats, spacing: Spacing) -> npt.NDArray[np.float64]:
    """Costs of a path for each mm through a voxel.

    Args:
        image: Normalised intensities, (C, I, J, K).
        spacing: mm along the three axes.

    Returns:
        Shape (I, J, K).
    """
    squared = np.zeros(image.shape[1:])
    for channel in image:
        smooth = gaussian(channel, SMOOTH_MM, spacing)
        for axis in np.flatnonzero(np.array(smooth.shape) > 1):
            squared += np.square(np.gradient(smooth, spacing[axis], axis=axis))
    return np.asarray(BASE_COST + np.sqrt(squared / len(image)))


def _mark_line(marks: Marks, start: np.ndarray, end: np.ndarray) -> None:
    count = int(np.abs(end - start).max()) + 1
    line = np.rint(np.linspace(start, end, count)).astype(int)
    line = np.minimum(line, np.array(marks.shape) - 1)
    voxels = tuple(line.T)
    marks[voxels] = np.where(marks[voxels] > 0, marks[voxels], FOREGROUND)
