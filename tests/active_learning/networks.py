"""Tasks to sample whose answers are known, and a small real one."""

import contextlib

import torch

from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.networks import build, save_weights

LABELS = {"liver": 1, "spleen": 2}
UNET = {
    "name": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 16],
    "strides": [2, 2],
    "num_res_units": 1,
}


class Voxelwise:
    """Looks at each voxel alone, so it commutes with whatever moves voxels."""

    def probabilities(self, images):
        return torch.softmax(torch.cat([-images, images, images * 0.5 - 0.3], dim=1), dim=1)


class Painter:
    """Ignores the image and paints each voxel's own place."""

    def probabilities(self, images):
        place = torch.arange(images[0, 0].numel(), dtype=torch.float32).reshape(images.shape[2:])
        return place.expand(len(images), 1, *place.shape)


class Scripted:
    """Answers what it was given, one sample after the other."""

    def __init__(self, answers):
        self.left = list(answers)

    def probabilities(self, images):
        return torch.stack([self.left.pop(0) for _ in images])

    def dropout(self, probability):
        return contextlib.nullcontext()


def small_task(folder, **network):
    """A network with random weights on 2 mm voxels."""
    torch.manual_seed(3)
    config = {**UNET, **network}
    weights = folder / "model.safetensors"
    save_weights(build(config), weights)
    return SegmentationTask(
        name="small", weights=weights, labels=LABELS, network=config, spacing=2.0, roi_size=(64, 64, 64), version="v1"
    )
