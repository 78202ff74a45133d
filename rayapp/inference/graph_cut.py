"""The labelling of a grid that fits the log-odds and whose border runs along edges: an exact minimum cut.

Energy as of Boykov and Jolly (2001): a voxel against its log-odds pays them; two neighbours with different labels pay
more the more alike they are and the closer they lie. Solved by PyMaxflow (Boykov-Kolmogorov). Pure; any thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayapp.inference.marks import BACKGROUND, FOREGROUND, Marks

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

SMOOTHNESS = 8.0
"""What two alike neighbours with different labels pay, in units of the log-odds."""
EDGE = 0.15
"""Difference in normalised intensity (most of the body spans 2) at which they pay 0.6 of that."""
FIXED = 1e6


def graph_cut(logits: Floats, image: Floats, marks: Marks, spacing: npt.NDArray[np.float64]) -> Bools:
    """True where foreground. Marked voxels have their mark's label.

    Args:
        logits: log-odds of foreground, of any number of axes.
        image: normalised intensities (C, *shape of logits).
        marks: of the same shape as `logits`.
        spacing: mm along each axis; neighbours further apart hold together less.
    """
    import maxflow

    graph = maxflow.GraphFloat(logits.size, logits.size * logits.ndim)
    nodes = graph.add_grid_nodes(logits.shape)
    for axis in range(logits.ndim):
        structure = np.zeros((3,) * logits.ndim)
        structure[tuple(2 if n == axis else 1 for n in range(logits.ndim))] = 1
        weights = _alikeness(image, axis) * (SMOOTHNESS * spacing.min() / spacing[axis])
        graph.add_grid_edges(nodes, weights, structure, symmetric=True)
    costs = np.where(marks == FOREGROUND, FIXED, np.where(marks == BACKGROUND, -FIXED, logits))
    graph.add_grid_tedges(nodes, np.maximum(costs, 0), np.maximum(-costs, 0))
    graph.maxflow()
    return np.asarray(~graph.get_grid_segments(nodes), dtype=np.bool_)


def _alikeness(image: Floats, axis: int) -> Floats:
    """Of each voxel and the next along `axis`; 0 for the last."""
    apart = np.square(np.diff(image, axis=axis + 1)).sum(axis=0)
    padding = [(0, 1 if n == axis else 0) for n in range(image.ndim - 1)]
    return np.pad(np.exp(-apart / (2 * EDGE * EDGE)), padding)
