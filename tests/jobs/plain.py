"""Trainings in a thread of this process, and studies to train on: the jobs without Ray."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import torch

from rayapp.app import app_class
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.protocol import Author
from rayapp.models.store import ModelStore

APP = Path(__file__).parents[1] / "apps" / "threshold"
SHAPE = (13, 11, 7)
AFFINE = np.array([[0.0, -1.6, 1.8, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 1.2, 2.4, 4.0], [0, 0, 0, 1]])
BRIGHT = 100


class Host:
    """One worker, in this thread."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, checkpoints, desk):
        self._kept = checkpoints / "kept"
        self._desk = desk

    def resume(self):
        return self._kept if self._kept.is_dir() else None

    def report(self, progress, *, checkpoint=None):
        if checkpoint is not None:
            shutil.rmtree(self._kept, ignore_errors=True)
            shutil.copytree(checkpoint, self._kept)
        self._desk.progress(progress, kept=checkpoint is not None)

    def stopped(self):
        return self._desk.stop.is_set()


class PlainFit:
    """`rayapp.jobs.training.Fit` in the calling thread."""

    def __init__(self, settings):
        self._settings = settings

    def __call__(self, job, request, checkpoints, desk):
        app = app_class(self._settings)(settings=self._settings, models=ModelStore.of(self._settings))
        task = app.trainers[request.model]
        return task.train(replace(request, params={**task.info.config, **request.params}), Host(checkpoints, desk))


def write_images(studies, count=3):
    """`ct_0.nii.gz` and so on, of random voxels from 0 to 200."""
    studies.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        voxels = np.random.default_rng(number).integers(0, 200, SHAPE, dtype=np.int16)
        nibabel.Nifti1Image(voxels, AFFINE).to_filename(studies / f"ct_{number}.nii.gz")


def write_label(studies, image, file):
    """What is brighter than `BRIGHT`."""
    source = nibabel.load(studies / f"{image}.nii.gz")
    nibabel.Nifti1Image((np.asarray(source.dataobj) > BRIGHT).astype(np.uint8), source.affine).to_filename(file)
    return file


def label_all(store: LocalDatastore, studies: Path) -> None:
    """Save a final label for every image."""
    for image in store.image_ids():
        staged = write_label(studies, image, store.stage(".nii.gz"))
        store.save_label(image, "final", staged, ".nii.gz", info={}, author=Author())
