"""A minimal app: segments all voxels brighter than a threshold.

rayapp start --app examples/minimal --studies DIR --conf threshold=150
"""

import numpy as np

from rayapp.app import LabelApp
from rayapp.inference.infer_task import Prediction, TaskInfo


class Bright:
    """An inference task: any class with these members. `prepare` runs once per image, `predict` for each request."""

    version = "1"

    def __init__(self, threshold):
        self.threshold = threshold
        self.info = TaskInfo(type="segmentation", labels={"bright": 1}, dimension=3, description="Above a threshold")

    def load(self):
        """Nothing to load: there are no weights."""

    def prepare(self, volume):
        """Return what `predict` needs; `volume.array` has shape (channels, I, J, K)."""
        return volume

    def predict(self, volume, prompts, config):
        """Return a label map of the image's shape; `config` holds the request's options."""
        above = float(config.get("threshold", self.threshold))
        return Prediction(labels=(volume.array[0] > above).astype(np.uint8))


class MinimalApp(LabelApp):
    """The app. There is one such class in main.py; each hook that it overrides returns things by name."""

    name = "minimal"
    description = "An example of a model without a network"

    def init_infers(self):
        """Inference tasks by model name."""
        return {"bright": Bright(threshold=float(self.settings.conf.get("threshold", 100)))}
