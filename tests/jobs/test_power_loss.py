"""The power fails at any moment while jobs write what others rely on: uncertainty maps, and the data of a training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayapp.active_learning.score_files import save_uncertainty, uncertainty_file
from rayapp.datastore.job_record import Job
from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.volume import Segmentation
from rayapp.jobs.training_job import REQUEST, Training, run_folder
from rayapp.protocol import JobKind
from tests.datastore.test_power_loss import left_behind
from tests.jobs.plain import PlainTrainingBackend
from tests.memory_folder import memory_folder
from tests.power import PowerRecorder

MOMENTS = pytest.mark.parametrize(
    ("moments", "losses"), [(12, 2), pytest.param(1000, 20, marks=pytest.mark.slow)], ids=["few", "all"]
)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = memory_folder()
    yield made
    shutil.rmtree(made)


def levels(value: int) -> Segmentation:
    return Segmentation(array=np.full((5, 4, 3), value, np.uint8), affine=np.eye(4))


@MOMENTS
def test_an_uncertainty_map_that_was_saved_is_there_and_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moments: int, losses: int
):
    studies = folder / "studies"
    (studies / ".rayapp").mkdir(parents=True)
    with monkeypatch.context() as patch:
        disk = PowerRecorder(patch, studies)
        for value in (1, 2):
            save_uncertainty(studies, "tta", "ct_a", levels(value))
            disk.acknowledge(value)
    for when, acknowledged, left in left_behind(disk, folder / "left", moments, losses):
        file, found = uncertainty_file(left, "tta", "ct_a"), 0
        if file.exists():
            found = int(read_segmentation(file, max_bytes=1 << 20).array.max())
        assert found in range(acknowledged, acknowledged + 2), when


@MOMENTS
def test_a_training_that_began_goes_on_with_the_very_same_data(
    folder: Path, settings, datastore, catalogue, monkeypatch: pytest.MonkeyPatch, moments: int, losses: int
):
    workspace = folder / "workspace"
    workspace.mkdir()
    settings = settings.model_copy(update={"workspace": workspace})
    backend = PlainTrainingBackend(settings)
    training = Training(settings=settings, datastore=datastore, models=catalogue, backend=backend)
    job = Job(id="job-1", kind=JobKind.TRAIN, name="bright", request={"model": "bright"}, user="ann", created=1e9)
    with monkeypatch.context() as patch:
        disk = PowerRecorder(patch, workspace)
        training._request(job)
        disk.acknowledge("it trains")
    fixed = json.loads((run_folder(settings, job.id) / REQUEST).read_text())
    for when, acknowledged, left in left_behind(disk, folder / "left", moments, losses):
        file = run_folder(settings.model_copy(update={"workspace": left}), job.id) / REQUEST
        assert file.exists() or not acknowledged, when
        assert not file.exists() or json.loads(file.read_text()) == fixed, when
