"""MONAI bundles in the zoo's layout, made for a test: tiny networks, of which some can be foretold to the voxel."""

import json

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

LOAD = [
    {"_target_": "LoadImaged", "keys": "@image_key", "reader": "ITKReader"},
    {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
]
ORIENT = [{"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"}]
SAVE = [
    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'", "output_postfix": "seg"},
]
ARGMAX = [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]
SOFTMAX = [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]
INVERT = [
    {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "@image_key",
        "nearest_interp": False,
        "to_tensor": True,
    }
]
BRIGHTER = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
"""A network that says 1 where the image is above a threshold: see `threshold`."""


def compose(*parts):
    return {"_target_": "Compose", "transforms": [step for part in parts for step in part]}


def threshold(at):
    weight = torch.zeros(2, 1, 1, 1, 1)
    weight[1] = 1.0
    return {"weight": weight, "bias": torch.tensor([0.0, -at])}


def metadata(channels, *, inputs=1, key="image"):
    return {
        "version": "0.5.6",
        "name": "made for a test",
        "description": "Made for a test",
        "network_data_format": {
            "inputs": {key: {"type": "image", "num_channels": inputs, "spatial_shape": [32, 32, 32]}},
            "outputs": {"pred": {"type": "image", "channel_def": {str(n): c for n, c in enumerate(channels)}}},
        },
    }


def bundle(root, *, network, pre, post, channels=("background", "Spleen"), weights=None, form="pt", **more):
    """Write a bundle; `weights` None takes the network's own. `form` is pt, nested, ts or yaml."""
    inputs, scripts = more.pop("inputs", 1), more.pop("scripts", None)
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    config = {
        "imports": ["$import glob"],
        "bundle_root": "/workspace/nowhere",
        "image_key": "image",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": pre,
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.5},
        "postprocessing": post,
        **more,
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata(channels, inputs=inputs)))
    if form == "yaml":
        (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
    else:
        (root / "configs" / "inference.json").write_text(json.dumps(config))
    if scripts is not None:
        (root / "scripts").mkdir()
        (root / "scripts" / "__init__.py").write_text("")
        (root / "scripts" / "own.py").write_text(scripts)
        return root
    parser = ConfigParser(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same weights whichever tests ran before
        made = parser.get_parsed_content("")
    if weights is not None:
        made.load_state_dict(weights)
    save(root, made, form)
    return root


def save(root, network, form="pt"):
    if form == "ts":
        torch.jit.script(network.eval()).save(root / "models" / "model.ts")
    else:
        state = network.state_dict()
        torch.save({"model": state} if form == "nested" else state, root / "models" / "model.pt")


def speckled(shape=(9, 13, 7), channels=1, seed=0):
    """Voxels that no turn leaves alike, half of them bright."""
    return np.random.default_rng(seed).uniform(-1, 1, (channels, *shape)).astype(np.float32)
