"""Graph cut: the binary labelling that fits log-odds best while its border follows edges, as an exact minimum cut.

The energy is that of Boykov and Jolly (2001): a voxel labelled against its log-odds costs their magnitude; two
neighbours with different labels cost the more, the more similar and the closer they are. It is an energy in space, a
cost of volume and one of surface, divided by a voxel's volume: the same structure is cut out alike at any voxel size.
Solved by PyMaxflow (Boykov-Kolmogorov), over those voxels only whose label is not fixed beforehand. Pure functions,
thread-safe.
"""

from __future__ import annotations

import numpy as np

from rayapp.inference.arrays import Bools, Floats, Spacing
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

SMOOTHNESS = 11.5
"""Cost of a border in tissue of one intensity, in log-odds times mm: that of a layer of 1 mm with such log-odds."""
EDGE_SCALE = 0.15
"""Difference in normalised intensity (most of the body spans 2) at which that cost has fallen to 0.6 of it."""
FIXED = 1e6
"""Magnitude of log-odds from which a voxel's label is fixed."""

NEIGHBOURS = (slice(None, -1), slice(1, None))


def graph_cut(logits: Floats, image: Floats, marks: Marks, spacing: Spacing) -> Bools:
    """Segment by a minimum cut.

    Args:
        logits: Log-odds of foreground, with any number of axes; infinite where the label is certain.
        image: Normalised intensities, (C, *logits.shape).
        marks: Scribble map of the shape of `logits`; marked voxels keep their label.
        spacing: mm along each axis; a face costs its area over the voxel's volume.

    Returns:
        Mask of foreground.
    """
    import maxflow

    costs = np.where(marks == FOREGROUND, FIXED, np.where(marks == BACKGROUND, -FIXED, logits))
    free = np.abs(costs) < FIXED
    count = np.count_nonzero(free)
    nodes = np.cumsum(free, dtype=np.int32).reshape(free.shape) - 1
    fixed = np.where(free, 0, np.sign(costs)).astype(np.float32)
    if not count:
        return fixed > 0
    graph = maxflow.GraphFloat(count, count * logits.ndim)
    all_nodes = graph.add_nodes(count)
    for axis in range(logits.ndim):
        weights = similarity(image, axis) * np.float32(SMOOTHNESS / spacing[axis])
        first, second = (tuple(part if n == axis else slice(None) for n in range(free.ndim)) for part in NEIGHBOURS)
        both_free = free[first] & free[second]
        capacities = weights[both_free]
        graph.add_edges(nodes[first][both_free], nodes[second][both_free], capacities, capacities)
        costs[first] += weights * fixed[second]
        costs[second] += weights * fixed[first]
    costs = costs[free]
    graph.add_grid_tedges(all_nodes, np.maximum(costs, 0), np.maximum(-costs, 0))
    graph.maxflow()
    mask = fixed > 0
    mask[free] = ~graph.get_grid_segments(all_nodes)
    return mask


def similarity(image: Floats, axis: int) -> Floats:
    """Similarity, 0 to 1, of each voxel and the next one along `axis`; one voxel shorter than the image there."""
    squared = np.square(np.diff(image, axis=axis + 1)).mean(axis=0)  # so that noise of many channels is no border
    similarity: Floats = np.exp(-squared / (2 * EDGE_SCALE * EDGE_SCALE))
    return similarity
