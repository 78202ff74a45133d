"""Apps of MONAI Label, served without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from rayapp.app import import_aliases
from rayapp.config import Settings
from rayapp.datastore.interfaces import Author
from rayapp.datastore.local import LocalDatastore
from rayapp.imaging.volume import Segmentation, Volume
from rayapp.imaging.writer import encode_segmentation
from rayapp.inference.infer_task import Prompts

LABELLED = Path(__file__).parents[1] / "apps" / "labelled"
AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.5, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
"""Axes turned and voxels of three lengths."""
SHAPE = (9, 14, 6)


def image():
    """Two blocks, asymmetric along every axis: one of 2, one of 5."""
    array = np.zeros(SHAPE, np.float32)
    array[1:4, 2:9, 1:3] = 2
    array[5:8, 3:5, 2:5] = 5
    return array


def mask():
    return (image() > 1).astype(np.uint8) + (image() > 3)


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "studies" / "one.nii.gz"
    return Volume(array=image()[None], affine=AFFINE, path=path)


@pytest.fixture
def app_folder(tmp_path):
    """A copy of the user's app, with weights for its model."""
    folder = tmp_path / "labelled"
    shutil.copytree(LABELLED, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "model").mkdir()
    weight = torch.tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1, 1, 1)
    state = {"conv.weight": weight, "conv.bias": torch.tensor([0.0, -2.0, -8.0])}
    torch.save({"model": state, "unused": torch.zeros(1)}, folder / "model" / "bright.pt")
    return folder


@pytest.fixture
def settings(tmp_path):
    """The settings that serve an app on three small images."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("one", "two", "longest"):
        nibabel.Nifti1Image(image(), AFFINE).to_filename(studies / f"{name}.nii.gz")

    def settings(folder, **conf):
        return Settings(studies=studies, workspace=tmp_path / "ws", app=str(folder), conf=conf)

    yield settings
    import_aliases.deactivate()


@pytest.fixture
def store(tmp_path, settings):
    store = LocalDatastore(tmp_path / "studies", watch=False, settle=0.0)
    yield store
    store.close()


def ask(task, volume, prompts=None, **config):
    """A model's answer."""
    task.load()
    return task.predict(task.prepare(volume), prompts or Prompts(), config)


def save(store, image_id, values, names):
    """Save a label with names for its values, as 3D Slicer does."""
    staged = store.stage(".nii.gz")
    label = Segmentation(array=np.asfortranarray(values), affine=AFFINE)
    staged.write_bytes(encode_segmentation(label, ".nii.gz"))
    info = {"label_info": [{"name": name, "idx": value} for name, value in names.items()]}
    return store.save_label(image_id, "final", staged, ".nii.gz", info=info, author=Author())
