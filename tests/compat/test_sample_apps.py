"""MONAI Label's own apps, byte for byte as its wheel brings them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from rayapp.app.app_loader import app_class
from rayapp.inference.infer_task import Prompts
from rayapp.serving.catalogue import Catalogue
from rayapp.training.train_task import Pair, TrainRequest
from tests.compat.conftest import AFFINE, ask, image, save
from tests.inference import zoo
from tests.training.worker import Worker

SAMPLES = Path(sys.prefix) / "monailabel" / "sample-apps"
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs MONAI Label's wheel, without its dependencies")


@pytest.fixture
def sample(tmp_path):
    """A copy of a sample app."""

    def sample(name):
        return Path(shutil.copytree(SAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")))

    return sample


@pytest.fixture
def radiology(sample, settings):
    """The settings that serve the radiology app, with weights of its networks as they are initialised."""
    folder = sample("radiology")

    def radiology(*models):
        torch.manual_seed(0)
        conf = {"models": ",".join(models), "use_pretrained_model": "false", "skip_scoring": "false"}
        chosen = settings(folder, **conf)
        for config in app_class(chosen).of(chosen)._ported.models.values():
            Path(config.path[1]).parent.mkdir(exist_ok=True)
            torch.save({"model": config.network.state_dict()}, config.path[1])
        return chosen

    return radiology


def test_radiology_without_weights_names_the_models_and_serves_the_rest(sample, settings, store):
    conf = {"models": "segmentation_spleen,deepgrow_2d", "use_pretrained_model": "false"}
    described = Catalogue(settings(sample("radiology"), **conf), store).describe()
    assert set(described["models"]) == {"Histogram+GraphCut", "GMM+GraphCut"}
    assert set(described["trainers"]) == {"segmentation_spleen", "deepgrow_2d"}
    assert "segmentation_spleen.pt" in described["broken_models"]["segmentation_spleen"]


def test_radiology_segments_and_clicks(radiology, volume, store):
    settings = radiology("segmentation_spleen", "deepgrow_2d")
    described = Catalogue(settings, store).describe()
    assert described["models"]["segmentation_spleen"]["labels"] == {"spleen": 1}
    assert {"last", "dice", "sum"} <= {*described["strategies"], *described["scoring"]}
    app = app_class(settings).of(settings)
    app.load_all()
    assert ask(app.task("segmentation_spleen"), volume).labels.shape == volume.shape
    click = Prompts(clicks={"foreground": [(2, 5, 2)]}, label="spleen")
    labels = ask(app.task("deepgrow_2d"), volume, click).labels
    assert set(np.nonzero(labels)[2]) <= {2}


def test_radiology_trains_an_epoch(radiology, store, tmp_path):
    settings = radiology("segmentation_spleen")
    large = np.zeros((24, 18, 12), np.float32)
    large[4:15, 3:9, 2:6] = 100
    for name in ("left", "right"):
        nibabel.Nifti1Image(large, AFFINE).to_filename(tmp_path / "studies" / f"{name}.nii.gz")
        store.refresh()
        save(store, name, (large > 0).astype(np.uint8), {"spleen": 1})
    pairs = [Pair.of(entry) for entry in store.datalist(immutable=True)]
    params = {"max_epochs": 1, "val_split": 0.5, "dataset": "Dataset"}
    request = TrainRequest(model="segmentation_spleen", pairs=pairs, folder=tmp_path / "run", params=params)
    trainer = app_class(settings).of(settings).trainers["segmentation_spleen"]
    trainer._task.roi_size = (32, 32, 32)
    result = trainer.train(request, Worker(0, 1))
    catalogue = Catalogue(settings, store)
    version = catalogue.publish("segmentation_spleen", result.weights, result.card, request="job")
    assert catalogue.describe()["models"]["segmentation_spleen"]["version"] == version.version


def test_monaibundle_serves_a_bundle(sample, settings, store, volume):
    folder = sample("monaibundle")
    zoo.bundle(
        folder / "model" / "spleen",
        network=zoo.BRIGHTER,
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT),
        post=zoo.compose(zoo.ARGMAX, zoo.SAVE),
        weights=zoo.threshold(3.0),
    )
    chosen = settings(folder, models="spleen,gone")
    described = Catalogue(chosen, store).describe()
    assert set(described["models"]) == {"spleen"}
    assert "gone" in described["broken_models"]
    app = app_class(chosen).of(chosen)
    app.load_all()
    assert np.array_equal(ask(app.task("spleen"), volume).labels, image() > 3)
