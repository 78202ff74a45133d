"""A bundle is trained by its own train config on the pairs that it is handed, and serves what it learnt."""

import itertools
import json

import numpy as np
import pytest
import torch
from blobs import LABELS

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.reader import read_segmentation, read_volume
from rayapp.inference.bundle import BundleTask
from rayapp.inference.task import Prompts
from rayapp.models.bundle import BundleFolder
from rayapp.models.store import ModelVersion
from rayapp.training.bundle import BundleTrainTask
from rayapp.training.local import LocalHost
from rayapp.training.task import TrainRequest
from tests.inference import zoo

pytest.importorskip("ignite")
BOTH = ["image", "label"]
NETWORK = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8, 16],
           "strides": [2], "num_res_units": 1}  # fmt: skip
SCALE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 250, "b_min": 0, "b_max": 1}
FROM = "$monai.handlers.from_engine(['pred', 'label'])"


def part(transforms, shuffle, **engine):
    return {
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
            "transform": f"@{'train' if shuffle else 'validate'}#preprocessing",
            "progress": False,
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": f"@{'train' if shuffle else 'validate'}#dataset",
            "batch_size": 2 if shuffle else 1,
            "shuffle": shuffle,
            "num_workers": 4,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 3}
            ],
        },
        **engine,
    }


def train_config():
    load = [
        {"_target_": "LoadImaged", "keys": BOTH, "reader": "ITKReader"},
        {"_target_": "EnsureChannelFirstd", "keys": BOTH},
        {"_target_": "Orientationd", "keys": BOTH, "axcodes": "RAS"},
        SCALE,
    ]
    crop = [{"_target_": "RandSpatialCropd", "keys": BOTH, "roi_size": [16, 16, 16], "random_size": False}]
    pad = [{"_target_": "DivisiblePadd", "keys": BOTH, "k": 2}]
    saver = {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}}
    return {
        "bundle_root": "/workspace/nowhere",
        "ckpt_dir": "$@bundle_root + '/models'",
        "images": "$list(sorted(glob.glob('/workspace/*.nii.gz')))",
        "labels": "$list(sorted(glob.glob('/workspace/*.nii.gz')))",
        "imports": ["$import glob"],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
        "train": part(
            [*load, *crop],
            True,
            handlers=[
                {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": 2},
                {"_target_": "StatsHandler", "tag_name": "train_loss"},
            ],
            trainer={
                "_target_": "SupervisedTrainer",
                "max_epochs": 300,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
                "amp": True,
            },
        ),
        "validate": part(
            [*load, *pad],
            False,
            handlers=[saver],
            key_metric={
                "val_mean_dice": {"_target_": "MeanDice", "include_background": False, "output_transform": FROM}
            },
            evaluator={
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
                "amp": True,
            },
        ),
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
    }


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    root = zoo.bundle(
        tmp_path / "blobs",
        network=NETWORK,
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT, [SCALE, {"_target_": "DivisiblePadd", "keys": "image", "k": 2}]),
        post=zoo.compose(zoo.ARGMAX, zoo.INVERT),
        channels=("background", *LABELS),
        inferer={"_target_": "SimpleInferer"},
    )
    (root / "configs" / "train.json").write_text(json.dumps(train_config()))
    yield BundleFolder(root, "blobs")
    from monai.utils import set_determinism

    set_determinism(None)


def run(folder, pairs, tmp_path, *, epochs, baseline=None, **host):
    told = []
    asked = TrainRequest(
        model="blobs",
        pairs=pairs,
        folder=tmp_path / "run",
        params={"max_epochs": epochs},
        parent=baseline,
        baseline=baseline,
    )
    host = LocalHost(tmp_path / "host", device=torch.device("cpu"), told=told.append, **host)
    return BundleTrainTask(folder).train(asked, host), told


def test_it_learns_from_the_pairs_and_the_bundle_serves_what_it_learnt(folder, pairs, tmp_path):
    result, told = run(folder, pairs, tmp_path, epochs=14)
    assert result.metric > 0.4
    assert result.baseline is None
    assert (told[-1].epoch, told[-1].iteration, told[-1].best) == (14, told[-1].iterations, result.metric)
    assert told[-1].loss < told[0].loss
    assert result.card["labels"] == LABELS
    assert not list(folder.root.rglob("*model_*.pt"))
    task = BundleTask(folder, weights=result.weights, version="v1")
    found, own = [], BundleTask(folder)
    for served in (own, task):
        volume = read_volume(pairs[0].image, max_bytes=1 << 20)
        truth = read_segmentation(pairs[0].label, max_bytes=1 << 20).array
        labels = served.predict(served.prepare(volume), Prompts(), {}).labels
        found.append(2 * ((labels == 1) & (truth == 1)).sum() / max(1, (labels == 1).sum() + (truth == 1).sum()))
    assert found[1] > max(0.4, found[0])
    version = ModelVersion(name="blobs", version="v1", weights=result.weights, card=result.card)
    again, _ = run(folder, pairs, tmp_path / "again", epochs=1, baseline=version)
    assert again.baseline == pytest.approx(result.metric, abs=0.02)  # weights are kept as float16


def test_it_stops_before_the_next_iteration_and_goes_on_from_its_checkpoint(folder, pairs, tmp_path):
    calls = itertools.count()
    result, before = run(folder, pairs, tmp_path, epochs=3, stop=lambda: next(calls) >= 5)
    assert (result, before[-1].iteration) == (None, 5)
    result, after = run(folder, pairs, tmp_path, epochs=3)
    assert after[0].iteration == 4  # an epoch is three iterations, and the first was kept
    assert after[-1].iteration == after[-1].iterations
    assert result.metric is not None


def test_what_it_cannot_train_with_is_told(folder, pairs, tmp_path):
    with pytest.raises(BadRequest, match="at least two"):
        run(folder, pairs[:1], tmp_path, epochs=1)
    with pytest.raises(BadRequest, match="max_epochs"):
        run(folder, pairs, tmp_path, epochs=0)
    assert np.isfinite(BundleTrainTask(folder).info.config["max_epochs"])
    (folder.root / "configs" / "train.json").write_text("{}")
    with pytest.raises(ModelBroken, match="no train#trainer"):
        BundleTrainTask(folder)
