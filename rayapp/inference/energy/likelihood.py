"""What the annotator marked, learnt: from features of marked voxels to the log-odds of any voxel being foreground.

Everything here is fitted anew for each request (milliseconds, for there are few samples) and holds nothing between
two; the same samples always give the same answer. Pure functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

Likelihood = Callable[[Floats], Floats]
"""From features (N, F) to the log-odds (N,) of foreground against background."""
TrainingBackend = Callable[[Floats, Bools], Likelihood]
"""From samples' features (N, F) and whether each is foreground (N,), both kinds present, to a likelihood."""

SCALES_MM = (0.0, 1.5, 3.0)
"""Standard deviations of the Gaussians whose smoothed intensities are a voxel's features."""
CERTAIN = 3.9
"""Log-odds (49 to 1) that no voxel's appearance may pass: samples are few, and places count too."""
BINS = 48
MIXTURES = 3
TREES = 20
LEAF = 3
MAX_SAMPLES = 3000
"""Samples of each kind that a likelihood is fitted to."""


def features(image: Floats, spacing: npt.NDArray[np.float64]) -> Floats:
    """Intensities of (C, I, J, K) smoothed at each scale, as (I, J, K, C * scales). `spacing` is in mm."""
    smoothed = [
        ndimage.gaussian_filter(channel, scale / spacing, truncate=2.0, mode="nearest") if scale else channel
        for channel in image
        for scale in SCALES_MM
    ]
    stacked: Floats = np.stack(smoothed, axis=-1)
    return stacked


def sampled(values: Floats, foreground: Bools) -> tuple[Floats, Bools]:
    """At most `MAX_SAMPLES` of each kind, drawn evenly."""
    kept = []
    for kind in (False, True):
        at = np.flatnonzero(foreground == kind)
        kept.append(at[:: max(1, -(-len(at) // MAX_SAMPLES))])
    chosen = np.concatenate(kept)
    return values[chosen], foreground[chosen]


def histogram(values: Floats, foreground: Bools) -> Likelihood:
    """Joint histograms of the two smoothed intensities of the first channel, smoothed (Parzen)."""
    pair = values[:, 1:3]
    low, high = pair.min(axis=0) - 0.25, pair.max(axis=0) + 0.25
    scale = BINS / (high - low)

    def binned(points: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        at = np.clip((points[:, 1:3] - low) * scale, 0, BINS - 1).astype(np.intp)
        return at[:, 0], at[:, 1]

    counts = np.zeros((2, BINS, BINS), dtype=np.float32)
    np.add.at(counts, (foreground.astype(np.intp), *binned(values)), 1)
    smoothed = [ndimage.gaussian_filter(kind / kind.sum(), 1.5) + 0.1 / BINS**2 for kind in counts]
    table = _bounded(np.log(smoothed[1] / smoothed[0]))
    return lambda points: table[binned(points)]


def gaussian_mixture(values: Floats, foreground: Bools) -> Likelihood:
    """A mixture of Gaussians for each kind, over all features."""
    from sklearn.mixture import GaussianMixture  # slow to import
    from threadpoolctl import threadpool_limits

    def fitted(samples: Floats) -> GaussianMixture:
        count = min(MIXTURES, max(1, len(samples) // 10))
        samples = samples if len(samples) > 1 else np.repeat(samples, 2, axis=0)
        mixture = GaussianMixture(count, reg_covar=5e-3, tol=1e-2, init_params="k-means++", random_state=0)
        return mixture.fit(samples)

    def logits(points: Floats) -> Floats:
        with threadpool_limits(1):  # the products are so thin that threads cost ten times what they save
            return _bounded(on.score_samples(points) - off.score_samples(points))

    with threadpool_limits(1):
        on, off = fitted(values[foreground]), fitted(values[~foreground])
    return logits


def forest(values: Floats, foreground: Bools) -> Likelihood:
    """Extremely randomised trees (Geurts et al., 2006) over all features; both kinds weigh the same."""
    from sklearn.ensemble import ExtraTreesClassifier  # slow to import

    trees = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF, class_weight="balanced", random_state=0)
    trees.fit(values, foreground)

    def logits(points: Floats) -> Floats:
        chance = np.clip(trees.predict_proba(points)[:, 1], 1e-6, 1 - 1e-6)
        return _bounded(np.log(chance / (1 - chance)))

    return logits


def _bounded(logits: npt.NDArray[np.floating]) -> Floats:
    bounded: Floats = np.clip(logits, -CERTAIN, CERTAIN).astype(np.float32)
    return bounded
