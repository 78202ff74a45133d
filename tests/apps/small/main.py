"""An app to test scoring with: one small network with random weights."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import torch

from rayapp.active_learning.scoring_methods import Score, scoring_methods
from rayapp.app import LabelApp
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.networks import build, save_weights

NETWORK = {
    "name": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
}
CARD = {"labels": {"liver": 1, "spleen": 2}, "network": NETWORK, "spacing": 0.0, "roi_size": [32, 32, 32]}


def publish(settings, models, seed):
    """The network with other random weights, as the model's next version."""
    torch.manual_seed(seed)
    weights = settings.workspace / "weights.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_weights(build(NETWORK), weights)
    return models.publish("small", weights, CARD)


class Slow:
    """Takes its time, leaves a trace, and on one image ends its process."""

    description, images, needs_model = "for tests", "all", False
    config: ClassVar[dict] = {"pause": 0.2, "poison": "", "trace": ""}

    def score(self, case, options, task):
        if options["trace"]:
            with Path(options["trace"]).open("a") as file:
                file.write(f"{os.getpid()} {case.image.id}\n")
        if case.image.id == options["poison"]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(options["pause"])
        return Score(values={"slow": 1.0}, info={"slow": True}, columns={"score": 1.0})


class App(LabelApp):
    name, description = "small", "for tests"

    @classmethod
    def install(cls, settings, models):
        if not models.versions("small"):
            publish(settings, models, 1)

    def init_infers(self):
        version = self.models.production("small")
        return {} if version is None else {"small": SegmentationTask.from_version(version)}

    def make_task(self, version):
        return SegmentationTask.from_version(version)

    def init_scoring_methods(self):
        return {**scoring_methods(), "slow": Slow()}
