"""The labelling by random walks (Grady, 2006) from voxels that are certain: softer borders than a graph cut's.

Voxels whose log-odds are clear count as marked; walkers start on the others only, so that the linear system is small.
Solved by scikit-image. Pure; any thread.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

CLEAR = 2.0
"""Log-odds from which a voxel is certain."""
BETA = 130.0
"""How much edges hinder walkers; scikit-image's default, for data whose standard deviation it scales to a tenth."""


def random_walk(logits: Floats, image: Floats, marks: Marks, spacing: npt.NDArray[np.float64]) -> Bools:
    """True where foreground; arguments as of `graph_cut`."""
    from skimage.segmentation import random_walker  # slow to import

    seeds = np.where(logits > CLEAR, FOREGROUND, np.where(logits < -CLEAR, BACKGROUND, 0)).astype(np.int8)
    seeds = np.where(marks > 0, marks, seeds)
    walkers = seeds == 0
    if not walkers.any() or not (seeds == FOREGROUND).any() or not (seeds == BACKGROUND).any():
        return np.asarray(np.where(walkers, logits > 0, seeds == FOREGROUND), dtype=np.bool_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers that are not installed, and of voxels cut off from every seed
        labels = random_walker(
            np.moveaxis(image, 0, -1), seeds, beta=BETA, mode="cg_j", tol=1e-3, spacing=spacing, channel_axis=-1
        )
    return np.asarray(labels == FOREGROUND, dtype=np.bool_)
