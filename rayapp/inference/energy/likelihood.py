"""Appearance models: learnt from the features of marked voxels, they give any voxel's log-odds of being foreground.

Models are fitted again for each request, which takes milliseconds since there are few samples, and are deterministic.
Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Bools, Floats, Spacing
from rayapp.inference.energy.smoothing import gaussian

Likelihood = Callable[[Floats], Floats]
"""Maps features (N, F) to the log-odds (N,) of foreground against background."""
LikelihoodFit = Callable[[Floats, Bools], Likelihood]
"""Fits a likelihood to samples: features (N, F), and whether each is foreground (N,). If all samples are of one class,
as in an image of a few voxels that are all marked, the log-odds are 0 everywhere."""

SCALES_MM = (0.0, 1.5, 3.0)
"""Standard deviations, in mm, of the Gaussians whose smoothed intensities are a voxel's features."""
MAX_LOG_ODDS = 3.9
"""Bound on the log-odds from appearance (49 to 1), since samples are few and position counts too."""
BINS = 48
"""Bins along each axis of the joint histogram."""
MIXTURES = 3
"""Largest number of Gaussians in each class's mixture."""
TREES = 20
"""Trees in the forest."""
LEAF = 3
"""Least number of samples in a tree's leaf."""
MAX_SAMPLES = 3000
"""Largest number of samples of each class to which a likelihood is fitted."""


def features(image: Floats, spacing: Spacing) -> Floats:
    """Compute a feature vector for each voxel: its intensities, smoothed at each scale.

    Args:
        image: Normalised intensities, (C, I, J, K).
        spacing: mm along the three axes.

    Returns:
        Shape (I, J, K, C * scales).
    """
    smoothed = [
        gaussian(channel, scale, spacing, truncate=2.0, mode="nearest") if scale else channel
        for channel in image
        for scale in SCALES_MM
    ]
    stacked: Floats = np.stack(smoothed, axis=-1)
    return stacked


def subsample(values: Floats, foreground: Bools) -> tuple[Floats, Bools]:
    """At most `MAX_SAMPLES` samples of each class, drawn at random but the same each time.

    A constant stride would see the same few columns of each slice.

    Args:
        values: Features, (N, F).
        foreground: Class of each sample, (N,).
    """
    kept, random = [], np.random.default_rng(0)
    for kind in (False, True):
        indices = np.flatnonzero(foreground == kind)
        if len(indices) > MAX_SAMPLES:
            indices = np.sort(random.choice(indices, MAX_SAMPLES, replace=False, shuffle=False))
        kept.append(indices)
    chosen = np.concatenate(kept)
    return values[chosen], foreground[chosen]


def _of_two_classes(fit: LikelihoodFit) -> LikelihoodFit:
    """Wrap a fit so that it returns log-odds of 0 if only one class occurs."""

    @wraps(fit)
    def fitted(values: Floats, foreground: Bools) -> Likelihood:
        if foreground.all() or not foreground.any():
            return lambda points: np.zeros(len(points), np.float32)
        return fit(values, foreground)

    return fitted


@_of_two_classes
def histogram(values: Floats, foreground: Bools) -> Likelihood:
    """A `LikelihoodFit`: joint histograms of the first channel's two smoothed intensities, with Parzen smoothing."""
    pair = values[:, 1:3]
    low, high = pair.min(axis=0) - 0.25, pair.max(axis=0) + 0.25
    scale = BINS / (high - low)

    def binned(points: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        bins = np.clip((points[:, 1:3] - low) * scale, 0, BINS - 1).astype(np.intp)
        return bins[:, 0], bins[:, 1]

    counts = np.zeros((2, BINS, BINS), dtype=np.float32)
    np.add.at(counts, (foreground.astype(np.intp), *binned(values)), 1)
    smoothed = [ndimage.gaussian_filter(kind / kind.sum(), 1.5) + 0.1 / BINS**2 for kind in counts]
    table = _clipped(np.log(smoothed[1] / smoothed[0]))
    return lambda points: table[binned(points)]


@_of_two_classes
def gaussian_mixture(values: Floats, foreground: Bools) -> Likelihood:
    """A `LikelihoodFit`: one Gaussian mixture for each class, over all features."""
    from sklearn.mixture import GaussianMixture  # slow to import
    from threadpoolctl import threadpool_limits

    def fitted(samples: Floats) -> GaussianMixture:
        count = min(MIXTURES, max(1, len(samples) // 10))
        samples = samples if len(samples) > 1 else np.repeat(samples, 2, axis=0)
        mixture = GaussianMixture(count, reg_covar=5e-3, tol=1e-2, init_params="k-means++", random_state=0)
        return mixture.fit(samples)

    def logits(points: Floats) -> Floats:
        with threadpool_limits(1):  # the matrices are so thin that threads cost ten times what they save
            return _clipped(on.score_samples(points) - off.score_samples(points))

    with threadpool_limits(1):
        on, off = fitted(values[foreground]), fitted(values[~foreground])
    return logits


@_of_two_classes
def forest(values: Floats, foreground: Bools) -> Likelihood:
    """A `LikelihoodFit`: extremely randomised trees (Geurts et al., 2006) over all features, with balanced classes."""
    from sklearn.ensemble import ExtraTreesClassifier  # slow to import

    trees = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF, class_weight="balanced", random_state=0)
    trees.fit(values, foreground)

    def logits(points: Floats) -> Floats:
        probability = np.clip(trees.predict_proba(points)[:, 1], 1e-6, 1 - 1e-6)
        return _clipped(np.log(probability / (1 - probability)))

    return logits


def _clipped(logits: npt.NDArray[np.floating]) -> Floats:
    clipped: Floats = np.clip(logits, -MAX_LOG_ODDS, MAX_LOG_ODDS).astype(np.float32)
    return clipped
