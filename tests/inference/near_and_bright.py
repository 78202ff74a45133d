"""A DeepGrow whose answer is plain: what is bright and closer than about 3.7 voxels to a click on it.

Background clicks push that back: with guidance 1 at a click and 0 from 8 voxels on, a bright voxel is in the mask where
the foreground's exceeds the background's by `LEAD`. The network is one linear layer with these weights, set by hand.
"""

import numpy as np
import torch
from safetensors.torch import save_file

from rayapp.models.networks import build
from rayapp.models.store import ModelVersion

BRIGHT, DARK = 200, 50
LEAD = 0.5408
"""Between the guidance of voxels at distances of the square roots of 13 and of 14."""


def card(dimensions):
    network = {
        "name": "UNet", "spatial_dims": dimensions, "in_channels": 3, "out_channels": 2, "channels": [1, 1],
        "strides": [1], "kernel_size": 1, "up_kernel_size": 1, "adn_ordering": "",
    }  # fmt: skip
    return {"labels": {"foreground": 1}, "network": network, "spacing": 0, "roi_size": [32] * dimensions}


def version(folder, dimensions, *, contrary=False, eager=1):
    """Its model version, the weights in `folder`; a contrary one finds all that is bright, and more around background
    clicks. For an eager one clicks on it count so many times as much, so that it reaches farther from them."""
    made = card(dimensions)
    state = {name: torch.zeros_like(tensor) for name, tensor in build(made["network"]).state_dict().items()}
    state["model.0.conv.weight"][0] = torch.tensor([6.0 * eager, 8.0 * eager, 8.0 if contrary else -8.0]).view(
        3, *[1] * dimensions
    )
    state["model.0.conv.bias"][0] = 6.0 * eager - 8 * LEAD + 8 * contrary  # normalised, bright is -1 and dark -2
    state["model.2.conv.weight"][0, 1] = 1.0  # from the layer above to the foreground's logit; the background's is 0
    name = f"deepgrow_{dimensions}d"
    path = folder / f"{name}.safetensors"
    save_file(state, path)
    return ModelVersion(name=name, version="v1", weights=path, card=made)


def speckles(shape, seed=0):
    """Bright voxels at random: no two orientations look alike."""
    return np.random.default_rng(seed).random(shape) < 0.6


def answer(bright, foreground, background=()):
    """The mask it has to give: of a volume, or of a slice if the clicks and the voxels are of two dimensions."""
    guidance = [
        np.max([_guidance(bright.shape, at) for at in clicks], axis=0, initial=0) for clicks in (foreground, background)
    ]
    return bright & (guidance[0] - guidance[1] > LEAD)


def _guidance(shape, click):
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return np.maximum(0, 1 - np.linalg.norm(at - np.array(click), axis=-1) / 8)
