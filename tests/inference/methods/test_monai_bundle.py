"""Bundles in the zoo's layout are served as they are, and what they find lies where it was found."""

import json
import sys

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.models.bundle_folder import BundleFolder
from tests.inference import zoo
from tests.inference.grids import affine_of
from tests.inference.methods.bundles import AT, SOME, SPACING, UNET, ask, brats, task_of, volumes


@pytest.mark.parametrize("post", ["author inverts", "nobody inverts", "inverted before argmax"])
def test_a_mask_comes_back_to_the_voxel_whatever_way_the_image_lies(tmp_path, post):
    posts = {
        "author inverts": (zoo.SOFTMAX, zoo.ARGMAX, zoo.INVERT, zoo.SAVE),
        "nobody inverts": (zoo.SOFTMAX, zoo.ARGMAX, zoo.SAVE),
        "inverted before argmax": (zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX, zoo.SAVE),
    }
    pre = zoo.compose(zoo.LOAD, zoo.ORIENT)
    root = zoo.bundle(
        tmp_path / "b", network=zoo.BRIGHTER, pre=pre, post=zoo.compose(*posts[post]), weights=zoo.threshold(AT)
    )
    task = task_of(root)
    for volume in volumes():
        assert np.array_equal(ask(task, volume).labels, volume.array[0] > AT)
    assert not (root / "eval").exists()
    assert (task.info.labels, task.info.type, task.version) == ({"spleen": 1}, "segmentation", "bundle 0.5.6")


RIGHT = """
import torch
class RightHalf(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.way = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        ramp = torch.linspace(-1, 1, x.shape[2])[None, None, :, None, None].expand(x.shape)
        return torch.cat([torch.zeros_like(x), ramp * self.way], 1)
"""


def test_the_network_sees_the_axes_that_the_bundle_asks_for_and_scripts_stay_the_bundles_own(tmp_path):
    roots = []
    for name, way in (("right", 1.0), ("left", -1.0)):
        root = zoo.bundle(
            tmp_path / name,
            network={"_target_": "scripts.own.RightHalf"},
            pre=zoo.compose(zoo.LOAD, zoo.ORIENT),
            post=zoo.compose(zoo.ARGMAX, zoo.SAVE),
            inferer={"_target_": "SimpleInferer"},
            scripts=RIGHT.replace("* self.way", f"* self.way * {way}"),
        )
        torch.save({"way": torch.ones(1)}, root / "models" / "model.pt")
        roots.append(root)
    tasks = [task_of(root) for root in roots]
    assert not [name for name in sys.modules if name.split(".")[0] == "scripts"]
    for volume in volumes((8, 10, 6))[::2]:
        i, j, k = np.indices(volume.shape)
        x = np.tensordot(volume.affine[0, :3], np.stack([i, j, k]), 1)
        right = x > x.mean()  # RAS: x grows to the patient's right
        assert np.array_equal(ask(tasks[0], volume).labels, right)
        assert np.array_equal(ask(tasks[1], volume).labels, ~right)


def test_resampled_and_cropped_masks_lie_on_the_structure(tmp_path):
    pre = zoo.compose(
        zoo.LOAD,
        zoo.ORIENT,
        [
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.0, 1.0, 1.0]},
            {"_target_": "CropForegroundd", "keys": "@image_key", "source_key": "@image_key", "margin": 2},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100, "b_min": 0, "b_max": 1},
        ],
    )
    array = np.zeros((1, 34, 40, 20), np.float32)
    array[0, 3:29, 7:37, 4:14] = 100.0
    for number, post in enumerate([(zoo.ARGMAX,), (zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX)]):
        root = zoo.bundle(
            tmp_path / str(number), network=zoo.BRIGHTER, pre=pre, post=zoo.compose(*post), weights=zoo.threshold(0.5)
        )
        task = task_of(root)
        for orientation in SOME:
            volume = Volume(array=array, affine=affine_of(orientation, SPACING, 17.0))
            labels, truth = ask(task, volume).labels, array[0] > 50
            assert labels.shape == truth.shape
            assert 2 * (labels * truth).sum() / (labels.sum() + truth.sum()) > 0.93
            away = (np.argwhere(labels).mean(0) - np.argwhere(truth).mean(0)) * SPACING
            assert np.abs(away).max() < 0.5  # mm: half a voxel of the network's


