"""Extreme points as strokes: paths through the structure between opposite ones (Roth et al., 2021).

A path goes where the image changes least, so it stays in the structure. Pure; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point
from rayapp.inference.prompts.scribble_map import FOREGROUND, Marks
from rayapp.inference.prompts.to_clicks import bounding_box

VOXELS = 60_000
"""In which paths are sought, at most."""
STRAIGHT = 0.1
"""What a millimetre costs where the image does not change, beside 1 for a change by half of the body's range."""


def connect(marks: Marks, scan: Scan, points: Sequence[Point]) -> None:
    """Mark the paths between the first and the last of the points along each axis, where nothing is marked."""
    from skimage.graph import MCP_Geometric  # slow to import

    low, high = bounding_box(points)
    region = Region.around(low, high, scan.shape, scan.spacing, most=VOXELS)
    image, steps = scan.view(region), np.array(region.steps)
    spacing = tuple(float(n) for n in scan.spacing * steps)
    change = sum(ndimage.gaussian_gradient_magnitude(channel, 1.0) for channel in image)
    costs = STRAIGHT + np.asarray(change, dtype=np.float64)
    for axis in range(3):
        ends = [pick(points, key=lambda point: point[axis]) for pick in (min, max)]
        first, last = (tuple((np.array(end) - low) // steps) for end in ends)
        finder = MCP_Geometric(costs, sampling=spacing)
        finder.find_costs([first], [last])
        path = np.array(finder.traceback(last)) * steps + steps // 2 + low
        for here, there in zip((ends[0], *path), (*path, ends[1]), strict=True):
            _line(marks, np.asarray(here), np.asarray(there))


def _line(marks: Marks, here: np.ndarray, there: np.ndarray) -> None:
    count = int(np.abs(there - here).max()) + 1
    at = np.rint(np.linspace(here, there, count)).astype(int)
    at = np.minimum(at, np.array(marks.shape) - 1)
    voxels = tuple(at.T)
    marks[voxels] = np.where(marks[voxels] > 0, marks[voxels], FOREGROUND)
