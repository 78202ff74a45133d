"""The smallest app: everything brighter than a threshold.

rayapp start --app examples/minimal --studies DIR --conf threshold=150
"""

import numpy as np

from rayapp.app import LabelApp
from rayapp.inference.infer_task import Prediction, TaskInfo


class Bright:
    """A model is anything with these members; `prepare` runs once per image, `predict` for each request."""

    version = "1"

    def __init__(self, threshold):
        self.threshold = threshold
        self.info = TaskInfo(type="segmentation", labels={"bright": 1}, dimension=3, description="Above a threshold")

    def load(self):
        """There are no weights to read."""

    def prepare(self, volume):
        """`volume.array` is (channels, i, j, k) on the image's own grid."""
        return volume

    def predict(self, volume, prompts, config):
        """Labels have the image's own shape; `config` holds what the request said beside its prompts."""
        above = float(config.get("threshold", self.threshold))
        return Prediction(labels=(volume.array[0] > above).astype(np.uint8))


class MinimalApp(LabelApp):
    """An app has one such class in main.py; each hook that it overrides returns things by name."""

    name = "minimal"
    description = "One model without a network"

    def init_infers(self):
        """The models."""
        return {"bright": Bright(threshold=float(self.settings.conf.get("threshold", 100)))}
