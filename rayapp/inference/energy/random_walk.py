"""Random walker segmentation (Grady, 2006) of log-odds; its borders are softer than a graph cut's.

Voxels with clear log-odds are seeds, so that the linear system covers the others only. A step is penalised for its
difference in intensity, whatever its length, since an edge is an edge across thick slices too. Solved by scikit-image.
Pure functions, thread-safe.
"""

from __future__ import annotations

import warnings

import numpy as np

from rayapp.inference.arrays import Bools, Floats, Spacing
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

SEED_LOG_ODDS = 2.0
"""Magnitude of log-odds from which a voxel is a seed."""
BETA = 130.0
"""Penalty of intensity differences on a walker's steps; scikit-image's default."""


def random_walk(logits: Floats, image: Floats, marks: Marks, spacing: Spacing) -> Bools:  # noqa: ARG001
    """Segment by random walks; arguments and result as for `graph_cut`, but the spacing is not used."""
    from skimage.segmentation import random_walker  # slow to import

    seeds = np.where(logits > SEED_LOG_ODDS, FOREGROUND, np.where(logits < -SEED_LOG_ODDS, BACKGROUND, 0))
    seeds = np.where(marks > 0, marks, seeds.astype(np.int8))
    unseeded = seeds == 0
    if not unseeded.any() or not (seeds == FOREGROUND).any() or not (seeds == BACKGROUND).any():
        return np.asarray(np.where(unseeded, logits > 0, seeds == FOREGROUND), dtype=np.bool_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional solvers, and voxels that no seed can reach
        labels = random_walker(
            np.moveaxis(image, 0, -1), seeds, beta=BETA / len(image), mode="cg_j", tol=1e-3, channel_axis=-1
        )
    return np.asarray(labels == FOREGROUND, dtype=np.bool_)
