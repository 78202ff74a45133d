"""MONAI Label's scribble methods, by rayapp's own of the same kind."""

from __future__ import annotations

from typing import Any

from rayapp.inference.energy import likelihood
from rayapp.inference.methods.scribbles import ScribblesTask


class HistogramBasedGraphCut(ScribblesTask):
    """A histogram of the intensities under the strokes, and boundaries by graph cut; the app's parameters are not
    needed, since they are fitted to the image.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__(fit=likelihood.histogram, description="Scribbles: histogram, boundaries by graph cut")


class GMMBasedGraphCut(ScribblesTask):
    """Gaussian mixtures of the intensities under the strokes, and boundaries by graph cut."""

    def __init__(self, **_: Any) -> None:
        super().__init__(fit=likelihood.gaussian_mixture, description="Scribbles: Gaussians, boundaries by graph cut")
