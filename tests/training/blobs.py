"""Small images to learn from: a bright ball and a dark rod in a grey body, on turned, oblique, uneven grids."""

from pathlib import Path

import nibabel
import numpy as np

from rayapp.imaging.volume import Volume
from rayapp.training.train_task import Pair

LABELS = {"ball": 1, "rod": 2}
SHAPE = (26, 22, 18)
NETWORK = {"name": "UNet", "spatial_dims": 3, "channels": [8, 16], "strides": [2], "num_res_units": 1}
SMALL = {
    "network": NETWORK,
    "roi_size": [24, 24, 24],
    "spacing": 1.0,
    "train_batch_size": 2,
    "learning_rate": 0.01,
    "amp": False,
}
"""Params of a run that takes seconds, the same on every machine."""


def blob(seed, shape=SHAPE):
    """An image and its labels: (Volume, labels)."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(float)
    ball = np.linalg.norm(at - np.array(shape) * rng.uniform(0.3, 0.45, 3), axis=-1) < 4
    rod = np.abs(at - np.array(shape) * rng.uniform(0.65, 0.75, 3)).max(-1, initial=0, where=[True, True, False]) < 2.5
    labels = np.where(ball, 1, np.where(rod, 2, 0)).astype(np.uint8)
    array = 100 + 120 * (labels == 1) - 70 * (labels == 2) + rng.normal(0, 12, shape)
    turn = np.linalg.qr(np.eye(3) + rng.normal(0, 0.06, (3, 3)))[0]
    order, signs = rng.permutation(3), rng.choice((-1.0, 1.0), 3)
    affine = np.eye(4)
    affine[:3, :3] = (turn * np.sign(np.diag(turn)))[:, order] * signs * rng.uniform(0.9, 1.3, 3)
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    return Volume(array=array.astype(np.float32)[None], affine=affine), labels


def write_pair(folder, name, volume, labels):
    """The pair as NIfTI files."""
    pair = Pair(image=folder / f"{name}.nii.gz", label=folder / f"{name}_label.nii.gz")
    nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(pair.image)
    nibabel.Nifti1Image(labels, volume.affine).to_filename(pair.label)
    return pair


def write_pairs(folder: Path, count, shape=SHAPE):
    """So many pairs of files, `blob_00` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_pair(folder, f"blob_{n:02}", *blob(n, shape)) for n in range(count)]
