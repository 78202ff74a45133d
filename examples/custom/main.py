"""An app with its own scoring method and strategy: images of high contrast are annotated first.

rayapp start --app examples/custom --studies DIR; rayapp score contrast; rayapp next contrast
"""

import numpy as np

from rayapp.active_learning.scoring_methods import Score
from rayapp.active_learning.strategies import HOLDER, Pick
from rayapp.app import LabelApp


class Contrast:
    """Scores an image by the range of its intensities, without a model."""

    description = "Range of the image's intensities"
    config = {"percent": 95.0}
    images = "unlabeled"
    needs_model = False

    def score(self, case, options, task):
        """The difference between an upper and a lower percentile of the intensities."""
        low, high = np.percentile(case.volume().array, (100 - options["percent"], options["percent"]))
        return Score(values={"contrast": float(high - low)}, info={"contrast": float(high - low)})


class MostContrast:
    """Chooses the unlabelled image with the highest score; any unlabelled image before scores exist."""

    description = "Most contrast first"

    def __call__(self, request, datastore):
        """Query the datastore, which keeps scores ordered and leaves out images that other annotators work on."""
        holder = request.get(HOLDER)
        ranked = datastore.ranked("contrast", limit=1, holder=holder)
        ids = ranked.ids or datastore.unlabeled(limit=1, holder=holder)
        return Pick(image_id=ids[0]) if ids else None


class CustomApp(LabelApp):
    """The default app with one more scoring method and one more strategy."""

    name = "custom"
    description = "An example of a scoring method and a strategy"

    def init_scoring_methods(self):
        """Scoring methods by name."""
        return {**super().init_scoring_methods(), "contrast": Contrast()}

    def init_strategies(self):
        """Strategies by name."""
        return {**super().init_strategies(), "contrast": MostContrast()}
