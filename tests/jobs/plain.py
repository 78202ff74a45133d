"""Trainings in a thread of this process, and studies to train on: the jobs without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import torch

from rayapp.app.app_loader import app_class
from rayapp.datastore.interfaces import Author
from rayapp.datastore.local import LocalDatastore
from rayapp.jobs.image_work import ImageWorker
from rayapp.jobs.pool import Pool
from rayapp.training.local_host import LocalHost

APP = Path(__file__).parents[1] / "apps" / "threshold"
SHAPE = (13, 11, 7)
AFFINE = np.array([[0.0, -1.6, 1.8, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 1.2, 2.4, 4.0], [0, 0, 0, 1]])
BRIGHT = 100


class PlainTrainingBackend:
    """`rayapp.jobs.training_job.TrainingBackend` in the calling thread."""

    def __init__(self, settings):
        self._settings = settings

    def __call__(self, job, request, checkpoints, context):
        app = app_class(self._settings).of(self._settings)
        task = app.trainers[request.model]
        host = LocalHost(
            checkpoints, device=torch.device("cpu"), on_progress=context.progress, stop=context.stop.is_set
        )
        return task.train(replace(request, params={**task.info.config, **request.params}), host)


class PlainScoringBackend:
    """`rayapp.jobs.scoring_job.ScoringBackend` in threads of this process. `faults` are raised, by image, before it is
    worked on."""

    def __init__(self, settings, datastore, faults=None):
        self._settings, self._datastore, self.faults = settings, datastore, faults or {}
        self.asked = []

    def __call__(self, work, images, *, workers, stop, note, done):
        def made():
            worker = ImageWorker(self._settings, self._datastore)

            def ask(image, stop):
                self.asked.append(image)
                if self.faults.get(image):
                    raise self.faults[image].pop(0)
                return worker(work, image)

            return ask

        Pool(images, stop=stop, done=done).run([made() for _ in range(workers or 1)])


def write_images(studies, count=3):
    """`ct_0.nii.gz` and so on, of random voxels from 0 to 200."""
    studies.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        voxels = np.random.default_rng(number).integers(0, 200, SHAPE, dtype=np.int16)
        nibabel.Nifti1Image(voxels, AFFINE).to_filename(studies / f"ct_{number}.nii.gz")


def write_label(studies, image, file):
    """Write a label of all voxels brighter than `BRIGHT`."""
    source = nibabel.load(studies / f"{image}.nii.gz")
    nibabel.Nifti1Image((np.asarray(source.dataobj) > BRIGHT).astype(np.uint8), source.affine).to_filename(file)
    return file


def label_all(store: LocalDatastore, studies: Path) -> None:
    """Save a final label for every image."""
    for image in store.image_ids():
        staged = write_label(studies, image, store.stage(".nii.gz"))
        store.save_label(image, "final", staged, ".nii.gz", info={}, author=Author())
