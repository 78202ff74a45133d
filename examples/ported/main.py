"""A MONAI Label app, ported to rayapp; docs/porting.md shows both versions.

rayapp start --app examples/ported --studies DIR
"""

import logging

from lib.spleen import Spleen
from monai.networks.nets import UNet

from rayapp.active_learning.strategies import First, Random
from rayapp.app import LabelApp

logger = logging.getLogger(__name__)


class MyApp(LabelApp):
    """One network, with weights from `model/spleen.safetensors` if that file exists."""

    name = "spleen"
    description = "Spleen segmentation, ported"

    def init_infers(self):
        """Inference tasks by model name."""
        network = UNet(
            spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16), strides=(2,), num_res_units=1, norm="batch"
        )
        weights = self.app_dir / "model" / "spleen.safetensors"
        if not weights.exists():
            weights = None
        labels = {"spleen": 1}
        return {"spleen": Spleen(network=network, weights=weights, labels=labels, description="Spleen", version="1")}

    def init_strategies(self):
        """Strategies by name."""
        return {"random": Random(), "first": First()}

    def on_save_label(self, image_id, tag):
        """Called after a label was saved."""
        logger.info("label %s of %s was saved", tag, image_id)
        return {"saved": tag}
