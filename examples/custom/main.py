"""An app with a scoring method and a strategy of its own: images with much contrast come first.

rayapp start --app examples/custom --studies DIR; rayapp score contrast; rayapp next contrast
"""

import numpy as np

from rayapp.active_learning.scoring_methods import Score
from rayapp.active_learning.strategies import HOLDER, Pick
from rayapp.app import LabelApp


class Contrast:
    """Scores an image by how far its voxels spread. It asks no model."""

    description = "Spread of the voxels' values"
    config = {"percent": 95.0}
    images = "unlabeled"
    asks_model = False

    def score(self, case, options, task):
        """The distance of the percentiles at either end."""
        low, high = np.percentile(case.volume().array, (100 - options["percent"], options["percent"]))
        return Score(values={"contrast": float(high - low)}, info={"contrast": float(high - low)})


class MostContrast:
    """The unlabelled image with the highest score; before anything was scored, any."""

    description = "Most contrast first"

    def __call__(self, request, datastore):
        """Ask the datastore, which keeps the scores in order and knows what others work on."""
        holder = request.get(HOLDER)
        ranked = datastore.ranked("contrast", limit=1, holder=holder)
        ids = ranked.ids or datastore.unlabeled(limit=1, holder=holder)
        return Pick(image_id=ids[0]) if ids else None


class CustomApp(LabelApp):
    """What every app has, and two things more."""

    name = "custom"
    description = "A strategy and a scoring method of its own"

    def init_scoring_methods(self):
        """How images are scored."""
        return {**super().init_scoring_methods(), "contrast": Contrast()}

    def init_strategies(self):
        """How the next image is chosen."""
        return {**super().init_strategies(), "contrast": MostContrast()}