DYNUNET = {
    "_target_": "DynUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
    "norm_name": "instance",
    "deep_supervision": False,
}
SEGRESNET = {"_target_": "SegResNet", "in_channels": 4, "out_channels": 3, "init_filters": 4, "blocks_down": [1, 1],
             "blocks_up": [1], "norm": "instance"}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "form"),
    [(UNET, "pt"), (UNET, "nested"), (UNET, "ts"), (UNET, "yaml"), (DYNUNET, "pt")],
    ids=["UNet", "UNet in a checkpoint", "UNet in TorchScript", "UNet and YAML", "DynUNet"],
)
def test_networks_and_forms_of_weights_give_what_the_network_itself_gives(tmp_path, network, form):
    pre = zoo.compose(zoo.LOAD, zoo.ORIENT, [{"_target_": "NormalizeIntensityd", "keys": "image"}])
    root = zoo.bundle(
        tmp_path / "b", network=network, pre=pre, post=zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX), form=form
    )
    task = task_of(root)
    array = zoo.speckled((32, 32, 32))
    labels = ask(task, Volume(array=array, affine=np.eye(4))).labels
    image = torch.from_numpy((array - array.mean()) / array.std())[None]
    with torch.no_grad():
        wanted = task.components.network(image)[0].argmax(0).numpy()
    assert 0 < wanted.mean() < 1
    assert (labels != wanted).mean() < 0.001


def test_four_channels_go_in_and_channels_without_background_are_labels_from_one(tmp_path):
    root = zoo.bundle(
        tmp_path / "brain",
        network=SEGRESNET,
        pre=zoo.compose(zoo.LOAD[:1], [{"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}]),
        post=zoo.compose(
            [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
            zoo.INVERT,
            [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}],
        ),
        channels=("Tumor core", "Whole tumor", "Enhancing tumor"),
        inputs=4,
        inferer={"_target_": "SimpleInferer"},
    )
    task = task_of(root)
    assert task.info.labels == {"tumor core": 1, "whole tumor": 2, "enhancing tumor": 3}
    array = zoo.speckled((16, 8, 24), channels=5)
    labels = ask(task, Volume(array=array, affine=affine_of(SOME[1], SPACING, 5.0))).labels
    inputs = torch.from_numpy(
        (array[:4] - array[:4].mean((1, 2, 3), keepdims=True)) / array[:4].std((1, 2, 3), keepdims=True)
    )
    with torch.no_grad():
        on = task.components.network(inputs[None])[0].numpy() > 0
    wanted = np.zeros(on.shape[1:], np.uint8)
    for channel in sorted(range(3), key=lambda channel: -on[channel].sum()):
        wanted[on[channel]] = channel + 1
    assert len(np.unique(wanted)) > 2
    assert (labels != wanted).mean() < 0.001
    with pytest.raises(BadRequest, match="needs 4 channels; this image has 1"):
        task.prepare(Volume(array=array[:1], affine=np.eye(4)))


def test_regions_within_each_other_are_all_seen_in_one_label_map(tmp_path):
    task = task_of(brats(tmp_path / "brats"))
    for volume in volumes():
        x = volume.array[0]
        wanted = np.where(x > 0.7, 3, np.where(x > 0.5, 1, np.where(x > 0.2, 2, 0)))
        assert set(np.unique(wanted)) == {0, 1, 2, 3}
        assert np.array_equal(ask(task, volume).labels, wanted)


def test_probabilities_of_regions_within_each_other_add_up_and_name_the_label_map(tmp_path):
    task = task_of(brats(tmp_path / "brats"))
    x = zoo.speckled()
    likely = task.probabilities(torch.from_numpy(x)[None])[0].numpy()
    inside = 1 / (1 + np.exp(-8 * (x[0] - np.array([0.5, 0.2, 0.7])[:, None, None, None])))
    assert likely.shape == (4, *x.shape[1:])
    assert np.allclose(likely.sum(0), 1, atol=1e-6)
    for value, wanted in {0: 1 - inside[1], 1: inside[0] - inside[2], 2: inside[1] - inside[0], 3: inside[2]}.items():
        assert np.allclose(likely[value], wanted, atol=1e-5)


def test_labels_may_be_called_label_def(tmp_path):
    root = zoo.bundle(tmp_path / "b", network=zoo.BRIGHTER, pre=zoo.compose(zoo.LOAD), post=zoo.compose(zoo.ARGMAX))
    metadata = zoo.metadata(("background", "Liver"))
    found = metadata["network_data_format"]["outputs"]["pred"]
    found["label_def"] = found.pop("channel_def")
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    assert BundleTask(BundleFolder(root, "b")).info.labels == {"liver": 1}
