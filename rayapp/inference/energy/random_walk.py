"""Random walker segmentation (Grady, 2006) of log-odds; its borders are softer than a graph cut's.

A voxel belongs to the structure if a random walk from it is likelier to reach foreground first. The walk is a diffusion
in space, which hardly crosses edges: a face between two voxels conducts by the inverse square of their distance, so the
same structure is found at any voxel size, in slices of any thickness. Similarity is that of the graph cut, since an
edge is an edge across thick slices too. Voxels with clear log-odds are seeds, and the linear system covers the others
only; it is solved by conjugate gradients (SciPy). Pure functions, thread-safe.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayapp.inference.arrays import Bools, Floats, Spacing
from rayapp.inference.energy.graph_cut import NEIGHBOURS, similarity
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

SEED_LOG_ODDS = 2.0
"""Magnitude of log-odds from which a voxel is a seed."""
LEAK = 1e-6
"""Similarity across the strongest edge, so that every voxel is reached from a seed."""
TOLERANCE = 1e-4
"""Residual, relative to the right-hand side, at which the system counts as solved."""
MAX_ITERATIONS = 1000
"""Number of iterations after which the solution is taken as it is."""


def random_walk(logits: Floats, image: Floats, marks: Marks, spacing: Spacing) -> Bools:
    """Segment by random walks; arguments and result as for `graph_cut`."""
    seeds = np.where(logits > SEED_LOG_ODDS, FOREGROUND, np.where(logits < -SEED_LOG_ODDS, BACKGROUND, 0))
    seeds = np.where(marks > 0, marks, seeds)
    free, on = seeds == 0, np.asarray(seeds == FOREGROUND, dtype=np.bool_)
    if not free.any() or not on.any() or not (seeds == BACKGROUND).any():
        return np.asarray(np.where(free, logits > 0, on), dtype=np.bool_)
    on[free] = _probabilities(free, on, image, spacing) > 0.5
    return on


def _probabilities(free: Bools, on: Bools, image: Floats, spacing: Spacing) -> npt.NDArray[np.float64]:
    """For each free voxel, in C order, the probability that a walk from it reaches foreground first.

    Args:
        free: voxels that are no seeds.
        on: seeds of foreground; the other seeds are background.
        image: see `graph_cut`.
        spacing: see `graph_cut`.
    """
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import cg

    count = np.count_nonzero(free)
    nodes = np.cumsum(free, dtype=np.int32).reshape(free.shape) - 1
    total, inflow = (np.zeros(free.shape) for _ in range(2))
    edges = coo_array((count, count))
    for axis in range(free.ndim):
        conductance = (similarity(image, axis).astype(np.float64) + LEAK) / spacing[axis] ** 2
        first, second = (tuple(part if n == axis else slice(None) for n in range(free.ndim)) for part in NEIGHBOURS)
        for here, there in ((first, second), (second, first)):
            total[here] += conductance
            inflow[here] += conductance * on[there]
        both = free[first] & free[second]
        between = nodes[first][both], nodes[second][both]
        edges = edges + coo_array((conductance[both], between), (count, count))
    diagonal = total[free]
    system = diags_array(diagonal) - edges - edges.T
    start = np.full(count, 0.5)
    solved, _ = cg(
        system.tocsr(), inflow[free], start, rtol=TOLERANCE, maxiter=MAX_ITERATIONS, M=diags_array(1 / diagonal)
    )
    probabilities: npt.NDArray[np.float64] = solved
    return probabilities
