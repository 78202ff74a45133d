"""A bundle is trained by its own train config on the pairs that it is handed, and serves what it learnt."""

import itertools
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.reader import read_segmentation, read_volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.models.bundle_folder import BundleFolder
from rayapp.models.store import ModelVersion
from rayapp.training.bundle_train import BundleTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.train_task import Pair, TrainRequest
from tests.inference import zoo
from tests.training.blobs import LABELS

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
    return BundleFolder(root, "blobs")


@pytest.fixture(autouse=True)
def undetermined():
    """As the configs leave MONAI determined, and this process is others' too."""
    yield
    from monai.utils import set_determinism

    set_determinism(None)


def run(folder, pairs, tmp_path, *, epochs, baseline=None, params=None, **host):
    told = []
    asked = TrainRequest(
        model="blobs",
        pairs=pairs,
        folder=tmp_path / "run",
        params={"max_epochs": epochs, **(params or {})},
        parent=baseline,
        baseline=baseline,
    )
    host = LocalHost(tmp_path / "host", device=torch.device("cpu"), on_progress=told.append, **host)
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


def test_a_stop_during_the_final_evaluation_ends_the_run_without_a_result(folder, pairs, tmp_path):
    asked = itertools.count()
    # An epoch is three iterations, and the bundle validates only after every second epoch.
    result, told = run(folder, pairs, tmp_path, epochs=1, stop=lambda: next(asked) >= 3)
    assert (result, told[-1].iteration) == (None, 3)


@pytest.mark.parametrize(
    "params", [{"val_split": 1}, {"val_split": -0.5}, {"val_split": "half"}, {"max_epochs": 1.5}, {"pretrained": "no?"}]
)
def test_an_option_with_a_value_that_is_not_allowed_is_refused_by_name(folder, pairs, tmp_path, params):
    with pytest.raises(BadRequest, match=next(iter(params))):
        run(folder, pairs, tmp_path, epochs=1, params=params)


def test_what_it_cannot_train_with_is_told(folder, pairs, tmp_path):
    with pytest.raises(BadRequest, match="at least two"):
        run(folder, pairs[:1], tmp_path, epochs=1)
    with pytest.raises(BadRequest, match="max_epochs"):
        run(folder, pairs, tmp_path, epochs=0)
    assert np.isfinite(BundleTrainTask(folder).info.config["max_epochs"])
    (folder.root / "configs" / "train.json").write_text("{}")
    with pytest.raises(ModelBroken, match="no train#trainer"):
        BundleTrainTask(folder)


LOOKING = """
import torch
from monai.losses import DiceLoss

class Looking(DiceLoss):
    def __init__(self, to):
        super().__init__(sigmoid=True)
        self.to_file = to
    def forward(self, found, truth):
        torch.save(torch.as_tensor(truth).as_subclass(torch.Tensor), self.to_file)
        return super().forward(found, truth)
"""
BRATS = ("Tumor core", "Whole tumor", "Enhancing tumor")


def brats_config(**of_step):
    """As the zoo's brats_mri_segmentation writes it: three channels of the labels, and epochs that are named once."""
    config = train_config()
    steps = [
        {"_target_": "LoadImaged", "keys": BOTH},
        {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label", **of_step},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        SCALE,
        {"_target_": "DivisiblePadd", "keys": BOTH, "k": 2},
    ]
    config["train"]["preprocessing_transforms"] = steps
    config["train"]["preprocessing"] = {"_target_": "Compose", "transforms": "$@train#preprocessing_transforms + []"}
    config["validate"]["preprocessing"] = {"_target_": "Compose", "transforms": "$@train#preprocessing_transforms"}
    config["loss"] = {"_target_": "scripts.own.Looking", "to": "$@bundle_root + '/seen.pt'"}
    config |= {"epochs": 300, "passes": "@epochs"}
    config["train"]["trainer"]["max_epochs"] = "@passes"
    config["train"]["dataloader"]["batch_size"] = 1
    config["scheduler"] = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "optimizer": "@optimizer",
                           "T_max": "@epochs"}  # fmt: skip
    for part_of in ("train", "validate"):
        config[part_of]["postprocessing"]["transforms"] = [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        ]
    return config


def nested(folder):
    """An image and a label as the server saves it: 1 the core, 2 the rim of the whole, 3 what enhances."""
    inside = np.zeros((14, 18, 12), np.uint8)
    inside[2:12, 3:15, 2:10] = 2
    inside[3:9, 5:13, 3:8] = 1
    inside[4:7, 6:10, 4:7] = 3
    paths = []
    for number in range(2):
        image, label = folder / f"mr_{number}.nii.gz", folder / f"mr_{number}_label.nii.gz"
        nibabel.Nifti1Image(inside.astype(np.float32), np.eye(4)).to_filename(image)
        nibabel.Nifti1Image(inside, np.eye(4)).to_filename(label)
        paths.append(Pair(image=image, label=label))
    return inside, paths


@pytest.mark.parametrize("of_step", [{}, {"et_label": 3}], ids=["BraTS 2018", "BraTS 2023"])
def test_a_brats_bundle_is_shown_the_enhancing_tumour_of_labels_that_are_saved_here(tmp_path, of_step):
    root = zoo.bundle(
        tmp_path / "brats",
        network=NETWORK,
        pre=zoo.compose(zoo.LOAD, [SCALE]),
        post=zoo.compose([{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}]),
        channels=BRATS,
        scripts=LOOKING,
    )
    zoo.save(root, ConfigParser(NETWORK).get_parsed_content(""))
    (root / "configs" / "train.json").write_text(json.dumps(brats_config(**of_step)))
    folder = BundleFolder(root, "brats")
    assert BundleTask(folder).info.labels == {name.lower(): value for value, name in enumerate(BRATS, start=1)}
    assert BundleTrainTask(folder).info.config["max_epochs"] == 300
    inside, pairs = nested(tmp_path)
    result, told = run(folder, pairs, tmp_path, epochs=2)
    assert (told[-1].epochs, told[-1].iteration, result.stats["epoch"]) == (2, 2, 2)
    seen = torch.load(root / "seen.pt", weights_only=True)[0].numpy() > 0
    core, whole, enhancing = seen
    assert np.array_equal(whole, inside > 0)
    assert np.array_equal(core, (inside == 1) | (inside == 3))
    assert np.array_equal(enhancing, inside == 3)


def test_a_config_that_sends_its_reader_round_in_circles_is_told(folder):
    config = train_config()
    config |= {"a": "@b", "b": "@a"}
    config["train"]["trainer"]["max_epochs"] = "@a"
    (folder.root / "configs" / "train.json").write_text(json.dumps(config))
    with pytest.raises(ModelBroken, match="max_epochs"):
        BundleTrainTask(folder)
