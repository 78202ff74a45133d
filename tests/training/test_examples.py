"""Trainers other than ours fit the seam: PyTorch Lightning, and MONAI's engine on Ignite."""

import importlib
import itertools

import pytest
import torch

from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.store import ModelVersion
from rayapp.training.local_host import LocalHost
from rayapp.training.options import Options
from rayapp.training.train_task import TrainRequest
from tests.training.blobs import LABELS, SMALL

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning.*"),
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]
CPU = torch.device("cpu")
TASKS = {"lightning": "LightningTrainTask", "ignite": "IgniteTrainTask"}
"""Classes of `examples/<key>_task.py`, imported by the tests: the libraries take seconds, in each process that collects
tests."""


def run(kind, pairs, folder, *, epochs=3, **host):
    told = []
    task = getattr(importlib.import_module(f"examples.{kind}_task"), TASKS[kind])(
        labels=LABELS, description="by another trainer", options=Options()
    )
    asked = TrainRequest(
        model="segmentation", pairs=pairs, folder=folder / "run", params={**SMALL, "max_epochs": epochs}
    )
    return task.train(asked, LocalHost(folder / "host", device=CPU, on_progress=told.append, **host)), told


@pytest.mark.parametrize("kind", TASKS)
def test_it_learns_reports_and_makes_a_model_that_serves(kind, pairs, tmp_path):
    result, told = run(kind, pairs, tmp_path, epochs=12)
    assert result.metric > 0.5
    assert told[-1].iteration == told[-1].iterations == result.stats["total_iterations"]
    assert told[-1].loss < told[0].loss
    card = dict(result.card)
    SegmentationTask.from_version(ModelVersion(name="x", version="v1", weights=result.weights, card=card)).load()


@pytest.mark.parametrize("kind", TASKS)
def test_it_stops_before_the_next_iteration(kind, pairs, tmp_path):
    calls = itertools.count()
    result, told = run(kind, pairs, tmp_path, stop=lambda: next(calls) >= 2)
    assert result is None
    assert len(told) == 2


def test_lightning_goes_on_from_its_checkpoint(pairs, tmp_path):
    calls = itertools.count()
    result, before = run("lightning", pairs, tmp_path, stop=lambda: next(calls) >= 8)
    assert result is None
    result, after = run("lightning", pairs, tmp_path)
    assert result is not None
    assert 1 < after[0].iteration <= before[-1].iteration + 1
