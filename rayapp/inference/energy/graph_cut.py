"""The labelling of a grid that fits the log-odds and whose border runs along edges: an exact minimum cut.

Energy as of Boykov and Jolly (2001): a voxel against its log-odds pays them; two neighbours with different labels pay
more the more alike they are and the closer they lie. Solved by PyMaxflow (Boykov-Kolmogorov), over those voxels only
that are not certain from the start. Pure; any thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

SMOOTHNESS = 8.0
"""What two alike neighbours with different labels pay, in units of the log-odds."""
EDGE = 0.15
"""Difference in normalised intensity (most of the body spans 2) at which they pay 0.6 of that."""
FIXED = 1e6
"""Log-odds from which a voxel is certain."""

NEIGHBOURS = (slice(None, -1), slice(1, None))


def graph_cut(logits: Floats, image: Floats, marks: Marks, spacing: npt.NDArray[np.float64]) -> Bools:
    """True where foreground. Marked voxels have their mark's label.

    Args:
        logits: log-odds of foreground, of any number of axes; infinite where there is no doubt.
        image: normalised intensities (C, *shape of logits).
        marks: of the same shape as `logits`.
        spacing: mm along each axis; neighbours further apart hold together less.
    """
    import maxflow

    costs = np.where(marks == FOREGROUND, FIXED, np.where(marks == BACKGROUND, -FIXED, logits))
    free = np.abs(costs) < FIXED
    count = np.count_nonzero(free)
    nodes = np.cumsum(free, dtype=np.int32).reshape(free.shape) - 1
    pull = np.where(free, 0, np.sign(costs)).astype(np.float32)
    if not count:
        return pull > 0
    graph = maxflow.GraphFloat(count, count * logits.ndim)
    every = graph.add_nodes(count)
    for axis in range(logits.ndim):
        weights = _alikeness(image, axis) * np.float32(SMOOTHNESS * spacing.min() / spacing[axis])
        here, there = (tuple(part if n == axis else slice(None) for n in range(free.ndim)) for part in NEIGHBOURS)
        both = free[here] & free[there]
        between = weights[both]
        graph.add_edges(nodes[here][both], nodes[there][both], between, between)
        costs[here] += weights * pull[there]
        costs[there] += weights * pull[here]
    costs = costs[free]
    graph.add_grid_tedges(every, np.maximum(costs, 0), np.maximum(-costs, 0))
    graph.maxflow()
    mask = pull > 0
    mask[free] = ~graph.get_grid_segments(every)
    return mask


def _alikeness(image: Floats, axis: int) -> Floats:
    """Of each voxel but the last and the next along `axis`."""
    apart = np.square(np.diff(image, axis=axis + 1)).sum(axis=0)
    alike: Floats = np.exp(-apart / (2 * EDGE * EDGE))
    return alike
